import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  decideProbation,
  observe,
  type ProbationOutcome,
  type ProbationState,
  passTime,
  probationOutcome,
  resumeProbation,
  startProbation,
} from "../../agent/serve/probation.ts";

const MINUTE = 60_000;
const CONFIG = {
  frames: 200,
  minutes: 60,
  maxErrorRate: 0.05,
  maxLatencyRatio: 1.5,
  maxLabelShare: 0.98,
};
const INCUMBENT = { medianRunMs: 20, topLabelShare: 0.6 };

function after(
  count: number,
  outcome: (i: number) => ProbationOutcome,
  state: ProbationState = startProbation("a", INCUMBENT, 0),
): ProbationState {
  let next = state;
  for (let i = 0; i < count; i++) next = observe(next, outcome(i), state.lastMs + i);
  return next;
}

const healthy = (i: number): ProbationOutcome => ({
  kind: "answered",
  label: i % 3 === 0 ? "fox" : "deer",
  runMs: 20 + (i % 5),
  burst: `burst ${Math.floor(i / 3)}`,
});

describe("probation", () => {
  test("goes on while there are too few frames, and commits after enough", () => {
    assert.equal(decideProbation(after(199, healthy), CONFIG, 199).kind, "continue");
    assert.equal(decideProbation(after(200, healthy), CONFIG, 200).kind, "commit");
  });

  test("commits after its minutes with a few frames, never with none", () => {
    const none = startProbation("a", INCUMBENT, 0);
    const waiting = decideProbation(none, CONFIG, 1000 * MINUTE);
    assert.equal(waiting.kind, "continue");
    assert.match(waiting.reason, /0 frames in 1000\.0 minutes of 200 frames/);
    assert.equal(decideProbation(after(3, healthy), CONFIG, 59 * MINUTE).kind, "continue");
    assert.equal(decideProbation(after(3, healthy), CONFIG, 61 * MINUTE).kind, "commit");
  });

  test("rolls back a model that fails too often, as soon as that is clear", () => {
    const failing = after(40, (i) => (i % 4 === 0 ? { kind: "failed" } : healthy(i)));
    const decision = decideProbation(failing, CONFIG, 40);
    assert.equal(decision.kind, "rollback");
    assert.match(decision.reason, /failed on 10 of 40 frames, allowed are 5\.0 %/);
    const once = after(10, (i) => (i === 0 ? { kind: "failed" } : healthy(i)));
    assert.equal(decideProbation(once, CONFIG, 10).kind, "continue");
    assert.equal(decideProbation(once, CONFIG, 61 * MINUTE).kind, "rollback");
  });

  test("rolls back a model that is much slower than the one before", () => {
    const slow = after(60, (i) => ({ ...healthy(i), runMs: 31 }) as ProbationOutcome);
    assert.match(decideProbation(slow, CONFIG, 60).reason, /31\.0 ms, 1\.55 times the 20\.0 ms/);
    assert.equal(decideProbation(slow, CONFIG, 60).kind, "rollback");
    const unmeasured = { ...slow, incumbent: { ...INCUMBENT, medianRunMs: null } };
    assert.equal(decideProbation(unmeasured, CONFIG, 60).kind, "continue");
  });

  test("rolls back a model that calls everything the same", () => {
    const same = after(60, (i) => ({ ...healthy(i), label: "deer" }) as ProbationOutcome);
    const decision = decideProbation(same, CONFIG, 60);
    assert.equal(decision.kind, "rollback");
    assert.match(decision.reason, /100\.0 % of 60 frames in 20 bursts were called "deer"/);
  });

  test("takes one animal before the camera, or a station of one species, for no collapse", () => {
    const deer = (i: number) => ({ ...healthy(i), label: "deer" }) as ProbationOutcome;
    const oneBurst = after(60, (i) => ({ ...deer(i), burst: "b" }) as ProbationOutcome);
    assert.equal(decideProbation(oneBurst, CONFIG, 60).kind, "continue");
    const alwaysSo = startProbation("a", { ...INCUMBENT, topLabelShare: 0.97 }, 0);
    assert.equal(decideProbation(after(60, deer, alwaysSo), CONFIG, 60).kind, "continue");
  });

  test("survives being written as JSON, and a restart's time does not count", () => {
    const before = passTime(after(3, healthy), 30 * MINUTE);
    const kept = JSON.parse(JSON.stringify(before)) as ProbationState;
    const resumed = resumeProbation(kept, 5_000 * MINUTE);
    assert.equal(decideProbation(resumed, CONFIG, 5_029 * MINUTE).kind, "continue");
    assert.equal(decideProbation(resumed, CONFIG, 5_031 * MINUTE).kind, "commit");
  });

  test("a clock that goes backwards neither ends it nor lengthens it", () => {
    const later = passTime(after(3, healthy), 30 * MINUTE);
    const back = passTime(later, 0);
    assert.equal(back.elapsedMs, later.elapsedMs);
    assert.equal(decideProbation(back, CONFIG, 29 * MINUTE).kind, "continue");
    assert.equal(decideProbation(back, CONFIG, 31 * MINUTE).kind, "commit");
  });

  test("keeps a bounded number of run times", () => {
    assert.ok(after(2000, healthy).runMs.length <= 501);
  });

  test("judges only by its own model's answers, and never by unreadable pictures", () => {
    const state = startProbation("a", INCUMBENT, 0);
    const failed = { kind: "failed", reason: "", modelSha256: "a" } as const;
    const ownFault = { ...failed, code: "INFERENCE_FAILED" } as const;
    assert.deepEqual(probationOutcome(state, ownFault, "b"), { kind: "failed" });
    const unreadable = { ...failed, code: "PICTURE_UNREADABLE" } as const;
    assert.equal(probationOutcome(state, unreadable, "b"), null);
    assert.equal(probationOutcome(state, { ...ownFault, modelSha256: "other" }, "b"), null);
  });
});
