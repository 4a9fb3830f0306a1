import { GramAccumulator, type LayerGram } from "../compress/hessian.ts";
import type { Gemm } from "../math/gemm.ts";
import { columnsOf } from "../math/products.ts";
import { squareOf } from "../math/square.ts";
import type { Graph } from "../onnx/graph.ts";
import { appendSamples, type SampleStart } from "../onnx/layer-samples.ts";
import type { PrunableLayer } from "../onnx/prunable-layers.ts";
import type { TensorValue } from "../runtime/session.ts";
import { floats } from "./border.ts";
import { addProducts, FEW_COLUMNS, startFeeds } from "./layer-grams.ts";

/** A layer, and the value of the same graph that its output should be. */
export interface FitTarget {
  readonly layer: PrunableLayer;
  /** Shaped like the layer's output. */
  readonly target: string;
}

/** What is needed to fit a layer's weights to a target. */
export interface FitStatistics {
  /** Of the layer's inputs x. */
  readonly inputs: LayerGram;
  /** 2/n·Σ y·xᵀ, `groups × rows of a group × cols`. */
  readonly cross: Float64Array;
  /** Mean of the target y, one value a row. */
  readonly mean: Float64Array;
  readonly variance: Float64Array;
}

/** A graph that hands out samples of layers' inputs and targets, and what becomes of them. */
interface FitTaps {
  readonly graph: Graph;
  feeds(batch: number): Record<string, TensorValue>;
  /** Takes up one batch. */
  take(outputs: Readonly<Record<string, TensorValue>>): Promise<void>;
  /** In the order of the targets. */
  finish(): Promise<FitStatistics[]>;
}

/**
 * Taps what is needed to fit layers; nothing is run. The graph's own outputs stay before those of
 * the taps.
 *
 * @param steps one a target: every `step`-th output position on each axis.
 * @param strides one a target: every `stride`-th batch is taken up.
 */
export function tapTargets(
  graph: Graph,
  targets: readonly FitTarget[],
  steps: readonly number[],
  strides: readonly number[],
  gemm: Gemm,
): FitTaps {
  const both = [...targets.map(({ layer }) => layer), ...targets.map(reader)];
  const { graph: tapped, samples } = appendSamples(graph, both, [...steps, ...steps]);
  const starts = new Map<string, SampleStart>();
  for (const { start } of samples) if (start) starts.set(start.name, start);
  const collectors = targets.map(({ layer }, i) => ({
    inputs: samples[i]!.rowsName,
    targets: samples[i + targets.length]!.rowsName,
    stride: strides[i]!,
    to: new FitCollector(layer, gemm),
  }));
  let batches = 0;
  return {
    graph: tapped,
    feeds: (batch) => startFeeds([...starts.values()], batch),
    take: async (outputs) => {
      const batch = batches++;
      for (const collector of collectors) {
        if (batch % collector.stride !== 0) continue;
        const X = floats(outputs, collector.inputs).data;
        await collector.to.add(X, floats(outputs, collector.targets).data);
      }
    },
    finish: () => Promise.all(collectors.map(({ to }) => to.finish())),
  };
}

/** A layer that would multiply the target at every position, so that it is sampled like one. */
function reader({ layer, target }: FitTarget): PrunableLayer {
  return {
    ...layer,
    inputName: target,
    groups: 1,
    inFeaturesPerGroup: layer.outFeatures,
    kernel: [1, 1],
    strides: [1, 1],
    pads: [0, 0, 0, 0],
    dilations: [1, 1],
    autoPad: "NOTSET",
  };
}

/** Floats of samples that are gathered before they are multiplied. */
const FLOATS_AT_ONCE = 2 * 2 ** 20;

/** Gathers samples of a layer's inputs and targets and sums their products. */
class FitCollector {
  readonly #gemm: Gemm;
  readonly #groups: number;
  readonly #cols: number;
  readonly #rows: number;
  readonly #inputs: GramAccumulator;
  readonly #cross: Float64Array;
  readonly #sum: Float64Array;
  readonly #square: Float64Array;
  #X: Float32Array[] = [];
  #Y: Float32Array[] = [];
  #floats = 0;

  constructor(layer: PrunableLayer, gemm: Gemm) {
    this.#gemm = gemm;
    this.#groups = layer.groups;
    this.#cols = layer.inFeaturesPerGroup;
    this.#rows = layer.outFeatures;
    this.#inputs = new GramAccumulator(layer.groups, layer.inFeaturesPerGroup);
    this.#cross = new Float64Array(layer.outFeatures * layer.inFeaturesPerGroup);
    this.#sum = new Float64Array(layer.outFeatures);
    this.#square = new Float64Array(layer.outFeatures);
  }

  /** @param X `positions × groups·cols`. @param Y `positions × rows`. Both are kept for a while. */
  async add(X: Float32Array, Y: Float32Array): Promise<void> {
    this.#X.push(X);
    this.#Y.push(Y);
    this.#floats += X.length + Y.length;
    if (this.#floats >= FLOATS_AT_ONCE) await this.#flush();
  }

  async finish(): Promise<FitStatistics> {
    await this.#flush();
    const { count } = this.#inputs;
    const mean = this.#sum.map((value) => value / count);
    return {
      inputs: this.#inputs.finish(),
      cross: this.#cross.map((value) => (2 * value) / count),
      mean,
      variance: this.#square.map((value, r) => Math.max(0, value / count - mean[r]! ** 2)),
    };
  }

  async #flush(): Promise<void> {
    if (this.#floats === 0) return;
    const X = joined(this.#X);
    const Y = joined(this.#Y);
    this.#X = [];
    this.#Y = [];
    this.#floats = 0;
    const [cols, groups] = [this.#cols, this.#groups];
    const width = groups * cols;
    const count = X.length / width;
    const perGroup = this.#rows / groups;
    const grams = new Float32Array(groups * cols * cols);
    for (let g = 0; g < groups; g++) {
      if (groups > 1 && cols <= FEW_COLUMNS) {
        addProducts(
          X,
          width,
          g * cols,
          cols,
          grams.subarray(g * cols * cols, (g + 1) * cols * cols),
        );
        this.#addCross(X, Y, g);
        continue;
      }
      const x = { data: columnsOf(X, width, g * cols, cols), rows: count, cols };
      const data = columnsOf(Y, this.#rows, g * perGroup, perGroup);
      const y = { data, rows: count, cols: perGroup };
      grams.set(await squareOf(x, this.#gemm), g * cols * cols);
      const cross = await this.#gemm(y, x, { transA: true });
      for (let i = 0; i < cross.length; i++) this.#cross[g * cross.length + i]! += cross[i]!;
    }
    this.#inputs.add(grams, Float32Array.from(columnSums(X, width)), count);
    addMoments(Y, this.#sum, this.#square);
  }

  /** Σ y·xᵀ of one small group. */
  #addCross(X: Float32Array, Y: Float32Array, group: number): void {
    const cols = this.#cols;
    const width = this.#groups * cols;
    const rows = this.#rows / this.#groups;
    for (let row = group * rows; row < (group + 1) * rows; row++) {
      const out = this.#cross.subarray(row * cols, (row + 1) * cols);
      for (let at = group * cols, from = row; at < X.length; at += width, from += this.#rows) {
        const y = Y[from]!;
        for (let j = 0; j < cols; j++) out[j]! += y * X[at + j]!;
      }
    }
  }
}

function joined(parts: readonly Float32Array[]): Float32Array {
  if (parts.length === 1) return parts[0]!;
  const out = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function columnSums(data: Float32Array, width: number): Float64Array {
  const sums = new Float64Array(width);
  for (let at = 0; at < data.length; at += width) {
    for (let j = 0; j < width; j++) sums[j]! += data[at + j]!;
  }
  return sums;
}

function addMoments(Y: Float32Array, sum: Float64Array, square: Float64Array): void {
  const rows = sum.length;
  for (let at = 0; at < Y.length; at += rows) {
    for (let r = 0; r < rows; r++) {
      const y = Y[at + r]!;
      sum[r]! += y;
      square[r]! += y * y;
    }
  }
}
