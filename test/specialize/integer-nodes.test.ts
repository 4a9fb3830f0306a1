import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { InferenceSession } from "onnxruntime-node";
import { createLogger } from "../../agent/log.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { CompressEnvironment } from "../../agent/specialize/environment.ts";
import { quantizeNetwork } from "../../agent/specialize/quantize-network.ts";
import { randomValues } from "../onnx/run-graph.helpers.ts";
import { deviceWith } from "./environment.helpers.ts";

let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-integers-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

function environment(): CompressEnvironment {
  const dims = [4, 3, 12, 12];
  return {
    // Not every processor that runs these tests is faster with integers.
    engine: deviceWith(engine, ({ initializers }) => (initializers.has("stem") ? 3 : 1)),
    calibration: {
      batches: 3,
      read: (batch) => Promise.resolve({ data: randomValues(4 * 432, 20 + batch), dims }),
    },
    workDir,
    memoryBytes: 2 ** 20,
    damping: 0.01,
    onProgress: () => undefined,
    signal: new AbortController().signal,
  };
}

function weights(seed: number, ...dims: number[]) {
  const count = dims.reduce((product, dim) => product * dim, 1);
  const size = Math.sqrt((3 * dims[0]!) / count);
  return floatTensor(
    dims,
    randomValues(count, seed).map((value) => size * value),
  );
}

/** Three convolutions around a residual Add, one of them strided, Relus, pooling and a Gemm. */
function residual(): Graph {
  const pads = { pads: [1, 1, 1, 1] };
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("logits", ["N", 5])],
    nodes: [
      node("Conv", ["x", "stem", "bias"], ["a"], { ...pads, strides: [2, 2] }),
      node("Relu", ["a"], ["a1"]),
      node("Conv", ["a1", "w1", "bias"], ["b"], pads),
      node("Relu", ["b"], ["b1"]),
      node("Conv", ["b1", "w2", "bias"], ["c"], pads),
      node("Add", ["c", "a1"], ["d"]),
      node("Relu", ["d"], ["d1"]),
      node("GlobalAveragePool", ["d1"], ["p"]),
      node("Flatten", ["p"], ["f"]),
      node("Gemm", ["f", "head", "head_bias"], ["logits"], { transB: 1 }),
    ],
    initializers: {
      stem: weights(1, 16, 3, 3, 3),
      w1: weights(2, 16, 16, 3, 3),
      w2: weights(3, 16, 16, 3, 3),
      head: weights(4, 5, 16),
      bias: floatTensor([16], new Float32Array(16).fill(0.1)),
      head_bias: floatTensor([5], new Float32Array(5).fill(0.2)),
    },
  });
}

/** A mobile block: expand, depthwise, project, clipped at 6. */
function mobile(): Graph {
  const clip = (x: string) => node("Clip", [x, "zero", "six"], [`${x}6`]);
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("features", ["N", 8])],
    nodes: [
      node("Conv", ["x", "stem"], ["a"], { pads: [1, 1, 1, 1], strides: [2, 2] }),
      clip("a"),
      node("Conv", ["a6", "expand"], ["b"]),
      clip("b"),
      node("Conv", ["b6", "depthwise"], ["c"], { pads: [1, 1, 1, 1], group: 32 }),
      clip("c"),
      node("Conv", ["c6", "project"], ["d"]),
      node("Add", ["d", "a6"], ["e"]),
      node("GlobalAveragePool", ["e"], ["p"]),
      node("Flatten", ["p"], ["features"]),
    ],
    initializers: {
      stem: weights(1, 8, 3, 3, 3),
      expand: weights(2, 32, 8, 1, 1),
      depthwise: weights(3, 32, 1, 3, 3),
      project: weights(4, 8, 32, 1, 1),
      zero: floatTensor([], [0]),
      six: floatTensor([], [6]),
    },
  });
}

/**
 * The nodes that ONNX Runtime makes of a graph, by operator, but for the changes of layout that
 * some processors' kernels want.
 */
async function optimizedNodes(graph: Graph): Promise<Record<string, number>> {
  const path = join(workDir, "optimized.onnx");
  const session = await InferenceSession.create(writeGraph(graph), {
    optimizedModelFilePath: path,
    logSeverityLevel: 3,
  });
  await session.release();
  const counts: Record<string, number> = {};
  for (const { opType } of readGraph(readFileSync(path)).nodes) {
    if (opType !== "Transpose") counts[opType] = (counts[opType] ?? 0) + 1;
  }
  return counts;
}

test("int8: of a residual network ONNX Runtime makes integer nodes alone, one a layer", async () => {
  const { graph, reports } = await quantizeNetwork(residual(), environment());
  assert.ok(reports.every(({ method }) => method === "int8"));
  // Three Convs with their Relus, the Add with its own, pooling and the Gemm, which ends in floats.
  assert.deepEqual(await optimizedNodes(graph), {
    QuantizeLinear: 1,
    QLinearConv: 3,
    QLinearAdd: 1,
    QLinearGlobalAveragePool: 1,
    Flatten: 1,
    QGemm: 1,
  });
});

test("int8: of a mobile block ONNX Runtime makes integer nodes alone, clips are saturation", async () => {
  const { graph, reports } = await quantizeNetwork(mobile(), environment());
  assert.ok(reports.every(({ method }) => method === "int8"));
  assert.deepEqual(await optimizedNodes(graph), {
    QuantizeLinear: 1,
    QLinearConv: 4,
    QLinearAdd: 1,
    QLinearGlobalAveragePool: 1,
    Flatten: 1,
    DequantizeLinear: 1,
  });
});
