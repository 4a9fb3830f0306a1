import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { findChannelGroups } from "../../agent/onnx/channel-groups.ts";
import { keepUnits } from "../../agent/onnx/keep-units.ts";
import { LatencyTable, thisMachine } from "../../agent/runtime/latency-table.ts";
import type { TensorValue } from "../../agent/runtime/session.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import { integerForm } from "../../agent/specialize/integer-form.ts";
import { cutBlocks, openLatencyModel } from "../../agent/specialize/latency-model.ts";
import { pictureClassifier } from "./picture-classifier.helpers.ts";

const LOG = createLogger("error");
const CONFIG = { executionProviders: ["cpu"], intraOpThreads: 1 };
const SIZE = { height: 32, width: 32 };
const { signal } = new AbortController();
let engine: Engine;
before(async () => {
  engine = await createEngine({ ...CONFIG, log: LOG });
});
after(() => engine.close());

test("latency model: the blocks, run one after another, are the network", async () => {
  const graph = pictureClassifier();
  const random = createRandom(5);
  const picture: TensorValue = {
    data: Float32Array.from({ length: 3 * 32 * 32 }, () => random.normal()),
    dims: [1, 3, 32, 32],
  };
  const run = async (part: typeof graph, input: string, value: TensorValue) => {
    const session = await engine.open(part);
    const [result] = Object.values(await session.run({ [input]: value }));
    await session.release();
    return result!;
  };
  const blocks = cutBlocks(graph, SIZE);
  assert.ok(blocks.length >= 3, `${blocks.length} blocks`);
  let value = picture;
  for (const block of blocks) {
    assert.deepEqual(value.dims, block.inputDims);
    value = await run(block.graph, block.inputName, value);
  }
  const whole = await run(graph, "picture", picture);
  assert.deepEqual(value.dims, whole.dims);
  whole.data.forEach((expected, i) => {
    assert.ok(Math.abs(Number(value.data[i]) - Number(expected)) < 1e-5);
  });
});

test("latency model: a key tells shapes and operations apart, and neither names nor weights", () => {
  const keys = (seed: number, side = 32) =>
    cutBlocks(pictureClassifier(seed, side), { height: side, width: side }).map(({ key }) => key);
  const [stem, second, third] = keys(1);
  assert.equal(second, third);
  assert.notEqual(stem, second);
  assert.deepEqual(keys(2), keys(1));
  assert.notEqual(keys(1, 40)[1], second);
  const graph = pictureClassifier();
  const strided = {
    ...graph,
    nodes: graph.nodes.map((n) => (n.opType === "Relu" ? { ...n, opType: "Sigmoid" } : n)),
  };
  assert.notEqual(cutBlocks(strided, SIZE)[1]!.key, second);
});

test("latency model: the network it was made with costs what was measured, narrower ones less", async () => {
  const dense = pictureClassifier();
  const table = await LatencyTable.open(null, thisMachine(CONFIG), LOG);
  const model = await openLatencyModel(dense, SIZE, { engine, table, signal });
  const { groups } = findChannelGroups(dense);
  const narrow = groups
    .filter(({ kind }) => kind === "internal")
    .reduce((graph, group) => keepUnits(graph, group, [0, 1, 2, 3]), dense);
  const [whole, less] = await model.predict([dense, narrow]);
  assert.ok(Math.abs(whole! / model.denseMs - 1) < 0.3, `${whole} and ${model.denseMs} ms`);
  assert.ok(less! < whole!, `${less} < ${whole} ms`);
  assert.ok(less! > 0);
  assert.deepEqual(await model.predict([dense, narrow]), [whole, less]);
});

test("latency model: integers are timed in the form that they will have, beside floats", async () => {
  const dense = pictureClassifier();
  const table = await LatencyTable.open(null, thisMachine(CONFIG), LOG);
  const float = await openLatencyModel(dense, SIZE, { engine, table, signal });
  const variant = { name: "int8", of: integerForm };
  const integers = await openLatencyModel(dense, SIZE, { engine, table, signal, variant });
  assert.notEqual(integers.denseMs, float.denseMs);
  assert.ok(integers.denseMs > 0);
  const types = integerForm(dense).nodes.map(({ opType }) => opType);
  assert.ok(types.includes("QuantizeLinear") && types.includes("DequantizeLinear"));
});
