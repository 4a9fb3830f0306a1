import { GramAccumulator, type LayerGram } from "../compress/hessian.ts";
import type { Gemm } from "../math/gemm.ts";
import { columnsOf } from "../math/products.ts";
import { squareOf } from "../math/square.ts";
import type { Graph } from "../onnx/graph.ts";
import {
  appendSamples,
  type LayerSamples,
  type SampleStart,
  startOf,
} from "../onnx/layer-samples.ts";
import type { PrunableLayer } from "../onnx/prunable-layers.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import type { TensorValue } from "../runtime/session.ts";
import { allBatches, type Border, floats, measureShapes, sweep } from "./border.ts";
import type { CompressEnvironment } from "./environment.ts";
import type { Segment } from "./segments.ts";

/** Which positions of which pictures a layer's statistics are taken from. */
export interface Sampling {
  /** Every `step`-th output position on each axis. */
  readonly step: number;
  /** Batches, ascending. */
  readonly batches: readonly number[];
}

/** How many pictures there are, and in what batches. */
export interface PictureCount {
  readonly batches: number;
  readonly pictures: number;
}

/**
 * Input vectors a column that statistics are made of, where there are so many, and the fewest
 * altogether. Neighboring positions say nearly the same: of a hundred times as many, as the first
 * layers of a network have, most are wasted.
 */
const ROWS_A_COLUMN = 16;
const FEWEST_ROWS = 8192;
const FEWEST_ROWS_OF_GROUP = 1024;
/** Fewest pictures, where there are so many: what differs between pictures must not be missed. */
const FEWEST_PICTURES = 128;

/**
 * The sampling of layers whose statistics come from the same runs.
 *
 * @param positions output positions of one picture, by layer.
 * @param all whether every picture is run anyway, so that only positions can be saved.
 */
export function planSampling(
  layers: readonly PrunableLayer[],
  positions: (layer: PrunableLayer) => number,
  count: PictureCount,
  all: boolean,
): Sampling[] {
  const wanted = layers.map(wantedRows);
  const needed = layers.map((layer, i) => {
    const each = positions(layer);
    // Where a picture gives a few vectors only, as behind a pooling, they are all independent.
    return each < 16 ? (1.5 * layer.inFeaturesPerGroup) / each : wanted[i]! / each;
  });
  const share = all ? 1 : Math.max(FEWEST_PICTURES, ...needed) / count.pictures;
  const used = Math.min(count.batches, Math.ceil(share * count.batches));
  const batches = Array.from({ length: used }, (_, i) => Math.floor((i * count.batches) / used));
  return layers.map((layer, i) => {
    const rows = (positions(layer) * count.pictures * used) / count.batches;
    const surplus = Math.max(1, rows / wanted[i]!);
    const step = Math.floor(layer.opType === "Conv" ? Math.sqrt(surplus) : surplus);
    return { step: Math.min(step, longestStep(layer, positions(layer))), batches };
  });
}

/** Sampled positions that a layer's statistics should have at least. */
export function wantedRows({ groups, inFeaturesPerGroup: cols }: PrunableLayer): number {
  // Many groups are many small systems: each is well determined by less, and all cost the same.
  return groups === 1
    ? Math.max(FEWEST_ROWS, ROWS_A_COLUMN * cols)
    : Math.max(FEWEST_ROWS_OF_GROUP, 2 * ROWS_A_COLUMN * cols);
}

/** No step may pass over a whole axis; the axes of a map are about equally long. */
function longestStep(layer: PrunableLayer, positions: number): number {
  return Math.max(1, layer.opType === "Conv" ? Math.floor(Math.sqrt(positions) / 2) : positions);
}

/** Output positions of one picture of each layer, from the shapes that its values have. */
export function positionsOf(
  shapes: ReadonlyMap<string, readonly number[]>,
): (layer: PrunableLayer) => number {
  return (layer) => {
    const dims = shapes.get(layer.outputName) ?? [];
    const size = dims.reduce((product, dim) => product * dim, 1);
    return Math.max(1, size / layer.outFeatures);
  };
}

/** Floats of sampled inputs that are gathered before they are multiplied. */
const ROWS_AT_ONCE = 4 * 2 ** 20;
/** Up to so many columns of a group, plain loops cost less than cutting the group out. */
export const FEW_COLUMNS = 32;

/** Gathers samples of one layer's inputs and sums their second moments. */
class GramCollector {
  readonly #sums: GramAccumulator;
  readonly #width: number;
  readonly #gemm: Gemm;
  #rows: Float32Array;
  #filled = 0;

  constructor(groups: number, cols: number, gemm: Gemm) {
    this.#sums = new GramAccumulator(groups, cols);
    this.#width = groups * cols;
    this.#gemm = gemm;
    this.#rows = new Float32Array(0);
  }

  /** @param rows `positions × groups·cols`; only read. */
  async add(rows: Float32Array): Promise<void> {
    if (this.#filled + rows.length > this.#rows.length) {
      await this.#flush();
      const room = Math.floor(ROWS_AT_ONCE / this.#width) * this.#width;
      if (this.#rows.length < room) this.#rows = new Float32Array(Math.max(room, rows.length));
      if (this.#rows.length < rows.length) this.#rows = new Float32Array(rows.length);
    }
    this.#rows.set(rows, this.#filled);
    this.#filled += rows.length;
  }

  /** The statistics of all samples; nothing can be added afterwards. */
  async finish(): Promise<LayerGram> {
    await this.#flush();
    this.#rows = new Float32Array(0);
    return this.#sums.finish();
  }

  async #flush(): Promise<void> {
    if (this.#filled === 0) return;
    const count = this.#filled / this.#width;
    const rows = this.#rows.subarray(0, this.#filled);
    this.#filled = 0;
    const width = this.#width;
    const ones = { data: new Float32Array(count).fill(1), rows: 1, cols: count };
    const sums = await this.#gemm(ones, { data: rows, rows: count, cols: width });
    this.#sums.add(await this.#products(rows, count), sums, count);
  }

  async #products(rows: Float32Array, count: number): Promise<Float32Array> {
    const { groups, cols } = this.#sums;
    if (groups === 1) {
      return await squareOf({ data: rows, rows: count, cols }, this.#gemm);
    }
    const products = new Float32Array(groups * cols * cols);
    for (let g = 0; g < groups; g++) {
      const target = products.subarray(g * cols * cols, (g + 1) * cols * cols);
      if (cols <= FEW_COLUMNS) addProducts(rows, this.#width, g * cols, cols, target);
      else {
        const X = { data: columnsOf(rows, this.#width, g * cols, cols), rows: count, cols };
        target.set(await squareOf(X, this.#gemm));
      }
    }
    return products;
  }
}

/**
 * Σ x·xᵀ of one group, in double precision until it is handed over.
 *
 * @param rows `positions × width`. @param from the group's first column.
 * @param products `cols × cols`, overwritten.
 */
export function addProducts(
  rows: Float32Array,
  width: number,
  from: number,
  cols: number,
  products: Float32Array,
): void {
  const sums = new Float64Array(cols * cols);
  for (let at = from; at < rows.length; at += width) {
    for (let i = 0; i < cols; i++) {
      const value = rows[at + i]!;
      for (let j = 0; j <= i; j++) sums[i * cols + j]! += value * rows[at + j]!;
    }
  }
  for (let i = 0; i < cols; i++) {
    for (let j = 0; j < i; j++) sums[j * cols + i] = sums[i * cols + j]!;
  }
  products.set(sums);
}

/** A graph that hands out samples of some layers' inputs, and what becomes of them. */
export interface Taps {
  /** The graph, with all it handed out before. */
  readonly graph: Graph;
  /** Graph inputs to feed besides the network's own. */
  readonly starts: readonly string[];
  /** Values that hand out the samples. */
  readonly names: readonly string[];
  feeds(batch: number): Record<string, TensorValue>;
  /** Takes up one batch; batches that are not in a layer's sampling do not count for it. */
  take(batch: number, outputs: Readonly<Record<string, TensorValue>>): Promise<void>;
  /** In the order of the layers; layers with the same inputs share theirs. */
  finish(): Promise<LayerGram[]>;
}

/** Taps the inputs of layers of a graph; nothing is run. */
export function tapLayers(
  graph: Graph,
  layers: readonly PrunableLayer[],
  samplings: readonly Sampling[],
  gemm: Gemm,
): Taps {
  const steps = samplings.map(({ step }) => step);
  const { graph: tapped, samples } = appendSamples(graph, layers, steps);
  const collectors = new Map<
    string,
    { samples: LayerSamples; wanted: Set<number>; to: GramCollector }
  >();
  layers.forEach(({ groups, inFeaturesPerGroup: cols }, i) => {
    const to = new GramCollector(groups, cols, gemm);
    const wanted = new Set(samplings[i]!.batches);
    const name = samples[i]!.rowsName;
    if (!collectors.has(name)) collectors.set(name, { samples: samples[i]!, wanted, to });
  });
  const starts = [...collectors.values()].flatMap((c) =>
    c.samples.start ? [c.samples.start] : [],
  );
  return {
    graph: tapped,
    starts: starts.map(({ name }) => name),
    names: [...collectors.keys()],
    feeds: (batch) => startFeeds(starts, batch),
    take: async (batch, outputs) => {
      for (const [name, { wanted, to }] of collectors) {
        if (wanted.has(batch)) await to.add(floats(outputs, name).data);
      }
    },
    finish: async () => {
      const grams = new Map<string, LayerGram>();
      for (const [name, { to }] of collectors) {
        grams.set(name, await to.finish());
        // Its sums are as large as what it made of them.
        collectors.delete(name);
      }
      return samples.map(({ rowsName }) => grams.get(rowsName)!);
    },
  };
}

/** The starts of one batch as values to feed: the same batch always starts at the same place. */
export function startFeeds(
  starts: readonly SampleStart[],
  batch: number,
): Record<string, TensorValue> {
  return Object.fromEntries(
    starts.map((start) => {
      const data = startOf(start, batch);
      return [start.name, { data, dims: [data.length] }];
    }),
  );
}

/**
 * The statistics of layers of one segment, in one run from the segment's input.
 *
 * @param graph from the picture on.
 */
export async function collectGrams(
  graph: Graph,
  segment: Segment,
  layers: readonly PrunableLayer[],
  border: Border,
  options: CompressEnvironment,
): Promise<LayerGram[]> {
  const { engine, calibration } = options;
  const names = layers.map(({ outputName }) => outputName);
  const shapes = await measureShapes(graph, names, engine, calibration);
  const count = await countPictures(options);
  const samplings = planSampling(layers, positionsOf(shapes), count, true);
  return gramsOf(graph, segment.inputName, layers, samplings, border, options);
}

/** The statistics of layers in one run from a border, with the sampling given. */
export async function gramsOf(
  graph: Graph,
  from: string,
  layers: readonly PrunableLayer[],
  samplings: readonly Sampling[],
  border: Border,
  options: CompressEnvironment,
): Promise<LayerGram[]> {
  const taps = tapLayers(graph, layers, samplings, options.engine.gemm);
  const part = extractSubgraph(taps.graph, [from, ...taps.starts], taps.names);
  const used = new Set(samplings.flatMap(({ batches }) => batches));
  const batches = allBatches(options.calibration).filter((batch) => used.has(batch));
  await sweep(part, border, options, taps.take, { batches, feeds: taps.feeds });
  return taps.finish();
}

/** How many pictures a calibration set has; the last batch may be smaller than the others. */
export async function countPictures({
  calibration,
}: Pick<CompressEnvironment, "calibration">): Promise<PictureCount> {
  const { batches } = calibration;
  const first = (await calibration.read(0)).dims[0]!;
  const last = batches > 1 ? (await calibration.read(batches - 1)).dims[0]! : 0;
  return { batches, pictures: first * Math.max(1, batches - 1) + last };
}
