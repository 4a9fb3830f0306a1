import type { BodyPlan, Carriage, LegPlan } from "./body-plan.ts";
import { blend, type Coat, mix } from "./coat.ts";
import {
  between,
  limb,
  type Point,
  place,
  type Spine,
  smoothClosed,
  smoothOpen,
} from "./outline.ts";
import type { Random } from "./random.ts";

/** How an animal holds itself in one frame. */
export interface Pose {
  gait: "stand" | "walk" | "bound" | "sit";
  /** Where it is in its walk cycle, in [0, 1). */
  phase: number;
  /** Head: 0 lowered to the ground, 0.5 as in walking, 1 raised. */
  head: number;
  /** Far legs are seen this far ahead of and above the near ones, in withers heights. */
  farShift: Point;
}

/** What stays the same of one animal through a burst. */
export interface Individual {
  coat: Coat;
  /** 1 is the plan's own; below is slim, above is heavy. */
  girth: number;
  male: boolean;
  /** Seeds what is drawn at random on it, spots and hairs, so that they stay put. */
  seed: number;
}

/** A drawn animal, in withers heights, x forward, y up, feet at y = 0, facing right. */
export interface DrawnAnimal {
  /** `<defs>` and shapes, to be put into a group that scales and flips y. */
  svg: string;
  eyes: readonly { at: Point; radius: number }[];
}

/** Where the parts of a posed animal lie; what a species' marks are drawn by. */
export interface Posed {
  plan: BodyPlan;
  torso: readonly Point[];
  /** A point of the head's own coordinates (head lengths from the nape toward the nose). */
  onHead(point: Point): Point;
  /** Several points of the head, as a smooth closed path. */
  headPath(points: readonly Point[]): string;
  legs: { near: readonly Spine[]; far: readonly Spine[] };
  tail: Spine;
  headAngle: number;
}

/** Draws what only this species has. `under` lies below the body, `over` on top of it. */
export type Marks = (
  posed: Posed,
  individual: Individual,
  random: Random,
) => { under?: string; body?: string; over?: string };

/** Draws a four-legged animal of the given plan and coat. */
export function drawQuadruped(
  plan: BodyPlan,
  individual: Individual,
  pose: Pose,
  marks: Marks,
  random: Random,
): DrawnAnimal {
  const { coat } = individual;
  const posed = posePlan(plan, individual, pose);
  const extra = marks(posed, individual, random);
  const torsoPath = smoothClosed(posed.torso);
  const parts = [
    definitions(coat, torsoPath),
    ear(posed, plan, mix(coat.ear, 0.75), coat, [-0.09, 0.03], 9),
    ...posed.legs.far.map((spine, i) => leg(spine, i === 0 ? plan.hind : plan.fore, coat, false)),
    extra.under ?? "",
    tail(posed, coat, random),
    `<path d="${torsoPath}" fill="url(#body)"/>`,
    hairs(posed, coat, random),
    `<g clip-path="url(#torso)">${extra.body ?? ""}</g>`,
    ...posed.legs.near.map((spine, i) => leg(spine, i === 0 ? plan.hind : plan.fore, coat, true)),
    head(posed, plan, coat),
    ear(posed, plan, coat.ear, coat, [0, 0], 0),
    extra.over ?? "",
    eye(posed, plan),
  ];
  const at = posed.onHead(plan.head.eye);
  return {
    svg: parts.join(""),
    eyes: [{ at, radius: plan.head.eyeRadius * plan.head.length }],
  };
}

function posePlan(plan: BodyPlan, individual: Individual, pose: Pose): Posed {
  const sitting = pose.gait === "sit";
  const bounce = pose.gait === "bound" ? Math.sin(2 * Math.PI * pose.phase) : 0;
  const pitch = sitting ? 0.42 : 0.16 * bounce;
  const sink: Point = [0, sitting ? -0.16 : pose.gait === "bound" ? 0.12 + 0.1 * bounce : 0];
  const pivot = plan.hind.joint;
  const body = (points: readonly Point[]): Point[] =>
    place(
      points.map(([x, y]): Point => [x - pivot[0], y - pivot[1]]),
      pivot,
      pitch,
    ).map(([x, y]): Point => [x + sink[0], y + sink[1]]);
  const heavy = (individual.girth - 1) * 0.5;
  const top = body(plan.top.map(([x, y]): Point => [x, y + heavy * 0.25]));
  const bottom = body(plan.bottom.map(([x, y]): Point => [x, y - heavy]));
  const neckAngle = radians(carriage(plan.neck.angle, pose.head)) + pitch * 0.4;
  const neckBase = body([plan.neck.base])[0]!;
  const neckEnd: Point = [
    neckBase[0] + Math.cos(neckAngle) * plan.neck.length,
    neckBase[1] + Math.sin(neckAngle) * plan.neck.length,
  ];
  const headAngle = radians(carriage(plan.head.pitch, pose.head)) + pitch * 0.3;
  const scaled = (points: readonly Point[]): Point[] =>
    points.map(([x, y]): Point => [x * plan.head.length, y * plan.head.length]);
  const onHead = (point: Point) => place(scaled([point]), neckEnd, headAngle)[0]!;
  const middle = between(neckBase, neckEnd, 0.55);
  const normal: Point = [-Math.sin(neckAngle), Math.cos(neckAngle)];
  const w = plan.neck.halfWidth * (0.9 + 0.1 * individual.girth);
  const torso: Point[] = [
    ...top,
    [middle[0] + normal[0] * w * 1.1, middle[1] + normal[1] * w * 1.1],
    onHead(plan.head.upper[0]!),
    onHead([0.3, 0]),
    onHead(plan.head.lower.at(-1)!),
    [middle[0] - normal[0] * w * 1.15, middle[1] - normal[1] * w * 1.15],
    ...bottom,
  ];
  const [hip, shoulder] = body([plan.hind.joint, plan.fore.joint]);
  const spineOf = (legPlan: LegPlan, joint: Point, offset: number, far: boolean) =>
    legSpine(plan, legPlan, joint, pose, offset, far);
  const [hindNear, hindFar, foreNear, foreFar] =
    pose.gait === "bound" ? [0, 0.07, 0.5, 0.6] : [0, 0.5, 0.75, 0.25];
  return {
    plan,
    torso,
    onHead,
    headPath: (points) => smoothClosed(points.map(onHead)),
    headAngle,
    legs: {
      near: [
        spineOf(plan.hind, hip!, hindNear, false),
        spineOf(plan.fore, shoulder!, foreNear, false),
      ],
      far: [spineOf(plan.hind, hip!, hindFar, true), spineOf(plan.fore, shoulder!, foreFar, true)],
    },
    tail: tailSpine(plan, body([plan.tail.base])[0]!, pose, pitch),
  };
}

/** Foot paths after Muybridge's walk: on the ground for 62 % of the cycle, then lifted forward. */
function legSpine(
  plan: BodyPlan,
  legPlan: LegPlan,
  joint: Point,
  pose: Pose,
  offset: number,
  far: boolean,
): Spine {
  const moving = pose.gait === "walk" || pose.gait === "bound";
  const stance = pose.gait === "bound" ? 0.45 : 0.62;
  const stride = plan.stride * (pose.gait === "bound" ? 1.5 : 1);
  const p = (pose.phase + offset) % 1;
  const swing = Math.max(0, (p - stance) / (1 - stance));
  const stepX = swing > 0 ? stride * (swing - 0.5) : stride * (0.5 - p / stance);
  // A standing animal has its feet a little apart, each pair another way.
  const restX = plan.stride * 0.22 * Math.sin(2 * Math.PI * (offset + 0.3 * pose.phase + 0.1));
  const shift: Point = far ? pose.farShift : [0, 0];
  const foot: Point = [
    legPlan.footX + (moving ? stepX : restX) + shift[0],
    (moving ? plan.lift * Math.sin(Math.PI * swing) : 0) + shift[1],
  ];
  const from: Point = [joint[0] + shift[0], joint[1] + shift[1] * 0.4];
  const lifted = moving ? Math.sin(Math.PI * swing) : 0;
  const hock: Point = [
    foot[0] + legPlan.bend[1] - lifted * legPlan.hockY * 0.25 + (from[0] - foot[0]) * 0.12,
    foot[1] + legPlan.hockY + lifted * 0.05,
  ];
  const half = between(from, hock, 0.52);
  const knee: Point = [half[0] + legPlan.bend[0] + lifted * 0.05, half[1]];
  const ankle: Point = [foot[0] - lifted * 0.04, foot[1] + legPlan.foot[1] * 0.7];
  const [w0, w1, w2, w3] = legPlan.widths;
  return [
    [from[0], from[1] + w0 * 0.55, w0 * 0.6],
    [from[0], from[1], w0],
    [knee[0], knee[1], w1],
    [hock[0], hock[1], w2],
    [ankle[0], ankle[1], w3],
    [foot[0], foot[1] + legPlan.foot[1] * 0.3, w3 * 1.05],
  ];
}

function leg(spine: Spine, legPlan: LegPlan, coat: Coat, near: boolean): string {
  const [fx, fy] = spine.at(-1)!;
  const [length, height] = legPlan.foot;
  const back = length > 0.3 ? 0.62 : 0.3;
  const base = fy - height * 0.3;
  const sole = smoothClosed([
    [fx - length * back, base],
    [fx - length * back * 0.6, base + height * 0.8],
    [fx + length * 0.15, base + height],
    [fx + length * (1 - back), base + height * 0.4],
    [fx + length * (1 - back) * 0.95, base],
  ]);
  const fill = near ? "url(#leg)" : "url(#farleg)";
  const foot = near ? coat.foot : mix(coat.foot, 0.7);
  const crease = near
    ? `<path d="${smoothOpen(limb(spine).slice(1, 4))}" fill="none" stroke="#000" stroke-opacity=".13" stroke-width=".03"/>`
    : "";
  return `<path d="${smoothClosed(limb(spine))}" fill="${fill}"/>${crease}<path d="${sole}" fill="${foot}"/>`;
}

function head(posed: Posed, plan: BodyPlan, coat: Coat): string {
  const outline = posed.headPath([...plan.head.upper, ...plan.head.lower]);
  const muzzle = posed.headPath([
    [0.62, 0.06],
    [0.86, 0.07],
    [1.0, 0.02],
    ...plan.head.lower.slice(0, 3),
    [0.3, -0.16],
  ]);
  const nose = posed.onHead([0.97, 0.02]);
  const r = plan.head.noseRadius * plan.head.length;
  const mouth = [
    [0.96, -0.07],
    [0.8, -0.08],
    [0.66, -0.06],
  ] as const;
  return (
    `<path d="${outline}" fill="${coat.head}"/>` +
    `<path d="${outline}" fill="url(#headshade)"/>` +
    `<path d="${muzzle}" fill="${coat.muzzle}" fill-opacity=".85"/>` +
    `<path d="${smoothOpen(mouth.map(posed.onHead))}" fill="none" stroke="#1a1411" stroke-opacity=".6" stroke-width="${0.025 * plan.head.length}"/>` +
    `<circle cx="${nose[0]}" cy="${nose[1]}" r="${r}" fill="${coat.nose}"/>`
  );
}

function eye(posed: Posed, plan: BodyPlan): string {
  const [x, y] = posed.onHead(plan.head.eye);
  const r = plan.head.eyeRadius * plan.head.length;
  return (
    `<circle cx="${x}" cy="${y}" r="${r * 1.25}" fill="#000" fill-opacity=".35"/>` +
    `<circle cx="${x}" cy="${y}" r="${r}" fill="#120d0a"/>` +
    `<circle cx="${x + r * 0.3}" cy="${y + r * 0.35}" r="${r * 0.3}" fill="#fff" fill-opacity=".8"/>`
  );
}

function ear(
  posed: Posed,
  plan: BodyPlan,
  color: string,
  coat: Coat,
  shift: Point,
  turn: number,
): string {
  const { at, length, halfWidth, angle, round } = plan.ear;
  const tip: Point[] = round
    ? [
        [length * 0.8, halfWidth * 0.75],
        [length, 0],
        [length * 0.8, -halfWidth * 0.75],
      ]
    : [
        [length * 0.72, halfWidth * 0.5],
        [length, 0.01],
        [length * 0.75, -halfWidth * 0.45],
      ];
  const shape: Point[] = [
    [-0.03, halfWidth * 0.7],
    [length * 0.38, halfWidth],
    ...tip,
    [length * 0.38, -halfWidth],
    [-0.03, -halfWidth * 0.7],
  ];
  const root: Point = [at[0] + shift[0], at[1] + shift[1]];
  const placed = place(shape, root, radians(angle + turn));
  const inside = place(
    shape.map(([x, y]): Point => [x * 0.82 + length * 0.04, y * 0.5 - halfWidth * 0.25]),
    root,
    radians(angle + turn),
  );
  return (
    `<path d="${posed.headPath(placed)}" fill="${color}"/>` +
    `<path d="${posed.headPath(inside)}" fill="${coat.earInside}" fill-opacity=".75"/>`
  );
}

function tailSpine(plan: BodyPlan, base: Point, pose: Pose, pitch: number): Spine {
  const { angles, widths, length } = plan.tail;
  const step = length / angles.length;
  const sway = 6 * Math.sin(2 * Math.PI * pose.phase);
  // A running squirrel stretches its tail out; a sitting one lays it over its back.
  const stretch = pose.gait === "bound" ? 0.7 : 0;
  let at = base;
  const spine: [number, number, number][] = [[at[0], at[1], widths[0]!]];
  for (const [i, angle] of angles.entries()) {
    const turned =
      radians(angle + (190 - angle) * stretch + sway * (i / angles.length)) + pitch * 0.5;
    at = [at[0] + Math.cos(turned) * step, at[1] + Math.sin(turned) * step];
    spine.push([at[0], Math.max(at[1], widths[i + 1]! * 0.7), widths[i + 1]!]);
  }
  return spine;
}

function tail(posed: Posed, coat: Coat, random: Random): string {
  const outline = smoothClosed(limb(posed.tail));
  const last = posed.tail.slice(-3);
  const tip = smoothClosed(limb([...last]));
  const strands: string[] = [];
  for (let i = 0; i < 90; i++) {
    const k = Math.floor(random.range(0, posed.tail.length - 1));
    const [ax, ay, aw] = posed.tail[k]!;
    const [bx, by] = posed.tail[k + 1]!;
    const t = random.next();
    const length = Math.hypot(bx - ax, by - ay) || 1;
    const [ux, uy] = [(bx - ax) / length, (by - ay) / length];
    const side = random.range(-0.85, 0.85) * aw;
    const from: Point = [ax + (bx - ax) * t - uy * side, ay + (by - ay) * t + ux * side];
    const out = side * 0.12;
    const l = coat.hair * random.range(0.6, 1.5);
    strands.push(stroke(from, [from[0] + ux * l - uy * out, from[1] + uy * l + ux * out]));
  }
  const d = strands.join("");
  return (
    `<path d="${outline}" fill="${coat.tail}"/>` +
    `<path d="${tip}" fill="${coat.tailTip}"/>` +
    `<path d="${d}" stroke="${mix(coat.tail, 0.75)}" stroke-opacity=".4" stroke-width=".009"/>`
  );
}

/** Single hairs: along the back, where they make the outline rough, and all over the flank. */
function hairs(posed: Posed, coat: Coat, random: Random): string {
  const xs = posed.torso.map(([x]) => x);
  const ys = posed.torso.map(([, y]) => y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const streak = (count: number) => {
    let d = "";
    for (let i = 0; i < count; i++) {
      const from: Point = [random.range(x0, x1), random.range(y0, y1)];
      const l = coat.hair * random.range(0.6, 1.4);
      d += stroke(from, [from[0] - l, from[1] - l * random.range(0.1, 0.6)]);
    }
    return d;
  };
  let edge = "";
  const n = posed.torso.length;
  for (let k = 0; k < n; k++) {
    const a = posed.torso[k]!;
    const b = posed.torso[(k + 1) % n]!;
    const count = Math.ceil(Math.hypot(b[0] - a[0], b[1] - a[1]) / 0.014);
    for (let i = 0; i < count; i++) {
      const from = between(a, b, random.next());
      const l = coat.hair * random.range(0.2, 0.8);
      // Hair lies backward; below the body it hangs.
      const up = b[0] >= a[0] ? 0.22 : -0.8;
      edge += stroke(from, [from[0] - l, from[1] + l * up]);
    }
  }
  const opacity = 0.12 + 0.4 * coat.grizzle;
  return (
    `<g clip-path="url(#torso)">` +
    `<path d="${streak(420)}" stroke="${mix(coat.back, 0.65)}" stroke-opacity="${opacity}" stroke-width=".008"/>` +
    `<path d="${streak(420)}" stroke="${mix(coat.flank, 1.3)}" stroke-opacity="${opacity}" stroke-width=".008"/></g>` +
    `<path d="${edge}" stroke="url(#body)" stroke-width=".011" stroke-linecap="round"/>`
  );
}

function definitions(coat: Coat, torsoPath: string): string {
  const b = coat.bellyHeight;
  const low = 0.3;
  const level = (share: number) => low + share * 0.8;
  const stops = (list: readonly [number, string][]) =>
    list.map(([at, color]) => `<stop offset="${at}" stop-color="${color}"/>`).join("");
  const vertical = (id: string, y0: number, y1: number, list: readonly [number, string][]) =>
    `<linearGradient id="${id}" gradientUnits="userSpaceOnUse" x1="0" y1="${y0}" x2="0" y2="${y1}">${stops(list)}</linearGradient>`;
  const upper = blend(coat.flank, coat.leg, 0.15);
  return (
    `<defs>${vertical("body", level(0), level(1), [
      [0, coat.belly],
      [b, blend(coat.belly, coat.flank, 0.35)],
      [b + 0.18, coat.flank],
      [0.68, coat.flank],
      [0.95, coat.back],
    ])}` +
    `${vertical("leg", 0, level(0.62), [
      [0, blend(coat.leg, coat.foot, 0.5)],
      [0.3, coat.leg],
      [0.62, upper],
      [1, coat.flank],
    ])}` +
    `${vertical("farleg", 0, level(0.6), [
      [0, mix(blend(coat.leg, coat.foot, 0.5), 0.62)],
      [1, mix(coat.leg, 0.6)],
    ])}` +
    `<linearGradient id="headshade" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="#000" stop-opacity=".16"/><stop offset=".5" stop-color="#000" stop-opacity="0"/><stop offset="1" stop-color="#fff" stop-opacity=".14"/></linearGradient>` +
    `<clipPath id="torso"><path d="${torsoPath}"/></clipPath></defs>`
  );
}

function carriage(angles: Carriage, head: number): number {
  return head < 0.5
    ? angles.down + (angles.walk - angles.down) * head * 2
    : angles.walk + (angles.alert - angles.walk) * (head * 2 - 1);
}

const radians = (degrees: number) => (degrees * Math.PI) / 180;
const round = (value: number) => Math.round(value * 1e4) / 1e4;
const stroke = (a: Point, b: Point) =>
  `M${round(a[0])} ${round(a[1])}L${round(b[0])} ${round(b[1])}`;
