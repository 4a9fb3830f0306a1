import assert from "node:assert/strict";
import { test } from "node:test";
import { RunProgress } from "../../agent/specialize/progress.ts";
import { STAGES, type StageName } from "../../agent/specialize/spec.ts";

/** Share of the whole run at the start of a stage. */
function shareAt(stage: StageName, method: string): number {
  const progress = new RunProgress(0, { method, fineTune: null });
  return progress.update({ type: "stage-started", stage }, 1000).share;
}

test("progress: shares rise from stage to stage and end at 1", () => {
  const shares = STAGES.map((stage) => shareAt(stage, "unstructured:0.5"));
  assert.deepEqual(
    shares,
    [...shares].sort((a, b) => a - b),
  );
  const progress = new RunProgress(0, { method: "unstructured:0.5", fineTune: null });
  const last = { name: "verdict", seconds: 1, runtimeSeconds: 0 } as const;
  progress.update({ type: "stage-started", stage: "verdict" }, 1000);
  const { share } = progress.update(
    { type: "stage-finished", stage: "verdict", report: last },
    2000,
  );
  assert.ok(Math.abs(share - 1) < 1e-9);
});

test("progress: a run that prunes nothing gives no time to compressing", () => {
  assert.equal(shareAt("head-refit", "none"), shareAt("compress", "none"));
  assert.ok(shareAt("evaluate", "none") > 0.6);
  assert.ok(shareAt("head-refit", "int8") - shareAt("compress", "int8") > 0.5);
  assert.equal(shareAt("search", "int8"), shareAt("compress", "int8"));
  assert.ok(shareAt("compress", "auto") - shareAt("search", "auto") > 0.3);
});
