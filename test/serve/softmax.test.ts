import assert from "node:assert/strict";
import { test } from "node:test";
import { topLabels } from "../../agent/serve/softmax.ts";

test("softmax: sorts by probability and does not overflow", () => {
  const top = topLabels(Float32Array.of(1000, 1001, -1000), ["a", "b", "c"], 2);
  assert.deepEqual(
    top.map((t) => t.label),
    ["b", "a"],
  );
  assert.ok(Math.abs(top[0]!.probability - 1 / (1 + Math.exp(-1))) < 1e-12);
  assert.throws(() => topLabels([1], ["a", "b"], 1), RangeError);
});
