import { type Camera, FOCAL_PX, groundRow, HEIGHT, WIDTH } from "./camera.ts";
import { mix } from "./coat.ts";
import type { Habitat } from "./habitat.ts";
import { limb, type Point, type Spine, smoothClosed } from "./outline.ts";
import type { Random } from "./random.ts";

/** Something that stands in the scene, in frame pixels. */
export interface Thing {
  distanceM: number;
  paint: readonly { d: string; fill?: string; stroke?: string; width?: number; opacity?: number }[];
  /** What it covers, for the depth plate. */
  cover: { d: string; strokeWidth?: number };
}

/** Draws a tree's trunk from its foot up out of the frame, with bark. */
export function trunk(
  camera: Camera,
  habitat: Habitat,
  at: { x: number; distanceM: number; diameterM: number },
  random: Random,
): Thing {
  const foot = groundRow(camera, at.distanceM);
  const half = (at.diameterM * FOCAL_PX) / at.distanceM / 2;
  const lean = random.normal(0, 0.03);
  const spine: Spine = [
    [at.x, foot + half * 0.25, half * 1.5],
    [at.x + random.normal(0, half * 0.1), foot - half * 0.9, half * 1.05],
    [at.x - lean * foot * 0.5, foot * 0.5, half * 0.95],
    [at.x - lean * foot, -30, half * 0.85],
  ];
  const outline = smoothClosed(limb(spine));
  const bark = mix(habitat.bark, random.range(0.75, 1.15));
  const paint: Thing["paint"][number][] = [{ d: outline, fill: mix(bark, 0.62) }];
  // Light from one side rounds the trunk: narrower strips, each lighter than the one below.
  for (const [share, light] of [
    [0.78, 0.8],
    [0.52, 0.95],
    [0.26, 1.08],
  ] as const) {
    const strip = spine.map(([x, y, w]) => [x - w * 0.12, y, w * share] as const);
    paint.push({ d: smoothClosed(limb(strip)), fill: mix(bark, light) });
  }
  let dark = "";
  let light = "";
  const ridges = Math.min(160, Math.max(8, Math.round(half * 5)));
  for (let i = 0; i < ridges; i++) {
    const y = random.range(0, foot);
    const x = at.x + lean * (y - foot) + random.range(-0.9, 0.9) * half;
    const length = random.range(6, 40) * Math.min(1, half / 20 + 0.3);
    const line = `M${x.toFixed(1)} ${y.toFixed(1)}q${random.range(-2, 2).toFixed(1)} ${(length / 2).toFixed(1)} ${random.range(-1, 1).toFixed(1)} ${length.toFixed(1)}`;
    if (random.chance(0.6)) dark += line;
    else light += line;
  }
  const width = Math.max(0.6, half * 0.05);
  paint.push({ d: dark, stroke: mix(bark, 0.45), width, opacity: 0.6 });
  paint.push({ d: light, stroke: mix(bark, 1.3), width, opacity: 0.4 });
  return { distanceM: at.distanceM, paint, cover: { d: outline } };
}

/** Draws a bush or fern: leaves on a few arching twigs. */
export function shrub(
  camera: Camera,
  habitat: Habitat,
  at: { x: number; distanceM: number; heightM: number },
  random: Random,
): Thing {
  const scale = FOCAL_PX / at.distanceM;
  const foot = groundRow(camera, at.distanceM);
  const leaves: [string, string, string] = ["", "", ""];
  let twigs = "";
  const count = random.integer(9, 16);
  for (let i = 0; i < count; i++) {
    const angle = random.normal(0, 0.6);
    const reach = at.heightM * scale * random.range(0.55, 1);
    const tipX = at.x + Math.sin(angle) * reach;
    const tipY = foot - Math.cos(angle) * reach;
    const bendX = at.x + Math.sin(angle) * reach * 0.35;
    const bendY = foot - reach * 0.7;
    twigs += `M${at.x.toFixed(1)} ${foot.toFixed(1)}Q${bendX.toFixed(1)} ${bendY.toFixed(1)} ${tipX.toFixed(1)} ${tipY.toFixed(1)}`;
    for (let k = 0; k < 12; k++) {
      const t = random.range(0.25, 1);
      const x = (1 - t) ** 2 * at.x + 2 * t * (1 - t) * bendX + t * t * tipX;
      const y = (1 - t) ** 2 * foot + 2 * t * (1 - t) * bendY + t * t * tipY;
      const tone = random.integer(0, 2);
      leaves[tone] += leaf(x, y, random.range(0.03, 0.075) * scale, random);
    }
  }
  const stroke = Math.max(0.8, 0.012 * scale);
  return {
    distanceM: at.distanceM,
    paint: [
      { d: twigs, stroke: mix(habitat.bark, 0.7), width: stroke },
      ...leaves.map((d, i) => ({ d, fill: habitat.leaf[i]! })),
    ],
    cover: { d: leaves.join("") },
  };
}

function leaf(x: number, y: number, size: number, random: Random): string {
  const angle = random.range(0, 2 * Math.PI);
  const [ux, uy] = [Math.cos(angle) * size, Math.sin(angle) * size * 0.7];
  const [vx, vy] = [-uy * 0.38, ux * 0.38];
  const f = (value: number) => value.toFixed(1);
  return `M${f(x)} ${f(y)}Q${f(x + ux / 2 + vx)} ${f(y + uy / 2 + vy)} ${f(x + ux)} ${f(y + uy)}Q${f(x + ux / 2 - vx)} ${f(y + uy / 2 - vy)} ${f(x)} ${f(y)}Z`;
}

/** Draws a stone, lighter on top. */
export function rock(
  camera: Camera,
  at: { x: number; distanceM: number; widthM: number },
  random: Random,
): Thing {
  const half = (at.widthM * FOCAL_PX) / at.distanceM / 2;
  const foot = groundRow(camera, at.distanceM);
  const high = half * random.range(0.6, 1.1);
  const blob = (share: number): Point[] =>
    Array.from({ length: 9 }, (_, i): Point => {
      const angle = (i / 9) * 2 * Math.PI;
      const r = random.range(0.85, 1.1) * share;
      const y = Math.sin(angle) * high * r;
      return [at.x + Math.cos(angle) * half * r, foot - high * 0.4 + Math.min(y, high * 0.45)];
    });
  const outline = smoothClosed(blob(1));
  const gray = mix("#7b7770", random.range(0.75, 1.15), random.normal(0, 0.03));
  const top = blob(0.72).map(([x, y]): Point => [x - half * 0.06, y - high * 0.14]);
  return {
    distanceM: at.distanceM,
    paint: [
      { d: outline, fill: mix(gray, 0.6) },
      { d: smoothClosed(top), fill: mix(gray, 0.95), opacity: 0.8 },
      {
        d: smoothClosed(top.map(([x, y]): Point => [at.x + (x - at.x) * 0.6, y - high * 0.08])),
        fill: mix(gray, 1.2),
        opacity: 0.6,
      },
    ],
    cover: { d: outline },
  };
}

/** Draws a fallen trunk lying across. */
export function log(
  camera: Camera,
  habitat: Habitat,
  at: { x: number; distanceM: number },
  random: Random,
): Thing {
  const scale = FOCAL_PX / at.distanceM;
  const half = random.range(0.08, 0.15) * scale;
  const foot = groundRow(camera, at.distanceM) - half * 0.7;
  const length = random.range(1.2, 2.4) * scale;
  const tilt = random.normal(0, 0.08);
  const spine = (share: number, lift: number): Spine => [
    [at.x - length / 2, foot + tilt * length * 0.5 - lift, half * share],
    [at.x, foot + random.normal(0, 3) - lift, half * share * 0.95],
    [at.x + length / 2, foot - tilt * length * 0.5 - lift, half * share * 0.8],
  ];
  const outline = smoothClosed(limb(spine(1, 0)));
  const bark = mix(habitat.bark, 0.85);
  return {
    distanceM: at.distanceM,
    paint: [
      { d: outline, fill: mix(bark, 0.55) },
      { d: smoothClosed(limb(spine(0.7, half * 0.2))), fill: mix(bark, 0.9) },
      { d: smoothClosed(limb(spine(0.3, half * 0.45))), fill: mix(bark, 1.15), opacity: 0.7 },
    ],
    cover: { d: outline },
  };
}

/** Draws what covers the ground: fallen leaves in a wood, short grass in a meadow. */
export function litter(habitat: Habitat, camera: Camera, random: Random): Thing {
  const grassy = habitat.name === "meadow edge";
  const tones = grassy ? habitat.grass : habitat.ground;
  const lights = [0.6, 0.85, 1.1, 1.4];
  const paths = lights.map(() => "");
  for (let i = 0; i < 2600; i++) {
    const y = groundRow(camera, 14) + (HEIGHT - groundRow(camera, 14)) * random.next() ** 1.25;
    const scale = (y - camera.horizonY) / camera.heightM;
    const x = random.range(0, WIDTH);
    const k = random.integer(0, lights.length - 1);
    if (grassy) {
      const high = random.range(0.02, 0.06) * scale;
      const lean = random.normal(0, 0.3) * high;
      const wide = high * 0.09;
      paths[k] +=
        `M${(x - wide).toFixed(1)} ${y.toFixed(1)}l${(lean + wide).toFixed(1)} ${(-high).toFixed(1)}L${(x + wide).toFixed(1)} ${y.toFixed(1)}Z`;
    } else {
      paths[k] += flatLeaf(x, y, random.range(0.012, 0.034) * scale, random);
    }
  }
  return {
    distanceM: Infinity,
    paint: paths.map((d, k) => ({
      d,
      fill: mix(random.pick(tones.slice(1)), lights[k]!, random.normal(0.03, 0.05)),
      opacity: 0.75,
    })),
    cover: { d: "" },
  };
}

/** A leaf lying on the ground, seen flat. */
function flatLeaf(x: number, y: number, size: number, random: Random): string {
  const angle = random.range(0, 2 * Math.PI);
  const [ux, uy] = [Math.cos(angle) * size, Math.sin(angle) * size * 0.4];
  const [vx, vy] = [-Math.sin(angle) * size * 0.6, Math.cos(angle) * size * 0.24];
  const f = (value: number) => value.toFixed(1);
  return `M${f(x - ux)} ${f(y - uy)}Q${f(x + vx)} ${f(y + vy)} ${f(x + ux)} ${f(y + uy)}Q${f(x - vx)} ${f(y - vy)} ${f(x - ux)} ${f(y - uy)}Z`;
}

/** One tuft of grass, as the roots and tips of its blades, so that the wind can move it. */
export interface Tuft {
  distanceM: number;
  blades: readonly { x: number; y: number; dx: number; dy: number; tone: 0 | 1 | 2 }[];
  bladeWidth: number;
}

/** Grows a tuft at column `x`. */
export function tuft(
  camera: Camera,
  at: { x: number; distanceM: number; heightM: number; blades: number },
  random: Random,
): Tuft {
  const scale = FOCAL_PX / at.distanceM;
  const foot = groundRow(camera, at.distanceM);
  const spread = at.heightM * scale * 0.35;
  return {
    distanceM: at.distanceM,
    bladeWidth: Math.max(1, 0.008 * scale),
    blades: Array.from({ length: at.blades }, () => {
      const angle = random.normal(0, 0.35);
      const reach = at.heightM * scale * random.range(0.5, 1.1);
      return {
        x: at.x + random.normal(0, spread),
        y: foot + random.normal(0, 0.02 * scale),
        dx: Math.sin(angle) * reach,
        dy: -Math.cos(angle) * reach,
        tone: random.integer(0, 2) as 0 | 1 | 2,
      };
    }),
  };
}

/**
 * The blades of a tuft as three paths, dark to light, bent by the wind.
 *
 * @param wind shift of the tips as a share of the blade's height; each blade swings its own way.
 */
export function tuftPaths(grown: Tuft, wind: number, time: number): [string, string, string] {
  const paths: [string, string, string] = ["", "", ""];
  for (const [i, { x, y, dx, dy, tone }] of grown.blades.entries()) {
    const sway = -dy * wind * (0.6 + 0.4 * Math.sin(time * 2.1 + i * 1.7));
    const f = (value: number) => value.toFixed(1);
    paths[tone] += `M${f(x)} ${f(y)}q${f(dx * 0.25)} ${f(dy * 0.65)} ${f(dx + sway)} ${f(dy)}`;
  }
  return paths;
}

/** A standing tuft as a thing of the plate. */
export function tussock(habitat: Habitat, grown: Tuft): Thing {
  const paths = tuftPaths(grown, 0, 0);
  return {
    distanceM: grown.distanceM,
    paint: paths.map((d, i) => ({ d, stroke: habitat.grass[i]!, width: grown.bladeWidth })),
    cover: { d: paths.join(""), strokeWidth: grown.bladeWidth },
  };
}

/** The color picture of things, far ones first, on a transparent ground. */
export function paintThings(things: readonly Thing[]): string {
  const shapes = things.flatMap(({ paint }) =>
    paint.map(({ d, fill, stroke, width, opacity }) => {
      const alpha = opacity === undefined ? "" : ` opacity="${opacity}"`;
      return stroke === undefined
        ? `<path d="${d}" fill="${fill}"${alpha}/>`
        : `<path d="${d}" fill="none" stroke="${stroke}" stroke-width="${width}" stroke-linecap="round"${alpha}/>`;
    }),
  );
  return svg(shapes.join(""));
}

/** The same things, each filled flat with `codeOf` its distance as a gray. */
export function paintDepth(things: readonly Thing[], codeOf: (distanceM: number) => number) {
  const standing = things.filter(({ cover }) => cover.d !== "");
  const shapes = standing.map(({ distanceM, cover }) => {
    const code = codeOf(distanceM);
    const gray = `rgb(${code},${code},${code})`;
    return cover.strokeWidth === undefined
      ? `<path d="${cover.d}" fill="${gray}"/>`
      : `<path d="${cover.d}" fill="none" stroke="${gray}" stroke-width="${cover.strokeWidth}"/>`;
  });
  return svg(`<g shape-rendering="crispEdges">${shapes.join("")}</g>`);
}

function svg(content: string): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}">${content}</svg>`;
}
