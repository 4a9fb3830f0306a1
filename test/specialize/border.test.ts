import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { advance, pictureBorder, readBorder, sweep } from "../../agent/specialize/border.ts";
import { createEngine } from "../../agent/specialize/engine.ts";
import { environmentOf } from "./environment.helpers.ts";

const engine = await createEngine({
  executionProviders: ["cpu"],
  intraOpThreads: 1,
  log: createLogger("error"),
});
const folder = await mkdtemp(join(tmpdir(), "taco-border-"));
after(async () => {
  await engine.close();
  await rm(folder, { recursive: true });
});

const doubled = buildModel({
  nodes: [node("Add", ["x", "x"], ["y"])],
  inputs: [floatValue("x", ["N", 3])],
  outputs: [floatValue("y", ["N", 3])],
});

/** Batches 0, 1, … of one row each; `reads` is told which were asked for. */
function calibrationOf(batches: number, reads: number[], broken = -1) {
  return {
    batches,
    read: (batch: number) => {
      reads.push(batch);
      if (batch === broken) return Promise.reject(new Error(`batch ${batch} is gone`));
      return Promise.resolve({ data: new Float32Array(3).fill(batch), dims: [1, 3] });
    },
  };
}

test("sweep: every batch once, in order, the next one read while one runs", async () => {
  const reads: number[] = [];
  const environment = environmentOf(engine, folder, calibrationOf(4, reads));
  const seen: number[] = [];
  await sweep(doubled, pictureBorder(doubled), environment, (batch, { y }) => {
    assert.equal(y!.data[0], 2 * batch);
    seen.push(batch);
    assert.equal(reads.at(-1), Math.min(batch + 1, 3));
  });
  assert.deepEqual(seen, [0, 1, 2, 3]);
  assert.deepEqual(reads, [0, 1, 2, 3]);
});

test("sweep: a batch that cannot be read ends it behind the ones before", async () => {
  const environment = environmentOf(engine, folder, calibrationOf(4, [], 2));
  const seen: number[] = [];
  const run = sweep(doubled, pictureBorder(doubled), environment, (batch) => {
    seen.push(batch);
  });
  await assert.rejects(run, /batch 2 is gone/);
  assert.deepEqual(seen, [0, 1]);
});

test("sweep: a fault of a run is thrown although the next batch is being read", async () => {
  const environment = environmentOf(engine, folder, calibrationOf(3, [], 1));
  const run = sweep(doubled, pictureBorder(doubled), environment, () => {
    throw new TypeError("a mistake");
  });
  await assert.rejects(run, /a mistake/);
});

test("advance: the next border holds what the part made of every batch", async () => {
  const environment = environmentOf(engine, folder, calibrationOf(3, []));
  const border = await advance(doubled, pictureBorder(doubled), environment, "next");
  try {
    for (const batch of [2, 0, 1]) {
      const { data } = await readBorder(border, batch, environment);
      assert.deepEqual([...data], [2 * batch, 2 * batch, 2 * batch]);
    }
  } finally {
    await border.store?.dispose();
  }
});
