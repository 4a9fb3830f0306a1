import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Dim, Graph } from "../../agent/onnx/graph.ts";
import { writeGraph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { randomValues } from "../onnx/run-graph.helpers.ts";

/** A folder that is gone after the test. */
export async function temporaryFolder(context: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "taco-test-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

export const quiet = createLogger("silent");

/** Conv 3×3 → ReLU → pool → Gemm with three classes, on pictures of 16 × 16 unless said. */
export function smallClassifier(dims: readonly Dim[] = ["N", 3, 16, 16]): Graph {
  const last = dims[3] === 3;
  const nodes = [
    ...(last ? [node("Transpose", ["picture"], ["first"], { perm: [0, 3, 1, 2] })] : []),
    node("Conv", [last ? "first" : "picture", "W"], ["conv"], { kernel_shape: [3, 3] }),
    node("Relu", ["conv"], ["relu"]),
    node("GlobalAveragePool", ["relu"], ["pool"]),
    node("Flatten", ["pool"], ["features"]),
    node("Gemm", ["features", "head", "bias"], ["scores"], { transB: 1 }),
  ];
  return buildModel({
    inputs: [floatValue("picture", dims)],
    outputs: [floatValue("scores", ["N", 3])],
    nodes,
    initializers: {
      W: floatTensor([4, 3, 3, 3], randomValues(108, 1)),
      head: floatTensor([3, 4], randomValues(12, 2)),
      bias: floatTensor([3], [0.1, 0.2, 0.3]),
    },
  });
}

/** Sidecar that belongs to {@link smallClassifier}. */
export const smallSidecar = {
  name: "small",
  input: { name: "picture", shape: ["N", 3, 16, 16] },
  output: { name: "scores" },
  classes: 3,
  labels: ["fox", "badger", "empty"],
  preprocessing: {
    mean: [0.5, 0.5, 0.5],
    std: [0.25, 0.25, 0.25],
    resize: "short side to 18, aspect kept, bicubic",
    crop: "centre 16x16",
  },
};

/** Writes a model, and its sidecar where one is given, into a folder. */
export async function writeModel(folder: string, graph: Graph, sidecar?: object): Promise<string> {
  const path = join(folder, "small.onnx");
  await writeFile(path, writeGraph(graph));
  if (sidecar) await writeFile(join(folder, "small.json"), JSON.stringify(sidecar));
  return path;
}
