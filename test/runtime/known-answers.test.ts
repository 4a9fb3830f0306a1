import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { sha256 } from "../../agent/files.ts";
import { createLogger } from "../../agent/log.ts";
import type { ClassifierShape } from "../../agent/runtime/classifier.ts";
import {
  checkKnownAnswers,
  makeKnownAnswers,
  seededPicture,
} from "../../agent/runtime/known-answers.ts";
import { openSession } from "../../agent/runtime/session.ts";
import { type TinyModel, tinyModel } from "../tiny-models.helpers.ts";

const good: TinyModel = { classes: ["deer", "fox", "boar"], side: 16, favorite: 1 };
const config = { executionProviders: ["cpu"], intraOpThreads: 1, log: createLogger("silent") };
const shape = shapeOf(good);

function shapeOf(model: TinyModel): ClassifierShape {
  const { classes, side } = model;
  const preprocessing = { height: side, width: side };
  return { inputName: "input", outputName: "logits", classes, preprocessing };
}

describe("known answers", () => {
  test("are given again by the same model", async () => {
    const session = await openSession(tinyModel(good), config);
    const known = await makeKnownAnswers(session, shape, [1, 2, 3], 1e-3);
    assert.equal(known.logits.length, 3);
    assert.deepEqual(await checkKnownAnswers(session, shape, known), { ok: true, worst: 0 });
    await session.release();
  });

  const wrong: [string, TinyModel, RegExp][] = [
    ["other weights", { ...good, favorite: 2 }, /known answers differ by/],
    ["NaN", { ...good, nan: true }, /is NaN/],
    [
      "another number of classes",
      { ...good, classes: ["deer", "fox"] },
      /expected float32 \[1, 3\]/,
    ],
    ["another input size", { ...good, side: 8 }, /expected float32 \[1, 3, 16, 16\]/],
  ];
  for (const [what, model, reason] of wrong) {
    test(`are not given by a model with ${what}`, async () => {
      const session = await openSession(tinyModel(good), config);
      const known = await makeKnownAnswers(session, shape, [1, 2], 1e-3);
      const other = await openSession(tinyModel(model), config);
      const outcome = await checkKnownAnswers(other, shape, known);
      assert.ok(!outcome.ok);
      assert.match(outcome.reason, reason);
      await session.release();
      await other.release();
    });
  }

  test("cannot be made of a model that answers NaN", async () => {
    const session = await openSession(tinyModel({ ...good, nan: true }), config);
    await assert.rejects(makeKnownAnswers(session, shape, [1], 1e-3), { code: "INFERENCE_FAILED" });
    await session.release();
  });

  test("with an infinite or missing logit in check.json never pass", async () => {
    const session = await openSession(tinyModel(good), config);
    const known = await makeKnownAnswers(session, shape, [1], 1e-3);
    for (const logits of [[[Number.NaN, 4, 0]], [[0, 4]], []]) {
      assert.equal((await checkKnownAnswers(session, shape, { ...known, logits })).ok, false);
    }
    await session.release();
  });

  test("inputs are the same bits on every machine and lie in the range of pictures", () => {
    const picture = seededPicture(7, { height: 24, width: 32 });
    assert.equal(sha256(new Uint8Array(picture.buffer)), GOLDEN);
    assert.ok(picture.every((value) => Math.abs(value) < 2.5));
    assert.notDeepEqual(picture, seededPicture(8, { height: 24, width: 32 }));
  });
});

const GOLDEN = "15eac513ec1ca2c3416401f59dc7e478d51b888b75cefbd5aac1c5d4d7b43613";
