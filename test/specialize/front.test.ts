import assert from "node:assert/strict";
import { test } from "node:test";
import { NO_CHANGE } from "../../agent/specialize/compression-plan.ts";
import { chooseForAim, type FrontPoint } from "../../agent/specialize/front.ts";

const PARAMETERS = 5_000_000;

function point(index: number, values: Partial<FrontPoint>): FrontPoint {
  return {
    index,
    plan: NO_CHANGE,
    latencyRatio: 1,
    predictedLatencyRatio: 1,
    nonzero: 4_000_000,
    bytes: 16_000_000,
    expectedDropPoints: 0,
    dropStandardError: 0,
    trainedFrom: null,
    training: [],
    ...values,
  };
}

const FRONT = [
  point(0, {}),
  point(1, { latencyRatio: 0.5, expectedDropPoints: 0.4, bytes: 9e6 }),
  point(2, { latencyRatio: 0.3, expectedDropPoints: 0.9, bytes: 5e6, nonzero: 2e6 }),
  point(3, { latencyRatio: 0.2, expectedDropPoints: 4, bytes: 4e6, nonzero: 1e6 }),
];

test("front: the least of a measure that the drop allows", () => {
  const latency = (maxDropPoints: number) =>
    chooseForAim(FRONT, { aim: "latency", maxDropPoints }, PARAMETERS).point.index;
  assert.deepEqual([0, 0.4, 1, 10].map(latency), [0, 1, 2, 3]);
  const bytes = chooseForAim(FRONT, { aim: "bytes", maxDropPoints: 0.5 }, PARAMETERS);
  assert.equal(bytes.point.index, 1);
});

test("front: the least drop within a limit on cost", () => {
  const index = (aim: Parameters<typeof chooseForAim>[1]) =>
    chooseForAim(FRONT, aim, PARAMETERS).point.index;
  assert.equal(index({ speedup: 2 }), 1);
  assert.equal(index({ speedup: 2.1 }), 2);
  assert.equal(index({ nonzeroReduction: 2.5 }), 2, "counted from the generalist's parameters");
  assert.equal(index({ maxBytes: 4.5e6 }), 3);
  assert.equal(chooseForAim(FRONT, { speedup: 2 }, PARAMETERS).problem, null);
});

test("front: where nothing reaches the aim the nearest is taken, and it is said", () => {
  const { point: nearest, problem } = chooseForAim(FRONT, { speedup: 9 }, PARAMETERS);
  assert.equal(nearest.index, 3);
  assert.match(problem ?? "", /nothing that was built reaches the aim \(≥ 9× faster\)/);
});

test("front: a drop that nobody could judge is not taken for none", () => {
  const unknown = [FRONT[0]!, point(1, { latencyRatio: 0.1, expectedDropPoints: null })];
  const aim = { aim: "latency", maxDropPoints: 5 } as const;
  assert.equal(chooseForAim(unknown, aim, PARAMETERS).point.index, 0);
});
