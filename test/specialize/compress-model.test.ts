import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { parseAim } from "../../agent/aim.ts";
import { listPictures } from "../../agent/data/picture-folder.ts";
import { createLogger } from "../../agent/log.ts";
import { parseMethod } from "../../agent/method.ts";
import { readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { openSession } from "../../agent/runtime/session.ts";
import { type CompressModelRequest, compressModel } from "../../agent/specialize/compress-model.ts";
import { splitUnlabeled } from "../../agent/specialize/unlabeled-pictures.ts";
import { pictureClassifier, writePictures } from "./picture-classifier.helpers.ts";

const LOG = createLogger("error");
const CPU = { executionProviders: ["cpu"], intraOpThreads: 1 };
let dir: string;
let pictures: string[];

before(async () => {
  dir = mkdtempSync(join(tmpdir(), "taco-compress-model-"));
  writeFileSync(join(dir, "model.onnx"), writeGraph(pictureClassifier()));
  await writePictures(join(dir, "pictures"), 25);
  writeFileSync(join(dir, "pictures", "broken.png"), "no picture");
  writeFileSync(join(dir, "pictures", "notes.txt"), "no picture either");
  pictures = await listPictures(join(dir, "pictures"));
});
after(() => rmSync(dir, { recursive: true }));

function request(method: string, more: Partial<CompressModelRequest> = {}): CompressModelRequest {
  return {
    modelPath: join(dir, "model.onnx"),
    preprocessing: {
      height: 32,
      width: 32,
      mean: [0.5, 0.5, 0.5],
      std: [0.25, 0.25, 0.25],
      resize: { mode: "stretch" },
      kernel: "cubic",
      cropTop: 0,
      cropBottom: 0,
    },
    pictures,
    method: parseMethod(method),
    aim: null,
    outPath: join(dir, "out", `${method.replaceAll(":", "-")}.onnx`),
    calibrationPictures: 24,
    batchSize: 8,
    seed: 1,
    damping: 0.01,
    maxMegapixels: 10,
    latencyTablePath: null,
    maxSeconds: 3,
    ...CPU,
    ...more,
  };
}

const run = (wanted: CompressModelRequest, signal = new AbortController().signal) =>
  compressModel(wanted, { log: LOG, onProgress: () => undefined, signal });

/** Answers of a file to one picture of fixed values. */
async function answers(path: string): Promise<Float32Array> {
  const session = await openSession(path, { ...CPU, log: LOG });
  const data = Float32Array.from({ length: 3 * 32 * 32 }, (_, i) => Math.sin(i / 7));
  const result = await session.run({ picture: { data, dims: [1, 3, 32, 32] } });
  await session.release();
  assert.deepEqual(Object.keys(result), ["probabilities"]);
  return result["probabilities"]!.data as Float32Array;
}

test("compress model: half of the weights, with what the model answers and who could not be read", async () => {
  const result = await run(request("unstructured:0.5"));
  const { before: dense, after: sparse } = result;
  assert.equal(sparse.parameters, dense.parameters);
  assert.ok(sparse.nonzero < 0.55 * dense.nonzero, `${sparse.nonzero} of ${dense.nonzero}`);
  assert.equal(sparse.bytes, readFileSync(result.out).length);
  assert.ok(result.heldBack.relativeError < 0.2);
  assert.ok(result.heldBack.divergence >= 0 && result.heldBack.agreement > 0.5);
  assert.ok(result.heldBack.pictures >= 4 && result.calibrationPictures === 24);
  assert.deepEqual(
    result.problems.map(({ subject }) => subject),
    [join(dir, "pictures", "broken.png")],
  );
  assert.ok(result.layers.some(({ relativeLoss }) => relativeLoss !== null && relativeLoss > 0));
  assert.ok(result.refused.some(({ reason }) => reason.includes("reads the picture")));
  assert.ok(result.latencyMs.batch1.before > 0 && result.latencyMs.batch8!.speedup > 0);
  assert.ok(result.peakMemoryBytes > 1e7 && result.seconds.total > 0);
  const sum = (await answers(result.out)).reduce((total, p) => total + p, 0);
  assert.ok(Math.abs(sum - 1) < 1e-5, "the softmax behind the logits is still there");
  assert.deepEqual(
    readdirSync(join(dir, "out")).filter((name) => name.startsWith(".")),
    [],
  );
});

test("compress model: fewer channels as integers are smaller, and work together", async () => {
  const result = await run(request("structured:0.5+int8"));
  assert.ok(result.after.parameters < 0.8 * result.before.parameters);
  assert.ok(result.after.bytes < 0.4 * result.before.bytes);
  assert.ok(Object.keys(result.plan.widths).length >= 3 && result.plan.int8);
  const types = readGraph(readFileSync(result.out)).nodes.map(({ opType }) => opType);
  assert.ok(types.includes("QuantizeLinear"));
  assert.equal((await answers(result.out)).length, 5);
});

test("compress model: weights of 4 bits are a small file, which can be compressed again", async () => {
  const result = await run(request("unstructured:0.5+int4"));
  assert.equal(result.plan.weightBits, 4);
  assert.deepEqual(result.after.parameters, result.before.parameters);
  assert.ok(result.after.nonzero < 0.6 * result.before.nonzero);
  assert.ok(result.after.bytes < 0.4 * result.before.bytes, `${result.after.bytes}`);
  assert.ok(result.heldBack.relativeError < 0.2 && result.heldBack.agreement > 0.5);
  const again = await run(request("int3", { modelPath: result.out }));
  assert.equal(again.before.nonzero, result.after.nonzero);
  assert.ok(again.layers.some(({ method }) => method.startsWith("int3 weights")));
  assert.equal((await answers(again.out)).length, 5);
});

test("compress model: 2 zeros in every 4, and the same result for the same seed", async () => {
  const first = await run(request("nm:2:4"));
  const bytes = readFileSync(first.out);
  const again = await run(request("nm:2:4", { outPath: join(dir, "again.onnx") }));
  assert.ok(bytes.equals(readFileSync(again.out)));
  const method = first.layers.filter(({ sparsity }) => sparsity === 0.5);
  assert.ok(method.length >= 6 && method.every((layer) => layer.method.includes("2:4")));
});

test("compress model: auto reaches a limit on bytes that was stated", async () => {
  const maxBytes = Math.round(0.6 * readFileSync(join(dir, "model.onnx")).length);
  const result = await run(request("auto", { aim: parseAim({ maxBytes })! }));
  assert.ok(result.after.bytes <= maxBytes, `${result.after.bytes} of ${maxBytes}`);
  assert.equal(result.aim, `≤ ${maxBytes} bytes`);
});

test("compress model: a model or pictures that are no use are named, and nothing is written", async () => {
  const out = join(dir, "never.onnx");
  await assert.rejects(
    run(request("none", { modelPath: join(dir, "missing.onnx"), outPath: out })),
    { code: "MODEL_INVALID" },
  );
  await assert.rejects(run(request("none", { pictures: pictures.slice(0, 1), outPath: out })), {
    code: "PICTURE_UNREADABLE",
  });
  const broken = join(dir, "pictures", "broken.png");
  await assert.rejects(run(request("none", { pictures: [broken, broken], outPath: out })), {
    code: "PICTURE_UNREADABLE",
  });
  const abort = new AbortController();
  abort.abort(new Error("stopped by hand"));
  await assert.rejects(
    run(request("unstructured:0.5", { outPath: out }), abort.signal),
    /stopped by hand/,
  );
  assert.ok(!existsSync(out));
});

test("unlabeled pictures: no picture serves two ends, the same ones for the same seed", () => {
  const paths = Array.from({ length: 1000 }, (_, i) => `p${i}`);
  const options = { most: 300, search: true, seed: 3 };
  const split = splitUnlabeled(paths, options);
  const all = [...split.calibration, ...split.trial, ...split.heldBack];
  assert.equal(new Set(all).size, all.length);
  assert.deepEqual(
    [split.calibration.length, split.trial.length, split.heldBack.length],
    [300, 64, 100],
  );
  assert.deepEqual(splitUnlabeled(paths, options), split);
  assert.deepEqual(splitUnlabeled(paths, { ...options, search: false }).trial, []);
  const few = splitUnlabeled(["a", "b", "c"], options);
  assert.ok(few.calibration.length === 1 && few.trial.length === 1 && few.heldBack.length === 1);
});
