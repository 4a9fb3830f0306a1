import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import {
  ModelProtoSchema,
  StringStringEntryProtoSchema,
  TensorProto_DataLocation,
  TensorProtoSchema,
} from "onnx-buf";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import {
  decodeModel,
  encodeModel,
  hasExternalData,
  resolveExternalData,
} from "../../agent/onnx/codec.ts";
import { withDynamicBatch } from "../../agent/onnx/dynamic-batch.ts";
import { type Graph, readGraph, toGraph, toModel, writeGraph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { checkTopologicalOrder } from "../../agent/onnx/query.ts";
import {
  DataType,
  floatTensor,
  floatToHalf,
  halfToFloat,
  int64Tensor,
  toFloat32,
} from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  BENCH_GRAPHS,
  BENCH_MODELS,
  batchDims,
  largestDifference,
  randomInput,
  runGraph,
} from "./run-graph.helpers.ts";

function tinyGraph(): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", 3])],
    outputs: [floatValue("y", ["N", 2])],
    nodes: [node("Gemm", ["x", "W", "b"], ["y"])],
    initializers: { W: floatTensor([3, 2], [1, 2, 3, 4, 5, 6]), b: floatTensor([2], [0.5, -0.5]) },
  });
}

/**
 * As the bench data states them; where batch norms are folded, one value a channel is left of
 * γ and β, so 3,856 fewer for the bottleneck network, 6,056 for MobileNetV3, 3,976 for ShuffleNet.
 */
const PARAMETERS: Readonly<Record<string, number>> = {
  "graphs/convnext_small_like_opset17": 1_005_394,
  "graphs/deit_small_like_opset13": 473_386,
  "graphs/deit_small_like_opset17": 473_386,
  "graphs/mobilenet_v3_small_opset17": 1_522_050,
  "graphs/resnet_bottleneck_small_opset17": 880_458,
  "graphs/resnet_bottleneck_small_unfused_bn_opset13": 880_458,
  "graphs/shufflenet_v2_x0_5_opset17": 348_066,
  "graphs/torchvision_vit_small_like_opset17": 361_546,
  "models/cifar_resnet20": 269_034,
  "models/cifar_resnet56": 850_986,
  "models/efficientnet_b0_imagenet1k": 5_267_540,
  "models/mobilenetv1_0.25_imagenet1k": 467_336,
  "models/mobilenetv2_1.0_imagenet1k": 3_487_816,
  "models/mobilenetv2_inat_bird": 3_442_981,
  "models/squeezenet1.1_imagenet1k": 1_235_496,
  "models/vit_tiny_patch16_224_imagenet1k": 5_717_416,
};

for (const name of [...BENCH_MODELS, ...BENCH_GRAPHS]) {
  const path = benchPath(`${name}.onnx`);
  test(`codec: ${name} decodes, encodes and normalizes without changing its answers`, {
    skip: !path && BENCH_ABSENT,
  }, async () => {
    const bytes = readFileSync(path!);
    const raw = readGraph(bytes);
    const normal = normalizeGraph(raw);
    checkTopologicalOrder(normal);
    assert.equal(countParameters(normal).parameters, PARAMETERS[name]);
    const again = readGraph(writeGraph(raw));
    assert.deepEqual(
      again.nodes.map((n) => [n.opType, n.inputs, n.outputs]),
      raw.nodes.map((n) => [n.opType, n.inputs, n.outputs]),
    );
    assert.deepEqual(again.inputs, raw.inputs);
    assert.deepEqual(
      encodeModel(toModel(again)),
      writeGraph(raw),
      "a second round changes nothing",
    );
    const feeds = { [raw.inputs[0]!.name]: randomInput(batchDims(raw, 1), 1) };
    const [a, b] = [await runGraph(raw, feeds), await runGraph(normal, feeds)];
    assert.ok(largestDifference(Object.values(a)[0]!.data, Object.values(b)[0]!.data) < 1e-5);
  });
}

test("codec: bytes that are no model are refused in words", () => {
  const truncated = writeGraph(tinyGraph()).slice(0, -20);
  for (const bytes of [
    new Uint8Array(0),
    new TextEncoder().encode("GIF89a, not a model"),
    truncated,
  ]) {
    assert.throws(() => decodeModel(bytes), {
      name: "RangeError",
      message: /expected an ONNX ModelProto/,
    });
  }
});

test("codec: fields from a newer ONNX, metadata and foreign operator sets survive a round trip", () => {
  const model = toModel(tinyGraph());
  model.metadataProps.push(
    create(StringStringEntryProtoSchema, { key: "station", value: "north" }),
  );
  // Field 900, length-delimited, holds "new".
  const unknown = Uint8Array.of(0xa2, 0x38, 3, ...new TextEncoder().encode("new"));
  const bytes = new Uint8Array([...encodeModel(model), ...unknown]);
  const again = encodeModel(toModel(toGraph(decodeModel(bytes))));
  assert.deepEqual(again.slice(-unknown.length), unknown);
  assert.equal(decodeModel(again).metadataProps[0]?.value, "north");
});

test("codec: a tensor whose values do not fit its shape is refused by name", () => {
  const model = create(ModelProtoSchema, toModel(tinyGraph()));
  model.graph!.initializer[0] = create(TensorProtoSchema, {
    name: "W",
    dims: [3n, 3n],
    dataType: 1,
    floatData: [1, 2],
  });
  assert.throws(
    () => toGraph(decodeModel(toBinary(ModelProtoSchema, model))),
    /tensor "W": \[3,3\] needs 9 values, got 2/,
  );
});

test("codec: external data is read by location, and only below the model's folder", () => {
  const make = (location: string) => {
    const model = toModel(tinyGraph());
    const entry = (key: string, value: string) =>
      create(StringStringEntryProtoSchema, { key, value });
    model.graph!.initializer[0] = create(TensorProtoSchema, {
      name: "W",
      dims: [3n, 2n],
      dataType: 1,
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: [entry("location", location), entry("offset", "4"), entry("length", "24")],
    });
    return decodeModel(encodeModel(model));
  };
  const file = new Uint8Array(Float32Array.of(99, 1, 2, 3, 4, 5, 6).buffer);
  const model = make("weights.bin");
  assert.ok(hasExternalData(model));
  assert.throws(() => toGraph(model), /resolve external data first/);
  resolveExternalData(model, (location, offset, length) => {
    assert.equal(location, "weights.bin");
    return file.subarray(offset, offset + length!);
  });
  assert.deepEqual([...toFloat32(toGraph(model).initializers.get("W")!)], [1, 2, 3, 4, 5, 6]);
  for (const location of ["../secret", "/etc/passwd", "a/../../b", "C:\\x", ""]) {
    assert.throws(
      () => resolveExternalData(make(location), () => file),
      /below the model's folder/,
    );
  }
  assert.throws(
    () => resolveExternalData(make("w"), () => file.subarray(0, 8)),
    /expected 24 bytes .* got 8/,
  );
});

test("tensor: every float16 bit pattern survives the way through a number", () => {
  for (let bits = 0; bits < 0x10000; bits++) {
    const value = halfToFloat(bits);
    if (Number.isNaN(value)) assert.ok(Number.isNaN(halfToFloat(floatToHalf(value))));
    else assert.equal(floatToHalf(value), bits);
  }
  assert.equal(floatToHalf(65519), 0x7bff);
  assert.equal(floatToHalf(65520), 0x7c00);
  assert.equal(floatToHalf(1 + 2 ** -11), 0x3c00, "half way rounds to even");
  assert.equal(floatToHalf(2047.9999), 0x6800, "rounds up into the next power of two");
});

test("graph: Constants become initializers, Identities and unused weights go", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 2])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Constant", [], ["two"], { value: floatTensor([1], [2]) }),
      node("Identity", ["two"], ["same"]),
      node("Identity", ["x"], ["x1"]),
      node("Mul", ["x1", "same"], ["m"]),
      node("Relu", ["x"], ["unused"]),
      node("Identity", ["m"], ["y"]),
    ],
    initializers: { orphan: floatTensor([4], [1, 2, 3, 4]) },
  });
  const normal = normalizeGraph(graph);
  assert.deepEqual(
    normal.nodes.map(({ opType, inputs }) => [opType, inputs]),
    [
      ["Mul", ["x", "two"]],
      ["Identity", ["m"]],
    ],
  );
  assert.deepEqual([...normal.initializers.keys()], ["two"]);
});

test("graph: a node that reads a value before it is made is named", () => {
  const graph = tinyGraph();
  const late = node("Relu", ["y"], ["z"]);
  assert.throws(
    () => checkTopologicalOrder({ ...graph, nodes: [late, ...graph.nodes] }),
    /Relu "z" reads "y" before/,
  );
  assert.throws(
    () => checkTopologicalOrder({ ...graph, nodes: [...graph.nodes, ...graph.nodes] }),
    /makes "y" again/,
  );
});

test("dynamic batch: a graph exported for one picture takes three", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", [1, 2, 3])],
    outputs: [floatValue("y", [1, 6])],
    nodes: [
      node("Reshape", ["x", "rest"], ["a"]),
      node("Reshape", ["a", "full"], ["b"]),
      node("Reshape", ["b", "rest"], ["y"]),
    ],
    initializers: { rest: int64Tensor([2], [1, -1]), full: int64Tensor([3], [1, 3, 2]) },
  });
  const { graph: free, changed, problems } = withDynamicBatch(graph);
  assert.deepEqual([changed, problems], [true, []]);
  const input = randomInput([3, 2, 3], 1);
  const { y } = await runGraph(free, { x: input });
  assert.deepEqual([y!.dims, y!.data], [[3, 6], input.data]);
  assert.equal(withDynamicBatch(free).changed, false);
});

test("dynamic batch: a batch of one that hides elsewhere is named", () => {
  const graph = buildModel({
    inputs: [floatValue("x", [1, 2, 3])],
    outputs: [floatValue("y", [2, 1, 3])],
    nodes: [node("Reshape", ["x", "swapped"], ["y"])],
    initializers: { swapped: int64Tensor([3], [2, 1, 3]) },
  });
  assert.deepEqual(withDynamicBatch(graph).problems, [
    'Reshape "y" to [2,1,3] does not keep the batch in front',
  ]);
});

test("builder: data types are told by name", () => {
  assert.equal(floatTensor([1], [1]).dataType, DataType.FLOAT);
  assert.throws(() => floatTensor([2, 2], [1, 2, 3]), /\[2,2\] needs 4 values, got 3/);
});
