import { GramAccumulator, type LayerGram } from "../compress/hessian.ts";
import { outputStatistics } from "../compress/output-statistics.ts";
import type { Pattern } from "../compress/pattern.ts";
import { pruneLayer } from "../compress/prune-layer.ts";
import { foldAffine, statisticsCorrection } from "../compress/statistics-correction.ts";
import { findBorders } from "../onnx/borders.ts";
import type { Graph } from "../onnx/graph.ts";
import { appendOutputMoments } from "../onnx/output-moments.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "../onnx/prunable-layers.ts";
import { appendStatistics, statisticsNames } from "../onnx/statistics.ts";
import { extractSubgraph, withExtraOutputs } from "../onnx/subgraph.ts";
import type { TensorValue } from "../runtime/session.ts";
import { ActivationStore } from "./activation-store.ts";
import type { Engine, EngineSession } from "./engine.ts";
import type { Calibration, CompressEnvironment, LayerReport, PassResult } from "./environment.ts";
import type { LayerPattern } from "./layer-patterns.ts";
import { cutSegments, type Segment } from "./segments.ts";

/** A network half-way through compression, as a checkpoint keeps it. */
export interface Progress {
  readonly graph: Graph;
  /** Segments that are done. */
  readonly segments: number;
  readonly reports: readonly LayerReport[];
}

/** How {@link compressNetwork} works. */
export interface CompressOptions extends CompressEnvironment {
  /** What each layer gets; {@link uniformPattern} gives all that are worth it the same. */
  readonly patternOf: (layer: PrunableLayer) => LayerPattern;
  /**
   * `obs`, the default: SparseGPT, least squares on its mask, statistics correction. `wanda` and
   * `magnitude` take weights away and change no others: what is to be beaten.
   */
  readonly method?: "obs" | "wanda" | "magnitude";
  /** Whether outputs get the dense mean and spread; by default with `obs` alone. */
  readonly correct?: boolean;
  /** Columns that SparseGPT decides on at once; default 128. */
  readonly blockSize?: number;
  /** Where an earlier, interrupted call came to. */
  readonly resume?: Progress;
  /** Called after each segment. */
  readonly onSegment?: (progress: Progress) => Promise<void>;
}

/**
 * Prunes a network layer by layer from the picture on (sequential SparseGPT/FastOBC): each layer
 * is solved on the inputs that it gets from the layers already compressed, and its output is then
 * given the mean and the spread that the dense network has there.
 *
 * The network is cut at borders (see {@link cutSegments}); the activations of the dense and of the
 * compressed network at the last border are kept, so each part of the network runs a few times
 * over the pictures, not once a layer.
 *
 * @param dense normalized network from the picture to its features.
 * @returns the compressed network and what was done to each layer, in the order of the network.
 */
export async function compressNetwork(dense: Graph, options: CompressOptions): Promise<PassResult> {
  const { calibration, engine, signal } = options;
  const { pruned, left } = chooseLayers(dense, options);
  const segments = cutSegments(dense, pruned, await borderSizes(dense, engine, calibration));
  let graph = options.resume?.graph ?? dense;
  let done = options.resume?.segments ?? 0;
  const reports = [...(options.resume?.reports ?? [])];
  let borders = await bordersAt(dense, graph, segments[done]?.inputName, options);
  try {
    for (; done < segments.length; done++) {
      signal.throwIfAborted();
      const segment = segments[done]!;
      const next = await denseSegment(dense, segment, borders.dense, options);
      let compressed: Border | null = null;
      try {
        for (const wave of segment.waves) {
          const solved = await pruneWave(graph, segment, wave, borders.compressed, next, options);
          graph = solved.graph;
          reports.push(...solved.reports);
          options.onProgress(reports.length, pruned.length);
        }
        const outputs = [segment.outputName];
        const part = extractSubgraph(graph, [segment.inputName], outputs);
        compressed = await advance(part, borders.compressed, options, `compressed-${done + 1}`);
      } catch (error) {
        await next.border.store?.dispose();
        throw error;
      }
      await disposeBoth(borders);
      borders = { dense: next.border, compressed };
      await options.onSegment?.({ graph, segments: done + 1, reports: [...reports] });
    }
  } finally {
    await disposeBoth(borders);
  }
  const order = new Map(findPrunableLayers(dense).map(({ name }, index) => [name, index]));
  const all = [...reports, ...left];
  all.sort((a, b) => (order.get(a.name) ?? 0) - (order.get(b.name) ?? 0));
  return { graph, reports: all, refused: [] };
}

/** Which layers are pruned, and why the others are not. */
function chooseLayers(
  graph: Graph,
  { patternOf }: CompressOptions,
): { pruned: PrunableLayer[]; left: LayerReport[] } {
  const pruned: PrunableLayer[] = [];
  const left: LayerReport[] = [];
  for (const layer of findPrunableLayers(graph)) {
    const pattern = patternOf(layer);
    if (pattern.kind !== "dense") pruned.push(layer);
    else {
      const method = `dense: ${pattern.reason}`;
      left.push({ name: layer.name, method, sparsity: 0, relativeLoss: null });
    }
  }
  return { pruned, left };
}

/** Values of the calibration set at one border; the picture itself where there is no store. */
export interface Border {
  readonly name: string;
  readonly store: ActivationStore | null;
  /** Shape of each batch. */
  readonly dims: readonly (readonly number[])[];
}

interface Borders {
  readonly dense: Border;
  readonly compressed: Border;
}

async function disposeBoth({ dense, compressed }: Borders): Promise<void> {
  await dense.store?.dispose();
  await compressed.store?.dispose();
}

function readBorder(
  border: Border,
  batch: number,
  options: CompressEnvironment,
): Promise<TensorValue> {
  if (border.store === null) return options.calibration.read(batch);
  const dims = border.dims[batch]!;
  return border.store.read(batch).then((data) => ({ data, dims }));
}

/** The borders at a value, from the picture; at the picture where no value is given. */
async function bordersAt(
  dense: Graph,
  graph: Graph,
  name: string | undefined,
  options: CompressOptions,
): Promise<Borders> {
  const picture: Border = { name: dense.inputs[0]!.name, store: null, dims: [] };
  if (name === undefined || name === picture.name) return { dense: picture, compressed: picture };
  const from = [picture.name];
  const first = extractSubgraph(dense, from, [name]);
  const second = extractSubgraph(graph, from, [name]);
  return {
    dense: await advance(first, picture, options, "dense-resumed"),
    compressed: await advance(second, picture, options, "compressed-resumed"),
  };
}

/** Runs part of a network over a border; calls `each` with all outputs of every batch. */
async function overBorder(
  part: Graph,
  border: Border,
  options: CompressEnvironment,
  each: (batch: number, outputs: Record<string, TensorValue>) => Promise<void> | void,
): Promise<void> {
  const session: EngineSession = await options.engine.open(part);
  try {
    for (let batch = 0; batch < options.calibration.batches; batch++) {
      options.signal.throwIfAborted();
      const value = await readBorder(border, batch, options);
      await each(batch, await session.run({ [border.name]: value }));
    }
  } finally {
    await session.release();
  }
}

/** The next border: the first output of `part`, kept. */
export async function advance(
  part: Graph,
  border: Border,
  options: CompressEnvironment,
  name: string,
  each: (outputs: Record<string, TensorValue>) => void = () => undefined,
): Promise<Border> {
  const output = part.outputs[0]!.name;
  const store = new ActivationStore(`${options.workDir}/${name}.f32`, options.memoryBytes);
  const dims: (readonly number[])[] = [];
  try {
    await overBorder(part, border, options, async (batch, outputs) => {
      const { data, dims: shape } = floats(outputs, output);
      dims[batch] = shape;
      await store.write(batch, data);
      each(outputs);
    });
  } catch (error) {
    await store.dispose();
    throw error;
  }
  return { name: output, store, dims };
}

function floats(outputs: Record<string, TensorValue>, name: string) {
  const value = outputs[name];
  if (!(value?.data instanceof Float32Array)) {
    throw new TypeError(`"${name}" is no float32 value of the network`);
  }
  return { data: value.data, dims: value.dims };
}

/** Sums of a dense layer's output and its square, one value an output feature. */
interface Moments {
  readonly sum: Float64Array;
  readonly square: Float64Array;
}

interface DenseSegment {
  readonly border: Border;
  /** By layer name; layers without moments are left out. */
  readonly moments: ReadonlyMap<string, Moments>;
}

/** The dense network over one segment: its activations behind it, and its layers' moments. */
async function denseSegment(
  dense: Graph,
  segment: Segment,
  border: Border,
  options: CompressOptions,
): Promise<DenseSegment> {
  const layers = segment.waves.flat();
  const part = extractSubgraph(dense, [segment.inputName], [segment.outputName]);
  const { graph, outputs } = appendOutputMoments(part, layers);
  const moments = new Map<string, Moments>();
  layers.forEach((layer, i) => {
    if (!outputs[i]) return;
    const zeros = () => new Float64Array(layer.outFeatures);
    moments.set(layer.name, { sum: zeros(), square: zeros() });
  });
  const add = (values: Record<string, TensorValue>): void => {
    layers.forEach((layer, i) => {
      const names = outputs[i];
      const sums = moments.get(layer.name);
      if (!names || !sums) return;
      addTo(sums.sum, floats(values, names.sumName).data);
      addTo(sums.square, floats(values, names.squareName).data);
    });
  };
  const name = `dense-${segment.outputName.replaceAll(/\W/g, "_")}`;
  return { border: await advance(graph, border, options, name, add), moments };
}

function addTo(total: Float64Array, values: Float32Array): void {
  for (let i = 0; i < total.length; i++) total[i]! += values[i]!;
}

/** Collects the statistics of one wave on the compressed network and solves its layers. */
async function pruneWave(
  graph: Graph,
  segment: Segment,
  wave: readonly PrunableLayer[],
  border: Border,
  dense: DenseSegment,
  options: CompressOptions,
): Promise<{ graph: Graph; reports: LayerReport[] }> {
  const grams = await collectGrams(graph, segment, wave, border, options);
  let result = graph;
  const reports: LayerReport[] = [];
  for (const [i, layer] of wave.entries()) {
    const solved = await solveLayer(
      result,
      layer,
      grams[i]!,
      dense.moments.get(layer.name),
      options,
    );
    result = solved.graph;
    reports.push(solved.report);
  }
  return { graph: result, reports };
}

export async function collectGrams(
  graph: Graph,
  segment: Segment,
  wave: readonly PrunableLayer[],
  border: Border,
  options: CompressEnvironment,
): Promise<LayerGram[]> {
  const inputs = [...new Set(wave.map(({ inputName }) => inputName))];
  const reach = inputs.filter((name) => name !== segment.inputName);
  const upTo = withExtraOutputs(extractSubgraph(graph, [segment.inputName], reach), []);
  const { graph: tapped, outputs } = appendStatistics(withWeights(upTo, graph, wave), wave);
  const part = extractSubgraph(tapped, [segment.inputName], statisticsNames(outputs));
  const accumulators = wave.map((l) => new GramAccumulator(l.groups, l.inFeaturesPerGroup));
  await overBorder(part, border, options, (_, values) => {
    for (const [i, names] of outputs.entries()) {
      const [count] = floats(values, names.countName).data;
      const gram = floats(values, names.gramName).data;
      accumulators[i]!.add(gram, floats(values, names.sumName).data, Math.round(count ?? 0));
    }
  });
  return accumulators.map((accumulator) => accumulator.finish());
}

/** The statistics look at a layer's weights for their type. */
function withWeights(part: Graph, graph: Graph, wave: readonly PrunableLayer[]): Graph {
  const initializers = new Map(part.initializers);
  for (const { weightName } of wave) {
    const weight = graph.initializers.get(weightName);
    if (weight) initializers.set(weightName, weight);
  }
  return { ...part, initializers };
}

async function solveLayer(
  graph: Graph,
  dense: PrunableLayer,
  gram: LayerGram,
  moments: Moments | undefined,
  options: CompressOptions,
): Promise<{ graph: Graph; report: LayerReport }> {
  const layer = findPrunableLayers(graph).find(({ name }) => name === dense.name)!;
  const rows = layer.outFeatures;
  const cols = layer.inFeaturesPerGroup;
  const bias = readBias(graph, layer);
  const takesBias = bias !== null || layer.opType === "Conv";
  const pattern = options.patternOf(layer);
  if (pattern.kind === "dense") throw new TypeError(`"${layer.name}" is to stay dense`);
  const solved = await pruneLayer({
    weights: readWeightMatrix(graph, layer),
    rows,
    cols,
    ...(bias ? { bias } : {}),
    gram,
    kernelArea: layer.kernel.reduce((area, size) => area * size, 1),
    pattern,
    ...(options.blockSize === undefined ? {} : { blockSize: options.blockSize }),
    damping: options.damping,
    centered: takesBias,
    gemm: options.engine.gemm,
    signal: options.signal,
  });
  const { weights } = solved;
  if (moments && takesBias) {
    const pruned = await outputStatistics(weights, solved.bias, gram, options.engine.gemm);
    const target = momentsOf(moments, gram.count);
    foldAffine(weights, solved.bias, statisticsCorrection(target, pruned));
  }
  let result = writeWeightMatrix(graph, layer, weights);
  if (takesBias) result = writeBias(result, layer, solved.bias);
  const zeros = weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0);
  const report: LayerReport = {
    name: dense.name,
    method: methodName(pattern),
    sparsity: zeros / (rows * cols),
    relativeLoss: solved.relativeLoss,
  };
  return { graph: result, report };
}

function momentsOf({ sum, square }: Moments, count: number) {
  const mean = sum.map((s) => s / count);
  const variance = square.map((s, i) => Math.max(0, s / count - mean[i]! ** 2));
  return { mean, variance };
}

function methodName(pattern: Pattern): string {
  return pattern.kind === "unstructured"
    ? `sparsegpt ${(100 * pattern.sparsity).toFixed(0)} %`
    : `sparsegpt ${pattern.n}:${pattern.m}`;
}

/** Values of one picture at every border, the input included: one run of the first batch. */
export async function borderSizes(
  graph: Graph,
  engine: Engine,
  calibration: Calibration,
): Promise<Map<string, number>> {
  const input = graph.inputs[0]!.name;
  const names = findBorders(graph);
  const value = await calibration.read(0);
  const one = value.dims[0] ?? 1;
  const sizes = new Map([[input, value.data.length / one]]);
  const session = await engine.open(withExtraOutputs(graph, names));
  try {
    const outputs = await session.run({ [input]: value });
    for (const name of [...names, graph.outputs[0]!.name]) {
      sizes.set(name, (outputs[name]?.data.length ?? 0) / one);
    }
  } finally {
    await session.release();
  }
  return sizes;
}
