import { codeDistance, FOCAL_PX, HEIGHT, WIDTH } from "./camera.ts";
import type { Random } from "./random.ts";
import { type Station, TILE } from "./station.ts";

/** Light and air of one burst. */
export interface Light {
  night: boolean;
  /** Daylight on the ground, red, green and blue; unused at night. */
  sun: readonly [number, number, number];
  /** Color of the air, [0, 255]. */
  haze: readonly [number, number, number];
  /** Distance in meters at which the air hides 63 %. */
  hazeM: number;
  /** Strength of sun flecks through leaves, in [0, 1]. */
  fleck: number;
  fleckShift: number;
  /** Distance in meters at which the flash exposes well. */
  flashM: number;
  /** Standard deviation of the sensor's noise, in gray levels of 255. */
  grain: number;
  /** Length of the exposure in seconds. */
  exposureS: number;
  /** Wind, as the share of its height by which a blade of grass bends. */
  wind: number;
  tempC: number;
}

/** Weather and light by the hour of day, in [0, 24): bright, overcast, dim at dusk, or infrared. */
export function lightAt(hour: number, night: boolean, random: Random): Light {
  const noon = Math.cos(((hour - 13) / 24) * 2 * Math.PI);
  const base = {
    fleckShift: random.integer(0, TILE - 1),
    wind: random.range(0, 1) ** 2 * 0.35,
    tempC: Math.round(11 + 8 * noon + random.normal(0, 3)),
    flashM: random.range(2.6, 4.2),
  };
  if (night) {
    return {
      ...base,
      night,
      sun: [0, 0, 0],
      haze: [0, 0, 0],
      hazeM: random.chance(0.15) ? 14 : 200,
      fleck: 0,
      grain: random.range(4, 8),
      exposureS: random.range(1 / 60, 1 / 22),
    };
  }
  const overcast = random.chance(0.5);
  const dusk = Math.max(0, 1 - Math.max(0, Math.min(hour - 5, 21 - hour)) / 2.5);
  const level = random.range(0.82, 1.12) * (1 - 0.35 * dusk) * (overcast ? 0.92 : 1.05);
  const warmth = overcast ? random.range(-0.05, 0.02) : random.range(0, 0.09) + 0.1 * dusk;
  return {
    ...base,
    night,
    sun: [level * (1 + warmth), level, level * (1 - warmth)],
    haze: overcast ? [196, 204, 208] : [202, 206, 196],
    hazeM: random.chance(0.15) ? random.range(14, 25) : random.range(40, 110),
    fleck: overcast ? 0 : random.range(0.15, 0.6),
    grain: random.range(1.5, 3.5) + 3 * dusk,
    exposureS: random.range(1 / 250, 1 / 60),
  };
}

/** What light does at one distance: `value × gain + add` for each channel. */
export interface LightTable {
  gain: Float32Array;
  /** Three values a code. */
  add: Float32Array;
}

/** Gain and haze for each of the 256 depth codes. */
export function lightTable(light: Light): LightTable {
  const gain = new Float32Array(256);
  const add = new Float32Array(256 * 3);
  for (let code = 0; code < 256; code++) {
    const distance = codeDistance(code);
    if (light.night) {
      // Inverse square, softened near the camera by the exposure control and the sensor's curve.
      const flash = distance === Infinity ? 0 : (light.flashM / distance) ** 1.7;
      gain[code] = (1.9 * flash) / (1 + 0.95 * flash);
      const mist = light.hazeM < 100 ? 16 : 5;
      add.fill(mist, code * 3, code * 3 + 3);
      continue;
    }
    const hidden = distance === Infinity ? 0 : 1 - Math.exp(-distance / light.hazeM);
    gain[code] = 1 - hidden;
    for (let k = 0; k < 3; k++) add[code * 3 + k] = light.haze[k]! * hidden;
  }
  return { gain, add };
}

/** How bright the flash is at a pixel: a soft cone, weaker toward the corners. */
export function flashCone(x: number, y: number): number {
  const dx = (x - WIDTH / 2) / (WIDTH * 0.62);
  const dy = (y - HEIGHT * 0.56) / (HEIGHT * 0.72);
  return Math.max(0.12, 1 - 0.75 * (dx * dx + dy * dy));
}

/**
 * The infrared brightness of a color: plants shine in the near infrared, dark coats turn gray, and
 * all contrast is lower.
 */
export function infrared(r: number, g: number, b: number): number {
  return 34 + 0.3 * r + 0.5 * g + 0.02 * b;
}

/** Light through leaves at a pixel, around 1. */
export function fleckAt(station: Station, light: Light, x: number, y: number): number {
  // On the ground flecks lie flat; on what stands they are as high as wide.
  const tall = y < station.camera.horizonY + 40 ? 1 : 0;
  const u = ((x >> 1) + light.fleckShift) & (TILE - 1);
  const v = ((y >> tall) + (light.fleckShift << 1)) & (TILE - 1);
  const value = station.noise[v * TILE + u]!;
  const lit = Math.max(0, Math.min(1, (value - 0.44) * 5));
  return 1 + light.fleck * (lit - 0.45);
}

/** The station's background under the given light, `HEIGHT × WIDTH × 3`. */
export function lightStation(station: Station, light: Light): Uint8ClampedArray {
  const lit = new Uint8ClampedArray(WIDTH * HEIGHT * 3);
  const { gain, add } = lightTable(light);
  const { albedo, depth } = station;
  for (let y = 0; y < HEIGHT; y++) {
    for (let x = 0; x < WIDTH; x++) {
      const i = y * WIDTH + x;
      const code = depth[i]!;
      const at = i * 3;
      if (light.night) {
        const gray =
          infrared(albedo[at]!, albedo[at + 1]!, albedo[at + 2]!) * gain[code]! * flashCone(x, y) +
          add[code * 3]!;
        lit[at] = gray;
        lit[at + 1] = gray;
        lit[at + 2] = gray;
        continue;
      }
      const fleck = light.fleck > 0 && code < 255 ? fleckAt(station, light, x, y) : 1;
      for (let k = 0; k < 3; k++) {
        const value = albedo[at + k]! * light.sun[k]! * (k === 0 ? fleck : fleck * 0.99);
        lit[at + k] = value * gain[code]! + add[code * 3 + k]!;
      }
    }
  }
  return lit;
}

/** Pixels that a point moving sideways at `metersPerSecond` covers during the exposure. */
export function smearPx(light: Light, metersPerSecond: number, distanceM: number): number {
  return Math.abs(metersPerSecond) * light.exposureS * (FOCAL_PX / distanceM);
}
