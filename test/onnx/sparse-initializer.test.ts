import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { SparseTensorProtoSchema } from "onnx-buf";
import { type Graph, readGraph, toModel, writeGraph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { toSparseInitializers } from "../../agent/onnx/sparse-initializer.ts";
import { sparseFromProto } from "../../agent/onnx/sparse-tensor.ts";
import { floatTensor, int64Tensor, tensorToProto } from "../../agent/onnx/tensor.ts";
import { convnext } from "../../scripts/networks/convnext.ts";
import { largestDifference, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

/** Conv, depthwise Conv, MatMul, Gemm and norms, with this share of every matrix zero. */
function network(sparsity: number): Graph {
  const graph = convnext("tiny", { widths: [16, 32], depths: [1, 1], classes: 5, size: 16 });
  const initializers = new Map(graph.initializers);
  for (const [name, tensor] of initializers) {
    if (tensor.dims.length < 2 || !(tensor.data instanceof Float32Array)) continue;
    const chance = randomValues(tensor.data.length, 1);
    const data = tensor.data.map((value, i) => (chance[i]! < 2 * sparsity - 1 ? 0 : value));
    initializers.set(name, { ...tensor, data });
  }
  return { ...graph, initializers };
}

test("sparse initializers: the file is smaller and ONNX Runtime gives the same answers", async () => {
  const dense = network(0.85);
  const sparse = toSparseInitializers(dense);
  const marked = [...sparse.initializers.values()].filter((tensor) => tensor.sparse);
  assert.ok(marked.length >= 6, `${marked.length} tensors`);
  const bytes = writeGraph(sparse);
  assert.ok(bytes.length < 0.7 * writeGraph(dense).length);
  const feeds = { input: randomInput([2, 3, 16, 16], 2) };
  const [ours, theirs] = [await runGraph(sparse, feeds), await runGraph(dense, feeds)];
  assert.equal(largestDifference(ours["logits"]!.data, theirs["logits"]!.data), 0);

  const again = readGraph(bytes);
  assert.deepEqual(countParameters(again), countParameters(dense));
  for (const [name, { dims, data }] of dense.initializers) {
    assert.deepEqual([...again.initializers.get(name)!.data], [...data]);
    assert.deepEqual(again.initializers.get(name)!.dims, dims);
  }
  assert.deepEqual(writeGraph(again).length, bytes.length, "written again as it was read");
});

test("sparse initializers: below two thirds of zeros all stays dense", () => {
  const sparse = toSparseInitializers(network(0.6));
  assert.ok([...sparse.initializers.values()].every((tensor) => !tensor.sparse));
});

test("sparse initializers: places are read in both forms, and checked", () => {
  const values = tensorToProto("w", floatTensor([2], [5, 7]));
  const made = (indices: ReturnType<typeof int64Tensor>) =>
    create(SparseTensorProtoSchema, {
      dims: [2n, 3n],
      values,
      indices: tensorToProto("", indices),
    });
  for (const indices of [int64Tensor([2], [1, 5]), int64Tensor([2, 2], [0, 1, 1, 2])]) {
    const [name, tensor] = sparseFromProto(made(indices));
    assert.equal(name, "w");
    assert.deepEqual([...tensor.data], [0, 5, 0, 0, 0, 7]);
  }
  assert.throws(() => sparseFromProto(made(int64Tensor([2], [1, 6]))), /place 6 lies outside/);
  assert.throws(() => sparseFromProto(made(int64Tensor([1], [1]))), /2 values at \[1\] places/);
});

test("sparse initializers: a graph that was read keeps none in its shell", () => {
  const again = readGraph(writeGraph(toSparseInitializers(network(0.9))));
  assert.equal(again.shell.graph?.sparseInitializer.length, 0);
  const model = toModel({ ...again, initializers: new Map() });
  assert.equal(model.graph?.sparseInitializer.length, 0);
});
