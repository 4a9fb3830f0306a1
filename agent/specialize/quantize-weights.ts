import type { LayerGram } from "../compress/hessian.ts";
import { quantizeLayer } from "../compress/quantize-layer.ts";
import { decode, encode, fitQuantizer } from "../compress/quantizer.ts";
import type { Graph, Node } from "../onnx/graph.ts";
import { intAttribute } from "../onnx/graph.ts";
import { replaceInitializer } from "../onnx/initializers.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "../onnx/prunable-layers.ts";
import type { WeightEncoding } from "../onnx/qdq.ts";
import { isLinear } from "../onnx/qdq-nodes.ts";
import { toFloat32, withFloatValues } from "../onnx/tensor.ts";
import { measureShapes, pictureBorder } from "./border.ts";
import type { CompressEnvironment, LayerReport } from "./environment.ts";
import { takesBias } from "./group-tables.ts";
import { countPictures, gramsOf, planSampling, positionsOf } from "./layer-grams.ts";

/** A network whose linear layers have weights of 8 bits or fewer, stored as int8. */
export interface QuantizedWeights {
  /** The network with the weights that the integers stand for, and biases made up for it. */
  readonly graph: Graph;
  /** By initializer. */
  readonly weights: ReadonlyMap<string, WeightEncoding>;
  readonly reports: readonly LayerReport[];
}

/** Statistics of layers' inputs that are held at once. */
const GRAM_BYTES = 256 * 2 ** 20;
/** A row of a grouped layer with no more weights is rounded as it is. */
const FEW_WEIGHTS = 64;

/**
 * Rounds the weights of linear layers to 7 or 8 bits, one scale a row, by GPTQ on the second moments of
 * their inputs (zeros stay zeros), and lets biases make up for the change of the mean. All
 * statistics are of the dense network: at 8 bits the layers before change next to nothing. Layers
 * that share weights, have few in a row, or are of a form that no statistics are taken of, are
 * rounded to nearest, at the scale of least squared error.
 *
 * @param nodes which layers, by first output. @param bits see `integerWeightBits`.
 */
export async function quantizeWeights(
  dense: Graph,
  nodes: ReadonlySet<string>,
  bits: number,
  options: CompressEnvironment,
): Promise<QuantizedWeights> {
  const layers = findPrunableLayers(dense).filter(
    (layer) => nodes.has(layer.outputName) && layer.sharedWith.length === 0 && worthSolving(layer),
  );
  const weights = new Map<string, WeightEncoding>();
  const reports: LayerReport[] = [];
  if (layers.length === 0) return roundAllWeights(dense, nodes, bits);
  // Once for all: a session on a large network takes several times its weights in memory.
  const names = layers.map(({ outputName }) => outputName);
  const shapes = await measureShapes(dense, names, options.engine, options.calibration);
  let graph = dense;
  let done = 0;
  for (const chunk of chunksOf(layers)) {
    const grams = await gramsOfChunk(dense, chunk, shapes, options);
    for (const [i, layer] of chunk.entries()) {
      const solved = await solve(graph, layer, grams[i]!, bits, options);
      graph = solved.graph;
      weights.set(layer.weightName, solved.encoding);
      reports.push(solved.report);
      options.onProgress(++done, layers.length);
    }
  }
  const rest = roundAllWeights(graph, nodes, bits, weights);
  const all = [...reports, ...rest.reports];
  const order = new Map(dense.nodes.map((node, i) => [node.name || node.outputs[0]!, i]));
  all.sort((a, b) => order.get(a.name)! - order.get(b.name)!);
  return { graph: rest.graph, weights: rest.weights, reports: all };
}

/**
 * Rounds the weights of linear layers to the nearest of so many bits, one scale a row.
 *
 * @param done weights that have been rounded already.
 */
export function roundAllWeights(
  dense: Graph,
  nodes: ReadonlySet<string>,
  bits: number,
  done: ReadonlyMap<string, WeightEncoding> = new Map(),
): QuantizedWeights {
  const weights = new Map(done);
  const reports: LayerReport[] = [];
  let graph = dense;
  for (const node of dense.nodes) {
    const name = node.inputs[1] ?? "";
    if (!nodes.has(node.outputs[0]!) || !isLinear(dense, node)) continue;
    if (!weights.has(name)) {
      const tensor = graph.initializers.get(name)!;
      const axis = scaleAxis(node);
      const { encoding, values } = roundToNearest(toFloat32(tensor), tensor.dims, axis, bits);
      weights.set(name, encoding);
      graph = replaceInitializer(graph, name, withFloatValues(tensor, values));
    }
    if (done.has(name)) continue;
    reports.push(report(node.name || node.outputs[0]!, weights.get(name)!.values, null));
  }
  return { graph, weights, reports };
}

/**
 * The statistics of a thousand groups cost more time than those of all other layers together, and
 * a depthwise filter's few weights have hardly others to make up for their rounding.
 */
function worthSolving({ groups, inFeaturesPerGroup }: PrunableLayer): boolean {
  return groups === 1 || inFeaturesPerGroup > FEW_WEIGHTS;
}

function chunksOf(layers: readonly PrunableLayer[]): PrunableLayer[][] {
  const chunks: PrunableLayer[][] = [];
  let room = 0;
  for (const layer of layers) {
    const bytes = 8 * layer.groups * layer.inFeaturesPerGroup ** 2;
    if (bytes > room) {
      chunks.push([]);
      room = GRAM_BYTES;
    }
    chunks.at(-1)!.push(layer);
    room -= bytes;
  }
  return chunks;
}

async function gramsOfChunk(
  dense: Graph,
  layers: readonly PrunableLayer[],
  shapes: ReadonlyMap<string, readonly number[]>,
  options: CompressEnvironment,
): Promise<LayerGram[]> {
  const count = await countPictures(options);
  const samplings = planSampling(layers, positionsOf(shapes), count, false);
  const picture = pictureBorder(dense);
  return gramsOf(dense, picture.name, layers, samplings, picture, options);
}

async function solve(
  graph: Graph,
  layer: PrunableLayer,
  gram: LayerGram,
  bits: number,
  options: CompressEnvironment,
): Promise<{ graph: Graph; encoding: WeightEncoding; report: LayerReport }> {
  const { outFeatures: rows, inFeaturesPerGroup: cols } = layer;
  const centered = takesBias(layer);
  const bias = readBias(graph, layer);
  const solved = await quantizeLayer({
    weights: readWeightMatrix(graph, layer),
    rows,
    cols,
    ...(bias ? { bias } : {}),
    gram,
    damping: options.damping,
    centered,
    quantizer: { bits },
    gemm: options.engine.gemm,
    signal: options.signal,
  });
  let result = writeWeightMatrix(graph, layer, solved.weights);
  if (centered) result = writeBias(result, layer, solved.bias);
  const byRow = layer.weightOrder === "rows";
  const values = byRow ? solved.codes : transposed(solved.codes, rows, cols);
  return {
    graph: result,
    encoding: { values, scales: solved.scale, axis: byRow ? 0 : 1 },
    report: report(layer.name, solved.codes, solved.relativeLoss),
  };
}

/** `rows × cols` → `cols × rows`. */
function transposed(codes: Int8Array, rows: number, cols: number): Int8Array {
  const out = new Int8Array(codes.length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) out[c * rows + r] = codes[r * cols + c]!;
  }
  return out;
}

function report(name: string, codes: Int8Array, relativeLoss: number | null): LayerReport {
  const zeros = codes.reduce((count, code) => count + (code === 0 ? 1 : 0), 0);
  return { name, method: "int8", sparsity: zeros / Math.max(1, codes.length), relativeLoss };
}

/** Axis of a linear node's weights along which its outputs lie. */
function scaleAxis(node: Node): number {
  if (node.opType === "Conv") return 0;
  return node.opType === "Gemm" && intAttribute(node, "transB", 0) !== 0 ? 0 : 1;
}

function roundToNearest(W: Float32Array, dims: readonly number[], axis: number, bits: number) {
  const rows = dims[axis]!;
  const cols = W.length / rows;
  const inner = dims.slice(axis + 1).reduce((product, dim) => product * dim, 1);
  const rowOf = (at: number): number => Math.floor(at / inner) % rows;
  const byRow = new Float64Array(W.length);
  const filled = new Uint32Array(rows);
  W.forEach((w, at) => {
    byRow[rowOf(at) * cols + filled[rowOf(at)]!++] = w;
  });
  const quantizer = fitQuantizer(byRow, rows, cols, { bits });
  const codes = Int8Array.from(W, (w, at) => encode(quantizer, rowOf(at), w));
  const values = Float32Array.from(codes, (code, at) => decode(quantizer, rowOf(at), code));
  return { encoding: { values: codes, scales: quantizer.scale, axis }, values };
}
