/** A point: x to the right, y up in an animal's coordinates, y down in a frame's. */
export type Point = readonly [x: number, y: number];

/** A run of points with the half width of the shape at each. */
export type Spine = readonly (readonly [x: number, y: number, halfWidth: number])[];

/** SVG path through the points as smooth cubic curves (Catmull–Rom), closed. */
export function smoothClosed(points: readonly Point[]): string {
  const n = points.length;
  let path = `M${pair(points[0]!)}`;
  for (let i = 0; i < n; i++) {
    path += curve(points[(i + n - 1) % n]!, points[i]!, points[(i + 1) % n]!, points[(i + 2) % n]!);
  }
  return `${path}Z`;
}

/** SVG path through the points as smooth cubic curves, open. */
export function smoothOpen(points: readonly Point[]): string {
  let path = `M${pair(points[0]!)}`;
  for (let i = 0; i + 1 < points.length; i++) {
    const before = points[Math.max(0, i - 1)]!;
    const after = points[Math.min(points.length - 1, i + 2)]!;
    path += curve(before, points[i]!, points[i + 1]!, after);
  }
  return path;
}

/** Outline of a limb: the spine widened to both sides, round at its end. */
export function limb(spine: Spine): Point[] {
  const left: Point[] = [];
  const right: Point[] = [];
  for (let i = 0; i < spine.length; i++) {
    const [x, y, w] = spine[i]!;
    const [ax, ay] = spine[Math.max(0, i - 1)]!;
    const [bx, by] = spine[Math.min(spine.length - 1, i + 1)]!;
    const length = Math.hypot(bx - ax, by - ay) || 1;
    const [nx, ny] = [(-(by - ay) / length) * w, ((bx - ax) / length) * w];
    left.push([x + nx, y + ny]);
    right.unshift([x - nx, y - ny]);
  }
  return [...left, ...right];
}

/** Rotates by `angle` radians (counter-clockwise where y is up), then moves. */
export function place(points: readonly Point[], at: Point, angle: number): Point[] {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([x, y]) => [at[0] + x * cos - y * sin, at[1] + x * sin + y * cos]);
}

/** The point at share `t` of the way from `a` to `b`. */
export function between(a: Point, b: Point, t: number): Point {
  return [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t];
}

function curve(before: Point, from: Point, to: Point, after: Point): string {
  const c1: Point = [from[0] + (to[0] - before[0]) / 6, from[1] + (to[1] - before[1]) / 6];
  const c2: Point = [to[0] - (after[0] - from[0]) / 6, to[1] - (after[1] - from[1]) / 6];
  return `C${pair(c1)} ${pair(c2)} ${pair(to)}`;
}

/** Four decimals: a tenth of a millimeter in an animal's meters. */
const pair = ([x, y]: Point) => `${round(x)} ${round(y)}`;
const round = (value: number) => Math.round(value * 1e4) / 1e4;
