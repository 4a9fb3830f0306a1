import { mix } from "./coat.ts";
import { limb, type Point, place, type Spine, smoothClosed } from "./outline.ts";
import type { DrawnAnimal, Individual, Pose } from "./quadruped.ts";
import type { Random } from "./random.ts";

/**
 * Draws a pheasant, the cock with collar, wattle and long tail, the hen mottled; in the same
 * coordinates as a quadruped (back near y = 1, feet at y = 0, facing right).
 */
export function drawPheasant(individual: Individual, pose: Pose, random: Random): DrawnAnimal {
  const cock = individual.male;
  const tone = (color: string) => mix(color, individual.girth);
  const body = tone(cock ? "#8a4a22" : "#a38a63");
  const dark = tone(cock ? "#3c1f12" : "#5b4730");
  const neckTop: Point = neckEnd(pose);
  const bob = 0.03 * Math.sin(4 * Math.PI * pose.phase);
  const torso: Point[] = [
    [-0.42, 0.86],
    [-0.15, 1.0],
    [0.25, 1.08],
    [0.62, 1.06],
    [0.82, 0.94],
    [0.84, 0.74],
    [0.66, 0.52],
    [0.32, 0.43],
    [-0.05, 0.5],
    [-0.34, 0.7],
  ];
  const neck: Spine = [
    [0.52, 0.86, 0.24],
    [0.72, 0.98, 0.19],
    [(0.74 + neckTop[0]) / 2, (1.02 + neckTop[1]) / 2, 0.115],
    [neckTop[0], neckTop[1] + bob, 0.09],
  ];
  const headAngle = pose.head < 0.3 ? -0.9 : -0.08;
  const onHead = (points: readonly Point[]) =>
    smoothClosed(place(points, [neckTop[0], neckTop[1] + bob], headAngle));
  const headColor = cock ? "#17352f" : tone("#ab946e");
  const tailLength = cock ? 1.75 : 1.05;
  const svg = [
    `<defs><linearGradient id="bird" gradientUnits="userSpaceOnUse" x1="0" y1=".4" x2="0" y2="1.1"><stop offset="0" stop-color="${dark}"/><stop offset=".35" stop-color="${body}"/><stop offset="1" stop-color="${mix(body, 0.85)}"/></linearGradient><clipPath id="torso"><path d="${smoothClosed(torso)}"/></clipPath></defs>`,
    leg(pose, 0.5, true, pose.farShift),
    tail(tailLength, body, dark, pose),
    `<path d="${smoothClosed(torso)}" fill="url(#bird)"/>`,
    `<path d="${smoothClosed(limb(neck))}" fill="${cock ? "#5d2f1d" : body}"/>`,
    `<g clip-path="url(#torso)">${feathers(random, body, dark, cock)}</g>`,
    wing(body, dark, random),
    cock ? collar(neck) : "",
    leg(pose, 0, false, [0, 0]),
    `<path d="${onHead([
      [-0.1, 0.02],
      [0.0, 0.12],
      [0.12, 0.1],
      [0.2, 0.03],
      [0.16, -0.05],
      [0.02, -0.1],
    ])}" fill="${headColor}"/>`,
    cock
      ? `<path d="${onHead([
          [0.0, 0.05],
          [0.08, 0.08],
          [0.17, 0.04],
          [0.14, -0.07],
          [0.05, -0.09],
        ])}" fill="#b3201c"/>`
      : "",
    `<path d="${onHead([
      [0.17, 0.045],
      [0.25, 0.02],
      [0.33, -0.04],
      [0.18, -0.035],
    ])}" fill="#c9bd94"/>`,
  ];
  const eye = place([[0.09, 0.03]], [neckTop[0], neckTop[1] + bob], headAngle)[0]!;
  svg.push(
    `<circle cx="${eye[0]}" cy="${eye[1]}" r=".028" fill="#d9b34a"/><circle cx="${eye[0]}" cy="${eye[1]}" r=".016" fill="#100c08"/>`,
  );
  return { svg: svg.join(""), eyes: [{ at: eye, radius: 0.022 }] };
}

function neckEnd(pose: Pose): Point {
  if (pose.head < 0.3) return [1.16, 0.34];
  return pose.head < 0.7 ? [1.06, 1.32] : [0.92, 1.52];
}

function tail(length: number, body: string, dark: string, pose: Pose): string {
  const up = pose.head > 0.8 ? 0.22 : 0.05;
  const spine: Spine = [
    [-0.2, 0.86, 0.16],
    [-0.2 - length * 0.3, 0.84 + up * 0.4, 0.11],
    [-0.2 - length * 0.65, 0.8 + up, 0.07],
    [-0.2 - length, 0.74 + up * 1.6, 0.012],
  ];
  let bars = "";
  for (let i = 1; i < 13; i++) {
    const t = i / 13;
    const x = -0.25 - length * t * 0.92;
    const y = 0.84 - 0.08 * t + up * t * 1.4;
    bars += `M${x.toFixed(3)} ${(y - 0.08 * (1 - t)).toFixed(3)}l-.03 ${(0.16 * (1 - t) + 0.02).toFixed(3)}`;
  }
  return (
    `<path d="${smoothClosed(limb(spine))}" fill="${mix(body, 1.08)}"/>` +
    `<path d="${bars}" stroke="${dark}" stroke-width=".026" stroke-opacity=".75"/>`
  );
}

function feathers(random: Random, body: string, dark: string, cock: boolean): string {
  let marks = "";
  for (let i = 0; i < 150; i++) {
    const x = random.range(-0.4, 0.85);
    const y = random.range(0.42, 1.08);
    const r = random.range(0.015, 0.03);
    marks += `<path d="M${x.toFixed(3)} ${y.toFixed(3)}q${(-r).toFixed(3)} ${(-r * 1.4).toFixed(3)} ${(-r * 2.4).toFixed(3)} ${(r * 0.2).toFixed(3)}"/>`;
  }
  const light = mix(body, cock ? 1.5 : 1.3);
  return `<g fill="none" stroke="${dark}" stroke-opacity=".75" stroke-width=".014">${marks}</g><g fill="none" stroke="${light}" stroke-opacity=".5" stroke-width=".009" transform="translate(.018 .012)">${marks}</g>`;
}

function wing(body: string, dark: string, random: Random): string {
  const outline: Point[] = [
    [0.62, 0.9],
    [0.3, 0.98],
    [-0.1, 0.92],
    [-0.48, 0.74],
    [-0.2, 0.66],
    [0.25, 0.62],
    [0.56, 0.7],
  ];
  let quills = "";
  for (let i = 0; i < 9; i++) {
    const y = 0.68 + i * 0.028;
    quills += `M${(0.4 - random.range(0, 0.2)).toFixed(3)} ${(y + 0.02).toFixed(3)}L${(-0.42 + i * 0.03).toFixed(3)} ${(0.71 + i * 0.018).toFixed(3)}`;
  }
  return (
    `<path d="${smoothClosed(outline)}" fill="${mix(body, 0.92)}" fill-opacity=".85"/>` +
    `<path d="${quills}" stroke="${dark}" stroke-width=".014" stroke-opacity=".6"/>`
  );
}

function collar(neck: Spine): string {
  const [x, y, w] = neck[2]!;
  return `<path d="${smoothClosed([
    [x - w * 0.95, y - 0.01],
    [x - w * 0.9, y + 0.06],
    [x + w * 0.85, y + 0.0],
    [x + w * 0.95, y - 0.07],
  ])}" fill="#f3f0e8"/>`;
}

function leg(pose: Pose, offset: number, far: boolean, shift: Point): string {
  const moving = pose.gait !== "stand" && pose.gait !== "sit";
  const p = (pose.phase + offset) % 1;
  const swing = Math.max(0, (p - 0.55) / 0.45);
  const x =
    0.25 +
    shift[0] +
    (moving ? (swing > 0 ? 0.5 * (swing - 0.5) : 0.5 * (0.5 - p / 0.55)) : offset * 0.2);
  const y = (moving ? 0.16 * Math.sin(Math.PI * swing) : 0) + shift[1];
  const color = far ? "#5b5145" : "#85786a";
  const spine: Spine = [
    [0.26 + shift[0], 0.62, 0.15],
    [0.3 + shift[0], 0.44, 0.07],
    [(0.2 + x) / 2 + shift[0] * 0.5 - 0.02, 0.26 + y, 0.03],
    [x, y + 0.04, 0.022],
  ];
  return (
    `<path d="${smoothClosed(limb(spine))}" fill="${color}"/>` +
    `<path d="M${x - 0.1} ${y + 0.015}L${x + 0.01} ${y + 0.05}L${x + 0.17} ${y + 0.015}M${x + 0.01} ${y + 0.05}L${x + 0.13} ${y + 0.035}" fill="none" stroke="${color}" stroke-width=".032"/>`
  );
}
