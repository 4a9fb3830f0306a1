import sharp from "sharp";
import {
  BANNER_HEIGHT,
  type Camera,
  depthCode,
  FOCAL_PX,
  groundDistance,
  HEIGHT,
  WIDTH,
} from "./camera.ts";
import { channels } from "./coat.ts";
import { HABITATS, type Habitat } from "./habitat.ts";
import {
  litter,
  log,
  paintDepth,
  paintThings,
  rock,
  shrub,
  type Thing,
  type Tuft,
  trunk,
  tuft,
  tussock,
} from "./plants.ts";
import { createRandom, noiseTile, type Random } from "./random.ts";

/** One camera's place: drawn once, lit anew for every burst. */
export interface Station {
  name: string;
  seed: number;
  habitat: Habitat;
  camera: Camera;
  /** Surface colors without light, `HEIGHT × WIDTH × 3`, row-major RGB. */
  albedo: Uint8Array;
  /** Distance of every pixel as {@link depthCode}, `HEIGHT × WIDTH`. */
  depth: Uint8Array;
  /** Grass close to the camera, drawn anew in every frame because it moves. */
  foreground: readonly Tuft[];
  /** 256 × 256 values in [0, 1] that repeat: light through leaves, fur. */
  noise: Float32Array;
}

/** Side of {@link Station.noise}. */
export const TILE = 256;

/**
 * Draws a station's background: habitat, ground, trail, trees, bushes, stones, grass and the
 * camera's height all follow from the seed and the name.
 */
export async function createStation(options: { seed: number; name: string }): Promise<Station> {
  const random = createRandom(options.seed, options.name, "station");
  const habitat = random.pick(HABITATS);
  const camera: Camera = {
    horizonY: Math.round(random.range(0.34, 0.42) * HEIGHT),
    heightM: random.range(0.46, 0.6),
  };
  const noise = noiseTile(random, TILE, 8, 6);
  const albedo = new Uint8Array(WIDTH * HEIGHT * 3);
  const depth = new Uint8Array(WIDTH * HEIGHT);
  paintBackdrop(albedo, depth, habitat, camera, noise, random);
  const things = furnish(habitat, camera, random).sort((a, b) => b.distanceM - a.distanceM);
  await addThings(albedo, depth, [litter(habitat, camera, random), ...things]);
  return {
    ...options,
    habitat,
    camera,
    albedo,
    depth,
    foreground: growForeground(habitat, camera, random),
    noise,
  };
}

/** Far foliage with gaps of sky above the horizon, ground with a trail below it. */
function paintBackdrop(
  albedo: Uint8Array,
  depth: Uint8Array,
  habitat: Habitat,
  camera: Camera,
  noise: Float32Array,
  random: Random,
): void {
  const sky: [number, number, number] = [226, 234, 240];
  const ground = habitat.ground.map(channels);
  const foliage = habitat.foliage.map(channels);
  const trail = channels(habitat.trail);
  const wallM = random.range(16, 32);
  const wallFoot = camera.horizonY + (FOCAL_PX * camera.heightM) / wallM;
  const trailX = random.range(-0.6, 0.6);
  const trailSlope = random.range(-0.35, 0.35);
  const trailWide = random.range(0.35, 0.6);
  const shift = random.integer(0, TILE - 1);
  const at = (u: number, v: number) => noise[(v & (TILE - 1)) * TILE + (u & (TILE - 1))]!;
  const smooth = (u: number, v: number) => {
    const [i, j] = [Math.floor(u), Math.floor(v)];
    const [s, t] = [u - i, v - j];
    return (
      (at(i, j) * (1 - s) + at(i + 1, j) * s) * (1 - t) +
      (at(i, j + 1) * (1 - s) + at(i + 1, j + 1) * s) * t
    );
  };
  for (let y = 0; y < HEIGHT; y++) {
    const distance = groundDistance(camera, y);
    const isGround = y > wallFoot;
    const rowCode = depthCode(isGround ? distance : wallM);
    for (let x = 0; x < WIDTH; x++) {
      const i = y * WIDTH + x;
      let color: readonly number[];
      let tone: number;
      let code = rowCode;
      if (isGround) {
        // Texture anchored to the ground plane, finer toward the camera by two scales.
        const gx = ((x - WIDTH / 2) * distance) / FOCAL_PX;
        const coarse = smooth(gx * 28 + shift, distance * 28);
        const fine = smooth(gx * 170, distance * 110 + shift);
        const grain = smooth(x * 1.1 + shift, (y * 300) / (y - camera.horizonY));
        tone = 0.35 * coarse + 0.35 * fine + 0.3 * grain;
        color = ramp(ground, (tone - 0.5) * 2.8 + 0.5);
        const off = Math.abs(gx - trailX - trailSlope * distance) / trailWide;
        const worn = Math.max(0, Math.min(1, 1.6 - off * 1.3 + (coarse - 0.5) * 1.6)) * 0.75;
        if (worn > 0) color = color.map((c, k) => c + (trail[k]! * (0.75 + tone / 2) - c) * worn);
      } else {
        const high = 1 - y / wallFoot;
        const leaves =
          0.5 * smooth(x * 0.6 + shift, y * 0.66) + 0.5 * smooth(x * 1.9, y * 2.1 + shift);
        const clumps = smooth(x * 0.085, y * 0.1 + shift);
        const gap = clumps * 0.65 + leaves * 0.35 + (high - 0.5) * 0.35;
        tone = 0.6 * leaves + 0.4 * clumps;
        if (gap > 1.02 - 0.75 * habitat.openness && high > 0.12) {
          color = sky;
          code = 255;
        } else {
          color = ramp(foliage, (tone - 0.5) * 2.4 + 0.42 + high * 0.12);
        }
      }
      for (let k = 0; k < 3; k++) albedo[i * 3 + k] = Math.max(0, Math.min(255, color[k]!));
      depth[i] = code;
    }
  }
}

function ramp(colors: readonly (readonly number[])[], t: number): number[] {
  const p = Math.max(0, Math.min(0.9999, t)) * (colors.length - 1);
  const k = Math.floor(p);
  return colors[k]!.map((from, i) => from + (colors[k + 1]![i]! - from) * (p - k));
}

/** Everything that stands around, mostly beside the middle where animals pass. */
function furnish(habitat: Habitat, camera: Camera, random: Random): Thing[] {
  const things: Thing[] = [];
  const [far, middle] = habitat.trunks;
  const wide = (random: Random) => random.range(-0.05, 1.05) * WIDTH;
  const aside = () =>
    (random.chance(0.5) ? random.range(-0.04, 0.24) : random.range(0.76, 1.04)) * WIDTH;
  for (let i = 0; i < far; i++) {
    const at = {
      x: wide(random),
      distanceM: random.range(11, 24),
      diameterM: random.range(0.12, 0.4),
    };
    things.push(trunk(camera, habitat, at, random));
  }
  for (let i = 0; i < middle; i++) {
    const at = {
      x: wide(random),
      distanceM: random.range(6.5, 11),
      diameterM: random.range(0.14, 0.42),
    };
    things.push(trunk(camera, habitat, at, random));
  }
  if (random.chance(0.55)) {
    const at = { x: aside(), distanceM: random.range(2.6, 4), diameterM: random.range(0.16, 0.34) };
    things.push(trunk(camera, habitat, at, random));
  }
  for (let i = 0; i < habitat.shrubs; i++) {
    const near = random.chance(0.35);
    const at = near
      ? { x: aside(), distanceM: random.range(2.2, 4), heightM: random.range(0.25, 0.5) }
      : { x: wide(random), distanceM: random.range(7, 15), heightM: random.range(0.6, 1.6) };
    things.push(shrub(camera, habitat, at, random));
  }
  for (let i = 0; i < habitat.rocks; i++) {
    const at = {
      x: wide(random),
      distanceM: random.range(2.4, 9),
      widthM: random.range(0.12, 0.5),
    };
    things.push(rock(camera, at, random));
  }
  if (random.chance(habitat.logShare)) {
    things.push(log(camera, habitat, { x: wide(random), distanceM: random.range(4.5, 9) }, random));
  }
  for (let i = 0; i < habitat.tussocks; i++) {
    const distanceM = 1.9 * Math.exp(random.range(0, 1.6));
    const at = {
      x: wide(random),
      distanceM,
      heightM: random.range(0.06, 0.2),
      blades: random.integer(14, 40),
    };
    things.push(tussock(habitat, tuft(camera, at, random)));
  }
  return things;
}

async function addThings(
  albedo: Uint8Array,
  depth: Uint8Array,
  things: readonly Thing[],
): Promise<void> {
  const raster = (svg: string) => sharp(Buffer.from(svg)).ensureAlpha();
  const [paint, codes] = await Promise.all([
    // A lens is never as sharp as vector edges.
    raster(paintThings(things)).blur(0.7).raw().toBuffer(),
    raster(paintDepth(things, depthCode)).raw().toBuffer(),
  ]);
  for (let i = 0; i < depth.length; i++) {
    const alpha = paint[i * 4 + 3]! / 255;
    for (let k = 0; k < 3; k++) {
      albedo[i * 3 + k] = albedo[i * 3 + k]! * (1 - alpha) + paint[i * 4 + k]! * alpha;
    }
    if (codes[i * 4 + 3]! > 127) depth[i] = codes[i * 4]!;
  }
}

/** Grass at the lower edge of the frame, denser at the sides. */
function growForeground(habitat: Habitat, camera: Camera, random: Random): Tuft[] {
  const count = Math.round(habitat.tussocks / 3) + random.integer(1, 4);
  return Array.from({ length: count }, () => {
    const side = random.chance(0.65);
    const x = side
      ? (random.chance(0.5) ? random.range(-0.05, 0.25) : random.range(0.75, 1.05)) * WIDTH
      : random.range(0, 1) * WIDTH;
    const distanceM = random.range(0.95, 1.5);
    const heightM = random.range(0.05, side ? 0.22 : 0.12);
    return tuft(camera, { x, distanceM, heightM, blades: random.integer(8, 18) }, random);
  });
}

/** Rows that show the scene; the banner lies below. */
export const SCENE_HEIGHT = HEIGHT - BANNER_HEIGHT;
