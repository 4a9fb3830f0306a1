import { affineBias, affineRefit } from "../compress/affine-refit.ts";
import { centeredHessian, GramAccumulator, type LayerGram } from "../compress/hessian.ts";
import { outputStatistics } from "../compress/output-statistics.ts";
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
import { sideBySide } from "../onnx/side-by-side.ts";
import {
  appendCrossStatistics,
  appendStatistics,
  type CrossOutputs,
  type LayerPair,
  type StatisticsOutputs,
} from "../onnx/statistics.ts";
import { extractSubgraph, withOnlyOutputs } from "../onnx/subgraph.ts";
import type { TensorValue } from "../runtime/session.ts";
import { advance, type Border, borderSizes } from "./border.ts";
import type { CompressEnvironment } from "./environment.ts";
import { type LayerPlaces, pickRows, takesBias } from "./group-tables.ts";
import { cutSegments, type Segment } from "./segments.ts";

/** Which layers {@link refitNetwork} fits, and how. */
export interface RefitOptions extends CompressEnvironment {
  /** What is left of each layer; see `placesOf`. Layers that are not named are whole. */
  readonly places: ReadonlyMap<string, LayerPlaces>;
  /** Which layers to fit. */
  readonly include: (layer: PrunableLayer) => boolean;
  /** Whether outputs get the dense mean and spread afterwards. Default true. */
  readonly correct?: boolean;
}

/** A network whose layers were fitted anew. */
export interface RefittedNetwork {
  readonly graph: Graph;
  /** ‖Ŵx′ − Wx‖² / ‖Wx‖², means taken off where there is a bias, by layer name. */
  readonly losses: ReadonlyMap<string, number>;
}

/** Stands before every value of the dense network where both are in one graph. */
const DENSE = "taco_dense/";

/**
 * Fits the layers of a changed network, one after another from the picture on, to what the dense
 * network has at the same places: each layer is solved on the inputs x′ that it gets in the changed
 * network, aiming at the outputs on the dense inputs x ({@link affineRefit}). So it makes up for
 * the errors of all layers before it, as far as a linear layer can.
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
  const denseLayers = new Map(findPrunableLayers(dense).map((layer) => [layer.name, layer]));
  const input = dense.inputs[0]!.name;
  const fitted = findPrunableLayers(changed).filter((layer) => {
    const other = denseLayers.get(layer.name);
    return (
      other !== undefined &&
      other.groups === layer.groups &&
      layer.inputName !== input &&
      layer.weightSide === "right" &&
      layer.sharedWith.length === 0 &&
      options.include(layer)
    );
  });
  const segments = cutSegments(changed, fitted, await commonBorders(dense, changed, options));
  const losses = new Map<string, number>();
  let graph = changed;
  const picture: Border = { name: input, store: null, dims: [] };
  let borders = { dense: picture, own: picture };
  try {
    for (const [at, segment] of segments.entries()) {
      for (const wave of segment.waves) {
        const pairs = wave.map((own) => ({ dense: denseLayers.get(own.name)!, own }));
        const statistics = await collectPairs(dense, graph, segment, pairs, borders, options);
        for (const [i, { dense: layer }] of pairs.entries()) {
          const result = await fitLayer(dense, graph, layer, statistics[i]!, options);
          graph = result.graph;
          losses.set(layer.name, result.loss);
        }
        options.onProgress(losses.size, fitted.length);
      }
      if (at < segments.length - 1) {
        borders = await nextBorders(dense, graph, segment, borders, options, at);
      }
    }
  } finally {
    await borders.dense.store?.dispose();
    await borders.own.store?.dispose();
  }
  return { graph, losses };
}

interface BorderPair {
  readonly dense: Border;
  readonly own: Border;
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
    await borders.dense.store?.dispose();
    await borders.own.store?.dispose();
    return { dense: next, own };
  } catch (error) {
    await next.store?.dispose();
    throw error;
  }
}

/** What is known of a layer's inputs in both networks, and of its dense outputs. */
interface PairStatistics {
  /** Of x′. */
  readonly own: LayerGram;
  /** C = 2/n·Σ x·x′ᵀ, `groups × cols × kept`. */
  readonly cross: Float64Array;
  /** Mean of x, `groups × cols`. */
  readonly mean: Float64Array;
  /** Of the dense outputs, one value a row. */
  readonly outputs: { readonly mean: Float64Array; readonly variance: Float64Array };
}

/** Running sums of one {@link PairStatistics}. */
interface PairSums {
  readonly own: GramAccumulator;
  readonly cross: Float64Array;
  readonly mean: Float64Array;
  readonly sum: Float64Array;
  readonly square: Float64Array;
}

async function collectPairs(
  dense: Graph,
  graph: Graph,
  segment: Segment,
  pairs: readonly LayerPair[],
  borders: BorderPair,
  options: RefitOptions,
): Promise<PairStatistics[]> {
  const tapped = pairGraph(dense, graph, segment, pairs);
  const sums = pairs.map(
    ({ dense: { groups, inFeaturesPerGroup, outFeatures }, own }): PairSums => {
      const kept = own.inFeaturesPerGroup;
      return {
        own: new GramAccumulator(groups, kept),
        cross: new Float64Array(groups * inFeaturesPerGroup * kept),
        mean: new Float64Array(groups * inFeaturesPerGroup),
        sum: new Float64Array(outFeatures),
        square: new Float64Array(outFeatures),
      };
    },
  );
  const session = await options.engine.open(tapped.graph);
  try {
    for (let batch = 0; batch < options.calibration.batches; batch++) {
      options.signal.throwIfAborted();
      const values = await session.run({
        [DENSE + segment.inputName]: await readBorder(borders.dense, batch, options),
        [segment.inputName]: await readBorder(borders.own, batch, options),
      });
      for (const [i, names] of tapped.outputs.entries()) addPair(sums[i]!, values, names);
    }
  } finally {
    await session.release();
  }
  return sums.map(finishPair);
}

/** Names of all statistics of one pair. */
interface PairOutputs {
  readonly own: StatisticsOutputs;
  readonly cross: CrossOutputs;
  readonly sumName: string;
  readonly squareName: string;
}

function pairGraph(
  dense: Graph,
  graph: Graph,
  segment: Segment,
  pairs: readonly LayerPair[],
): { graph: Graph; outputs: readonly PairOutputs[] } {
  const from = [segment.inputName];
  const denseValues = pairs.flatMap(({ dense: l }) => [l.inputName, l.biasedOutputName]);
  const ownValues = pairs.map(({ own }) => own.inputName);
  const others = (names: readonly string[]) =>
    [...new Set(names)].filter((name) => name !== segment.inputName);
  const both = sideBySide(
    extractSubgraph(dense, from, others(denseValues)),
    withWeights(extractSubgraph(graph, from, others(ownValues)), graph, pairs),
    DENSE,
  );
  const named = pairs.map(({ dense: layer, own }) => ({
    dense: {
      ...layer,
      inputName: DENSE + layer.inputName,
      biasedOutputName: DENSE + layer.biasedOutputName,
    },
    own,
  }));
  const statistics = appendStatistics(
    both,
    pairs.map(({ own }) => own),
  );
  const crossed = appendCrossStatistics(statistics.graph, named);
  const moments = appendOutputMoments(
    crossed.graph,
    named.map(({ dense: layer }) => layer),
  );
  const outputs = pairs.map((_, i): PairOutputs => {
    const { sumName, squareName } = moments.outputs[i]!;
    const [own, cross] = [statistics.outputs[i]!, crossed.outputs[i]!];
    return { own, cross, sumName, squareName };
  });
  const names = new Set(
    outputs.flatMap(({ own, cross, sumName, squareName }) => [
      ...Object.values<string>({ ...own }),
      ...Object.values<string>({ ...cross }),
      sumName,
      squareName,
    ]),
  );
  return { graph: withOnlyOutputs(moments.graph, [...names]), outputs };
}

/** The statistics look at a layer's weights for their type. */
function withWeights(part: Graph, graph: Graph, pairs: readonly LayerPair[]): Graph {
  const initializers = new Map(part.initializers);
  for (const { own } of pairs) {
    const weight = graph.initializers.get(own.weightName);
    if (weight) initializers.set(own.weightName, weight);
  }
  return { ...part, initializers };
}

async function readBorder(
  border: Border,
  batch: number,
  options: CompressEnvironment,
): Promise<TensorValue> {
  if (border.store === null) return options.calibration.read(batch);
  return { data: await border.store.read(batch), dims: border.dims[batch]! };
}

function addPair(sums: PairSums, values: Record<string, TensorValue>, names: PairOutputs): void {
  const read = (name: string): Float32Array => {
    const data = values[name]?.data;
    if (data instanceof Float32Array) return data;
    throw new TypeError(`"${name}" is no float32 value of the network`);
  };
  const { own, cross, sumName, squareName } = names;
  const count = Math.round(read(own.countName)[0] ?? 0);
  sums.own.add(read(own.gramName), read(own.sumName), count);
  addTo(sums.cross, read(cross.crossName));
  addTo(sums.mean, read(cross.sumName));
  addTo(sums.sum, read(sumName));
  addTo(sums.square, read(squareName));
}

function addTo(total: Float64Array, values: Float32Array): void {
  for (let i = 0; i < total.length; i++) total[i]! += values[i]!;
}

function finishPair({ own, cross, mean, sum, square }: PairSums): PairStatistics {
  const { count } = own;
  const outputMean = sum.map((s) => s / count);
  return {
    own: own.finish(),
    cross: cross.map((value) => (2 * value) / count),
    mean: mean.map((value) => value / count),
    outputs: {
      mean: outputMean,
      variance: square.map((s, r) => Math.max(0, s / count - outputMean[r]! ** 2)),
    },
  };
}

async function fitLayer(
  dense: Graph,
  graph: Graph,
  layer: PrunableLayer,
  statistics: PairStatistics,
  options: RefitOptions,
): Promise<{ graph: Graph; loss: number }> {
  const own = findPrunableLayers(graph).find(({ name }) => name === layer.name)!;
  const place = options.places.get(layer.name);
  const rows = place?.rows ?? Array.from({ length: layer.outFeatures }, (_, r) => r);
  const target = pickRows(
    Float64Array.from(readWeightMatrix(dense, layer)),
    layer.inFeaturesPerGroup,
    rows,
  );
  const start = Float64Array.from(readWeightMatrix(graph, own));
  const withBias = takesBias(own);
  const denseBias = pickRows(
    Float64Array.from(readBias(dense, layer) ?? new Float32Array(layer.outFeatures)),
    1,
    rows,
  );
  const fit = await fitGroups(target, start, own, withBias, denseBias, statistics, options);
  const outputs = {
    mean: pickRows(statistics.outputs.mean, 1, rows),
    variance: pickRows(statistics.outputs.variance, 1, rows),
  };
  let energy = 0;
  for (let r = 0; r < rows.length; r++) {
    energy += outputs.variance[r]! + (withBias ? 0 : outputs.mean[r]! ** 2);
  }
  const weights = Float32Array.from(fit.weights);
  const bias = Float32Array.from(fit.bias);
  if (withBias && options.correct !== false) {
    const reached = await outputStatistics(weights, bias, statistics.own, options.engine.gemm);
    foldAffine(weights, bias, statisticsCorrection(outputs, reached));
  }
  let result = writeWeightMatrix(graph, own, weights);
  if (withBias) result = writeBias(result, own, bias);
  return { graph: result, loss: energy > 0 ? Math.max(0, 1 - fit.explained / energy) : 0 };
}

async function fitGroups(
  target: Float64Array,
  start: Float64Array,
  own: PrunableLayer,
  withBias: boolean,
  denseBias: Float64Array,
  { own: gram, cross, mean }: PairStatistics,
  options: RefitOptions,
): Promise<{ weights: Float64Array; bias: Float64Array; explained: number }> {
  const { groups, cols: kept } = gram;
  const rows = own.outFeatures / groups;
  const cols = mean.length / groups;
  const weights = new Float64Array(start.length);
  const bias = denseBias.slice();
  let explained = 0;
  for (let g = 0; g < groups; g++) {
    const part = (data: Float64Array, size: number) => data.subarray(g * size, (g + 1) * size);
    const [x, ownX] = [part(mean, cols), part(gram.mean, kept)];
    const H = part(gram.H, kept * kept);
    const C = part(cross, cols * kept).slice();
    if (withBias) {
      for (let i = 0; i < C.length; i++) C[i]! -= 2 * x[Math.floor(i / kept)]! * ownX[i % kept]!;
    }
    const W = part(target, rows * cols);
    const fitted = await affineRefit({
      target: W,
      rows,
      cols,
      start: part(start, rows * kept),
      kept,
      cross: C,
      gram: withBias ? centeredHessian(H, ownX) : H,
      damping: options.damping,
      gemm: options.engine.gemm,
    });
    weights.set(fitted.weights, g * rows * kept);
    explained += fitted.explained;
    if (!withBias) continue;
    const own = part(bias, rows);
    own.set(affineBias(own, W, x, fitted.weights, ownX));
  }
  return { weights, bias, explained };
}
