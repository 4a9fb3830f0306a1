import { node } from "./builder.ts";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import type { PrunableLayer } from "./prunable-layers.ts";
import { freeName } from "./query.ts";
import { DataType, floatTensor, int64Tensor, type Tensor } from "./tensor.ts";

/** Where a layer's input statistics come out of a graph. */
export interface StatisticsOutputs {
  /** float32 `[groups, cols, cols]`: Σ x·xᵀ over pictures and positions, one matrix a group. */
  readonly gramName: string;
  /** float32 `[groups, cols]`: Σ x. */
  readonly sumName: string;
  /** float32 scalar: how many x were summed (the same for every group). */
  readonly countName: string;
}

/** A graph with statistics as extra outputs; `outputs[i]` belongs to the i-th layer asked for. */
export interface StatisticsGraph {
  readonly graph: Graph;
  readonly outputs: readonly StatisticsOutputs[];
}

/** Nodes and constants being added. */
interface Draft {
  readonly nodes: Node[];
  readonly constants: Map<string, Tensor>;
  readonly opset: number;
}

/**
 * Appends nodes that sum the second moments of what each layer multiplies: x is one column of
 * the unfolded input (im2col, zero padding included), in the order of the columns of W, so that
 * for the layer's Hessian H = (2/n)·Σxxᵀ take `2 / count · gram`. Layers that see the same input
 * in the same way share their outputs.
 *
 * ```
 * k×k Conv    input ─ one-hot depthwise Conv (same pads, strides, dilations) ─┐
 * 1×1 Conv    input ─ (MaxPool 1×1 where strided) ───────────────────────────┤
 *             [N, C·kh·kw, oh, ow] ─ Reshape, Transpose ─ [groups, cols, N·oh·ow] = X ─ X·Xᵀ
 * Gemm/MatMul input ─ Reshape ─ [N·…, cols] = Xᵀ ─ X·Xᵀ
 * ```
 *
 * @param graph must hold the layers' inputs; the layers' own nodes are not needed.
 */
export function appendStatistics(graph: Graph, layers: readonly PrunableLayer[]): StatisticsGraph {
  const draft: Draft = { nodes: [], constants: new Map(), opset: graph.opset };
  const known = new Map<string, StatisticsOutputs>();
  const outputs: StatisticsOutputs[] = [];
  const infos: ValueInfo[] = [];
  for (const layer of layers) {
    const key = geometryKey(layer);
    const before = known.get(key);
    if (before) {
      outputs.push(before);
      continue;
    }
    const base = freeName(graph, `taco_statistics_${known.size}`);
    const names = appendLayer(draft, graph, layer, base);
    known.set(key, names);
    outputs.push(names);
    const { groups, inFeaturesPerGroup: cols } = layer;
    const type = { dataType: DataType.FLOAT };
    infos.push(
      { name: names.gramName, ...type, dims: [groups, cols, cols] },
      { name: names.sumName, ...type, dims: [groups, cols] },
      { name: names.countName, ...type, dims: [] },
    );
  }
  return {
    graph: {
      ...graph,
      nodes: [...graph.nodes, ...draft.nodes],
      initializers: new Map([...graph.initializers, ...draft.constants]),
      outputs: [...graph.outputs, ...infos],
    },
    outputs,
  };
}

function geometryKey(layer: PrunableLayer): string {
  const { inputName, groups, inFeaturesPerGroup, kernel, strides, pads, dilations } = layer;
  const how = [groups, inFeaturesPerGroup, kernel, strides, pads, dilations, layer.autoPad];
  return JSON.stringify([inputName, layer.opType === "Conv", layer.weightSide, how]);
}

function appendLayer(
  draft: Draft,
  graph: Graph,
  layer: PrunableLayer,
  base: string,
): StatisticsOutputs {
  const weight = graph.initializers.get(layer.weightName);
  let input = layer.inputName;
  if (weight && weight.dataType !== DataType.FLOAT) {
    input = add(draft, "Cast", [input], `${base}_float`, { to: DataType.FLOAT });
  }
  const names = { gramName: `${base}_gram`, sumName: `${base}_sum`, countName: `${base}_count` };
  if (layer.opType === "Conv") convStatistics(draft, layer, input, base, names);
  else matrixStatistics(draft, layer, input, base, names);
  return names;
}

function convStatistics(
  draft: Draft,
  layer: PrunableLayer,
  input: string,
  base: string,
  names: StatisticsOutputs,
): void {
  const { groups, inFeaturesPerGroup: cols } = layer;
  const unfolded = unfold(draft, layer, input, base);
  // [N, groups·cols, oh, ow] → [N, groups, cols, P] → [groups, cols, N, P] → [groups, cols, N·P]
  const split = reshape(draft, unfolded, [0, groups, cols, -1], `${base}_split`);
  const turned = add(draft, "Transpose", [split], `${base}_turned`, { perm: [1, 2, 0, 3] });
  const columns = reshape(draft, turned, [groups, cols, -1], `${base}_columns`);
  if (groups === 1) {
    // A plain Gemm with the transpose inside saves a copy and is what BLAS does best.
    const flat = reshape(draft, columns, [cols, -1], `${base}_flat`);
    const gram = add(draft, "Gemm", [flat, flat], `${base}_gram2d`, { transB: 1 });
    reshape(draft, gram, [1, cols, cols], names.gramName);
  } else {
    const rows = add(draft, "Transpose", [columns], `${base}_rows`, { perm: [0, 2, 1] });
    add(draft, "MatMul", [columns, rows], names.gramName);
  }
  reduceSum(draft, columns, 2, names.sumName);
  countAxis(draft, columns, 2, base, names.countName);
}

/** [N, C, h, w] → [N, C·kh·kw, oh, ow], channels ordered (channel, kernel row, kernel column). */
function unfold(draft: Draft, layer: PrunableLayer, input: string, base: string): string {
  const { kernel, strides, pads, dilations, autoPad, groups } = layer;
  const [height, width] = kernel as [number, number];
  const taps = height * width;
  const padded = autoPad === "NOTSET" && pads.some((pad) => pad !== 0);
  if (taps === 1 && !padded) {
    if (strides.every((stride) => stride === 1)) return input;
    // Picks every stride-th pixel; with a 1×1 kernel all auto_pad modes but NOTSET pad nothing.
    return add(draft, "MaxPool", [input], `${base}_strided`, { kernel_shape: [1, 1], strides });
  }
  const channels = (layer.inFeaturesPerGroup / taps) * groups;
  const kernels = new Float32Array(channels * taps * taps);
  for (let c = 0; c < channels; c++) {
    for (let t = 0; t < taps; t++) kernels[(c * taps + t) * taps + t] = 1;
  }
  const name = `${base}_onehot`;
  draft.constants.set(name, floatTensor([channels * taps, 1, height, width], kernels));
  const padding = autoPad === "NOTSET" ? { pads } : { auto_pad: autoPad };
  const geometry = { kernel_shape: kernel, strides, dilations, ...padding };
  return add(draft, "Conv", [input, name], `${base}_unfolded`, { group: channels, ...geometry });
}

function matrixStatistics(
  draft: Draft,
  layer: PrunableLayer,
  input: string,
  base: string,
  names: StatisticsOutputs,
): void {
  const { inFeaturesPerGroup: cols } = layer;
  let rows = input;
  if (layer.weightSide === "left") {
    const equation = { equation: "...ij->...ji" };
    rows = add(draft, "Einsum", [input], `${base}_turned`, equation);
  }
  const flat = reshape(draft, rows, [-1, cols], `${base}_flat`);
  const gram = add(draft, "Gemm", [flat, flat], `${base}_gram2d`, { transA: 1 });
  reshape(draft, gram, [1, cols, cols], names.gramName);
  const sum = reduceSum(draft, flat, 0, `${base}_sum1d`);
  reshape(draft, sum, [1, cols], names.sumName);
  countAxis(draft, flat, 0, base, names.countName);
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

/** The axes of ReduceSum moved from an attribute to an input in opset 13. */
function reduceSum(draft: Draft, input: string, axis: number, output: string): string {
  if (draft.opset < 13) {
    return add(draft, "ReduceSum", [input], output, { axes: [axis], keepdims: 0 });
  }
  return add(draft, "ReduceSum", [input, integers(draft, [axis])], output, { keepdims: 0 });
}

function countAxis(draft: Draft, input: string, axis: number, base: string, output: string): void {
  const shape = add(draft, "Shape", [input], `${base}_shape`);
  const which = `taco_axis_${axis}`;
  draft.constants.set(which, int64Tensor([], [axis]));
  const size = add(draft, "Gather", [shape, which], `${base}_size`);
  add(draft, "Cast", [size], output, { to: DataType.FLOAT });
}

/** Names of all statistics, each once: what to hand out, and to run. */
export function statisticsNames(outputs: readonly StatisticsOutputs[]): string[] {
  return [...new Set(outputs.flatMap((o) => [o.gramName, o.sumName, o.countName]))];
}
