import type { LayerGram } from "../compress/hessian.ts";
import type { Pattern } from "../compress/pattern.ts";
import { pruneLayer, type SharedTraces } from "../compress/prune-layer.ts";
import type { Graph } from "../onnx/graph.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "../onnx/prunable-layers.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { ActivationStore } from "./activation-store.ts";
import { advance, type Border, borderSizes } from "./border.ts";
import type { CompressEnvironment, Refusal } from "./environment.ts";
import { collectGrams } from "./layer-grams.ts";
import { reasonNotToTry } from "./layer-patterns.ts";
import { cutSegments, joinSegments } from "./segments.ts";

/** Most doubles of second moments that are summed up in one run. */
const MOMENTS_AT_ONCE = 32 * 2 ** 20;

/** What one level of zeros costs one layer, all others left dense. */
interface SparsityLevel {
  readonly pattern: Pattern;
  /** Weights that are zero then. */
  readonly zeros: number;
  /** Squared output error, summed over outputs and averaged over inputs. */
  readonly squaredError: number;
  /** ‖(Ŵ−W)X‖² / ‖WX‖². */
  readonly relativeLoss: number;
}

/** All levels of one layer. */
interface LayerSparsity {
  readonly name: string;
  /** Weights it has. */
  readonly weights: number;
  /** In the order of the levels asked for. */
  readonly levels: readonly SparsityLevel[];
}

/** What every level of zeros costs every layer, and the weights that go with it. */
export interface SparsityTables {
  /** In the order of the network. */
  readonly layers: readonly LayerSparsity[];
  /** Layers that have no table. */
  readonly refused: readonly Refusal[];
  /**
   * The solved weights of a layer at a level, `rows × cols`, and its bias where it takes one.
   *
   * @throws {RangeError} for a layer or a level without a table.
   */
  solution(
    layer: string,
    level: number,
  ): Promise<{ readonly weights: Float32Array; readonly bias: Float32Array | null }>;
  /** Removes the solutions. */
  dispose(): Promise<void>;
}

/**
 * Solves every layer of a network at every level in one pass over the pictures, each layer on the
 * inputs of the dense network. Solutions are kept in memory up to `memoryBytes` and in a file of
 * `workDir` beyond that, until `dispose`.
 *
 * @param levels ascending in zeros.
 */
export async function measureSparsity(
  dense: Graph,
  options: CompressEnvironment & { readonly levels: readonly Pattern[] },
): Promise<SparsityTables> {
  const refused: Refusal[] = [];
  const layers = findPrunableLayers(dense).filter((layer) => {
    const reason = reasonNotToTry(layer);
    if (reason !== null) refused.push({ name: layer.name, reason });
    return reason === null;
  });
  const { engine, calibration, levels } = options;
  const sizes = await borderSizes(dense, engine, calibration);
  const segments = joinSegments(cutSegments(dense, layers, sizes), MOMENTS_AT_ONCE);
  const store = new ActivationStore(`${options.workDir}/solutions.f32`, options.memoryBytes);
  const tables: LayerSparsity[] = [];
  const places = new Map<string, number>();
  let border: Border = { name: dense.inputs[0]!.name, store: null, dims: [] };
  try {
    for (const [at, segment] of segments.entries()) {
      const inside = segment.waves.flat();
      const grams = await collectGrams(dense, segment, inside, border, options);
      for (const [i, layer] of inside.entries()) {
        const first = places.size * levels.length;
        places.set(layer.name, first);
        tables.push(await solveLevels(dense, layer, grams[i]!, store, first, options));
        options.onProgress(tables.length, layers.length);
      }
      if (at === segments.length - 1) break;
      const part = extractSubgraph(dense, [segment.inputName], [segment.outputName]);
      const next = await advance(part, border, options, `tables-${at + 1}`);
      await border.store?.dispose();
      border = next;
    }
  } catch (error) {
    await store.dispose();
    throw error;
  } finally {
    await border.store?.dispose();
  }
  const order = new Map(layers.map(({ name }, i) => [name, i]));
  tables.sort((a, b) => order.get(a.name)! - order.get(b.name)!);
  const rowsOf = new Map(layers.map((layer) => [layer.name, layer.outFeatures]));
  return {
    layers: tables,
    refused,
    solution: async (layer, level) => {
      const first = places.get(layer);
      const table = tables.find(({ name }) => name === layer);
      if (first === undefined || !table?.levels[level]) {
        throw new RangeError(`"${layer}" has no solution at level ${level}`);
      }
      const data = await store.read(first + level);
      const bias = data.length > table.weights ? data.subarray(table.weights) : null;
      if (bias && bias.length !== rowsOf.get(layer))
        throw new RangeError(`"${layer}" is cut short`);
      return { weights: data.subarray(0, table.weights), bias };
    },
    dispose: () => store.dispose(),
  };
}

async function solveLevels(
  graph: Graph,
  layer: PrunableLayer,
  gram: LayerGram,
  store: ActivationStore,
  first: number,
  options: CompressEnvironment & { readonly levels: readonly Pattern[] },
): Promise<LayerSparsity> {
  const weights = readWeightMatrix(graph, layer);
  const bias = readBias(graph, layer);
  const takesBias = bias !== null || layer.opType === "Conv";
  const levels: SparsityLevel[] = [];
  const shared: SharedTraces = { levels: options.levels.length, byGroup: new Map() };
  for (const [i, pattern] of options.levels.entries()) {
    const solved = await pruneLayer({
      weights,
      rows: layer.outFeatures,
      cols: layer.inFeaturesPerGroup,
      bias: bias ?? undefined,
      gram,
      kernelArea: layer.kernel.reduce((area, size) => area * size, 1),
      pattern,
      damping: options.damping,
      centered: takesBias,
      shared,
      gemm: options.engine.gemm,
      signal: options.signal,
    });
    const both = new Float32Array(weights.length + (takesBias ? layer.outFeatures : 0));
    both.set(solved.weights);
    if (takesBias) both.set(solved.bias, weights.length);
    await store.write(first + i, both);
    const zeros = solved.weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0);
    const { loss: squaredError, relativeLoss } = solved;
    levels.push({ pattern, zeros, squaredError, relativeLoss });
  }
  return { name: layer.name, weights: weights.length, levels };
}

/**
 * The dense network with the solved weights of a level in each layer that is named; nothing is
 * solved anew, and no picture is run.
 *
 * @param levelOf index into the levels of {@link measureSparsity}, by layer name.
 * @throws {RangeError} for a layer or a level without a table.
 */
export async function stitchSparsity(
  dense: Graph,
  tables: SparsityTables,
  levelOf: ReadonlyMap<string, number>,
): Promise<Graph> {
  let graph = dense;
  for (const [name, level] of levelOf) {
    const { weights, bias } = await tables.solution(name, level);
    const layer = findPrunableLayers(graph).find((found) => found.name === name);
    if (!layer) throw new RangeError(`the network has no layer "${name}"`);
    graph = writeWeightMatrix(graph, layer, weights);
    if (bias) graph = writeBias(graph, layer, bias);
  }
  return graph;
}
