import assert from "node:assert/strict";
import { test } from "node:test";
import {
  chooseFromFront,
  chooseLevels,
  type Lever,
  paretoFront,
  searchCoefficients,
} from "../../agent/compress/budget.ts";
import { createRandom, type Random } from "../../agent/math/random.ts";

/** Tries every combination of levels. */
function bruteForce(levers: readonly Lever[], limit: number) {
  let best: { choice: number[]; cost: number; loss: number } | undefined;
  const visit = (choice: number[], cost: number, loss: number): void => {
    if (cost > limit) return;
    const lever = levers[choice.length];
    if (lever === undefined) {
      if (best === undefined || loss < best.loss) best = { choice, cost, loss };
      return;
    }
    lever.levels.forEach((level, i) => {
      visit([...choice, i], cost + level.cost, loss + level.loss);
    });
  };
  visit([], 0, 0);
  return best;
}

function randomLevers(random: Random, count: number, whole: boolean): Lever[] {
  return Array.from({ length: count }, (_, i) => ({
    name: `lever ${i}`,
    levels: Array.from({ length: 1 + random.integer(5) }, () => ({
      cost: whole ? random.integer(20) : 20 * random.uniform(),
      loss: random.uniform() ** 3,
    })),
  }));
}

const rangeOf = (levers: readonly Lever[], pick: (...costs: number[]) => number) =>
  levers.reduce((sum, { levels }) => sum + pick(...levels.map(({ cost }) => cost)), 0);

test("budget: with whole costs and fine cells the choice is the best of all combinations", () => {
  const random = createRandom(1);
  for (let round = 0; round < 60; round++) {
    const levers = randomLevers(random, 1 + random.integer(6), true);
    const least = rangeOf(levers, Math.min);
    const limit = least + random.integer(1 + rangeOf(levers, Math.max) - least);
    const oracle = bruteForce(levers, limit)!;
    const found = chooseLevels({ levers, limit, buckets: 5000 });
    assert.ok(found.feasible);
    assert.ok(found.cost <= limit);
    assert.ok(Math.abs(found.loss - oracle.loss) < 1e-12, `round ${round}`);
    const summed = levers.reduce((sum, l, i) => sum + l.levels[found.choice[i]!]!.loss, 0);
    assert.equal(found.loss, summed);
  }
});

test("budget: with real costs no better than exact, no worse than exact at a limit a little less", () => {
  const random = createRandom(2);
  const buckets = 400;
  for (let round = 0; round < 60; round++) {
    const levers = randomLevers(random, 6, false);
    const least = rangeOf(levers, Math.min);
    const limit = least + random.uniform() * (rangeOf(levers, Math.max) - least);
    const found = chooseLevels({ levers, limit, buckets });
    assert.ok(found.feasible);
    assert.ok(found.cost <= limit * (1 + 1e-9));
    assert.ok(found.loss >= bruteForce(levers, limit)!.loss - 1e-12);
    const less = bruteForce(levers, limit * (1 - levers.length / buckets));
    if (less) assert.ok(found.loss <= less.loss + 1e-12, `round ${round}`);
  }
});

test("budget: the least cost is reached exactly, and below it the answer says how much is needed", () => {
  const levers = randomLevers(createRandom(3), 5, false);
  const least = rangeOf(levers, Math.min);
  const tight = chooseLevels({ levers, limit: least, buckets: 3 });
  assert.ok(tight.feasible);
  assert.ok(Math.abs(tight.cost - least) < 1e-9);
  const under = chooseLevels({ levers, limit: 0.99 * least });
  assert.deepEqual(under, { feasible: false, leastCost: least });
});

test("budget: no levers, costs of nothing and a limit of nothing are fine; nonsense is refused", () => {
  assert.deepEqual(chooseLevels({ levers: [], limit: 0 }), {
    feasible: true,
    choice: [],
    cost: 0,
    loss: 0,
  });
  const free = {
    name: "free",
    levels: [
      { cost: 0, loss: 2 },
      { cost: 0, loss: 1 },
    ],
  };
  const found = chooseLevels({ levers: [free], limit: 0 });
  assert.deepEqual(found.feasible && found.choice, [1]);
  const bad = (levels: Lever["levels"]) => () =>
    chooseLevels({ levers: [{ name: "fc", levels }], limit: 1 });
  assert.throws(bad([]), /lever "fc": expected levels/);
  assert.throws(bad([{ cost: 1, loss: Number.NaN }]), /lever "fc": expected finite .* NaN/);
  assert.throws(bad([{ cost: -1, loss: 0 }]), /got -1 and 0/);
  assert.throws(() => chooseLevels({ levers: [], limit: Number.NaN }), /limit/);
  assert.throws(() => chooseLevels({ levers: [], limit: 1, buckets: 0 }), /buckets/);
});

/** Levers whose tables all look alike while the task cares for only some of them. */
function misleading() {
  const random = createRandom(4);
  const matters = Array.from({ length: 12 }, () => (random.uniform() < 0.3 ? 20 : 0.5));
  const levers = matters.map((_, i) => ({
    name: `layer ${i}`,
    levels: Array.from({ length: 8 }, (_, step) => ({ cost: 8 * 0.75 ** step, loss: step ** 2 })),
  }));
  const truth = levers.map(({ name, levels }, i) => ({
    name,
    levels: levels.map(({ cost, loss }) => ({ cost, loss: matters[i]! * loss })),
  }));
  const lossOf = (choice: readonly number[]) =>
    choice.reduce((sum, step, i) => sum + truth[i]!.levels[step]!.loss, 0);
  const score = (choice: readonly number[]) => Promise.resolve(lossOf(choice));
  return { levers, truth, score, limit: 40 };
}

const SEARCH = {
  seed: 1,
  maxEvaluations: 200,
  randomStarts: 30,
  maxFailures: 60,
  buckets: 1000,
  signal: new AbortController().signal,
};

test("coefficient search: learns from scores what the tables do not know, the same every time", async () => {
  const problem = misleading();
  const plain = chooseLevels(problem);
  const ideal = chooseLevels({ levers: problem.truth, limit: problem.limit });
  assert.ok(plain.feasible && ideal.feasible);
  const first = await searchCoefficients({ ...problem, ...SEARCH });
  assert.ok(first.feasible);
  const gap = (await problem.score(plain.choice)) - ideal.loss;
  assert.ok(first.score - ideal.loss < 0.25 * gap, `${first.score - ideal.loss} of ${gap} is left`);
  assert.ok(first.cost <= problem.limit);
  assert.equal(first.score, await problem.score(first.choice));
  assert.ok(first.evaluations <= 200);
  assert.deepEqual(await searchCoefficients({ ...problem, ...SEARCH }), first);
  const other = await searchCoefficients({ ...problem, ...SEARCH, seed: 2 });
  assert.ok(other.feasible && other.score <= (await problem.score(plain.choice)));
});

test("coefficient search: one evaluation is plain dynamic programming, and no more are made", async () => {
  const problem = misleading();
  const plain = chooseLevels(problem);
  const found = await searchCoefficients({ ...problem, ...SEARCH, maxEvaluations: 1 });
  assert.ok(found.feasible && plain.feasible);
  assert.deepEqual(found.choice, plain.choice);
  assert.equal(found.evaluations, 1);
});

test("coefficient search: no allocation is scored twice; it ends when told to, with what it has", async () => {
  const problem = misleading();
  const seen = new Set<string>();
  const score = (choice: readonly number[]) => {
    assert.ok(!seen.has(choice.join()), "scored twice");
    seen.add(choice.join());
    return problem.score(choice);
  };
  const stop = () => seen.size >= 7;
  const found = await searchCoefficients({ ...problem, ...SEARCH, score, stop });
  assert.equal(found.feasible && found.evaluations, 7);
});

test("coefficient search: an abort comes through, an impossible limit is told before any score", async () => {
  const problem = misleading();
  const abort = new AbortController();
  const score = (choice: readonly number[]) => {
    abort.abort(new Error("stopped by hand"));
    return problem.score(choice);
  };
  await assert.rejects(
    searchCoefficients({ ...problem, ...SEARCH, score, signal: abort.signal }),
    /stopped by hand/,
  );
  const never = () => Promise.reject(new Error("was scored"));
  const found = await searchCoefficients({ ...problem, ...SEARCH, limit: 1, score: never });
  assert.ok(!found.feasible && Math.abs(found.leastCost - 96 * 0.75 ** 7) < 1e-9);
});

test("front: holds exactly the points that no other beats, and the choices from it are the best", () => {
  const random = createRandom(5);
  const points = Array.from({ length: 200 }, () => ({
    cost: random.integer(40),
    drop: random.integer(40),
  }));
  const front = paretoFront(points);
  const beats = (a: (typeof points)[0], b: (typeof points)[0]) =>
    a.cost <= b.cost && a.drop <= b.drop && (a.cost < b.cost || a.drop < b.drop);
  for (const point of front) assert.ok(!points.some((other) => beats(other, point)));
  for (const point of points) {
    const covered = front.some(
      (f) => beats(f, point) || (f.cost === point.cost && f.drop === point.drop),
    );
    assert.ok(covered);
  }
  for (const limit of [0, 3, 17, 40]) {
    const cheap = points.filter(({ cost }) => cost <= limit).map(({ drop }) => drop);
    const good = points.filter(({ drop }) => drop <= limit).map(({ cost }) => cost);
    const byCost = chooseFromFront(front, { maxCost: limit });
    const byDrop = chooseFromFront(front, { maxDrop: limit });
    assert.equal(byCost?.drop, cheap.length > 0 ? Math.min(...cheap) : undefined);
    assert.equal(byDrop?.cost, good.length > 0 ? Math.min(...good) : undefined);
  }
});
