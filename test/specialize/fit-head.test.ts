import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";
import { headLogits } from "../../agent/math/standardized-space.ts";
import { fitHead, mapLabels, sliceHead } from "../../agent/specialize/fit-head.ts";

const OPTIONS = { seed: 1, gemm: referenceGemm, signal: new AbortController().signal };
const GENERALIST = {
  classes: ["red fox, Vulpes vulpes", "badger", "tiger cat"],
  aliases: [["n02119789"], ["n02447366"], []],
};

test("labels: map by labelMap, name, alias or one of several names, letter case aside", () => {
  const map = (labels: string[], labelMap = {}) => mapLabels(labels, GENERALIST, labelMap);
  assert.deepEqual(map(["Red_Fox", "n02447366", "vulpes vulpes", "okapi"]), [0, 1, 0, -1]);
  assert.deepEqual(map(["reineke"], { reineke: "red fox" }), [0]);
  assert.throws(() => map(["reineke"], { reineke: "red vox" }), /got "red vox"/);
});

/** Pictures of three clusters in few dimensions; `shift` moves the class means from the prior's. */
function clusters(perClass: number, inputs: number, noise: number) {
  const random = createRandom(8);
  const centers = Array.from({ length: 3 * inputs }, () => random.normal());
  const labels = Array.from({ length: 3 * perClass }, (_, i) => i % 3);
  const features = Float32Array.from(
    labels.flatMap((c) =>
      Array.from({ length: inputs }, (_, j) => centers[c * inputs + j]! + noise * random.normal()),
    ),
  );
  const bursts = labels.map((_, i) => `burst ${Math.floor(i / 3)}`);
  return { centers, data: { features, inputs, labels, bursts, classes: 3 } };
}

/** The classifier by the nearest center, a good prior for clusters. */
function nearestCenter(centers: readonly number[], inputs: number, scale: number) {
  const weights = Float32Array.from(centers, (w) => scale * w);
  const bias = Float32Array.from({ length: 3 }, (_, c) => {
    const own = centers.slice(c * inputs, (c + 1) * inputs);
    return (-scale / 2) * own.reduce((sum, w) => sum + w * w, 0);
  });
  return { weights, bias };
}

async function accuracy(
  head: Parameters<typeof headLogits>[0],
  data: ReturnType<typeof clusters>["data"],
) {
  const logits = await headLogits(head, data.features);
  const right = data.labels.filter((label, i) => {
    const row = [...logits.subarray(i * 3, i * 3 + 3)];
    return row.indexOf(Math.max(...row)) === label;
  });
  return right.length / data.labels.length;
}

test("head: fits clusters where the generalist knows none of the classes", async () => {
  const { data } = clusters(20, 12, 0.6);
  const head = await fitHead(data, null, OPTIONS);
  assert.equal(head.kind, "fitted");
  assert.ok((await accuracy(head, data)) > 0.95, "accuracy on its own clusters");
});

test("head: keeps the generalist's rows where they are better than what few noisy pictures teach", async () => {
  const { centers, data } = clusters(3, 40, 1.5);
  const rows = nearestCenter(centers, 40, 0.5);
  const head = await fitHead(data, { rows, complete: true }, OPTIONS);
  assert.notEqual(head.kind, "fitted");
  const fresh = clusters(200, 40, 1.5).data;
  assert.ok((await accuracy(head, fresh)) > 0.9, "accuracy on fresh pictures");
});

test("head: turns away from rows that know nothing of the classes", async () => {
  const { data } = clusters(20, 12, 0.6);
  const random = createRandom(4);
  const rows = {
    weights: Float32Array.from({ length: 36 }, () => 5 * random.normal()),
    bias: new Float32Array(3),
  };
  const head = await fitHead(data, { rows, complete: true }, OPTIONS);
  assert.notEqual(head.kind, "sliced");
  assert.ok((await accuracy(head, data)) > 0.95, "accuracy in spite of the prior");
});

test("head: slicing takes the rows asked for and zeros where there is none", () => {
  const head = { weights: Float32Array.of(1, 2, 3, 4, 5, 6), bias: Float32Array.of(7, 8, 9) };
  const { weights, bias } = sliceHead(head, [2, -1, 0]);
  assert.deepEqual([...weights], [5, 6, 0, 0, 1, 2]);
  assert.deepEqual([...bias], [9, 0, 7]);
});
