import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { StringStringEntryProtoSchema, TensorProto_DataLocation } from "onnx-buf";
import { createLogger } from "../../agent/log.ts";
import { encodeModel } from "../../agent/onnx/codec.ts";
import { type Graph, readGraph, toModel, writeGraph } from "../../agent/onnx/graph.ts";
import { withInputSize } from "../../agent/onnx/input-size.ts";
import { DataType, withFloatValues } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import { loadNetwork, readModelFile } from "../../agent/specialize/network.ts";
import { convnext } from "../../scripts/networks/convnext.ts";
import { resnet } from "../../scripts/networks/resnet.ts";
import { visionTransformer } from "../../scripts/networks/vision-transformer.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { largestDifference, randomInput, runGraph } from "../onnx/run-graph.helpers.ts";

let engine: Engine;
before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
});
after(() => engine.close());

const SIZE = { height: 32, width: 32 };

function builtBy(batch: "free" | "one", opset: number): Record<string, Graph> {
  const small = { classes: 5, size: 32, batch, opset };
  return {
    resnet: resnet("r", { ...small, kind: "bottleneck", depths: [1, 1], width: 8 }),
    convnext: convnext("c", { ...small, widths: [8, 16], depths: [1, 1] }),
    transformer: visionTransformer("t", { ...small, width: 16, depth: 2, heads: 2, patch: 8 }),
  };
}

test("network: one written for a single picture is the same as one for any batch", async () => {
  for (const opset of [11, 21]) {
    const [one, free] = [builtBy("one", opset), builtBy("free", opset)];
    for (const kind of Object.keys(one)) {
      const network = await loadNetwork(writeGraph(one[kind]!), SIZE, engine);
      assert.ok(network.batched, kind);
      assert.deepEqual(network.graph.inputs[0]!.dims, ["N", 3, 32, 32]);
      const feeds = { input: randomInput([3, 3, 32, 32], 1) };
      const [a, b] = [await runGraph(network.graph, feeds), await runGraph(free[kind]!, feeds)];
      assert.ok(largestDifference(a["logits"]!.data, b["logits"]!.data) < 1e-5, `${kind} ${opset}`);
      assert.equal(network.head.classes, 5);
    }
  }
});

test("network: an input that leaves its size open states the size it is used with", async () => {
  const graph = builtBy("free", 17)["convnext"]!;
  const open = { ...graph, inputs: [{ ...graph.inputs[0]!, dims: ["N", 3, "h", "w"] }] };
  const network = await loadNetwork(writeGraph(open), { height: 48, width: 64 }, engine);
  assert.deepEqual(network.graph.inputs[0]!.dims, ["N", 3, 48, 64]);
  assert.ok(!("reason" in withInputSize(network.backbone, 32, 32)));
});

for (const [name, side] of [
  ["graphs/torchvision_vit_small_like_opset17", 64],
  ["graphs/deit_small_like_opset13", 64],
  ["models/cifar_resnet20", 32],
] as const) {
  const path = benchPath(`${name}.onnx`);
  test(`network: what ${name} computes from constants and shapes is folded`, {
    skip: path ? false : BENCH_ABSENT,
  }, async () => {
    const bytes = readFileSync(path!);
    const { backbone } = await loadNetwork(bytes, { height: side, width: side }, engine);
    const shapes = backbone.nodes.filter(({ opType }) => opType === "Shape");
    // A class token is repeated as often as there are pictures: that count is not known before.
    assert.ok(shapes.length <= 2, `${shapes.length} Shape nodes`);
    const moved = withInputSize(backbone, side / 2, side);
    if ("reason" in moved) assert.fail(moved.reason);
    for (const [graph, height] of [
      [backbone, side],
      [moved, side / 2],
    ] as const) {
      const input = graph.inputs[0]!.name;
      const result = await runGraph(graph, { [input]: randomInput([2, 3, height, side], 2) });
      const [features] = Object.values(result);
      assert.equal(features!.dims[0], 2);
      assert.ok(features!.data.every(Number.isFinite));
    }
  });
}

test("network: half precision is refused in words", async () => {
  const graph = builtBy("free", 17)["resnet"]!;
  const initializers = new Map(graph.initializers);
  const weight = initializers.get("conv1.weight")!;
  const half = { dims: weight.dims, dataType: DataType.FLOAT16, data: new Uint16Array(0) };
  initializers.set("conv1.weight", withFloatValues(half, weight.data as Float32Array));
  await assert.rejects(loadNetwork(writeGraph({ ...graph, initializers }), SIZE, engine), {
    code: "MODEL_INVALID",
    message: /"conv1.weight" are FLOAT16: export the model again in float32/,
  });
});

test("network: weights in a file beside the model are read, missing and stray ones refused", async () => {
  const folder = await mkdtemp(join(tmpdir(), "taco-external-"));
  try {
    const graph = builtBy("free", 17)["resnet"]!;
    const write = async (location: string): Promise<string> => {
      const model = toModel(graph);
      const weight = model.graph!.initializer.find(({ name }) => name === "conv1.weight")!;
      if (location === "weights.bin") await writeFile(join(folder, location), weight.rawData);
      weight.rawData = new Uint8Array(0);
      weight.dataLocation = TensorProto_DataLocation.EXTERNAL;
      const entry = { key: "location", value: location };
      weight.externalData = [create(StringStringEntryProtoSchema, entry)];
      const path = join(folder, "model.onnx");
      await writeFile(path, encodeModel(model));
      return path;
    };
    const read = readGraph(await readModelFile(await write("weights.bin")));
    assert.deepEqual(
      read.initializers.get("conv1.weight")!.data,
      graph.initializers.get("conv1.weight")!.data,
    );
    await assert.rejects(readModelFile(await write("gone.bin")), {
      code: "MODEL_INVALID",
      message: /gone\.bin/,
    });
    await assert.rejects(readModelFile(await write("../weights.bin")), {
      code: "MODEL_INVALID",
      message: /below the model's folder/,
    });
  } finally {
    await rm(folder, { recursive: true });
  }
});
