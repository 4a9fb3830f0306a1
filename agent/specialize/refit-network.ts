import { affineBias, affineRefit } from "../compress/affine-refit.ts";
import { centeredHessian } from "../compress/hessian.ts";
import { outputStatistics } from "../compress/output-statistics.ts";
import type { Pattern } from "../compress/pattern.ts";
import { pruneLayer } from "../compress/prune-layer.ts";
import { foldAffine, statisticsCorrection } from "../compress/statistics-correction.ts";
import { formatPattern } from "../method.ts";
import { findBorders } from "../onnx/borders.ts";
import { node } from "../onnx/builder.ts";
import type { Graph, Node } from "../onnx/graph.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "../onnx/prunable-layers.ts";
import { findResidualBlocks } from "../onnx/residual-blocks.ts";
import { sideBySide } from "../onnx/side-by-side.ts";
import { extractSubgraph, withOnlyOutputs } from "../onnx/subgraph.ts";
import { int64Tensor, type Tensor } from "../onnx/tensor.ts";
import type { TensorValue } from "../runtime/session.ts";
import {
  advance,
  allBatches,
  type Border,
  borderSizes,
  measureShapes,
  pictureBorder,
  readBorder,
  sweep,
} from "./border.ts";
import {
  type CompressEnvironment,
  type LayerReport,
  type PassResult,
  someBatches,
} from "./environment.ts";
import { type FitStatistics, type FitTarget, tapTargets } from "./fit-statistics.ts";
import { type LayerPlaces, takesBias } from "./group-tables.ts";
import {
  countPictures,
  FEW_COLUMNS,
  type PictureCount,
  planSampling,
  positionsOf,
  wantedRows,
} from "./layer-grams.ts";
import { compareOutputs, outputsOf } from "./output-difference.ts";
import { cutSegments, type Segment } from "./segments.ts";

/** Which layers {@link refitNetwork} fits, and how. */
export interface RefitOptions extends CompressEnvironment {
  /** What is left of each layer; see `placesOf`. Layers that are not named are whole. */
  readonly places: ReadonlyMap<string, LayerPlaces>;
  /** Which layers to fit. */
  readonly include: (layer: PrunableLayer) => boolean;
  /**
   * Whether the last layer of a residual branch aims at the dense stream behind its Add, less what
   * the changed stream brings along, so that it makes up for errors of the blocks before it too.
   */
  readonly stream: boolean;
  /** Whether outputs get the spread of their aims afterwards; least squares make it smaller. */
  readonly correct: boolean;
  /** Whether weights that are zero stay zero: least squares on the mask, row by row. */
  readonly zeros?: boolean;
  /** What the damping is multiplied by where weights are fitted to an aim; default 1. */
  readonly pull?: number;
  /** Layers whose mask is chosen anew, for the aim, by name; none by default. */
  readonly patterns?: ReadonlyMap<string, Pattern>;
  /** Columns that SparseGPT decides on at once; default 128. */
  readonly blockSize?: number;
}

/** A network whose layers were fitted anew. */
export interface RefittedNetwork {
  readonly graph: Graph;
  /** ‖Ŵx′ − y‖² / ‖y‖², means taken off where there is a bias, by layer name. */
  readonly losses: ReadonlyMap<string, number>;
}

/** Batches that a layer's statistics are of at least, where there are so many. */
const FEWEST_BATCHES = 8;

/** Stands before every value of the dense network where both are in one graph. */
const DENSE = "taco_dense/";

/**
 * Fits the layers of a changed network, one after another from the picture on, to what the dense
 * network has at the same places: each layer is solved on the inputs x′ that it gets in the changed
 * network, aiming at the dense outputs y ({@link affineRefit}). So it makes up for the errors of
 * all layers before it, as far as a linear layer can.
 *
 * Both networks run side by side over the segments between borders that they have in common; the
 * activations at the last border are kept for both.
 *
 * @param dense the network to come close to. @param changed the same with fewer channels, blocks
 *   or other activations; values and layers are matched by name.
 * @throws {RangeError} if the dense network has subgraphs.
 */
export async function refitNetwork(
  dense: Graph,
  changed: Graph,
  options: RefitOptions,
): Promise<RefittedNetwork> {
  const fitted = layersToFit(dense, changed, options);
  if (fitted.length === 0) return { graph: changed, losses: new Map() };
  const segments = cutSegments(changed, fitted, await commonBorders(dense, changed, options));
  const names = fitted.map(({ outputName }) => outputName);
  const shapes = await measureShapes(changed, names, options.engine, options.calibration);
  const work: Work = {
    dense,
    positions: positionsOf(shapes),
    count: await countPictures(options),
    options,
  };
  const losses = new Map<string, number>();
  let graph = changed;
  let borders: BorderPair = { dense: pictureBorder(dense), own: pictureBorder(dense) };
  try {
    for (const [at, segment] of segments.entries()) {
      for (const wave of segment.waves) {
        const statistics = await collectWave(work, graph, segment, wave, borders);
        for (const [i, { name }] of wave.entries()) {
          const result = await fitLayer(work, graph, name, statistics[i]!);
          graph = result.graph;
          losses.set(name, result.loss);
        }
        options.onProgress(losses.size, fitted.length);
      }
      if (at < segments.length - 1) {
        borders = await nextBorders(dense, graph, segment, borders, options, at);
      }
    }
  } finally {
    await disposeBoth(borders);
  }
  return { graph, losses };
}

/** Fits all layers of a changed network that has the dense one's channels; see {@link refitNetwork}. */
export function fitWhole(
  dense: Graph,
  changed: Graph,
  environment: CompressEnvironment,
): Promise<RefittedNetwork> {
  return refitNetwork(dense, changed, {
    ...environment,
    places: new Map(),
    include: () => true,
    stream: true,
    correct: false,
  });
}

/** One batch in so many is kept back to judge by, where there are as many; else the last one. */
const JUDGED = 8;

/** What {@link pruneTowardDense} works with. */
export interface PruneTowardDenseOptions extends CompressEnvironment {
  /** What is pruned, by name of the layer. */
  readonly patterns: ReadonlyMap<string, Pattern>;
  /** A pass that prunes some layers without an eye on the dense network, see `compressNetwork`. */
  readonly plain: (patterns: ReadonlyMap<string, Pattern>) => Promise<PassResult>;
  /** Columns that SparseGPT decides on at once; default 128. */
  readonly blockSize?: number;
}

/**
 * How much harder than the damping asks weights are pulled toward the dense ones. The error at the
 * output, on pictures kept back of 320, with 1, 10, 100 times: MobileNetV2 at 50 % 0.185, 0.174,
 * 0.172; ViT-Tiny at 80 % 0.585, 0.511, and 0.514 with 50.
 */
const PULL = 20;
/**
 * An error on pictures kept back that is more than so many times that on the others: the fit may
 * have learned them by heart. At 2 to 3 times it was still better than a plain pass, at 7 not.
 */
const TRUSTED = 3;

/**
 * Prunes a network and keeps it close to what the dense one has at the same places. A plain pass
 * keeps each layer's answer to the inputs that it gets, so that errors add up on the way; here each
 * layer, pruned or not, makes up for those before it, and the last one of a residual branch for
 * those of the stream: the whole matrix that would do so best is pruned in place of the dense one.
 * With few pictures that is learned by heart. Where it looks like that on pictures that were kept
 * back, the plain pass is made too, and the better of the two there is taken.
 *
 * @throws {RangeError} if the dense network has subgraphs.
 */
export async function pruneTowardDense(
  dense: Graph,
  options: PruneTowardDenseOptions,
): Promise<PassResult> {
  const { calibration, engine, signal, patterns, plain } = options;
  const isJudge = (batch: number) =>
    calibration.batches < JUDGED
      ? batch === calibration.batches - 1
      : batch % JUDGED === JUDGED - 1;
  const all = allBatches(calibration);
  const [learned, kept] = [all.filter((batch) => !isJudge(batch)), all.filter(isJudge)];
  if (learned.length === 0) return plain(patterns);
  const how = {
    ...options,
    calibration: someBatches(calibration, learned),
    places: new Map(),
    include: () => true,
    stream: true,
    correct: false,
    zeros: true,
    pull: PULL,
  };
  const reached = new Set(layersToFit(dense, dense, how).map(({ name }) => name));
  const others = new Map([...patterns].filter(([name]) => !reached.has(name)));
  const nothing: PassResult = { graph: dense, reports: [], refused: [] };
  const begun = others.size > 0 ? await plain(others) : nothing;
  const { graph, losses } = await refitNetwork(dense, begun.graph, how);
  const errorOn = async (batches: readonly number[], other: Graph): Promise<number> => {
    const pictures = someBatches(calibration, batches);
    const wanted = await outputsOf(dense, pictures, engine, signal);
    const outputs = await outputsOf(other, pictures, engine, signal);
    return compareOutputs(wanted, outputs).relativeError;
  };
  const known = await errorOn(learned.slice(0, kept.length), graph);
  const unseen = await errorOn(kept, graph);
  if (!(unseen <= TRUSTED * known)) {
    const pruned = await plain(patterns);
    if (!(unseen < (await errorOn(kept, pruned.graph)))) return pruned;
  }
  const reports = findPrunableLayers(graph).flatMap((layer): LayerReport[] => {
    const before = begun.reports.filter(({ name }) => name === layer.name && others.has(name));
    const relativeLoss = losses.get(layer.name);
    if (relativeLoss === undefined) return before;
    const weights = readWeightMatrix(graph, layer);
    const zeros = weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0);
    const pattern = patterns.get(layer.name);
    const method = pattern === undefined ? "refitted" : formatPattern(pattern);
    return [{ name: layer.name, method, sparsity: zeros / weights.length, relativeLoss }];
  });
  return { graph, reports, refused: begun.refused };
}

function layersToFit(dense: Graph, changed: Graph, options: RefitOptions): PrunableLayer[] {
  const denseLayers = new Map(findPrunableLayers(dense).map((layer) => [layer.name, layer]));
  const input = dense.inputs[0]!.name;
  return findPrunableLayers(changed).filter(
    (layer) =>
      denseLayers.get(layer.name)?.groups === layer.groups &&
      layer.inputName !== input &&
      layer.weightSide === "right" &&
      layer.sharedWith.length === 0 &&
      options.include(layer),
  );
}

interface BorderPair {
  readonly dense: Border;
  readonly own: Border;
}

async function disposeBoth({ dense, own }: BorderPair): Promise<void> {
  await dense.store?.dispose();
  await own.store?.dispose();
}

/** Sizes of the borders of the changed network; those the dense one lacks are no place to cut. */
async function commonBorders(
  dense: Graph,
  changed: Graph,
  options: RefitOptions,
): Promise<Map<string, number>> {
  const sizes = await borderSizes(changed, options.engine, options.calibration);
  const known = new Set([...findBorders(dense), dense.inputs[0]!.name]);
  for (const name of sizes.keys()) {
    if (!known.has(name)) sizes.set(name, Number.POSITIVE_INFINITY);
  }
  return sizes;
}

async function nextBorders(
  dense: Graph,
  graph: Graph,
  segment: Segment,
  borders: BorderPair,
  options: RefitOptions,
  at: number,
): Promise<BorderPair> {
  const ends = [[segment.inputName], [segment.outputName]] as const;
  const first = extractSubgraph(dense, ...ends);
  const next = await advance(first, borders.dense, options, `refit-dense-${at}`);
  try {
    const second = extractSubgraph(graph, ...ends);
    const own = await advance(second, borders.own, options, `refit-own-${at}`);
    await disposeBoth(borders);
    return { dense: next, own };
  } catch (error) {
    await next.store?.dispose();
    throw error;
  }
}

/** What stays the same through the whole pass. */
interface Work {
  readonly dense: Graph;
  readonly positions: (layer: PrunableLayer) => number;
  readonly count: PictureCount;
  readonly options: RefitOptions;
}

/** Runs both networks over one segment for the layers of one wave. */
async function collectWave(
  work: Work,
  graph: Graph,
  segment: Segment,
  wave: readonly PrunableLayer[],
  borders: BorderPair,
): Promise<FitStatistics[]> {
  const { dense, options, positions, count } = work;
  const { graph: both, targets } = withTargets(dense, graph, segment, wave, options);
  const samplings = planSampling(wave, positions, count, false);
  const steps = samplings.map(({ step }) => step);
  const { batches } = samplings[0]!;
  // A step is no longer than a map allows; what is still too much for small groups is left out.
  const strides = wave.map((layer, i) => {
    const pictures = (count.pictures * batches.length) / count.batches;
    const rows = (positions(layer) / steps[i]! ** 2) * pictures;
    const most = Math.max(1, Math.floor(batches.length / FEWEST_BATCHES));
    return layer.groups === 1
      ? 1
      : Math.min(most, Math.max(1, Math.floor(rows / wantedRows(layer))));
  });
  const taps = tapTargets(both, targets, steps, strides, options.engine.gemm);
  const feeds = async (batch: number) => ({
    ...taps.feeds(batch),
    [DENSE + segment.inputName]: await readBorder(borders.dense, batch, options),
  });
  const take = (_: number, outputs: Readonly<Record<string, TensorValue>>) => taps.take(outputs);
  await sweep(taps.graph, borders.own, options, take, { batches, feeds });
  return taps.finish();
}

/** The dense and the changed network over one segment, and the aims of some layers. */
function withTargets(
  dense: Graph,
  graph: Graph,
  segment: Segment,
  wave: readonly PrunableLayer[],
  options: RefitOptions,
): { graph: Graph; targets: FitTarget[] } {
  const known = new Set(dense.nodes.flatMap(({ outputs }) => outputs));
  const blocks = options.stream ? findResidualBlocks(graph) : [];
  const aims = wave.map((layer) => {
    const block = blocks.find(
      ({ branch, output }) => branch === layer.biasedOutputName && known.has(output),
    );
    return { layer, value: block?.output ?? layer.biasedOutputName, stream: block?.input ?? null };
  });
  const from = [segment.inputName];
  const others = (names: readonly (string | null)[]) =>
    [...new Set(names)].filter((name) => name !== null && name !== segment.inputName) as string[];
  const values = others(aims.map(({ value }) => value));
  const own = others(aims.flatMap(({ layer, stream }) => [layer.inputName, stream]));
  const first = extractSubgraph(dense, from, values);
  const second = withWeights(extractSubgraph(graph, from, own), graph, wave);
  const both = withOnlyOutputs(sideBySide(first, second, DENSE), []);
  const nodes: Node[] = [];
  const constants = new Map<string, Tensor>();
  const targets = aims.map(({ layer, value, stream }, i): FitTarget => {
    let target = DENSE + value;
    const rows = options.places.get(layer.name)?.rows;
    if (rows) {
      constants.set(`taco_rows_${i}`, int64Tensor([rows.length], rows));
      const axis = layer.opType === "Conv" ? 1 : -1;
      nodes.push(node("Gather", [target, `taco_rows_${i}`], [`taco_aim_${i}`], { axis }));
      target = `taco_aim_${i}`;
    }
    if (stream !== null) {
      nodes.push(node("Sub", [target, stream], [`taco_rest_${i}`]));
      target = `taco_rest_${i}`;
    }
    return { layer, target };
  });
  const initializers = new Map([...both.initializers, ...constants]);
  return { graph: { ...both, nodes: [...both.nodes, ...nodes], initializers }, targets };
}

/** The samples look at a layer's weights for their type. */
function withWeights(part: Graph, graph: Graph, wave: readonly PrunableLayer[]): Graph {
  const initializers = new Map(part.initializers);
  for (const { weightName } of wave) {
    const weight = graph.initializers.get(weightName);
    if (weight) initializers.set(weightName, weight);
  }
  return { ...part, initializers };
}

async function fitLayer(
  { dense, options }: Work,
  graph: Graph,
  name: string,
  statistics: FitStatistics,
): Promise<{ graph: Graph; loss: number }> {
  const layer = layerOf(graph, name);
  const withBias = takesBias(layer);
  const pattern = options.patterns?.get(name);
  const fit =
    pattern === undefined
      ? await fitGroups(readWeightMatrix(graph, layer), layer, statistics, options)
      : await fitPattern(dense, layer, pattern, statistics, options);
  let energy = 0;
  for (let r = 0; r < layer.outFeatures; r++) {
    energy += statistics.variance[r]! + (withBias ? 0 : statistics.mean[r]! ** 2);
  }
  const { weights, bias } = fit;
  if (withBias && options.correct) {
    const { inputs } = statistics;
    const reached = await outputStatistics(weights, bias, inputs, options.engine.gemm);
    foldAffine(weights, bias, statisticsCorrection(statistics, reached));
  }
  let result = writeWeightMatrix(graph, layer, weights);
  if (withBias) result = writeBias(result, layer, bias);
  return { graph: result, loss: energy > 0 ? Math.max(0, 1 - fit.explained / energy) : 0 };
}

function layerOf(graph: Graph, name: string): PrunableLayer {
  return findPrunableLayers(graph).find((found) => found.name === name)!;
}

interface Fit {
  readonly weights: Float32Array;
  readonly bias: Float32Array;
  /** See {@link affineRefit}. */
  readonly explained: number;
}

/**
 * The best weights without a mask, Ŵ, pruned: ‖y − wx′‖² is ‖y − Ŵx′‖² and ‖(Ŵ − w)x′‖², of which
 * the mask has only the second in hand.
 */
async function fitPattern(
  dense: Graph,
  layer: PrunableLayer,
  pattern: Pattern,
  statistics: FitStatistics,
  options: RefitOptions,
): Promise<Fit> {
  const { damping, engine, signal, blockSize } = options;
  const start = readWeightMatrix(dense, layerOf(dense, layer.name));
  const whole = await fitGroups(start, layer, statistics, { ...options, zeros: false });
  const { weights, bias } = await pruneLayer({
    weights: whole.weights,
    bias: whole.bias,
    rows: layer.outFeatures,
    cols: layer.inFeaturesPerGroup,
    gram: statistics.inputs,
    pattern,
    kernelArea: layer.kernel.reduce((area, size) => area * size, 1),
    damping,
    ...(blockSize === undefined ? {} : { blockSize }),
    centered: takesBias(layer),
    gemm: engine.gemm,
    signal,
  });
  return { weights, bias, explained: await explainedBy(weights, layer, statistics, options) };
}

/** E‖y‖² − E‖y − Wx‖² = 2E[y·Wx] − E‖Wx‖², means taken off where there is a bias. */
async function explainedBy(
  weights: Float32Array,
  layer: PrunableLayer,
  { inputs, cross, mean }: FitStatistics,
  { engine }: RefitOptions,
): Promise<number> {
  const { groups, cols } = inputs;
  const none = new Float32Array(layer.outFeatures);
  const reached = await outputStatistics(weights, none, inputs, engine.gemm);
  const withBias = takesBias(layer);
  let explained = 0;
  for (let r = 0; r < layer.outFeatures; r++) {
    const x = inputs.mean.subarray(cols * Math.floor((r * groups) / layer.outFeatures));
    explained -= reached.variance[r]! + (withBias ? 0 : reached.mean[r]! ** 2);
    for (let j = 0; j < cols; j++) {
      const means = withBias ? 2 * mean[r]! * x[j]! : 0;
      explained += weights[r * cols + j]! * (cross[r * cols + j]! - means);
    }
  }
  return explained;
}

/** @param from weights to shrink toward, and zeros to keep. */
async function fitGroups(
  from: Float32Array,
  layer: PrunableLayer,
  { inputs, cross, mean }: FitStatistics,
  options: RefitOptions,
): Promise<Fit> {
  const { groups, cols } = inputs;
  const rows = layer.outFeatures / groups;
  const withBias = takesBias(layer);
  const start = Float64Array.from(from);
  const weights = new Float32Array(start.length);
  const bias = new Float32Array(layer.outFeatures);
  let explained = 0;
  // A few columns are solved before a product by the runtime has begun.
  const gemm = cols <= FEW_COLUMNS ? undefined : options.engine.gemm;
  for (let g = 0; g < groups; g++) {
    const part = (data: Float64Array, size: number) => data.subarray(g * size, (g + 1) * size);
    const [y, x] = [part(mean, rows), part(inputs.mean, cols)];
    const H = part(inputs.H, cols * cols);
    const aim = part(cross, rows * cols).slice();
    if (withBias) {
      for (let i = 0; i < aim.length; i++) aim[i]! -= 2 * y[Math.floor(i / cols)]! * x[i % cols]!;
    }
    const before = part(start, rows * cols);
    const fitted = await affineRefit({
      aim,
      start: before,
      rows,
      cols,
      gram: withBias ? centeredHessian(H, x) : H,
      damping: (options.pull ?? 1) * options.damping,
      kept: options.zeros ? Uint8Array.from(before, (w) => (w === 0 ? 0 : 1)) : undefined,
      gemm,
      signal: options.signal,
    });
    weights.set(fitted.weights, g * rows * cols);
    explained += fitted.explained;
    if (withBias) bias.set(affineBias(y, fitted.weights, x), g * rows);
  }
  return { weights, bias, explained };
}
