import { mix } from "./coat.ts";
import { limb, type Point, type Spine, smoothClosed, smoothOpen } from "./outline.ts";
import type { Marks, Posed } from "./quadruped.ts";
import type { Random } from "./random.ts";

/** Pale rump, dark back stripe; a stag's antlers. */
export const deerMarks: Marks = (posed, individual, random) => {
  const [x, y] = posed.torso[0]!;
  const rump = smoothClosed([
    [x - 0.06, y + 0.07],
    [x + 0.07, y + 0.05],
    [x + 0.1, y - 0.12],
    [x + 0.03, y - 0.24],
    [x - 0.06, y - 0.16],
  ]);
  return {
    body: `<path d="${rump}" fill="#d8bd94" fill-opacity=".8"/>`,
    under: individual.male ? antler(posed, random, [0.07, 0.05], "#6d5a45") : "",
    over: individual.male ? antler(posed, random, [0, 0], "#8d775c") : "",
  };
};

function antler(posed: Posed, random: Random, shift: Point, color: string): string {
  const [x, y] = posed.onHead([0.14, 0.26]);
  const spread = random.range(0.9, 1.15);
  const at = (dx: number, dy: number, w: number): [number, number, number] => [
    x + shift[0] + dx * spread,
    y + shift[1] * 0.4 + dy * spread,
    w,
  ];
  const beam: Spine = [
    at(0, 0, 0.02),
    at(-0.08, 0.16, 0.018),
    at(-0.1, 0.34, 0.016),
    at(-0.02, 0.52, 0.012),
    at(0.06, 0.62, 0.004),
  ];
  const tines: Spine[] = [
    [at(-0.02, 0.04, 0.013), at(0.1, 0.07, 0.011), at(0.2, 0.16, 0.003)],
    [at(-0.1, 0.24, 0.012), at(0.02, 0.27, 0.01), at(0.11, 0.36, 0.003)],
    [at(-0.05, 0.46, 0.011), at(-0.1, 0.56, 0.009), at(-0.1, 0.66, 0.003)],
  ];
  return [beam, ...tines]
    .map((spine) => `<path d="${smoothClosed(limb(spine))}" fill="${color}"/>`)
    .join("");
}

/** White throat and cheek, dark line from the eye to the nose. */
export const foxMarks: Marks = (posed) => ({
  over:
    `<path d="${posed.headPath([
      [0.1, -0.1],
      [0.35, -0.08],
      [0.62, -0.03],
      [0.8, -0.06],
      [0.55, -0.13],
      [0.3, -0.26],
      [0.02, -0.3],
    ])}" fill="#efe8dd"/>` +
    `<path d="${posed.headPath([
      [0.44, 0.08],
      [0.62, 0.06],
      [0.8, 0.02],
      [0.62, 0.02],
    ])}" fill="#4a2a18" fill-opacity=".7"/>`,
});

/** Crest of bristles along the back, tusks on a male, shaggy cheek. */
export const boarMarks: Marks = (posed, individual, random) => {
  let crest = "";
  for (let i = 1; i < 6; i++) {
    const a = posed.torso[i]!;
    const b = posed.torso[i + 1]!;
    for (let k = 0; k < 26; k++) {
      const t = random.next();
      const x = a[0] + (b[0] - a[0]) * t;
      const y = a[1] + (b[1] - a[1]) * t - 0.02;
      const l = random.range(0.02, 0.06);
      crest += `M${x.toFixed(4)} ${y.toFixed(4)}l${(-l * 0.7).toFixed(4)} ${l.toFixed(4)}`;
    }
  }
  const tusk = `<path d="${posed.headPath([
    [0.74, -0.06],
    [0.78, 0.05],
    [0.82, 0.1],
    [0.84, -0.04],
  ])}" fill="#e6decb"/>`;
  return {
    over:
      `<path d="${crest}" stroke="#1b1613" stroke-opacity=".8" stroke-width=".01"/>` +
      `<path d="${posed.headPath([
        [0.2, -0.02],
        [0.42, -0.02],
        [0.4, -0.2],
        [0.1, -0.32],
      ])}" fill="#7a6c5c" fill-opacity=".4"/>` +
      (individual.male ? tusk : ""),
  };
};

/** White head with a black stripe through eye and ear. */
export const badgerMarks: Marks = (posed, { coat }) => ({
  over:
    `<path d="${posed.headPath([
      [-0.2, 0.2],
      [0.15, 0.19],
      [0.45, 0.13],
      [0.72, 0.08],
      [0.86, 0.04],
      [0.7, 0],
      [0.45, 0],
      [0.15, 0.02],
      [-0.2, -0.02],
    ])}" fill="#191616"/>` +
    `<path d="${posed.headPath([
      [-0.1, -0.2],
      [0.2, -0.22],
      [0.45, -0.19],
      [0.3, -0.3],
      [0, -0.36],
      [-0.2, -0.34],
    ])}" fill="${coat.throat}"/>` +
    `<path d="${posed.headPath([
      [0.1, 0.33],
      [0.2, 0.34],
      [0.2, 0.28],
      [0.1, 0.28],
    ])}" fill="#f4f2ec"/>`,
});

/** Black ear tips, pale ring around the eye. */
export const hareMarks: Marks = (posed) => {
  const { at, length, angle } = posed.plan.ear;
  const [cos, sin] = [Math.cos((angle * Math.PI) / 180), Math.sin((angle * Math.PI) / 180)];
  const along = (x: number, y: number): Point => [
    at[0] + x * cos - y * sin,
    at[1] + x * sin + y * cos,
  ];
  const tip = [along(length * 0.8, 0.08), along(length * 1.01, 0.01), along(length * 0.84, -0.09)];
  const [x, y] = posed.onHead(posed.plan.head.eye);
  return {
    over:
      `<path d="${posed.headPath(tip)}" fill="#191310"/>` +
      `<circle cx="${x}" cy="${y}" r="${0.12 * posed.plan.head.length}" fill="#dccaa6" fill-opacity=".55"/>`,
  };
};

/** Ear tufts and a sharp white belly edge. */
export const squirrelMarks: Marks = (posed, { coat }) => {
  const tuft = [
    [0.08, 0.66],
    [0.0, 0.9],
    [-0.04, 1.0],
    [0.03, 0.74],
  ] as const;
  return { over: `<path d="${posed.headPath(tuft)}" fill="${mix(coat.ear, 0.8)}"/>` };
};

/** Black mask edged in white; rings around the tail. */
export const raccoonMarks: Marks = (posed) => {
  const rings = ringsAlong(posed.tail, [0.22, 0.38, 0.54, 0.7, 0.86], 0.09);
  return {
    under: "",
    over:
      rings.map((d) => `<path d="${d}" fill="#211d1a" fill-opacity=".9"/>`).join("") +
      `<path d="${posed.headPath([
        [0.22, 0.2],
        [0.46, 0.26],
        [0.7, 0.14],
        [0.56, 0.1],
        [0.3, 0.12],
      ])}" fill="#e9e4da"/>` +
      `<path d="${posed.headPath([
        [0.2, 0.08],
        [0.42, 0.17],
        [0.62, 0.09],
        [0.7, -0.02],
        [0.52, -0.05],
        [0.36, -0.16],
        [0.18, -0.2],
      ])}" fill="#171413"/>` +
      `<path d="${posed.headPath([
        [0.5, 0.34],
        [0.62, 0.16],
        [0.84, 0.07],
        [0.62, 0.1],
      ])}" fill="#2b2623" fill-opacity=".8"/>` +
      `<path d="${posed.headPath([
        [0.14, -0.22],
        [0.38, -0.18],
        [0.54, -0.08],
        [0.5, -0.22],
        [0.26, -0.36],
        [0.04, -0.36],
      ])}" fill="#ddd7cb"/>`,
  };
};

/** Spots all over, ear tufts, ruff, bars on the cheek, black tail tip. */
export const lynxMarks: Marks = (posed, _individual, random) => {
  let spots = "";
  for (let i = 0; i < 95; i++) {
    const x = random.range(-0.02, 1.3);
    const y = random.range(0.5, 1.02);
    const r = random.range(0.012, 0.026) * (y > 0.85 ? 1.1 : 0.9);
    spots += `<ellipse cx="${x.toFixed(3)}" cy="${y.toFixed(3)}" rx="${(r * 1.35).toFixed(4)}" ry="${r.toFixed(4)}" transform="rotate(${random.integer(-30, 10)} ${x.toFixed(3)} ${y.toFixed(3)})"/>`;
  }
  let legSpots = "";
  for (const spine of posed.legs.near) {
    for (let i = 0; i < 11; i++) {
      const k = random.integer(1, 3);
      const [ax, ay, aw] = spine[k]!;
      const [bx, by, bw] = spine[k + 1]!;
      const t = random.next();
      const side = random.range(-0.7, 0.7) * (aw + (bw - aw) * t);
      legSpots += `<ellipse cx="${(ax + (bx - ax) * t + side).toFixed(3)}" cy="${(ay + (by - ay) * t).toFixed(3)}" rx=".017" ry=".013"/>`;
    }
  }
  const { at, length } = posed.plan.ear;
  const tip: Point = [at[0] - length * 0.16, at[1] + length * 0.9];
  const tuft: Point[] = [
    [tip[0] + 0.05, tip[1] - 0.05],
    [tip[0] - 0.08, tip[1] + 0.4],
    [tip[0] - 0.05, tip[1] - 0.08],
  ];
  const ruff: Point[] = [
    [0.1, 0.02],
    [0.34, -0.1],
    [0.4, -0.36],
    [0.16, -0.72],
    [-0.02, -0.5],
    [-0.06, -0.2],
  ];
  const bars = smoothOpen(
    [
      [0.56, -0.02],
      [0.36, -0.08],
      [0.18, -0.24],
    ].map(([x, y]) => posed.onHead([x!, y!])),
  );
  return {
    body: `<g fill="#2c2018" fill-opacity=".8">${spots}</g>`,
    over:
      `<g fill="#2c2018" fill-opacity=".7">${legSpots}</g>` +
      `<path d="${posed.headPath(ruff)}" fill="#e3d8c5"/>` +
      `<path d="${bars}" fill="none" stroke="#241b15" stroke-width=".018" stroke-opacity=".8"/>` +
      `<path d="${posed.headPath([
        [0.2, -0.62],
        [0.2, -0.8],
        [0.08, -0.6],
      ])}" fill="#241b15"/>` +
      `<path d="${posed.headPath(tuft)}" fill="#14100e"/>`,
  };
};

/** Outlines of bands across a tail, at shares of its length. */
function ringsAlong(spine: Spine, shares: readonly number[], thickness: number): string[] {
  return shares.map((share) => {
    const position = share * (spine.length - 1);
    const cut = (p: number): [number, number, number] => {
      const k = Math.min(spine.length - 2, Math.floor(p));
      const [a, b] = [spine[k]!, spine[k + 1]!];
      const t = p - k;
      return [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t];
    };
    const half = (thickness * (spine.length - 1)) / 2;
    const to = Math.min(spine.length - 1, position + half);
    return smoothClosed(limb([cut(Math.max(0, position - half)), cut(position), cut(to)]));
  });
}
