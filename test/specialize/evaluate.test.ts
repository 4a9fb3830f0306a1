import assert from "node:assert/strict";
import { test } from "node:test";
import { outcomesOf, scoreFrames, softmax } from "../../agent/specialize/evaluate.ts";

test("scores: accuracy, macro F1 and recall of a hand-counted case", () => {
  const classes = ["a", "b"];
  const frames = [
    { label: "a", burst: "1" },
    { label: "a", burst: "1" },
    { label: "a", burst: "2" },
    { label: "b", burst: "3" },
  ];
  // Predicted a, b, a, b.
  const logits = Float32Array.of(2, 0, 0, 1, 3, 0, 0, 4);
  const scores = scoreFrames(outcomesOf(logits, classes, frames), classes);
  assert.equal(scores.accuracy, 3 / 4);
  assert.deepEqual(scores.recall, { a: 2 / 3, b: 1 });
  // F1(a) = 2·2/(3+2), F1(b) = 2·1/(1+2).
  assert.ok(Math.abs(scores.macroF1 - (0.8 + 2 / 3) / 2) < 1e-12);
  // Burst 1 is right by the mean of its probabilities, although one frame of it is wrong.
  assert.equal(scores.burstAccuracy, 1);
});

test("scores: a model that is sure and right half of the time has a calibration error of a half", () => {
  const frames = Array.from({ length: 10 }, (_, i) => ({
    label: i % 2 ? "a" : "b",
    burst: `${i}`,
  }));
  const logits = new Float32Array(20).map((_, i) => (i % 2 ? 0 : 50));
  const scores = scoreFrames(outcomesOf(logits, ["a", "b"], frames), ["a", "b"]);
  assert.ok(Math.abs(scores.calibrationError - 0.5) < 1e-6);
});

test("scores: labels that the model has no class for count as wrong", () => {
  const outcomes = outcomesOf(Float32Array.of(1, 0), ["a", "b"], [{ label: "z", burst: "1" }]);
  assert.equal(scoreFrames(outcomes, ["a", "b"]).accuracy, 0);
});

test("scores: no frames is an error, as are logits of another size", () => {
  assert.throws(() => scoreFrames([], ["a"]), RangeError);
  assert.throws(
    () => outcomesOf(new Float32Array(3), ["a", "b"], [{ label: "a", burst: "1" }]),
    /expected 1 frames × 2/,
  );
});

test("softmax: sums to one, survives large logits, and keeps NaN visible", () => {
  const p = softmax(Float32Array.of(1000, 999, -1000));
  assert.ok(Math.abs(p.reduce((a, b) => a + b, 0) - 1) < 1e-6);
  assert.ok(Math.abs(p[0]! - 1 / (1 + Math.exp(-1))) < 1e-6);
  assert.ok(softmax(Float32Array.of(Number.NaN, 0)).every(Number.isNaN));
});
