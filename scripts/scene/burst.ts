import { createHash } from "node:crypto";
import sharp from "sharp";
import { drawBanner } from "./banner.ts";
import { depthCode, FOCAL_PX, groundRow, HEIGHT, WIDTH } from "./camera.ts";
import { varyCoat } from "./coat.ts";
import {
  castShadow,
  composite,
  eyeshine,
  type Layer,
  rasterize,
  shadeAnimal,
  smear,
} from "./layer.ts";
import {
  type Light,
  type LightTable,
  lightAt,
  lightStation,
  lightTable,
  smearPx,
} from "./light.ts";
import { type Tuft, tuftPaths } from "./plants.ts";
import type { Individual, Pose } from "./quadruped.ts";
import { createRandom, type Random } from "./random.ts";
import { type AnimalSpecies, SPECIES, type Species, type SpeciesPlan } from "./species.ts";
import { SCENE_HEIGHT, type Station } from "./station.ts";

/** One picture as a camera would have written it. */
export interface Frame {
  jpeg: Buffer;
  species: Species;
  burstId: string;
  /** From 1. */
  frameNumber: number;
  /** Camera-local, `YYYY-MM-DDTHH:MM:SS` without zone; EXIF DateTimeOriginal says the same. */
  capturedAt: string;
  night: boolean;
  /** How many animals were drawn into this frame. */
  animals: number;
}

/** What to draw. */
export interface BurstOptions {
  station: Station;
  species: Species;
  seed: number;
  /** Camera-local time of the first frame, `YYYY-MM-DDTHH:MM:SS`. */
  startTime: string;
  /** 3 to 5; drawn by lot when left out. */
  frames?: number;
  /** Infrared or color; by the hour when left out (color from 6 to 20 o'clock). */
  night?: boolean;
}

/** Software named in every frame's EXIF data: no drawn frame can pass for a photograph. */
const SOFTWARE = "taco-agent scene renderer";

/** One animal on its way through a burst. */
interface Visitor {
  plan: SpeciesPlan;
  individual: Individual;
  gait: Pose["gait"];
  distanceM: number;
  /** Where it is in the middle of the burst, and meters per second to the right. */
  middleX: number;
  speed: number;
  faces: 1 | -1;
  /** Share by which turning away from the side view shortens it. */
  shorten: number;
  heightM: number;
  phase: number;
  /** Head position of each frame. */
  heads: readonly number[];
}

/**
 * Draws a burst: the station under one light, with an animal that walks, stands or sits, or with
 * nothing but grass in the wind. The same options give the same bytes.
 *
 * @throws {RangeError} if the number of frames or the start time is none.
 */
export async function drawBurst(options: BurstOptions): Promise<Frame[]> {
  const { station, species, seed } = options;
  const random = createRandom(seed, station.seed, station.name, species, options.startTime);
  const frames = options.frames ?? random.integer(3, 5);
  if (!Number.isInteger(frames) || frames < 1 || frames > 20) {
    throw new RangeError(`frames: expected an integer from 1 to 20, got ${frames}`);
  }
  const startMs = parseCameraTime(options.startTime);
  const hour = (startMs / 3_600_000) % 24;
  const night = options.night ?? (hour < 6 || hour >= 20);
  const light = lightAt(hour, night, random);
  const table = lightTable(light);
  const background = lightStation(station, light);
  const visitors = species === "empty" ? [] : invite(species, station, frames, random);
  const burstId = createHash("sha256")
    .update(`${station.name}|${station.seed}|${species}|${seed}|${options.startTime}`)
    .digest("hex")
    .slice(0, 12);
  const quality = random.integer(55, 80);
  const drawn: Frame[] = [];
  for (let index = 0; index < frames; index++) {
    const capturedAt = new Date(startMs + index * 1000).toISOString().slice(0, 19);
    const picture = background.slice();
    for (const visitor of visitors) {
      await drawVisitor(picture, station, light, table, visitor, index, frames);
    }
    await drawForeground(picture, station, light, table, index);
    expose(picture, light, createRandom(seed, burstId, index, "grain"));
    drawBanner(picture, {
      station: station.name,
      capturedAt,
      frameNumber: index + 1,
      frames,
      tempC: light.tempC,
    });
    const jpeg = await encode(picture, capturedAt, station.name, quality);
    drawn.push({
      jpeg,
      species,
      burstId,
      frameNumber: index + 1,
      capturedAt,
      night,
      animals: visitors.length,
    });
  }
  return drawn;
}

/** The name under which a frame is saved: station, time, burst and frame number; sorts by time. */
export function frameName(station: Station, frame: Frame): string {
  const time = frame.capturedAt.replaceAll(/[-:]/g, "").replace("T", "-");
  const name = station.name.replaceAll(/[^\p{L}\p{N}-]/gu, "_");
  return `${name}_${time}_${frame.burstId}_${frame.frameNumber}.jpg`;
}

/** Milliseconds of a camera-local time, as if it were UTC. */
function parseCameraTime(time: string): number {
  const ms = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$/.test(time) ? Date.parse(`${time}Z`) : Number.NaN;
  if (Number.isNaN(ms)) {
    throw new RangeError(`startTime: expected YYYY-MM-DDTHH:MM:SS, got "${time}"`);
  }
  return ms;
}

/** Species that come in company, with how often. */
const COMPANY: Partial<Record<AnimalSpecies, number>> = {
  red_deer: 0.15,
  wild_boar: 0.25,
  pheasant: 0.1,
};

/** One animal, or two of a sociable species, far ones first. */
function invite(
  species: AnimalSpecies,
  station: Station,
  frames: number,
  random: Random,
): Visitor[] {
  const first = visitor(species, station, frames, random);
  if (!random.chance(COMPANY[species] ?? 0)) return [first];
  const second = visitor(species, station, frames, random);
  // They go the same way.
  const along = { ...second, faces: first.faces, speed: first.faces * Math.abs(second.speed) };
  return [first, along].sort((a, b) => b.distanceM - a.distanceM);
}

function visitor(
  species: AnimalSpecies,
  station: Station,
  frames: number,
  random: Random,
): Visitor {
  const plan = SPECIES[species];
  const heightM = plan.heightM * random.normal(1, 0.07);
  const [near, far] = plan.distanceM;
  // No nearer than where its feet are still above the banner.
  const nearest =
    (FOCAL_PX * station.camera.heightM) / (SCENE_HEIGHT - 12 - station.camera.horizonY);
  const distanceM = Math.max(nearest, near * (far / near) ** random.next());
  const gait = random.pick(plan.gaits);
  const faces = random.chance(0.5) ? 1 : -1;
  const pace = gait === "walk" ? random.range(0.35, 1) : gait === "bound" ? random.range(1, 2) : 0;
  const seconds = frames - 1;
  const travel = (plan.speed * pace * seconds * FOCAL_PX) / distanceM;
  // Long ways are cut so that the animal stays in the picture for most of the burst.
  const speed = plan.speed * pace * Math.min(1, (WIDTH * 0.62) / Math.max(1, travel));
  const heads: number[] = [];
  let head = random.chance(0.35) ? random.range(0, 0.3) : random.range(0.4, 1);
  for (let i = 0; i < frames; i++) {
    if (random.chance(0.3)) head = random.range(0, 1);
    heads.push(head);
  }
  const girth = random.normal(1, 0.06);
  return {
    plan,
    individual: {
      coat: varyCoat(plan.coat, random),
      girth,
      male: random.chance(0.5),
      seed: random.integer(0, 1e9),
    },
    gait,
    distanceM,
    middleX: WIDTH * random.range(0.22, 0.78),
    speed: faces * speed,
    faces,
    shorten: random.chance(0.65) ? random.range(0.88, 1) : random.range(0.66, 0.88),
    heightM,
    phase: random.next(),
    heads,
  };
}

async function drawVisitor(
  picture: Uint8ClampedArray,
  station: Station,
  light: Light,
  table: LightTable,
  guest: Visitor,
  index: number,
  frames: number,
): Promise<void> {
  const { plan, distanceM, faces } = guest;
  const scale = (guest.heightM * FOCAL_PX) / distanceM;
  const seconds = index - (frames - 1) / 2;
  const wayM = guest.speed * seconds;
  const x = guest.middleX + (wayM * FOCAL_PX) / distanceM;
  const groundY = groundRow(station.camera, distanceM);
  const turned = Math.sqrt(1 - guest.shorten ** 2);
  const pose: Pose = {
    gait: guest.gait,
    phase: (((guest.phase + (Math.abs(wayM) * Math.sign(seconds)) / plan.strideM) % 1) + 1) % 1,
    head: guest.heads[index]!,
    // The far pair stands a body's width behind: seen from above by the camera's height.
    farShift: [0.05 + 0.3 * turned, Math.min(0.08, (0.3 * station.camera.heightM) / distanceM)],
  };
  const animal = plan.draw(guest.individual, pose, createRandom(guest.individual.seed));
  const wide = scale * guest.shorten;
  // The plan's origin is the rump; half a body forward is the animal's middle.
  const middle = (plan.box.right + Math.min(0, plan.box.left) * 0.3) * 0.42;
  const originX = x - faces * middle * wide;
  const ends = [originX + faces * plan.box.left * wide, originX + faces * plan.box.right * wide];
  const content = `<g transform="translate(${originX.toFixed(2)} ${groundY.toFixed(2)}) scale(${(faces * wide).toFixed(4)} ${(-scale).toFixed(4)})">${animal.svg}</g>`;
  const layer = await rasterize(content, {
    left: Math.min(...ends),
    right: Math.max(...ends),
    top: groundY - plan.box.top * scale,
    bottom: groundY + 0.1 * scale,
  });
  if (layer === undefined) return;
  const code = depthCode(distanceM);
  shadeAnimal(layer, { station, light, table, code, anchor: [x, groundY], scale });
  castShadow(picture, station, code, {
    x: originX + faces * wide * 0.55,
    y: groundY - scale * 0.02,
    halfWidth: wide * 0.95,
    halfHeight: Math.max(3, (scale * 0.5 * station.camera.heightM) / distanceM),
    strength: light.night ? 0.3 : 0.5,
  });
  const blurred = smear(layer, smearPx(light, guest.speed, distanceM));
  composite(picture, blurred, { station, code, groundRow: groundY, softPx: scale * 0.06 });
  if (light.night)
    shineEyes(picture, station, layer, guest, animal.eyes, {
      originX,
      groundY,
      wide,
      scale,
      code,
      index,
    });
}

/** Eyes shine when the head is up and turned at least a little to the camera. */
function shineEyes(
  picture: Uint8ClampedArray,
  station: Station,
  layer: Layer,
  guest: Visitor,
  eyes: readonly { at: readonly [number, number]; radius: number }[],
  view: {
    originX: number;
    groundY: number;
    wide: number;
    scale: number;
    code: number;
    index: number;
  },
): void {
  const turnsTo = createRandom(guest.individual.seed, view.index, "eye");
  if (guest.heads[view.index]! < 0.25 || !turnsTo.chance(0.75)) return;
  for (const eye of eyes) {
    const x = view.originX + guest.faces * eye.at[0] * view.wide;
    const y = view.groundY - eye.at[1] * view.scale;
    const column = Math.round(x);
    const row = Math.round(y);
    if (column < layer.left || column >= layer.left + layer.width || row < 0 || row >= HEIGHT)
      continue;
    if (station.depth[row * WIDTH + column]! < view.code - 2) continue;
    const radius = Math.max(1.6, eye.radius * view.scale * 0.95);
    eyeshine(picture, { x, y, radius, strength: turnsTo.range(0.75, 1) });
  }
}

/** Draws the grass near the camera, bent by the wind of this moment. */
async function drawForeground(
  picture: Uint8ClampedArray,
  station: Station,
  light: Light,
  table: LightTable,
  seconds: number,
): Promise<void> {
  const content = station.foreground.map((grown) => blades(station, grown, light, table, seconds));
  const tops = station.foreground.flatMap((grown) => grown.blades.map(({ y, dy }) => y + dy));
  const layer = await rasterize(content.join(""), {
    left: 0,
    right: WIDTH,
    top: Math.min(HEIGHT, ...tops) - 4,
    bottom: SCENE_HEIGHT,
  });
  if (layer) composite(picture, layer);
}

function blades(
  station: Station,
  grown: Tuft,
  light: Light,
  table: LightTable,
  seconds: number,
): string {
  const code = depthCode(grown.distanceM);
  const gust = light.wind * (0.5 + 0.5 * Math.sin(seconds * 1.3 + grown.distanceM * 9));
  return tuftPaths(grown, gust, seconds)
    .map((d, tone) => {
      const value = Number.parseInt(station.habitat.grass[tone]!.slice(1), 16);
      const rgb = [value >> 16, (value >> 8) & 255, value & 255];
      const gain = table.gain[code]!;
      const lit = light.night
        ? Array<number>(3).fill(Math.min(255, (90 + 45 * tone) * gain))
        : rgb.map((channel, k) => Math.min(255, channel * light.sun[k]! * gain));
      const color = lit.map(Math.round).join(",");
      return `<path d="${d}" fill="none" stroke="rgb(${color})" stroke-width="${(grown.bladeWidth * 0.8).toFixed(1)}" stroke-linecap="round" stroke-opacity=".92"/>`;
    })
    .join("");
}

/** Vignette of the lens and noise of the sensor; changes the scene's rows. */
function expose(picture: Uint8ClampedArray, light: Light, random: Random): void {
  const table = new Float32Array(4096);
  for (let i = 0; i < table.length; i++) table[i] = random.normal(0, light.grain);
  let state = random.integer(1, 0x7fffffff);
  const nextNoise = () => {
    // xorshift32 (Marsaglia 2003): a full generator for each of half a million pixels is too slow.
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return table[state & 4095]!;
  };
  const columns = Float32Array.from({ length: WIDTH }, (_, x) => ((x - WIDTH / 2) / WIDTH) ** 2);
  const deep = light.night ? 0.9 : 0.45;
  for (let y = 0; y < SCENE_HEIGHT; y++) {
    const dy = ((y - HEIGHT / 2) / HEIGHT) ** 2;
    for (let x = 0; x < WIDTH; x++) {
      const i = (y * WIDTH + x) * 3;
      const lens = 1 - deep * (columns[x]! + dy);
      const noise = nextNoise();
      if (light.night) {
        const gray = picture[i]! * lens + noise;
        picture[i] = gray;
        picture[i + 1] = gray;
        picture[i + 2] = gray;
        continue;
      }
      picture[i] = picture[i]! * lens + noise + 0.4 * nextNoise();
      picture[i + 1] = picture[i + 1]! * lens + noise;
      picture[i + 2] = picture[i + 2]! * lens + noise + 0.5 * nextNoise();
    }
  }
}

function encode(
  picture: Uint8ClampedArray,
  capturedAt: string,
  station: string,
  quality: number,
): Promise<Buffer> {
  const time = capturedAt.replace("T", " ").replaceAll("-", ":");
  return sharp(picture, { raw: { width: WIDTH, height: HEIGHT, channels: 3 } })
    .withExif({
      IFD0: {
        Make: "TACO",
        Model: "DRAWN-1",
        Software: SOFTWARE,
        ImageDescription: `Drawn, not photographed: ${SOFTWARE}, station ${station}`,
        DateTime: time,
      },
      IFD2: { DateTimeOriginal: time },
    })
    .jpeg({ quality, chromaSubsampling: "4:2:0" })
    .toBuffer();
}
