import { node } from "./builder.ts";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import type { PrunableLayer } from "./prunable-layers.ts";
import { freeName } from "./query.ts";
import { DataType, floatTensor, int64Tensor, type Tensor } from "./tensor.ts";

/** A graph input that says where sampling starts; see {@link startOf}. */
export interface SampleStart {
  readonly name: string;
  /** Every how many positions one is taken, on each axis. */
  readonly step: number;
  /** Elements of the sliced value between two positions: one for each axis. */
  readonly strides: readonly number[];
}

/** Where a sample of what a layer multiplies comes out of a graph. */
export interface LayerSamples {
  /** float32 `[positions, groups · cols]`, a column of the unfolded input in each row. */
  readonly rowsName: string;
  /** Null where every position is taken. */
  readonly start: SampleStart | null;
}

/** Nodes, constants and inputs being added. */
interface Draft {
  readonly nodes: Node[];
  readonly constants: Map<string, Tensor>;
  readonly inputs: ValueInfo[];
}

/**
 * Appends nodes that hand out samples of what each layer multiplies, for its second moments: of a
 * convolution every `step`-th output position on both axes, of a matrix product every `step`-th
 * row. Where the first one lies is an input of the graph, so that batches take turns; borders and
 * corners come in as often as in the layer itself. Only what is taken is unfolded:
 *
 * ```
 * k×k Conv    input ─ Pad ─ Slice from start ─ one-hot depthwise Conv of stride step·stride ─┐
 * 1×1 Conv    input ─ Slice from start by step·stride ───────────────────────────────────────┤
 *             [N, C·kh·kw, h, w] ─ Reshape, Transpose, Reshape ─ [N·h·w, C·kh·kw]
 * Gemm/MatMul input ─ Reshape ─ [N·…, cols] ─ Slice from start by step
 * ```
 * Layers that see the same input in the same way share their samples.
 *
 * @param steps one a layer; 1 takes every position.
 */
export function appendSamples(
  graph: Graph,
  layers: readonly PrunableLayer[],
  steps: readonly number[],
): { readonly graph: Graph; readonly samples: readonly LayerSamples[] } {
  const draft: Draft = { nodes: [], constants: new Map(), inputs: [] };
  const known = new Map<string, LayerSamples>();
  const outputs: ValueInfo[] = [];
  const samples = layers.map((layer, i): LayerSamples => {
    const step = steps[i]!;
    const key = geometryKey(layer, step);
    const before = known.get(key);
    if (before) return before;
    const base = freeName(graph, `taco_samples_${known.size}`);
    const input = floatInput(draft, graph, layer, base);
    const made =
      layer.opType === "Conv"
        ? convRows(draft, layer, input, base, step)
        : matrixRows(draft, layer, input, base, step);
    known.set(key, made);
    const width = layer.groups * layer.inFeaturesPerGroup;
    outputs.push({ name: made.rowsName, dataType: DataType.FLOAT, dims: ["positions", width] });
    return made;
  });
  return {
    graph: {
      ...graph,
      nodes: [...graph.nodes, ...draft.nodes],
      initializers: new Map([...graph.initializers, ...draft.constants]),
      inputs: [...graph.inputs, ...draft.inputs],
      outputs: [...graph.outputs, ...outputs],
    },
    samples,
  };
}

/**
 * The start to feed for the `turn`-th batch: int64, one value an axis. Successive turns spread
 * evenly over all `step²` (or `step`) places (Roberts' R2 sequence), so none is preferred.
 */
export function startOf(start: SampleStart, turn: number): BigInt64Array {
  const ratios = [0.7548776662466927, 0.5698402909980532];
  return BigInt64Array.from(start.strides, (stride, axis) => {
    const phase = Math.floor(((0.5 + turn * ratios[axis]!) % 1) * start.step);
    return BigInt(phase * stride);
  });
}

/** The value sliced from a start that the graph's caller gives, by `steps`, on some axes. */
export function sliceFrom(
  draft: Draft,
  input: string,
  start: SampleStart,
  axes: readonly number[],
  steps: readonly number[],
  output: string,
): string {
  const dims = [axes.length];
  draft.inputs.push({ name: start.name, dataType: DataType.INT64, dims });
  const far = axes.map(() => 2 ** 31 - 1);
  const names = [integers(draft, far), integers(draft, axes), integers(draft, steps)];
  draft.nodes.push(node("Slice", [input, start.name, ...names], [output]));
  return output;
}

function geometryKey(layer: PrunableLayer, step: number): string {
  const { inputName, groups, inFeaturesPerGroup, kernel, strides, pads, dilations } = layer;
  const how = [groups, inFeaturesPerGroup, kernel, strides, pads, dilations, layer.autoPad, step];
  return JSON.stringify([inputName, layer.opType === "Conv", layer.weightSide, how]);
}

function floatInput(draft: Draft, graph: Graph, layer: PrunableLayer, base: string): string {
  const weight = graph.initializers.get(layer.weightName);
  if (!weight || weight.dataType === DataType.FLOAT) return layer.inputName;
  return add(draft, "Cast", [layer.inputName], `${base}_float`, { to: DataType.FLOAT });
}

function convRows(
  draft: Draft,
  layer: PrunableLayer,
  input: string,
  base: string,
  step: number,
): LayerSamples {
  const { groups, inFeaturesPerGroup: cols } = layer;
  const { name, start } = unfold(draft, layer, input, base, step);
  const flat = reshape(draft, name, [0, groups * cols, -1], `${base}_flat`);
  const turned = add(draft, "Transpose", [flat], `${base}_turned`, { perm: [0, 2, 1] });
  const rowsName = reshape(draft, turned, [-1, groups * cols], `${base}_rows`);
  return { rowsName, start };
}

/** [N, C, h, w] → [N, C·kh·kw, ⌈oh/step⌉, ⌈ow/step⌉], channels ordered (channel, row, column). */
function unfold(
  draft: Draft,
  layer: PrunableLayer,
  input: string,
  base: string,
  step: number,
): { readonly name: string; readonly start: SampleStart | null } {
  const { kernel, strides, pads, dilations, autoPad, groups } = layer;
  const taps = kernel[0]! * kernel[1]!;
  const padded = autoPad === "NOTSET" && pads.some((pad) => pad !== 0);
  const stepped = strides.map((stride) => stride * step);
  const startAt = (by: readonly number[]) =>
    step === 1 ? null : { name: `${base}_start`, step, strides: by };
  const start = startAt(strides);
  if (taps === 1 && !padded) {
    if (start) {
      return { name: sliceFrom(draft, input, start, [2, 3], stepped, `${base}_taken`), start };
    }
    if (strides.every((stride) => stride === 1)) return { name: input, start };
    // Picks every stride-th pixel; with a 1×1 kernel all auto_pad modes but NOTSET pad nothing.
    const pool = { kernel_shape: [1, 1], strides };
    return { name: add(draft, "MaxPool", [input], `${base}_strided`, pool), start };
  }
  const channels = (layer.inFeaturesPerGroup / taps) * groups;
  const weight = oneHot(draft, layer, channels, base);
  const geometry = { kernel_shape: kernel, dilations, group: channels };
  const conv = (from: string, how: Parameters<typeof node>[3], to: string) =>
    add(draft, "Conv", [from, weight], to, { ...geometry, ...how });
  if (!start || autoPad.startsWith("SAME")) {
    const padding = autoPad === "NOTSET" ? { pads } : { auto_pad: autoPad };
    const whole = conv(input, { strides, ...padding }, `${base}_unfolded`);
    const after = startAt([1, 1]);
    if (!after) return { name: whole, start: null };
    const steps = [step, step];
    return { name: sliceFrom(draft, whole, after, [2, 3], steps, `${base}_taken`), start: after };
  }
  const [top, left, bottom, right] = pads as [number, number, number, number];
  const around = integers(draft, [0, 0, top, left, 0, 0, bottom, right]);
  const wide = padded ? add(draft, "Pad", [input, around], `${base}_padded`) : input;
  const from = sliceFrom(draft, wide, start, [2, 3], [1, 1], `${base}_shifted`);
  return { name: conv(from, { strides: stepped }, `${base}_unfolded`), start };
}

/** Kernels that each pick one pixel of the window. */
function oneHot(draft: Draft, layer: PrunableLayer, channels: number, base: string): string {
  const [height, width] = layer.kernel as [number, number];
  const taps = height * width;
  const kernels = new Float32Array(channels * taps * taps);
  for (let c = 0; c < channels; c++) {
    for (let t = 0; t < taps; t++) kernels[(c * taps + t) * taps + t] = 1;
  }
  const name = `${base}_onehot`;
  draft.constants.set(name, floatTensor([channels * taps, 1, height, width], kernels));
  return name;
}

function matrixRows(
  draft: Draft,
  layer: PrunableLayer,
  input: string,
  base: string,
  step: number,
): LayerSamples {
  let rows = input;
  if (layer.weightSide === "left") {
    const equation = { equation: "...ij->...ji" };
    rows = add(draft, "Einsum", [input], `${base}_turned`, equation);
  }
  const flat = reshape(draft, rows, [-1, layer.inFeaturesPerGroup], `${base}_flat`);
  if (step === 1) return { rowsName: flat, start: null };
  const start = { name: `${base}_start`, step, strides: [1] };
  return { rowsName: sliceFrom(draft, flat, start, [0], [step], `${base}_rows`), start };
}

function add(
  draft: Draft,
  opType: string,
  inputs: readonly string[],
  output: string,
  attributes: Parameters<typeof node>[3] = {},
): string {
  draft.nodes.push(node(opType, inputs, [output], attributes));
  return output;
}

function integers(draft: Draft, values: readonly number[]): string {
  const name = `taco_integers_${values.join("_")}`;
  draft.constants.set(name, int64Tensor([values.length], values));
  return name;
}

function reshape(draft: Draft, input: string, dims: readonly number[], output: string): string {
  return add(draft, "Reshape", [input, integers(draft, dims)], output);
}
