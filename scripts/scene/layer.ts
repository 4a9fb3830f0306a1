import sharp from "sharp";
import { HEIGHT, WIDTH } from "./camera.ts";
import { flashCone, fleckAt, infrared, type Light, type LightTable } from "./light.ts";
import { type Station, TILE } from "./station.ts";

/** A rasterized shape with its place in the frame; straight RGBA. */
export interface Layer {
  left: number;
  top: number;
  width: number;
  height: number;
  pixels: Uint8Array;
}

/** Rasterizes SVG content given in frame pixels, cut to the frame; undefined where all is outside. */
export async function rasterize(
  content: string,
  box: { left: number; top: number; right: number; bottom: number },
): Promise<Layer | undefined> {
  const left = Math.max(0, Math.floor(box.left));
  const top = Math.max(0, Math.floor(box.top));
  const width = Math.min(WIDTH, Math.ceil(box.right)) - left;
  const height = Math.min(HEIGHT, Math.ceil(box.bottom)) - top;
  if (width < 2 || height < 2) return undefined;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="${left} ${top} ${width} ${height}">${content}</svg>`;
  const pixels = await sharp(Buffer.from(svg)).ensureAlpha().raw().toBuffer();
  return { left, top, width, height, pixels };
}

/** What shading an animal needs beside its pixels. */
export interface Shading {
  station: Station;
  light: Light;
  table: LightTable;
  code: number;
  /** Frame pixel of the animal's ground point; its fur is anchored there. */
  anchor: readonly [x: number, y: number];
  /** Pixels a withers height: how broad roundness and fur are. */
  scale: number;
}

/**
 * Lights an animal in place: round by normals from its blurred outline, furry by streaks, then
 * under the same light, haze or flash as the ground it stands on.
 */
export function shadeAnimal(layer: Layer, shading: Shading): void {
  const { width, height, pixels } = layer;
  const { station, light, table, code, anchor } = shading;
  const radius = Math.max(2, Math.round(shading.scale * 0.09));
  const bulk = blurredAlpha(layer, radius);
  const steep = radius * 1.1;
  const [ax, ay] = anchor;
  // Fur streaks scale with the animal, so that a near one is not covered in dots.
  const streak = 60 / Math.max(40, shading.scale);
  for (let y = 0; y < height; y++) {
    const frameY = layer.top + y;
    const above = Math.max(0, y - 1) * width;
    const below = Math.min(height - 1, y + 1) * width;
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const at = i * 4;
      if (pixels[at + 3] === 0) continue;
      const frameX = layer.left + x;
      const gx =
        (bulk[y * width + Math.min(width - 1, x + 1)]! - bulk[y * width + Math.max(0, x - 1)]!) *
        steep;
      const gy = (bulk[below + x]! - bulk[above + x]!) * steep;
      const norm = 1 / Math.sqrt(1 + gx * gx + gy * gy);
      const u = Math.floor((frameX - ax) * streak * 1.1 + (frameY - ay) * 0.25) & (TILE - 1);
      const v = Math.floor((frameY - ay) * streak * 4) & (TILE - 1);
      const fur = 1 + 0.5 * (station.noise[v * TILE + u]! - 0.5);
      if (light.night) {
        const shade = (0.35 + 0.65 * norm) * fur * flashCone(frameX, frameY) * table.gain[code]!;
        const gray =
          infrared(pixels[at]!, pixels[at + 1]!, pixels[at + 2]!) * shade + table.add[code * 3]!;
        const level = Math.min(255, gray);
        pixels[at] = level;
        pixels[at + 1] = level;
        pixels[at + 2] = level;
        continue;
      }
      // Sky light from above, a little from the front; the outline's gradient points inward.
      const lambert = (gx * 0.25 + gy * 0.85 + 0.5) * norm;
      const fleck = light.fleck > 0 ? fleckAt(station, light, frameX, frameY) : 1;
      const shade = (0.62 + 0.62 * Math.max(-0.2, lambert)) * fur * fleck;
      for (let k = 0; k < 3; k++) {
        const value = pixels[at + k]! * shade * light.sun[k]! * table.gain[code]!;
        pixels[at + k] = Math.min(255, value + table.add[code * 3 + k]!);
      }
    }
  }
}

/** Alpha in [0, 1] averaged over squares of side 2·radius + 1, twice (nearly a Gaussian). */
function blurredAlpha(layer: Layer, radius: number): Float32Array {
  const { width, height, pixels } = layer;
  let from = new Float32Array(width * height);
  let to = new Float32Array(width * height);
  for (let i = 0; i < from.length; i++) from[i] = pixels[i * 4 + 3]! / 255;
  for (let pass = 0; pass < 2; pass++) {
    boxLines(from, to, height, width, width, 1, radius);
    [from, to] = [to, from];
    boxLines(from, to, width, height, 1, width, radius);
    [from, to] = [to, from];
  }
  return from;
}

/** Running mean along `lines` lines of `length` values, `step` apart within a line. */
function boxLines(
  from: Float32Array,
  to: Float32Array,
  lines: number,
  length: number,
  lineStep: number,
  step: number,
  radius: number,
): void {
  const share = 1 / (2 * radius + 1);
  for (let line = 0; line < lines; line++) {
    const start = line * lineStep;
    let sum = 0;
    for (let i = 0; i < Math.min(radius, length); i++) sum += from[start + i * step]!;
    for (let i = 0; i < length; i++) {
      if (i + radius < length) sum += from[start + (i + radius) * step]!;
      if (i - radius - 1 >= 0) sum -= from[start + (i - radius - 1) * step]!;
      to[start + i * step] = sum * share;
    }
  }
}

/** Blurs a layer sideways over `length` pixels, as movement does during the exposure. */
export function smear(layer: Layer, length: number): Layer {
  const taps = Math.min(24, Math.round(length));
  if (taps < 2) return layer;
  const { width, height } = layer;
  const pixels = new Uint8Array(layer.pixels.length);
  for (let y = 0; y < height; y++) {
    const sums = [0, 0, 0, 0] as [number, number, number, number];
    const change = (x: number, sign: 1 | -1) => {
      if (x < 0 || x >= width) return;
      const at = (y * width + x) * 4;
      const alpha = layer.pixels[at + 3]! * sign;
      for (let k = 0; k < 3; k++) sums[k]! += layer.pixels[at + k]! * alpha;
      sums[3] += alpha;
    };
    const ahead = taps >> 1;
    for (let x = 0; x < ahead; x++) change(x, 1);
    for (let x = 0; x < width; x++) {
      change(x + ahead, 1);
      change(x + ahead - taps, -1);
      if (sums[3] <= 0) continue;
      const at = (y * width + x) * 4;
      for (let k = 0; k < 3; k++) pixels[at + k] = sums[k]! / sums[3];
      pixels[at + 3] = sums[3] / taps;
    }
  }
  return { ...layer, pixels };
}

/**
 * Lays a layer over a frame, behind whatever of the station stands nearer.
 *
 * @param frame `HEIGHT × WIDTH × 3`; changed.
 * @param hide depth code of the layer, or undefined to cover all; `groundRow` is the row where it
 *   stands, at which litter and grass swallow its feet a little.
 */
export function composite(
  frame: Uint8ClampedArray,
  layer: Layer,
  hide?: { station: Station; code: number; groundRow: number; softPx: number },
): void {
  for (let y = 0; y < layer.height; y++) {
    const frameY = layer.top + y;
    for (let x = 0; x < layer.width; x++) {
      let alpha = layer.pixels[(y * layer.width + x) * 4 + 3]! / 255;
      if (alpha === 0) continue;
      const i = frameY * WIDTH + layer.left + x;
      if (hide) {
        // Two codes (4 % of the distance) of play: legs reach a little in front of the body.
        if (hide.station.depth[i]! < hide.code - 2 && frameY < hide.groundRow - 1) continue;
        const above = hide.groundRow - frameY;
        if (above < hide.softPx) {
          const grain = hide.station.noise[((layer.left + x) * 3 * TILE + 7) & (TILE * TILE - 1)]!;
          if (above < hide.softPx * (grain * 1.6 - 0.3)) alpha *= 0.25;
        }
      }
      const at = i * 3;
      const from = (y * layer.width + x) * 4;
      for (let k = 0; k < 3; k++) {
        frame[at + k] = frame[at + k]! * (1 - alpha) + layer.pixels[from + k]! * alpha;
      }
    }
  }
}

/**
 * Darkens the ground below an animal at depth `code`: a soft ellipse around (x, y), but not what
 * stands nearer.
 *
 * @param frame `HEIGHT × WIDTH × 3`; changed.
 */
export function castShadow(
  frame: Uint8ClampedArray,
  station: Station,
  code: number,
  at: { x: number; y: number; halfWidth: number; halfHeight: number; strength: number },
): void {
  const top = Math.max(0, Math.floor(at.y - at.halfHeight));
  const bottom = Math.min(HEIGHT - 1, Math.ceil(at.y + at.halfHeight));
  const left = Math.max(0, Math.floor(at.x - at.halfWidth));
  const right = Math.min(WIDTH - 1, Math.ceil(at.x + at.halfWidth));
  for (let y = top; y <= bottom; y++) {
    const dy = (y - at.y) / at.halfHeight;
    for (let x = left; x <= right; x++) {
      const dx = (x - at.x) / at.halfWidth;
      const r = dx * dx + dy * dy;
      if (r >= 1 || station.depth[y * WIDTH + x]! < code - 25) continue;
      const keep = 1 - at.strength * (1 - r);
      const i = (y * WIDTH + x) * 3;
      for (let k = 0; k < 3; k++) frame[i + k] = frame[i + k]! * keep;
    }
  }
}

/** Adds the glow of an eye that throws the flash back: a bright core and a faint halo. */
export function eyeshine(
  frame: Uint8ClampedArray,
  at: { x: number; y: number; radius: number; strength: number },
): void {
  const reach = Math.ceil(at.radius * 3);
  for (let y = Math.floor(at.y - reach); y <= at.y + reach; y++) {
    for (let x = Math.floor(at.x - reach); x <= at.x + reach; x++) {
      if (x < 0 || y < 0 || x >= WIDTH || y >= HEIGHT) continue;
      const r = Math.hypot(x - at.x, y - at.y) / at.radius;
      const glow = 255 * at.strength * (r < 1 ? 1 : Math.max(0, 1 - (r - 1) / 1.6) ** 2);
      const i = (y * WIDTH + x) * 3;
      for (let k = 0; k < 3; k++) frame[i + k] = Math.max(frame[i + k]!, glow);
    }
  }
}
