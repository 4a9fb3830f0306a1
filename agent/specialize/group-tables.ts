import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { affineBias, affineRefit, aimOf } from "../compress/affine-refit.ts";
import { centeredHessian, type LayerGram } from "../compress/hessian.ts";
import { eliminateUnits, prepareUnits, type UnitSystem } from "../compress/structured.ts";
import { type ChannelGroup, findChannelGroups } from "../onnx/channel-groups.ts";
import type { Graph } from "../onnx/graph.ts";
import { keepUnits } from "../onnx/keep-units.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "../onnx/prunable-layers.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { advance, type Border, borderSizes } from "./border.ts";
import type { CompressEnvironment, Refusal } from "./environment.ts";
import { collectGrams } from "./layer-grams.ts";
import { cutSegments, joinSegments } from "./segments.ts";

/** In which order the units of a group go, and what every width costs. */
export interface GroupTable {
  readonly group: ChannelGroup;
  /** All units, the first to be removed first. */
  readonly order: readonly number[];
  /** `units + 1` values: relative loss after k units are gone, 0 to 1; see `Elimination.losses`. */
  readonly losses: Float64Array;
  /** The largest relative damping that one of its consumers needed. */
  readonly damping: number;
}

/** What {@link stitch} needs of one layer. */
interface LayerStatistics {
  /** File of H (`groups × cols × cols`) and x̄ (`groups × cols`), doubles. */
  readonly path: string;
  readonly groups: number;
  readonly cols: number;
}

/** Tables of all groups of a network, made by {@link measureGroups}. */
export interface GroupTables {
  readonly groups: readonly GroupTable[];
  readonly refused: readonly Refusal[];
  readonly environment: CompressEnvironment;
  /** By layer name. */
  readonly statistics: ReadonlyMap<string, LayerStatistics>;
  /** Refitted layers, the last used last; see {@link stitch}. */
  readonly refits: Map<string, Refit>;
  /** Removes the statistics from disk; the tables stay readable, but nothing can be stitched. */
  dispose(): Promise<void>;
}

/** A layer fitted to its remaining inputs, for all rows. */
interface Refit {
  readonly weights: Float64Array;
  readonly bias: Float64Array | null;
}

/** Most doubles of second moments that are summed up at once. */
const MOMENTS_AT_ONCE = 24 * 2 ** 20;
/** Bytes of refitted weights that are kept for the next stitching. */
const REFIT_BYTES = 192 * 2 ** 20;

/**
 * Measures, in one pass of the dense network over the pictures, in which order the units of every
 * channel group should go and what each width costs ({@link eliminateUnits}). Second moments of
 * the layers concerned are left in `workDir` until `dispose`.
 *
 * @param include which groups; all by default.
 */
export async function measureGroups(
  dense: Graph,
  environment: CompressEnvironment,
  include: (group: ChannelGroup) => boolean = () => true,
): Promise<GroupTables> {
  const found = findChannelGroups(dense);
  const groups = found.groups.filter(include);
  const statistics = new Map<string, LayerStatistics>();
  const dispose = async () => {
    for (const { path } of statistics.values()) await rm(path, { force: true });
  };
  try {
    await collectStatistics(dense, groups, statistics, environment);
    const tables: GroupTable[] = [];
    for (const group of groups) {
      tables.push(await tableOf(dense, group, statistics, environment));
      environment.onProgress(tables.length, groups.length);
    }
    return {
      groups: tables,
      refused: found.refused,
      environment,
      statistics,
      refits: new Map(),
      dispose,
    };
  } catch (error) {
    await dispose();
    throw error;
  }
}

/** The layers whose columns belong to some group, in the order of the graph. */
function consumersOf(dense: Graph, groups: readonly ChannelGroup[]): PrunableLayer[] {
  const names = new Set(groups.flatMap((g) => g.consumers.map(({ layer }) => layer)));
  return findPrunableLayers(dense).filter(({ name }) => names.has(name));
}

/** Runs the dense network over the pictures, border by border, and files each layer's moments. */
async function collectStatistics(
  dense: Graph,
  groups: readonly ChannelGroup[],
  statistics: Map<string, LayerStatistics>,
  environment: CompressEnvironment,
): Promise<void> {
  const layers = consumersOf(dense, groups);
  const sizes = await borderSizes(dense, environment.engine, environment.calibration);
  const stretches = joinSegments(cutSegments(dense, layers, sizes), MOMENTS_AT_ONCE);
  let border: Border = { name: dense.inputs[0]!.name, store: null, dims: [] };
  try {
    for (const [at, stretch] of stretches.entries()) {
      const inside = stretch.waves.flat();
      const grams = await collectGrams(dense, stretch, inside, border, environment);
      for (const [i, layer] of inside.entries()) {
        const path = join(environment.workDir, `moments-${statistics.size}.f64`);
        const { H, mean, groups: count, cols } = grams[i]!;
        statistics.set(layer.name, { path, groups: count, cols });
        await writeMoments(path, H, mean);
      }
      if (at === stretches.length - 1) break;
      const part = extractSubgraph(dense, [stretch.inputName], [stretch.outputName]);
      const next = await advance(part, border, environment, `groups-${at + 1}`);
      await border.store?.dispose();
      border = next;
    }
  } finally {
    await border.store?.dispose();
  }
}

async function writeMoments(path: string, H: Float64Array, mean: Float64Array): Promise<void> {
  const both = new Float64Array(H.length + mean.length);
  both.set(H);
  both.set(mean, H.length);
  await writeFile(path, new Uint8Array(both.buffer));
}

async function readMoments(
  tables: Pick<GroupTables, "statistics">,
  layer: PrunableLayer,
): Promise<LayerGram> {
  const known = tables.statistics.get(layer.name);
  if (!known) throw new RangeError(`"${layer.name}" has no statistics: measure its groups anew`);
  const { path, groups, cols } = known;
  const bytes = await readFile(path);
  const both = new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8);
  const split = groups * cols * cols;
  return { groups, cols, count: 1, H: both.subarray(0, split), mean: both.subarray(split) };
}

/** A layer whose node takes a bias loses nothing by having its inputs centered. */
export function takesBias(layer: PrunableLayer): boolean {
  return layer.biasName !== null || layer.opType === "Conv";
}

/** H of one group of a layer as the solvers want it: centered where a bias can follow. */
function hessianOf(gram: LayerGram, layer: PrunableLayer, group: number): Float64Array {
  const { cols } = gram;
  const H = gram.H.subarray(group * cols * cols, (group + 1) * cols * cols);
  if (!takesBias(layer)) return H.slice();
  return centeredHessian(H, gram.mean.subarray(group * cols, (group + 1) * cols));
}

async function tableOf(
  dense: Graph,
  group: ChannelGroup,
  statistics: ReadonlyMap<string, LayerStatistics>,
  environment: CompressEnvironment,
): Promise<GroupTable> {
  const { engine, damping, signal } = environment;
  const byName = new Map(findPrunableLayers(dense).map((layer) => [layer.name, layer]));
  const systems: UnitSystem[] = [];
  for (const { layer: name, columns } of group.consumers) {
    const layer = byName.get(name)!;
    const gram = await readMoments({ statistics }, layer);
    const W = Float64Array.from(readWeightMatrix(dense, layer));
    const rows = layer.outFeatures / layer.groups;
    const cols = layer.inFeaturesPerGroup;
    for (let g = 0; g < layer.groups; g++) {
      signal.throwIfAborted();
      const weights = W.subarray(g * rows * cols, (g + 1) * rows * cols);
      const H = hessianOf(gram, layer, g);
      systems.push(await prepareUnits({ weights, rows, cols, H, columns }, damping, engine.gemm));
    }
  }
  const needed = Math.max(...systems.map((system) => system.damping));
  const { order, losses } = await eliminateUnits(systems, { gemm: engine.gemm, signal });
  return { group, order, losses, damping: needed };
}

/**
 * The network with some units of some groups removed: those that {@link measureGroups} would
 * remove first. Layers that lose inputs are fitted to their dense outputs in closed form, from the
 * statistics of the dense network, all in parallel; nothing is run. A refitted layer is kept, so
 * that a search pays only for what it changes.
 *
 * @param dense the network that was measured.
 * @param keep units to keep, by group id; groups that are not named stay whole.
 * @throws {RangeError} for a group without a table or a number of units it does not have.
 */
export async function stitch(
  dense: Graph,
  tables: GroupTables,
  keep: ReadonlyMap<string, number>,
): Promise<Graph> {
  const kept = keptUnits(tables, keep);
  const cut = cutGroups(dense, tables, kept);
  const places = placesOf(dense, tables, kept);
  const after = new Map(findPrunableLayers(cut).map((layer) => [layer.name, layer]));
  let graph = cut;
  for (const layer of findPrunableLayers(dense)) {
    const place = places.get(layer.name);
    const own = after.get(layer.name);
    if (!place?.columns || !own || own.groups !== layer.groups) continue;
    tables.environment.signal.throwIfAborted();
    const refit = await refitOf(dense, tables, layer, place.columns, place.key);
    const rows = place.rows ?? Array.from({ length: layer.outFeatures }, (_, r) => r);
    graph = writeWeightMatrix(graph, own, pickRows(refit.weights, place.columns.length, rows));
    if (refit.bias) graph = writeBias(graph, own, pickRows(refit.bias, 1, rows));
  }
  return graph;
}

/** Units that stay, ascending, of every group that loses some. */
export function keptUnits(
  tables: GroupTables,
  keep: ReadonlyMap<string, number>,
): ReadonlyMap<string, readonly number[]> {
  const byId = new Map(tables.groups.map((table) => [table.group.id, table]));
  const kept = new Map<string, readonly number[]>();
  for (const [id, count] of keep) {
    const table = byId.get(id);
    if (!table) throw new RangeError(`there is no table of a group "${id}"`);
    const { units } = table.group;
    if (!(Number.isInteger(count) && count >= 1 && count <= units)) {
      throw new RangeError(`"${id}": expected 1 to ${units} units, got ${count}`);
    }
    if (count === units) continue;
    kept.set(
      id,
      table.order.slice(units - count).sort((a, b) => a - b),
    );
  }
  return kept;
}

/** The network without the removed units, not yet refitted. */
function cutGroups(
  dense: Graph,
  tables: GroupTables,
  kept: ReadonlyMap<string, readonly number[]>,
): Graph {
  let graph = dense;
  for (const { group } of tables.groups) {
    const units = kept.get(group.id);
    if (units) graph = keepUnits(graph, group, units);
  }
  return graph;
}

/** What is left of one layer, in numbers of the dense one. */
export interface LayerPlaces {
  /** Ascending rows; null where all are left. */
  readonly rows: readonly number[] | null;
  /** Ascending columns; null where all are left. */
  readonly columns: readonly number[] | null;
  /** Names the columns among all choices. */
  readonly key: string;
}

/** Which rows and columns of every layer are left, by layer name; untouched layers are left out. */
export function placesOf(
  dense: Graph,
  tables: GroupTables,
  kept: ReadonlyMap<string, readonly number[]>,
): ReadonlyMap<string, LayerPlaces> {
  const lostRows = new Map<string, Set<number>>();
  const lostColumns = new Map<string, Set<number>>();
  const keys = new Map<string, string>();
  const lose = (
    all: Map<string, Set<number>>,
    name: string,
    places: readonly (readonly number[])[],
    stays: ReadonlySet<number>,
  ) => {
    const lost = all.get(name) ?? new Set();
    places.forEach((list, unit) => {
      if (!stays.has(unit)) for (const place of list) lost.add(place);
    });
    all.set(name, lost);
  };
  for (const { group } of tables.groups) {
    const units = kept.get(group.id);
    if (!units) continue;
    const stays = new Set(units);
    for (const { layer, rows } of group.producers) lose(lostRows, layer, rows, stays);
    for (const { layer, columns } of group.consumers) {
      lose(lostColumns, layer, columns, stays);
      keys.set(layer, `${keys.get(layer) ?? layer}\n${group.id}\n${units.length}`);
    }
  }
  const places = new Map<string, LayerPlaces>();
  for (const { name, outFeatures, inFeaturesPerGroup } of findPrunableLayers(dense)) {
    const rows = left(outFeatures, lostRows.get(name));
    const columns = left(inFeaturesPerGroup, lostColumns.get(name));
    if (rows || columns) places.set(name, { rows, columns, key: keys.get(name) ?? name });
  }
  return places;
}

function left(count: number, lost: ReadonlySet<number> | undefined): number[] | null {
  if (!lost?.size) return null;
  return Array.from({ length: count }, (_, i) => i).filter((i) => !lost.has(i));
}

/** The refit of a layer, from the cache or made and put there. */
async function refitOf(
  dense: Graph,
  tables: GroupTables,
  layer: PrunableLayer,
  columns: readonly number[],
  key: string,
): Promise<Refit> {
  const known = tables.refits.get(key);
  const refit = known ?? (await makeRefit(dense, tables, layer, columns));
  tables.refits.delete(key);
  tables.refits.set(key, refit);
  let bytes = 0;
  for (const { weights } of tables.refits.values()) bytes += weights.byteLength;
  for (const [oldest, { weights }] of tables.refits) {
    if (bytes <= REFIT_BYTES || oldest === key) break;
    tables.refits.delete(oldest);
    bytes -= weights.byteLength;
  }
  return refit;
}

async function makeRefit(
  dense: Graph,
  tables: GroupTables,
  layer: PrunableLayer,
  columns: readonly number[],
): Promise<Refit> {
  const { engine, damping } = tables.environment;
  const gram = await readMoments(tables, layer);
  const W = Float64Array.from(readWeightMatrix(dense, layer));
  const rows = layer.outFeatures / layer.groups;
  const cols = layer.inFeaturesPerGroup;
  const kept = columns.length;
  const weights = new Float64Array(layer.outFeatures * kept);
  const bias = takesBias(layer)
    ? Float64Array.from(readBias(dense, layer) ?? new Float32Array(layer.outFeatures))
    : null;
  for (let g = 0; g < layer.groups; g++) {
    const target = W.subarray(g * rows * cols, (g + 1) * rows * cols);
    const H = hessianOf(gram, layer, g);
    const cross = pickColumns(H, cols, columns);
    const fitted = await affineRefit({
      aim: await aimOf(target, rows, cross, engine.gemm),
      start: pickColumns(target, cols, columns),
      rows,
      cols: kept,
      gram: pickRows(cross, kept, columns),
      damping,
      gemm: engine.gemm,
    });
    weights.set(fitted.weights, g * rows * kept);
    if (!bias) continue;
    const mean = gram.mean.subarray(g * cols, (g + 1) * cols);
    const own = bias.subarray(g * rows, (g + 1) * rows);
    const aimMean = own.map((value, r) => {
      let sum = value;
      for (let j = 0; j < cols; j++) sum += target[r * cols + j]! * mean[j]!;
      return sum;
    });
    own.set(affineBias(aimMean, fitted.weights, pickColumns(mean, cols, columns)));
  }
  return { weights, bias };
}

/** Some rows of a matrix with rows of `width`. */
function pickRows(matrix: Float64Array, width: number, rows: readonly number[]): Float64Array {
  const out = new Float64Array(rows.length * width);
  for (const [i, row] of rows.entries()) {
    out.set(matrix.subarray(row * width, (row + 1) * width), i * width);
  }
  return out;
}

/** Some columns of a matrix with rows of `width`. */
function pickColumns(
  matrix: Float64Array,
  width: number,
  columns: readonly number[],
): Float64Array {
  const kept = columns.length;
  const rows = matrix.length / width;
  const out = new Float64Array(rows * kept);
  for (let r = 0; r < rows; r++) {
    for (let k = 0; k < kept; k++) out[r * kept + k] = matrix[r * width + columns[k]!]!;
  }
  return out;
}
