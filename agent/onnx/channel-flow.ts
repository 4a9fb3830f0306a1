import {
  type AxisLabels,
  type ChannelLabels,
  emptyLabels,
  fixLabels,
  freshLabels,
  joinAxes,
  joinLabels,
  sameClasses,
} from "./channel-labels.ts";
import { reshapeLabels } from "./channel-reshape.ts";
import { channelShapes } from "./channel-shapes.ts";
import { type Graph, intAttribute, type Node } from "./graph.ts";
import {
  axisFromFront,
  type Inputs,
  namedAxes,
  padding,
  permutation,
  reducedAxes,
  slicedAxes,
} from "./node-axes.ts";
import { activationsOf, describe, readsOf } from "./query.ts";
import type { Known } from "./shape-values.ts";
import { elementCount, isFloatType } from "./tensor.ts";

/** A constant and the labels of its axes, as one node reads it. */
export interface LabeledConstant {
  /** First output of the reading node, and the position among its inputs. */
  readonly node: string;
  readonly input: number;
  readonly initializer: string;
  readonly axes: readonly AxisLabels[];
}

/** A number that counts channels: it shrinks by the number of `labels` that go. */
interface LabeledSize {
  readonly node: string;
  /** Position of the input that holds it, or name of the attribute. */
  readonly holder: number | string;
  readonly values: readonly number[];
  readonly at: number;
  readonly labels: Int32Array;
  /** −1 for a place counted from the end, which grows toward 0. */
  readonly sign: 1 | -1;
}

/** A Reshape that cuts channels into several axes, of which one can shrink. */
interface ChannelSplit {
  /** First output of the Reshape. */
  readonly node: string;
  readonly options: number;
  readonly labels: Int32Array;
  readonly description: string;
}

/** Labels of all channels of a graph and what depends on them. */
export interface ChannelFlow {
  readonly labels: ChannelLabels;
  readonly constants: readonly LabeledConstant[];
  readonly sizes: readonly LabeledSize[];
  readonly splits: readonly ChannelSplit[];
  /** Labels of sums of two different streams. */
  readonly sums: readonly Int32Array[];
  /** Labels along which a product of two activations is computed one by one: attention heads. */
  readonly batched: readonly Int32Array[];
}

/** Which of its ways a Reshape takes (see `reshapeLabels`), by first output; null: none works. */
export type SplitChoices = ReadonlyMap<string, number | null>;

/** A value that a node reads. */
interface Operand {
  readonly name: string;
  readonly dims: readonly number[];
  readonly axes: readonly AxisLabels[];
}

interface State {
  readonly graph: Graph;
  readonly shapes: ReadonlyMap<string, Known>;
  readonly activations: ReadonlySet<string>;
  readonly choices: SplitChoices;
  readonly labels: ChannelLabels;
  readonly values: Map<string, readonly AxisLabels[]>;
  readonly constants: LabeledConstant[];
  readonly sizes: LabeledSize[];
  readonly splits: ChannelSplit[];
  readonly sums: Int32Array[];
  readonly batched: Int32Array[];
  /** Channels counted by sizes that cannot be edited; the least telling reason comes last. */
  readonly computed: { readonly labels: Int32Array; readonly reason: string }[];
}

/** Follows every channel of a normalized graph from where it is made to where it is used up. */
export function followChannels(graph: Graph, choices: SplitChoices): ChannelFlow {
  const state: State = {
    graph,
    shapes: channelShapes(graph),
    activations: activationsOf(graph),
    choices,
    labels: emptyLabels(),
    values: new Map(),
    constants: [],
    sizes: [],
    splits: [],
    sums: [],
    batched: [],
    computed: [],
  };
  for (const { name } of graph.inputs) {
    const dims = state.shapes.get(name)?.dims;
    if (dims) state.values.set(name, fixedAxes(dims));
  }
  for (const node of graph.nodes) followNode(state, node);
  for (const { name } of graph.outputs) {
    for (const axis of state.values.get(name) ?? []) {
      fixLabels(state.labels, axis, `they are the output "${name}" of the network`);
    }
  }
  for (const { labels, reason } of state.computed) fixLabels(state.labels, labels, reason);
  return state;
}

/** Labels of an axis, counted from the end if negative. */
function axisAt(axes: readonly AxisLabels[], axis: number): AxisLabels {
  const labels = axes.at(axis);
  if (labels === undefined) throw new RangeError(`expected axis < ${axes.length}, got ${axis}`);
  return labels;
}

function fixedAxes(dims: readonly number[]): AxisLabels[] {
  return dims.map(() => null);
}

function followNode(state: State, node: Node): void {
  const rule = node.domain === "" ? RULES[node.opType] : undefined;
  const known = node.outputs.every((name) => name === "" || state.shapes.has(name));
  const results = rule && known ? rule(state, node, inputsOf(state, node)) : null;
  if (results === null) {
    stopAt(state, node);
    return;
  }
  node.outputs.forEach((name, i) => {
    const axes = results[i];
    const dims = state.shapes.get(name)?.dims;
    if (name !== "" && axes && dims)
      state.values.set(
        name,
        axes.map((a, k) => sized(state, node, a, dims[k]!)),
      );
  });
}

/** An axis of one place left can go nowhere, and must not be taken for a broadcast one. */
function sized(state: State, node: Node, axis: AxisLabels, size: number): AxisLabels {
  if (axis === null || axis.length !== size || size > 1) return axis;
  fixLabels(state.labels, axis, `${describe(node)} takes a single one of them`);
  return null;
}

/** What reaches an operator that is not followed cannot go. */
function stopAt(state: State, node: Node): void {
  for (const name of readsOf(node)) {
    for (const axis of state.values.get(name) ?? []) {
      fixLabels(state.labels, axis, `${describe(node)} cannot be followed`);
    }
  }
  for (const name of node.outputs) {
    const dims = state.shapes.get(name)?.dims;
    if (dims) state.values.set(name, fixedAxes(dims));
  }
}

function inputsOf(state: State, node: Node): Inputs {
  return node.inputs.map((name) => state.shapes.get(name));
}

/** The value that a node reads; undefined where there is none. */
function operand(state: State, node: Node, input: number): Operand | undefined {
  const name = node.inputs[input];
  const dims = name ? state.shapes.get(name)?.dims : undefined;
  if (!name || !dims) return undefined;
  const axes = state.values.get(name);
  if (axes) return { name, dims, axes };
  const constant = state.graph.initializers.has(name);
  const own = constant
    ? constantAxes(
        state,
        node,
        input,
        dims.map(() => true),
      )
    : fixedAxes(dims);
  return { name, dims, axes: own };
}

/** Labels for some axes of a constant as this node reads it; axes of size one keep it. */
function constantAxes(
  state: State,
  node: Node,
  input: number,
  which: readonly boolean[],
): AxisLabels[] {
  const initializer = node.inputs[input]!;
  const tensor = state.graph.initializers.get(initializer)!;
  const whole = tensor.data.length === elementCount(tensor.dims);
  const axes = tensor.dims.map((size, i) =>
    whole && which[i] && size > 1 ? freshLabels(state.labels, size) : null,
  );
  state.constants.push({ node: node.outputs[0]!, input, initializer, axes });
  return axes;
}

/**
 * Says that a number counts channels. One that is computed while the network runs cannot be
 * edited: its channels stay.
 */
function countChannels(
  state: State,
  node: Node,
  holder: number | string,
  values: readonly number[],
  at: number,
  labels: Int32Array,
  sign: 1 | -1 = 1,
): void {
  if (labels.length === 0) return;
  if (typeof holder === "number" && state.activations.has(node.inputs[holder] ?? "")) {
    const reason = `${describe(node)} reads a size that is computed while the network runs`;
    state.computed.push({ labels, reason });
    return;
  }
  state.sizes.push({ node: node.outputs[0]!, holder, values, at, labels, sign });
}

/** Labels of each output, or null where the node cannot be followed. */
type Rule = (state: State, node: Node, inputs: Inputs) => readonly (readonly AxisLabels[])[] | null;

const same: Rule = (state, node) => {
  const x = operand(state, node, 0);
  return x ? [x.axes] : null;
};

/** Elementwise on one value, with settings in the others. */
const broadcast: Rule = (state, node) => {
  const operands = node.inputs.flatMap((name, i) => (name === "" ? [] : [operand(state, node, i)]));
  if (operands.some((x) => x === undefined)) return null;
  return [joinBroadcast(state, node, operands as Operand[])];
};

function joinBroadcast(state: State, node: Node, operands: readonly Operand[]): AxisLabels[] {
  const rank = Math.max(...operands.map(({ dims }) => dims.length));
  return Array.from({ length: rank }, (_, i) => {
    const back = rank - i;
    const wide = operands.filter(({ dims }) => (dims.at(-back) ?? 1) > 1 && back <= dims.length);
    const [first, ...others] = wide;
    if (first === undefined) return null;
    const reason = `${describe(node)} adds or multiplies something of a fixed size`;
    let axis = axisAt(first.axes, -back);
    for (const other of others) {
      const labels = axisAt(other.axes, -back);
      markSum(state, node, first, other, axis, labels);
      axis = joinAxes(state.labels, axis, labels, reason);
    }
    return axis;
  });
}

const SUMS = new Set(["Add", "Sub", "Sum"]);

function markSum(
  state: State,
  node: Node,
  a: Operand,
  b: Operand,
  left: AxisLabels,
  right: AxisLabels,
): void {
  if (!SUMS.has(node.opType) || left === null || right === null) return;
  if (!state.activations.has(a.name) || !state.activations.has(b.name)) return;
  if (!sameClasses(state.labels, left, right)) state.sums.push(left);
}

const conv: Rule = (state, node) => {
  const x = operand(state, node, 0);
  const weight = state.graph.initializers.get(node.inputs[1] ?? "");
  if (!x || weight?.dims.length !== 4 || !isFloatType(weight.dataType)) return null;
  const { labels } = state;
  const group = intAttribute(node, "group", 1);
  const [rows, cols] = constantAxes(state, node, 1, [true, group === 1, false, false]);
  const channels = axisAt(x.axes, 1);
  if (group === 1) {
    joinAxes(labels, cols!, channels, `${describe(node)} reads channels of a fixed number`);
  } else {
    tieGroups(state, node, group, channels, rows!);
  }
  for (const axis of x.axes.filter((_, i) => i !== 1)) {
    fixLabels(labels, axis, `${describe(node)} slides over them`);
  }
  joinBias(state, node, 2, rows!);
  return [[null, rows!, null, null]];
};

/** Of a grouped convolution whole groups go, with what they read and what they make. */
function tieGroups(
  state: State,
  node: Node,
  group: number,
  channels: AxisLabels,
  rows: AxisLabels,
): void {
  const { labels } = state;
  if (channels === null || rows === null) {
    fixLabels(labels, channels ?? rows, `${describe(node)} has groups of a fixed number`);
    return;
  }
  const anchors = new Int32Array(group);
  for (let g = 0; g < group; g++) {
    const read = channels.subarray(
      (g * channels.length) / group,
      ((g + 1) * channels.length) / group,
    );
    const made = rows.subarray((g * rows.length) / group, ((g + 1) * rows.length) / group);
    anchors[g] = read[0]!;
    for (const label of [...read, ...made]) joinLabels(labels, anchors[g]!, label);
  }
  countChannels(state, node, "group", [group], 0, anchors);
}

function joinBias(state: State, node: Node, input: number, rows: AxisLabels): void {
  const bias = operand(state, node, input);
  if (!bias) return;
  joinAxes(
    state.labels,
    rows,
    axisAt(bias.axes, 0),
    `${describe(node)} has a bias of a fixed size`,
  );
}

const gemm: Rule = (state, node) => {
  const [a, b] = [operand(state, node, 0), operand(state, node, 1)];
  if (!a || !b || a.dims.length !== 2 || intAttribute(node, "transA", 0) !== 0) return null;
  const [made, read] =
    intAttribute(node, "transB", 0) !== 0
      ? [axisAt(b.axes, 0), axisAt(b.axes, 1)]
      : [axisAt(b.axes, 1), axisAt(b.axes, 0)];
  joinAxes(
    state.labels,
    read,
    axisAt(a.axes, 1),
    `${describe(node)} reads features of a fixed number`,
  );
  const dims = state.shapes.get(node.outputs[0]!)!.dims;
  const product = { name: node.outputs[0]!, dims, axes: [axisAt(a.axes, 0), made] };
  const bias = operand(state, node, 2);
  return [bias ? joinBroadcast(state, node, [product, bias]) : product.axes];
};

const matMul: Rule = (state, node) => {
  const [a, b] = [operand(state, node, 0), operand(state, node, 1)];
  if (!a || !b || a.dims.length < 2 || b.dims.length < 2) return null;
  const { labels, activations } = state;
  const [left, right] = [axisAt(a.axes, -1), axisAt(b.axes, -2)];
  const both = activations.has(a.name) && activations.has(b.name);
  if (both) {
    for (const axis of [left, right]) {
      fixLabels(labels, axis, `${describe(node)} sums over them in a product of two activations`);
    }
  }
  joinAxes(labels, left, right, `${describe(node)} reads features of a fixed number`);
  const [before, behind] = [leading(a), leading(b)];
  const outer = joinBroadcast(state, node, [before, behind]);
  if (both) {
    for (const axis of outer) if (axis !== null) state.batched.push(axis);
  }
  return [[...outer, axisAt(a.axes, -2), axisAt(b.axes, -1)]];
};

/** A value without its last two axes. */
function leading({ name, dims, axes }: Operand): Operand {
  return { name, dims: dims.slice(0, -2), axes: axes.slice(0, -2) };
}

/** Parameters of one value a channel, for the second axis of what is normalized. */
const perChannel: Rule = (state, node) => {
  const x = operand(state, node, 0);
  if (!x) return null;
  let channels = axisAt(x.axes, 1);
  for (let i = 1; i < node.inputs.length; i++) {
    const parameter = operand(state, node, i);
    if (parameter?.dims.length !== 1) return null;
    const reason = `${describe(node)} has parameters of a fixed number`;
    channels = joinAxes(state.labels, channels, axisAt(parameter.axes, 0), reason);
  }
  return [x.axes.map((axis, i) => (i === 1 ? channels : axis))];
};

/** Statistics over some axes, which every one of their places takes part in. */
function over(axesOf: (node: Node, rank: number, opset: number) => readonly number[]): Rule {
  return (state, node) => {
    const x = operand(state, node, 0);
    if (!x) return null;
    const axes = axesOf(node, x.dims.length, state.graph.opset);
    const reason = `${describe(node)} takes statistics over all of them, which change if some go`;
    for (const axis of axes) fixLabels(state.labels, x.axes[axis] ?? null, reason);
    return [x.axes];
  };
}

/** From an axis to the last one. */
function from(axis: number, rank: number): number[] {
  const first = axisFromFront(axis, rank);
  return Array.from({ length: rank - first }, (_, i) => first + i);
}

const layerNorm = over((node, rank) => from(intAttribute(node, "axis", -1), rank));
const softmax = over((node, rank, opset) => {
  if (opset < 13) return from(intAttribute(node, "axis", 1), rank);
  return [axisFromFront(intAttribute(node, "axis", -1), rank)];
});
const channelStatistics = over(() => [1]);

const pool: Rule = (state, node) => {
  const x = operand(state, node, 0);
  if (!x || node.outputs.length > 1) return null;
  for (const axis of x.axes.slice(2))
    fixLabels(state.labels, axis, `${describe(node)} slides over them`);
  return [x.axes.map((axis, i) => (i < 2 ? axis : null))];
};

const reduce: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  const axes = x && reducedAxes(node, inputs, x.dims.length);
  if (!x || !axes) return null;
  const reason = `${describe(node)} takes statistics over all of them, which change if some go`;
  for (const axis of axes) fixLabels(state.labels, axisAt(x.axes, axis), reason);
  if (intAttribute(node, "keepdims", 1) === 0) return [x.axes.filter((_, i) => !axes.includes(i))];
  return [x.axes.map((axis, i) => (axes.includes(i) ? null : axis))];
};

const transpose: Rule = (state, node) => {
  const x = operand(state, node, 0);
  return x ? [permutation(node, x.dims.length).map((axis) => axisAt(x.axes, axis))] : null;
};

const reshape: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  if (!x) return null;
  const to = state.shapes.get(node.outputs[0]!)!.dims;
  const choice = state.choices.get(node.outputs[0]!);
  const result = reshapeLabels(state.labels, x.axes, x.dims, to, choice ?? 0);
  if ("reason" in result) {
    for (const axis of result.labels) {
      fixLabels(state.labels, axis, `${describe(node)} ${result.reason}`);
    }
    return [fixedAxes(to)];
  }
  if (result.chosen !== null) noteSplit(state, node, x, to, result.options, result.chosen);
  if (node.opType === "Reshape") followTarget(state, node, x, result.labels, inputs[1]!.values!);
  return [result.labels];
};

function noteSplit(
  state: State,
  node: Node,
  x: Operand,
  to: readonly number[],
  options: number,
  labels: Int32Array,
): void {
  const description = `${describe(node)} cuts [${x.dims.slice(1)}] into [${to.slice(1)}], which is not followed unless a product of two activations reads attention heads from it`;
  if (state.choices.get(node.outputs[0]!) === null) fixLabels(state.labels, labels, description);
  state.splits.push({ node: node.outputs[0]!, options, labels, description });
}

/** Sizes in the target of a Reshape: −1 follows by itself, 0 where it copies the same channels. */
function followTarget(
  state: State,
  node: Node,
  x: Operand,
  made: readonly AxisLabels[],
  target: readonly number[],
): void {
  made.forEach((axis, i) => {
    if (axis === null || target[i] === -1) return;
    const copied = target[i] === 0 && intAttribute(node, "allowzero", 0) === 0;
    if (copied) {
      if (sameClasses(state.labels, axis, axisAt(x.axes, i))) return;
      fixLabels(state.labels, axis, `${describe(node)} copies a size that does not follow them`);
    } else {
      countChannels(state, node, 1, target, i, axis);
    }
  });
}

const squeeze: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  const axes = x && namedAxes(node, inputs, x.dims.length);
  if (!x || !axes) return null;
  const gone = (i: number) => (axes.length > 0 ? axes.includes(i) : x.dims[i] === 1);
  return [x.axes.filter((_, i) => !gone(i))];
};

const unsqueeze: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  const rank = state.shapes.get(node.outputs[0]!)!.dims.length;
  const axes = namedAxes(node, inputs, rank);
  if (!x || !axes) return null;
  const rest = [...x.axes];
  return [Array.from({ length: rank }, (_, i) => (axes.includes(i) ? null : rest.shift()!))];
};

const concat: Rule = (state, node) => {
  const operands = node.inputs.map((_, i) => operand(state, node, i));
  if (operands.some((x) => x === undefined)) return null;
  const parts = operands as Operand[];
  const axis = axisFromFront(intAttribute(node, "axis", 0), parts[0]!.dims.length);
  const reason = `${describe(node)} puts them beside something of a fixed size`;
  return [
    parts[0]!.dims.map((_, i) => {
      const axes = parts.map((part) => axisAt(part.axes, i));
      if (i === axis) return chained(state, node, parts, axis);
      return axes.reduce((a, b) =>
        a === null && b === null ? null : joinAxes(state.labels, a, b, reason),
      );
    }),
  ];
};

/** Labels one behind the other; parts that keep their size get labels that cannot go. */
function chained(state: State, node: Node, parts: readonly Operand[], axis: number): AxisLabels {
  const { labels, activations } = state;
  const reason = `${describe(node)} puts them behind something of a fixed size`;
  const moving = parts.some((part) => part.axes[axis] !== null && activations.has(part.name));
  if (!moving) {
    for (const part of parts) fixLabels(labels, axisAt(part.axes, axis), reason);
    return null;
  }
  const all = parts.map((part) => {
    const own = axisAt(part.axes, axis);
    if (own !== null) return own;
    const fixed = freshLabels(labels, part.dims[axis]!);
    fixLabels(labels, fixed, reason);
    return fixed;
  });
  return Int32Array.from(all.flatMap((own) => [...own]));
}

const split: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  if (!x) return null;
  const axis = axisFromFront(intAttribute(node, "axis", 0), x.dims.length);
  const sizes = node.outputs.map((name) => state.shapes.get(name)?.dims[axis] ?? 0);
  const labels = axisAt(x.axes, axis);
  const stated = inputs[1] !== undefined || state.graph.opset >= 13 ? 1 : "split";
  let start = 0;
  return sizes.map((size, i) => {
    const part = labels?.subarray(start, start + size) ?? null;
    start += size;
    if (part) countChannels(state, node, stated, sizes, i, part);
    return x.axes.map((own, k) => (k === axis ? part : own));
  });
};

const slice: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  const sliced = x && slicedAxes(node, inputs, x.dims);
  if (!x || !sliced) return null;
  const axes = [...x.axes];
  for (const taken of sliced) {
    const labels = axisAt(axes, taken.axis);
    if (labels === null) continue;
    if (taken.step !== 1) {
      fixLabels(state.labels, labels, `${describe(node)} takes every ${taken.step}th of them`);
      axes[taken.axis] = null;
      continue;
    }
    for (const [at, name, bound] of [
      [1, "starts", taken.start],
      [2, "ends", taken.end],
    ] as const) {
      followBound(state, node, inputs, { input: at, attribute: name, at: taken.at }, bound, labels);
    }
    const first = taken.places[0] ?? 0;
    axes[taken.axis] = labels.subarray(first, first + taken.places.length);
  }
  return [axes];
};

/** A bound moves by the channels in front of it or, counted from the end, behind it. */
function followBound(
  state: State,
  node: Node,
  inputs: Inputs,
  held: { input: number; attribute: string; at: number },
  bound: number,
  labels: Int32Array,
): void {
  const stated = node.inputs.length > 1;
  const list = stated ? inputs[held.input]!.values! : undefined;
  const attribute = node.attributes.get(held.attribute);
  const values = list ?? (attribute?.type === "ints" ? attribute.value : []);
  const holder = stated ? held.input : held.attribute;
  // Beyond either end it stays beyond.
  if (bound >= labels.length || bound < -labels.length) return;
  const [own, sign] =
    bound < 0
      ? [labels.subarray(labels.length + bound), -1 as const]
      : [labels.subarray(0, bound), 1 as const];
  countChannels(state, node, holder, values, held.at, own, sign);
}

const gather: Rule = (state, node) => {
  const [x, indices] = [operand(state, node, 0), operand(state, node, 1)];
  if (!x || !indices) return null;
  const axis = axisFromFront(intAttribute(node, "axis", 0), x.dims.length);
  fixLabels(
    state.labels,
    axisAt(x.axes, axis),
    `${describe(node)} picks some of them by their number`,
  );
  for (const own of indices.axes) fixLabels(state.labels, own, `${describe(node)} has indices`);
  return [[...x.axes.slice(0, axis), ...fixedAxes(indices.dims), ...x.axes.slice(axis + 1)]];
};

const pad: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  const pads = x && padding(node, inputs, x.dims.length);
  if (!x || !pads) return null;
  const rank = x.dims.length;
  const mode = node.attributes.get("mode");
  const constant = mode === undefined || (mode.type === "string" && mode.value === "constant");
  const holder = node.inputs[1] ? 1 : "pads";
  const axes = x.axes.map((axis, i) => {
    const [before, behind] = [pads[i]!, pads[rank + i]!];
    if (axis === null || (before === 0 && behind === 0)) return axis;
    if (!constant || before < 0 || behind < 0) {
      fixLabels(state.labels, axis, `${describe(node)} mirrors or crops them`);
      return null;
    }
    const own = [freshLabels(state.labels, before), freshLabels(state.labels, behind)] as const;
    countChannels(state, node, holder, pads, i, own[0]);
    countChannels(state, node, holder, pads, rank + i, own[1]);
    return Int32Array.from([...own[0], ...axis, ...own[1]]);
  });
  return [axes];
};

const resize: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  if (!x) return null;
  const to = state.shapes.get(node.outputs[0]!)!.dims;
  const sizes = node.inputs[3] ? inputs[3]?.values : undefined;
  const axes = x.axes.map((axis, i) => {
    if (axis === null) return null;
    if (to[i] !== x.dims[i] || (sizes && sizes.length !== to.length)) {
      fixLabels(state.labels, axis, `${describe(node)} resamples them`);
      return null;
    }
    if (sizes) countChannels(state, node, 3, sizes, i, axis);
    return axis;
  });
  return [axes];
};

const expand: Rule = (state, node, inputs) => {
  const x = operand(state, node, 0);
  const target = inputs[1]?.values;
  if (!x || !target) return null;
  const to = state.shapes.get(node.outputs[0]!)!.dims;
  const axes: AxisLabels[] = [...fixedAxes(to.slice(x.dims.length)), ...x.axes];
  axes.forEach((axis, i) => {
    const at = i - (to.length - target.length);
    if (axis !== null && at >= 0 && target[at] !== 1)
      countChannels(state, node, 1, target, at, axis);
  });
  return [axes];
};

/** Sizes of a value, which a runtime computes anew. */
const sizesOnly: Rule = (state, node) =>
  node.outputs.map((name) => fixedAxes(state.shapes.get(name)?.dims ?? []));

function each(names: string, rule: Rule): Record<string, Rule> {
  return Object.fromEntries(names.split(" ").map((name) => [name, rule]));
}

const RULES: Readonly<Record<string, Rule>> = {
  ...each(
    "Relu LeakyRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Gelu Mish " +
      "ThresholdedRelu Erf Exp Log Sqrt Abs Neg Reciprocal Floor Ceil Round Sign Not Clip Identity " +
      "Dropout Cast",
    same,
  ),
  ...each("Add Sub Mul Div Pow Min Max Sum Mean Where PRelu Equal Less Greater And Or", broadcast),
  ...each("BatchNormalization InstanceNormalization", perChannel),
  ...each("GroupNormalization LRN", channelStatistics),
  ...each("LayerNormalization RMSNormalization", layerNorm),
  ...each("Softmax LogSoftmax Hardmax", softmax),
  ...each("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool", pool),
  ...each(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare " +
      "ReduceLogSum ReduceLogSumExp",
    reduce,
  ),
  ...each("Reshape Flatten", reshape),
  ...each("Shape Size ConstantOfShape Range Constant", sizesOnly),
  Conv: conv,
  Gemm: gemm,
  MatMul: matMul,
  Transpose: transpose,
  Squeeze: squeeze,
  Unsqueeze: unsqueeze,
  Concat: concat,
  Split: split,
  Slice: slice,
  Gather: gather,
  Pad: pad,
  Resize: resize,
  Expand: expand,
};
