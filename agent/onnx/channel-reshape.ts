import { type AxisLabels, type ChannelLabels, joinLabels, rootOf } from "./channel-labels.ts";

/**
 * What a Reshape does to channels, or why it cannot be followed. Both shapes are cut into factors
 * that each lie in one axis of either:
 *
 *     [N, T, 3·h·d] → [N, T, 3, h, d]     factors N, T, 3, h, d
 *     [T, N·h, d]   → [T·N, h·d]          factors T, N, h, d
 *
 * A tensor stays rectangular only if what goes are whole places of one factor. Channels that
 * differ along several factors (the first line) are therefore tied along all but one: `option`
 * says along which they stay apart, counted among those that are possible.
 */
export interface ReshapedLabels {
  /** Labels of the axes of the result. */
  readonly labels: AxisLabels[];
  /** In how many ways labels could stay apart; 1 where there is no choice. */
  readonly options: number;
  /** Axis of the result and its labels where there was a choice. */
  readonly chosen: AxisLabels;
}

/** Why labels cannot be followed, and which. */
export interface ReshapeRefusal {
  readonly reason: string;
  readonly labels: readonly AxisLabels[];
}

/** Consecutive factors of one shape, outermost first, as positions in the list of factors. */
type Axis = readonly number[];

/**
 * Follows labels through a Reshape or Flatten.
 *
 * @param from, to shapes before and after, of equally many elements.
 * @param axes labels of the axes before.
 * @param option see {@link ReshapedLabels}; below `options`.
 */
export function reshapeLabels(
  labels: ChannelLabels,
  axes: readonly AxisLabels[],
  from: readonly number[],
  to: readonly number[],
  option: number,
): ReshapedLabels | ReshapeRefusal {
  const labeled = axes.flatMap((axis, i) => (axis === null ? [] : [i]));
  const result: AxisLabels[] = to.map(() => null);
  if (labeled.length === 0) return { labels: result, options: 1, chosen: null };
  const factors = commonFactors(from, to);
  if (factors === null) {
    const reason = `regroups [${from.slice(1)}] as [${to.slice(1)}], which have no common factors`;
    return { reason, labels: axes };
  }
  const [before, after] = [axesOf(from, factors), axesOf(to, factors)];
  let options = 1;
  let chosen: AxisLabels = null;
  for (const i of labeled) {
    const varying = varyingFactors(labels, axes[i]!, before[i]!, factors);
    options = Math.max(options, varying.length);
    const factor = varying[Math.min(option, varying.length - 1)] ?? before[i]![0]!;
    const own = tieOthers(labels, axes[i]!, before[i]!, factors, factor);
    const target = after.findIndex((axis) => axis.includes(factor));
    if (result[target] !== null) {
      return {
        reason: "merges two axes of channels into one",
        labels: [axes[i]!, result[target]!],
      };
    }
    result[target] = spread(own, after[target]!, factors, factor);
    if (varying.length > 1) chosen = result[target];
  }
  return { labels: result, options, chosen };
}

/** Sizes whose products are the axes of both shapes; null where there are none. */
function commonFactors(from: readonly number[], to: readonly number[]): number[] | null {
  const ends = new Set([...innerProducts(from), ...innerProducts(to)]);
  const ascending = [...ends].sort((a, b) => a - b);
  const factors: number[] = [];
  for (let i = 1; i < ascending.length; i++) {
    const size = ascending[i]! / ascending[i - 1]!;
    if (!Number.isInteger(size)) return null;
    factors.unshift(size);
  }
  return factors;
}

/** 1, last size, last · last but one, … */
function innerProducts(dims: readonly number[]): number[] {
  const products = [1];
  for (const size of [...dims].reverse()) products.push(products.at(-1)! * size);
  return products;
}

function axesOf(dims: readonly number[], factors: readonly number[]): Axis[] {
  let at = 0;
  return dims.map((size) => {
    const axis: number[] = [];
    for (let product = 1; product < size; at++) {
      axis.push(at);
      product *= factors[at]!;
    }
    return axis;
  });
}

/** How far apart two neighbors along a factor are within an axis. */
function strideIn(axis: Axis, factors: readonly number[], factor: number): number {
  return axis.filter((f) => f > factor).reduce((product, f) => product * factors[f]!, 1);
}

/** The factors of an axis along which classes differ. */
function varyingFactors(
  labels: ChannelLabels,
  axis: Int32Array,
  within: Axis,
  factors: readonly number[],
): number[] {
  const roots = axis.map((label) => rootOf(labels, label));
  return within.filter((factor) => {
    const stride = strideIn(within, factors, factor);
    const size = factors[factor]!;
    return roots.some((root, i) => Math.floor(i / stride) % size > 0 && root !== roots[i - stride]);
  });
}

/** Joins what differs only along other factors; returns one label for each place of `factor`. */
function tieOthers(
  labels: ChannelLabels,
  axis: Int32Array,
  within: Axis,
  factors: readonly number[],
  factor: number,
): Int32Array {
  const stride = strideIn(within, factors, factor);
  const size = factors[factor]!;
  const own = new Int32Array(size).fill(-1);
  axis.forEach((label, i) => {
    const place = Math.floor(i / stride) % size;
    if (own[place] === -1) own[place] = label;
    else joinLabels(labels, own[place]!, label);
  });
  return own;
}

/** Labels of a whole axis from those of one of its factors. */
function spread(
  own: Int32Array,
  axis: Axis,
  factors: readonly number[],
  factor: number,
): Int32Array {
  const stride = strideIn(axis, factors, factor);
  const count = axis.reduce((product, f) => product * factors[f]!, 1);
  return Int32Array.from({ length: count }, (_, i) => own[Math.floor(i / stride) % own.length]!);
}
