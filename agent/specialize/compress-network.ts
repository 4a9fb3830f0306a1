import type { LayerGram } from "../compress/hessian.ts";
import type { LayerOptions } from "../compress/layer-problem.ts";
import { maskLayer } from "../compress/mask-layer.ts";
import { outputStatistics } from "../compress/output-statistics.ts";
import { pruneLayer } from "../compress/prune-layer.ts";
import { foldAffine, statisticsCorrection } from "../compress/statistics-correction.ts";
import { formatPattern } from "../method.ts";
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
import { extractSubgraph } from "../onnx/subgraph.ts";
import {
  advance,
  type Border,
  floats,
  measureShapes,
  pictureBorder,
  sizesOf,
  sweep,
} from "./border.ts";
import type { CompressEnvironment, LayerReport, PassResult } from "./environment.ts";
import {
  countPictures,
  gramsOf,
  planSampling,
  positionsOf,
  type Sampling,
  startFeeds,
  tapLayers,
} from "./layer-grams.ts";
import type { LayerPattern } from "./layer-patterns.ts";
import { cutSegments, type Segment } from "./segments.ts";

/** A network half-way through compression, as a checkpoint keeps it. */
export interface Progress {
  readonly graph: Graph;
  /** Segments that are done. */
  readonly segments: number;
  readonly reports: readonly LayerReport[];
}

/** A layer's weights after they were rounded. */
export interface RoundedLayer {
  readonly weights: Float32Array;
  readonly bias: Float32Array;
  /** Against the weights given, see {@link LayerReport}. */
  readonly relativeLoss: number;
  /** For the report. */
  readonly method: string;
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
  /**
   * Rounds what a layer was pruned to, on the same statistics: zeros stay. A correction of the
   * outputs comes after it, and multiplies rows.
   */
  readonly round?: (layer: PrunableLayer, problem: LayerOptions) => Promise<RoundedLayer>;
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
 * The network is cut at borders (see {@link cutSegments}) and the activations of the compressed
 * network at the last border are kept, so that it runs about twice over the pictures, not once a
 * layer: once from wave to wave inside a segment, and once to the next border. What the first wave
 * of a segment needs is taken on the way there.
 *
 * @param dense normalized network from the picture to its features.
 * @returns the compressed network and what was done to each layer, in the order of the network.
 */
export async function compressNetwork(dense: Graph, options: CompressOptions): Promise<PassResult> {
  const { signal } = options;
  const { pruned, left } = chooseLayers(dense, options);
  const plan = await planPass(dense, pruned, options);
  const { segments } = plan;
  const moments = corrects(options) ? await denseMoments(dense, plan, options) : new Map();
  let graph = options.resume?.graph ?? dense;
  let done = options.resume?.segments ?? 0;
  const reports = [...(options.resume?.reports ?? [])];
  let border = await borderAt(graph, segments[done]?.inputName, options);
  try {
    let grams: LayerGram[] | null = null;
    for (; done < segments.length; done++) {
      signal.throwIfAborted();
      const segment = segments[done]!;
      for (const wave of segment.waves) {
        grams ??= await waveGrams(graph, segment, wave, plan, border, options);
        for (const [i, layer] of wave.entries()) {
          const solved = await solveLayer(graph, layer, grams[i]!, moments, options);
          graph = solved.graph;
          reports.push(solved.report);
          options.onProgress(reports.length, pruned.length);
        }
        grams = null;
      }
      const next = segments[done + 1];
      if (next && segments.slice(done + 1).some(({ waves }) => waves.length > 0)) {
        const arrived = await nextBorder(graph, segment, next, plan, border, options);
        await border.store?.dispose();
        ({ border, grams } = arrived);
      }
      await options.onSegment?.({ graph, segments: done + 1, reports: [...reports] });
    }
  } finally {
    await border.store?.dispose();
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

/** Whether outputs are given the dense mean and spread. */
function corrects({ correct, method = "obs" }: CompressOptions): boolean {
  return correct ?? method === "obs";
}

/** In what order the layers are solved, and what their statistics are made of. */
interface PassPlan {
  readonly segments: readonly Segment[];
  /** By layer name. */
  readonly samplings: ReadonlyMap<string, Sampling>;
}

async function planPass(
  dense: Graph,
  layers: readonly PrunableLayer[],
  { engine, calibration }: CompressOptions,
): Promise<PassPlan> {
  const names = [dense.inputs[0]!.name, ...findBorders(dense), dense.outputs[0]!.name];
  const outputs = findPrunableLayers(dense).map(({ outputName }) => outputName);
  const shapes = await measureShapes(dense, [...names, ...outputs], engine, calibration);
  const count = await countPictures({ calibration });
  const positions = positionsOf(shapes);
  const segments = cutSegments(dense, layers, sizesOf(shapes), positions);
  const samplings = new Map<string, Sampling>();
  segments.forEach((segment, at) => {
    segment.waves.forEach((wave, w) => {
      // The first wave's inputs are made on the way to the segment's border, for every picture.
      const planned = planSampling(wave, positions, count, at > 0 && w === 0);
      wave.forEach(({ name }, i) => {
        samplings.set(name, planned[i]!);
      });
    });
  });
  return { segments, samplings };
}

function samplingsOf(wave: readonly PrunableLayer[], plan: PassPlan): Sampling[] {
  return wave.map(({ name }) => plan.samplings.get(name)!);
}

/** Sums of a dense layer's output and its square, one value an output feature. */
interface Moments {
  readonly sum: Float64Array;
  readonly square: Float64Array;
}

/**
 * The moments of every layer's output in the dense network, over the same positions of the same
 * pictures as the layer's statistics, so that what differs is the network alone. Layers whose
 * features are on another axis are left out.
 */
async function denseMoments(
  dense: Graph,
  plan: PassPlan,
  options: CompressOptions,
): Promise<Map<string, Moments>> {
  const layers = plan.segments.flatMap(({ waves }) => waves.flat());
  const samplings = samplingsOf(layers, plan);
  const steps = samplings.map(({ step }) => step);
  const { graph, outputs } = appendOutputMoments(dense, layers, steps);
  const named = outputs.flatMap((names, i) => (names ? [{ names, at: i }] : []));
  const starts = named.flatMap(({ names }) => (names.start ? [names.start] : []));
  const wanted = named.flatMap(({ names }) => [names.sumName, names.squareName]);
  const moments = new Map<string, Moments>();
  if (wanted.length === 0) return moments;
  for (const { at } of named) {
    const zeros = () => new Float64Array(layers[at]!.outFeatures);
    moments.set(layers[at]!.name, { sum: zeros(), square: zeros() });
  }
  const used = samplings.map(({ batches }) => new Set(batches));
  const inputs = [dense.inputs[0]!.name, ...starts.map(({ name }) => name)];
  await sweep(
    extractSubgraph(graph, inputs, wanted),
    pictureBorder(dense),
    options,
    (batch, values) => {
      for (const { names, at } of named) {
        if (!used[at]!.has(batch)) continue;
        const { sum, square } = moments.get(layers[at]!.name)!;
        addTo(sum, floats(values, names.sumName).data);
        addTo(square, floats(values, names.squareName).data);
      }
    },
    { feeds: (batch) => startFeeds(starts, batch) },
  );
  return moments;
}

function addTo(total: Float64Array, values: Float32Array): void {
  for (let i = 0; i < total.length; i++) total[i]! += values[i]!;
}

/** The border at a value, from the picture; the picture itself where no value is given. */
function borderAt(
  graph: Graph,
  name: string | undefined,
  options: CompressOptions,
): Promise<Border> {
  const picture = pictureBorder(graph);
  if (name === undefined || name === picture.name) return Promise.resolve(picture);
  const part = extractSubgraph(graph, [picture.name], [name]);
  return advance(part, picture, options, "compressed-resumed");
}

/** The statistics of one wave, from the border before its segment. */
function waveGrams(
  graph: Graph,
  segment: Segment,
  wave: readonly PrunableLayer[],
  plan: PassPlan,
  border: Border,
  options: CompressOptions,
): Promise<LayerGram[]> {
  return gramsOf(graph, segment.inputName, wave, samplingsOf(wave, plan), border, options);
}

/** Goes to the next segment and takes the statistics of its first wave on the way. */
async function nextBorder(
  graph: Graph,
  segment: Segment,
  next: Segment,
  plan: PassPlan,
  border: Border,
  options: CompressOptions,
): Promise<{ border: Border; grams: LayerGram[] | null }> {
  const wave = next.waves[0] ?? [];
  const taps = tapLayers(graph, wave, samplingsOf(wave, plan), options.engine.gemm);
  const inputs = [segment.inputName, ...taps.starts];
  const part = extractSubgraph(taps.graph, inputs, [segment.outputName, ...taps.names]);
  const name = `border-${next.inputName.replaceAll(/\W/g, "_")}`;
  const arrived = await advance(
    part,
    border,
    options,
    name,
    (outputs, batch) => taps.take(batch, outputs),
    { feeds: taps.feeds },
  );
  try {
    return { border: arrived, grams: wave.length > 0 ? await taps.finish() : null };
  } catch (error) {
    await arrived.store?.dispose();
    throw error;
  }
}

async function solveLayer(
  graph: Graph,
  dense: PrunableLayer,
  gram: LayerGram,
  moments: ReadonlyMap<string, Moments>,
  options: CompressOptions,
): Promise<{ graph: Graph; report: LayerReport }> {
  const layer = findPrunableLayers(graph).find(({ name }) => name === dense.name)!;
  const bias = readBias(graph, layer);
  const takesBias = bias !== null || layer.opType === "Conv";
  const pattern = options.patternOf(dense);
  const problem = {
    weights: readWeightMatrix(graph, layer),
    rows: layer.outFeatures,
    cols: layer.inFeaturesPerGroup,
    ...(bias ? { bias } : {}),
    gram,
    kernelArea: layer.kernel.reduce((area, size) => area * size, 1),
    damping: options.damping,
    blockSize: options.blockSize ?? 128,
    centered: takesBias,
    gemm: options.engine.gemm,
    signal: options.signal,
  };
  const solved = await solve(layer, problem, pattern, options);
  const { weights } = solved;
  const target = moments.get(layer.name);
  if (target && takesBias) {
    const own = await outputStatistics(weights, solved.bias, gram, options.engine.gemm);
    foldAffine(weights, solved.bias, statisticsCorrection(momentsOf(target, gram.count), own));
  }
  let result = writeWeightMatrix(graph, layer, weights);
  if (takesBias) result = writeBias(result, layer, solved.bias);
  const zeros = weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0);
  const report: LayerReport = {
    name: dense.name,
    method: solved.method,
    sparsity: zeros / weights.length,
    relativeLoss: solved.relativeLoss,
  };
  return { graph: result, report };
}

/** Prunes a layer, where that is asked for, and rounds it. */
async function solve(
  layer: PrunableLayer,
  problem: LayerOptions,
  pattern: LayerPattern,
  { method = "obs", round }: CompressOptions,
): Promise<RoundedLayer> {
  if (pattern.kind === "dense") throw new TypeError(`"${layer.name}" is to stay dense`);
  if (pattern.kind === "mask") {
    if (round) return round(layer, problem);
    throw new TypeError(`"${layer.name}": expected a pattern, as nothing rounds its weights`);
  }
  const pruned =
    method === "obs"
      ? await pruneLayer({ ...problem, pattern })
      : await maskLayer({ ...problem, pattern, score: method });
  const name = method === "obs" ? formatPattern(pattern) : `${method} ${formatPattern(pattern)}`;
  if (!round) return { ...pruned, method: name };
  const rounded = await round(layer, { ...problem, weights: pruned.weights, bias: pruned.bias });
  // What rounding loses stands at right angles to what least squares left of the zeros' loss.
  const lost = pruned.relativeLoss + (1 - pruned.relativeLoss) * rounded.relativeLoss;
  return { ...rounded, relativeLoss: lost, method: `${name}+${rounded.method}` };
}

function momentsOf({ sum, square }: Moments, count: number) {
  const mean = sum.map((s) => s / count);
  const variance = square.map((s, i) => Math.max(0, s / count - mean[i]! ** 2));
  return { mean, variance };
}
