import { readFileSync } from "node:fs";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { benchPath } from "../bench-data.helpers.ts";

/** What a graph gave: values and shape of each output. */
export type Results = Record<string, { data: Float32Array; dims: readonly number[] }>;

/** Runs a graph on float32 inputs in ONNX Runtime. */
export async function runGraph(
  graph: Graph,
  feeds: Record<string, { data: Float32Array; dims: readonly number[] }>,
): Promise<Results> {
  const session = await InferenceSession.create(writeGraph(graph), {
    intraOpNumThreads: 1,
    logSeverityLevel: 3,
  });
  try {
    const tensors = Object.entries(feeds).map(
      ([name, { data, dims }]) => [name, new Tensor("float32", data, dims)] as const,
    );
    const outputs = await session.run(Object.fromEntries(tensors));
    const results: Results = {};
    for (const [name, { data, dims }] of Object.entries(outputs)) {
      results[name] = { data: data as Float32Array, dims };
    }
    return results;
  } finally {
    await session.release();
  }
}

/** Numbers in [−1, 1), the same for the same seed (mulberry32). */
export function randomValues(count: number, seed: number): Float32Array {
  let state = seed >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

/** Random input of the given shape. */
export function randomInput(dims: readonly number[], seed: number) {
  return {
    data: randomValues(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
    dims,
  };
}

/** Largest |a − b|; infinite where the sizes differ. */
export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

export const BENCH_MODELS = [
  "models/cifar_resnet20",
  "models/cifar_resnet56",
  "models/efficientnet_b0_imagenet1k",
  "models/mobilenetv1_0.25_imagenet1k",
  "models/mobilenetv2_1.0_imagenet1k",
  "models/mobilenetv2_inat_bird",
  "models/squeezenet1.1_imagenet1k",
  "models/vit_tiny_patch16_224_imagenet1k",
] as const;

export const BENCH_GRAPHS = [
  "graphs/convnext_small_like_opset17",
  "graphs/deit_small_like_opset13",
  "graphs/deit_small_like_opset17",
  "graphs/mobilenet_v3_small_opset17",
  "graphs/resnet_bottleneck_small_opset17",
  "graphs/resnet_bottleneck_small_unfused_bn_opset13",
  "graphs/shufflenet_v2_x0_5_opset17",
  "graphs/torchvision_vit_small_like_opset17",
] as const;

/** A normalized bench graph; call only where `benchPath` finds it. */
export function benchGraph(name: string): Graph {
  return normalizeGraph(readGraph(readFileSync(benchPath(`${name}.onnx`)!)));
}

/** Shape of a batch for a graph's single picture input. */
export function batchDims(graph: Graph, batch: number): number[] {
  return [batch, ...(graph.inputs[0]?.dims ?? []).slice(1).map(Number)];
}
