import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import {
  type GateConfig,
  type GateFrame,
  type GateModel,
  judge,
  pairedDifference,
} from "../../agent/specialize/gate.ts";

const CONFIG: GateConfig = {
  maxDropPoints: 1,
  minMacroF1: 0,
  maxLatencyRatio: 1.1,
  confidence: 0.95,
  onThinEvidence: "probation",
};

/** A model that is right on a frame where `right(index)` says so. */
function model(frames: number, right: (index: number) => boolean, latencyMsP50 = 10): GateModel {
  const list: GateFrame[] = Array.from({ length: frames }, (_, i) => {
    const truth = i % 2 ? "fox" : "deer";
    const wrong = truth === "fox" ? "deer" : "fox";
    return { burst: `b${i}`, truth, predicted: right(i) ? truth : wrong, finite: true };
  });
  const recall = Object.fromEntries(
    ["fox", "deer"].map((label) => {
      const mine = list.filter((f) => f.truth === label);
      return [label, mine.filter((f) => f.predicted === label).length / mine.length];
    }),
  );
  const accuracy = list.filter((f) => f.predicted === f.truth).length / frames;
  return {
    classes: ["deer", "fox"],
    frames: list,
    latencyMsP50,
    scores: { accuracy, macroF1: accuracy, recall, calibrationError: 0, burstAccuracy: accuracy },
  };
}

function verdict(candidate: GateModel, dense: GateModel, config: Partial<GateConfig> = {}) {
  const random = createRandom(1).uniform;
  return judge({ dense, incumbent: null, candidate }, { ...CONFIG, ...config }, random);
}

test("gate: an equal candidate on enough bursts is accepted without doubt", () => {
  const same = verdict(
    model(1000, (i) => i % 20 !== 0),
    model(1000, (i) => i % 20 !== 0),
  );
  assert.equal(same.accepted, true);
  assert.equal(same.onThinEvidence, false);
});

test("gate: a candidate that is worse by more than the limit is refused, with the figures", () => {
  const worse = verdict(
    model(400, (i) => i % 10 !== 0),
    model(400, () => true),
  );
  assert.equal(worse.accepted, false);
  assert.match(worse.reasons.join("\n"), /−10\.0 points of accuracy against the dense model/);
});

test("gate: few held-out bursts leave it to onThinEvidence, and the reasons say so", () => {
  const few = [model(20, () => true), model(20, () => true)] as const;
  const probation = verdict(...few);
  assert.equal(probation.accepted && probation.onThinEvidence, true);
  assert.match(
    probation.reasons.join("\n"),
    /20 held-out bursts cannot decide; accepted on probation/,
  );
  const refused = verdict(...few, { onThinEvidence: "refuse" });
  assert.equal(refused.accepted, false);
  assert.match(refused.reasons.join("\n"), /refused, as onThinEvidence asks for/);
});

test("gate: refuses a candidate that loses a species, however good it is otherwise", () => {
  const dense = model(1000, (i) => i % 2 === 0 || i < 10);
  const candidate = model(1000, (i) => i % 2 === 0);
  const lost = verdict(candidate, dense);
  assert.equal(lost.accepted, false);
  assert.match(lost.reasons.join("\n"), /class "fox" is lost/);
});

test("gate: refuses a candidate without a class that the incumbent serves, unless that is the generalist", () => {
  const fine = model(1000, () => true);
  const incumbent = { ...fine, classes: ["deer", "fox", "lynx"] };
  for (const keepsClasses of [true, false]) {
    const random = createRandom(1).uniform;
    const models = { dense: fine, candidate: fine, incumbent: { ...incumbent, keepsClasses } };
    const result = judge(models, CONFIG, random);
    assert.equal(result.accepted, !keepsClasses);
    if (keepsClasses) assert.match(result.reasons.join("\n"), /"lynx" of the incumbent/);
  }
});

test("gate: refuses a candidate that is certainly worse than the incumbent, equal to the dense one or not", () => {
  const dense = model(2000, (i) => i % 10 !== 0);
  const incumbent = { ...model(2000, () => true), keepsClasses: true };
  const result = judge({ dense, candidate: dense, incumbent }, CONFIG, createRandom(1).uniform);
  assert.equal(result.accepted, false);
  assert.match(result.reasons.join("\n"), /worse than the incumbent for certain/);
});

test("gate: refuses slow, inaccurate and non-finite candidates", () => {
  const dense = model(1000, () => true);
  assert.equal(
    verdict(
      model(1000, () => true, 12),
      dense,
    ).accepted,
    false,
  );
  assert.equal(
    verdict(
      model(1000, () => true, Number.NaN),
      dense,
    ).accepted,
    false,
  );
  assert.equal(verdict(dense, dense, { minMacroF1: 1.01 }).accepted, false);
  const nan = { ...dense, frames: dense.frames.map((f, i) => ({ ...f, finite: i > 0 })) };
  assert.match(verdict(nan, dense).reasons.join("\n"), /1 held-out frames got no finite answer/);
  assert.equal(verdict(nan, dense).accepted, false);
});

test("paired difference: the interval covers the true difference about as often as it claims", () => {
  const random = createRandom(11);
  let covered = 0;
  const rounds = 150;
  for (let round = 0; round < rounds; round++) {
    // 120 bursts of three frames; ours is right with 0.8, theirs with 0.9, independently.
    const draw = (share: number): GateFrame[] => {
      const bursts = Array.from({ length: 120 }, () => random.uniform() < share);
      return bursts.flatMap((right, b) =>
        [0, 1, 2].map(() => ({
          burst: `${b}`,
          truth: "a",
          predicted: right ? "a" : "b",
          finite: true,
        })),
      );
    };
    const d = pairedDifference(draw(0.8), draw(0.9), 0.95, random.uniform);
    if (d.lowPoints <= -10 && -10 <= d.highPoints) covered += 1;
  }
  assert.ok(covered / rounds > 0.88, `covered ${covered} of ${rounds}`);
});

test("paired difference: outcomes of different frames are a mistake", () => {
  const one = model(4, () => true).frames;
  assert.throws(() => pairedDifference(one, one.slice(1), 0.95, Math.random), /same frames/);
  assert.throws(() => pairedDifference(one, [...one].reverse(), 0.95, Math.random), /frame 0/);
});
