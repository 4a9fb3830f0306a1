import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { StringStringEntryProtoSchema, TensorProto_DataLocation } from "onnx-buf";
import { addGeneralist, resolveGeneralist } from "../../agent/generalist/add.ts";
import { readGeneralist } from "../../agent/generalist/description.ts";
import { guessGeneralist } from "../../agent/generalist/inspect.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { encodeModel } from "../../agent/onnx/codec.ts";
import { readGraph, toModel, writeGraph } from "../../agent/onnx/graph.ts";
import { DataType, withFloatValues } from "../../agent/onnx/tensor.ts";
import {
  largestDifference,
  randomInput,
  randomValues,
  runGraph,
} from "../onnx/run-graph.helpers.ts";
import {
  quiet,
  smallClassifier,
  smallSidecar,
  temporaryFolder,
  writeModel,
} from "./small-classifier.helpers.ts";

test("generalist add: a file with a sidecar is copied into the cache and can be named", async (context) => {
  const folder = await temporaryFolder(context);
  const source = await writeModel(folder, smallClassifier(), smallSidecar);
  const dir = join(folder, "generalists");
  const added = await addGeneralist({ source, dir, log: quiet });
  const original = await readGeneralist(source);
  assert.equal(added.modelPath, join(dir, "small", "model.onnx"));
  assert.deepEqual(
    { ...added.description, modelPath: source },
    { ...original, classifierInput: "features" },
  );
  assert.deepEqual(await readdir(dir), ["small"], "nothing temporary is left");
  assert.deepEqual(
    await resolveGeneralist({ source: "small", dir, log: quiet }),
    added.description,
  );
  assert.deepEqual(await resolveGeneralist({ source, dir, log: quiet }), original);
  const again = await addGeneralist({ source, dir, log: quiet, flags: { mean: [0, 0, 0] } });
  assert.deepEqual(
    again.description.preprocessing.mean,
    [0, 0, 0],
    "flags stand above the sidecar",
  );
});

test("generalist add: without a sidecar the guesses are listed and must be confirmed", async (context) => {
  const folder = await temporaryFolder(context);
  const source = await writeModel(folder, smallClassifier(["N", 3, 224, 224]));
  const dir = join(folder, "generalists");
  const options = { source, dir, log: quiet };
  await assert.rejects(addGeneralist(options), {
    code: "GENERALIST_UNAVAILABLE",
    message: /Guessed:\n.*size 224x224.*\n.*3 classes.*\n.*ImageNet's(.|\n)*--confirm/,
  });
  assert.deepEqual(await readdir(dir), []);
  const { description } = await addGeneralist({ ...options, confirm: true });
  assert.deepEqual(description.classes, ["class 0", "class 1", "class 2"]);
  assert.deepEqual(description.preprocessing.resize, { mode: "shortSide", size: 256 });
  const labelsPath = join(folder, "labels.txt");
  await writeFile(labelsPath, "fox\nbadger\n");
  const flags = {
    name: "mine",
    mean: [0.5, 0.5, 0.5] as [number, number, number],
    std: [0.5, 0.5, 0.5] as [number, number, number],
    resize: "straight to 224x224, aspect not kept, bilinear",
    labelsPath,
  };
  await assert.rejects(addGeneralist({ ...options, flags }), /expected 3 lines.*got 2/);
  await writeFile(labelsPath, "fox\nbadger\nempty\n");
  const mine = await addGeneralist({ ...options, flags });
  assert.equal(mine.name, "mine");
  assert.deepEqual(mine.description.classes, ["fox", "badger", "empty"]);
  assert.deepEqual(mine.description.preprocessing, {
    height: 224,
    width: 224,
    mean: [0.5, 0.5, 0.5],
    std: [0.5, 0.5, 0.5],
    resize: { mode: "stretch" },
    kernel: "linear",
    cropTop: 0,
    cropBottom: 0,
  });
});

test("generalist add: a channels-last model is turned around on demand only", async (context) => {
  const folder = await temporaryFolder(context);
  const graph = smallClassifier(["N", 16, 16, 3]);
  const source = await writeModel(folder, graph);
  const dir = join(folder, "generalists");
  const options = { source, dir, log: quiet, confirm: true };
  await assert.rejects(addGeneralist(options), {
    code: "MODEL_INVALID",
    message: /pass --layout NHWC/,
  });
  const { description } = await addGeneralist({ ...options, flags: { layout: "NHWC" } });
  const turned = readGraph(await readFile(description.modelPath));
  const pictures = randomValues(2 * 3 * 16 * 16, 5);
  const last = Float32Array.from(pictures, (_, i) => {
    const [n, rest] = [Math.floor(i / 768), i % 768];
    return pictures[n * 768 + (rest % 3) * 256 + Math.floor(rest / 3)]!;
  });
  const a = await runGraph(turned, { picture: { data: pictures, dims: [2, 3, 16, 16] } });
  const b = await runGraph(graph, { picture: { data: last, dims: [2, 16, 16, 3] } });
  assert.ok(largestDifference(a["scores"]!.data, b["scores"]!.data) < 1e-6);
});

test("generalist add: weights in a file beside the model are taken in", async (context) => {
  const folder = await temporaryFolder(context);
  const graph = smallClassifier();
  const model = toModel(graph);
  const weight = model.graph!.initializer[0]!;
  await writeFile(join(folder, "weights.bin"), weight.rawData);
  weight.rawData = new Uint8Array(0);
  weight.dataLocation = TensorProto_DataLocation.EXTERNAL;
  weight.externalData = [
    create(StringStringEntryProtoSchema, { key: "location", value: "weights.bin" }),
  ];
  const source = join(folder, "small.onnx");
  await writeFile(source, encodeModel(model));
  await writeFile(join(folder, "small.json"), JSON.stringify(smallSidecar));
  await assert.rejects(readGeneralist(source), {
    code: "MODEL_INVALID",
    message: /taco generalist add/,
  });
  const dir = join(folder, "generalists");
  const { description } = await addGeneralist({ source, dir, log: quiet });
  const feeds = { picture: randomInput([1, 3, 16, 16], 1) };
  const own = await runGraph(readGraph(await readFile(description.modelPath)), feeds);
  assert.deepEqual(own["scores"], (await runGraph(graph, feeds))["scores"]);
});

test("generalist add: what a killed process left half done is removed, what a living one does is not", async (context) => {
  const folder = await temporaryFolder(context);
  const dir = join(folder, "generalists");
  const gone = spawnSync(process.execPath, ["-e", ""]).pid;
  await mkdir(join(dir, `.tmp-${gone}-abc`), { recursive: true });
  await mkdir(join(dir, `.tmp-${process.pid}-abc`), { recursive: true });
  const source = await writeModel(folder, smallClassifier(), smallSidecar);
  await addGeneralist({ source, dir, log: quiet });
  assert.deepEqual((await readdir(dir)).sort(), [`.tmp-${process.pid}-abc`, "small"]);
});

test("generalist add: an unknown name lists the known ones, a bad one is refused", async (context) => {
  const folder = await temporaryFolder(context);
  const dir = join(folder, "generalists");
  await assert.rejects(
    addGeneralist({ source: "nothing", dir, log: quiet }),
    /expected one of efficientnet_b0, mobilenetv2, resnet18_v2, a path/,
  );
  const source = await writeModel(folder, smallClassifier(), smallSidecar);
  for (const name of ["../escape", ".hidden", "downloads", ""]) {
    await assert.rejects(
      addGeneralist({ source, dir, log: quiet, flags: { name } }),
      /expected a name of letters/,
    );
  }
});

test("guess: float16, other channel counts and networks without a classifier are refused in words", () => {
  const graph = smallClassifier();
  const half = (name: string) => {
    const tensor = graph.initializers.get(name)!;
    const empty = { dims: tensor.dims, dataType: DataType.FLOAT16, data: new Uint16Array(0) };
    return withFloatValues(empty, tensor.data as Float32Array);
  };
  const halved = { ...graph, initializers: new Map(graph.initializers).set("W", half("W")) };
  const cases: [Uint8Array, RegExp][] = [
    [
      writeGraph(halved),
      /expected float32 weights, got FLOAT16: export the model again in float32/,
    ],
    [
      writeGraph({ ...graph, inputs: [{ ...graph.inputs[0]!, dataType: DataType.UINT8 }] }),
      /float32 pictures as input, got UINT8/,
    ],
    [
      writeGraph({ ...graph, inputs: [floatValue("picture", ["N", 1, 16, 16])] }),
      /expected 3 channels/,
    ],
    [
      writeGraph({ ...graph, inputs: [floatValue("picture", ["N", 768])] }),
      /\[N, 3, height, width\]/,
    ],
    [
      writeGraph(
        buildModel({
          inputs: [floatValue("x", ["N", 3, 8, 8])],
          outputs: [floatValue("y", null)],
          nodes: [node("Relu", ["x"], ["y"])],
        }),
      ),
      /no classifier at its end/,
    ],
    [new TextEncoder().encode("GIF89a"), /expected an ONNX ModelProto/],
  ];
  for (const [bytes, message] of cases) {
    assert.throws(() => guessGeneralist(bytes), { code: "MODEL_INVALID", message });
  }
});

test("guess: an open size is taken as 224, and says so", () => {
  const guess = guessGeneralist(writeGraph(smallClassifier(["N", 3, "h", "w"])));
  assert.deepEqual([guess.preprocessing.height, guess.preprocessing.width], [224, 224]);
  assert.match(guess.reasons[0]!, /leaves it open/);
  const small = guessGeneralist(writeGraph(smallClassifier()));
  assert.deepEqual(small.preprocessing.resize, { mode: "stretch" });
});
