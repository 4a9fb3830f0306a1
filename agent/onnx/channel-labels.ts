/**
 * Classes of channels that can only go together. Every channel of every axis gets a label, a
 * number; what is elementwise tied to another is joined with it (union-find).
 */
export interface ChannelLabels {
  /** Parent of each label; a root is its own. */
  readonly parent: number[];
  /** Labels that cannot go, with the reason, in the order in which that was found. */
  readonly fixed: { readonly labels: Int32Array; readonly reason: string }[];
}

/** Labels along one axis; null for an axis that keeps its size (batch, height, colors). */
export type AxisLabels = Int32Array | null;

/** No labels yet. */
export function emptyLabels(): ChannelLabels {
  return { parent: [], fixed: [] };
}

/** Labels that were never used before, each a class of its own. */
export function freshLabels(labels: ChannelLabels, count: number): Int32Array {
  const start = labels.parent.length;
  for (let i = 0; i < count; i++) labels.parent.push(start + i);
  return Int32Array.from({ length: count }, (_, i) => start + i);
}

/** The label that stands for a class; good until the next join. */
export function rootOf({ parent }: ChannelLabels, label: number): number {
  let root = label;
  while (parent[root] !== root) root = parent[root]!;
  // Path compression keeps chains short: each label on the way points to the root from now on.
  for (let at = label; at !== root; ) {
    const next = parent[at]!;
    parent[at] = root;
    at = next;
  }
  return root;
}

/** Ties two labels: their classes can only go together. */
export function joinLabels(labels: ChannelLabels, a: number, b: number): void {
  const [first, second] = [rootOf(labels, a), rootOf(labels, b)];
  labels.parent[Math.max(first, second)] = Math.min(first, second);
}

/**
 * Ties two axes channel by channel; an axis that keeps its size fixes the other.
 *
 * @returns the labels of the axis that comes of them.
 * @throws {RangeError} if both have labels and their sizes differ.
 */
export function joinAxes(
  labels: ChannelLabels,
  a: AxisLabels,
  b: AxisLabels,
  reason: string,
): AxisLabels {
  if (a === null || b === null) {
    fixLabels(labels, a ?? b, reason);
    return null;
  }
  if (a.length !== b.length) throw new RangeError(`expected ${a.length} labels, got ${b.length}`);
  for (let i = 0; i < a.length; i++) joinLabels(labels, a[i]!, b[i]!);
  return a;
}

/** Says that channels cannot go. */
export function fixLabels(labels: ChannelLabels, axis: AxisLabels, reason: string): void {
  if (axis !== null && axis.length > 0) labels.fixed.push({ labels: axis, reason });
}

/** Whether two axes are the same classes in the same order. */
export function sameClasses(labels: ChannelLabels, a: AxisLabels, b: AxisLabels): boolean {
  if (a === null || b === null) return a === b;
  return (
    a.length === b.length && a.every((label, i) => rootOf(labels, label) === rootOf(labels, b[i]!))
  );
}

/** First reason by class: by root, good until the next join. */
export function fixedClasses(labels: ChannelLabels): Map<number, string> {
  const reasons = new Map<number, string>();
  for (const { labels: axis, reason } of labels.fixed) {
    for (const label of axis) {
      const root = rootOf(labels, label);
      if (!reasons.has(root)) reasons.set(root, reason);
    }
  }
  return reasons;
}
