import assert from "node:assert/strict";
import { test } from "node:test";
import { minimize } from "../../agent/math/lbfgs.ts";
import { createRandom } from "../../agent/math/random.ts";

function rosenbrock(x: Float64Array, gradient: Float64Array): number {
  gradient.fill(0);
  let value = 0;
  for (let i = 0; i + 1 < x.length; i++) {
    const a = x[i + 1]! - x[i]! ** 2;
    const b = 1 - x[i]!;
    value += 100 * a * a + b * b;
    gradient[i]! += -400 * a * x[i]! - 2 * b;
    gradient[i + 1]! += 200 * a;
  }
  return value;
}

test("L-BFGS: finds the valley floor of Rosenbrock's function", async () => {
  const end = await minimize(rosenbrock, Float64Array.of(-1.2, 1, -1.2, 1), { tolerance: 1e-10 });
  assert.equal(end.converged, true);
  for (const x of end.x) assert.ok(Math.abs(x - 1) < 1e-6);
});

test("L-BFGS: solves an ill-conditioned quadratic, also asynchronously", async () => {
  const random = createRandom(2);
  const curvature = Float64Array.from({ length: 30 }, (_, i) => 10 ** (i / 10));
  const goal = curvature.map(() => random.normal());
  const objective = async (x: Float64Array, gradient: Float64Array) => {
    await Promise.resolve();
    for (let i = 0; i < x.length; i++) gradient[i] = curvature[i]! * (x[i]! - goal[i]!);
    return x.reduce((sum, xi, i) => sum + 0.5 * curvature[i]! * (xi - goal[i]!) ** 2, 0);
  };
  const start = new Float64Array(30);
  const end = await minimize(objective, start, { tolerance: 1e-9, maxIterations: 500 });
  assert.ok(end.converged);
  assert.deepEqual(start, new Float64Array(30), "the start is not changed");
  for (const [i, x] of end.x.entries()) assert.ok(Math.abs(x - goal[i]!) < 1e-5);
});

test("L-BFGS: stops at the limit, never above where it began", async () => {
  const start = Float64Array.of(-1.2, 1);
  const first = rosenbrock(start, new Float64Array(2));
  let before = first;
  for (const maxIterations of [0, 1, 2, 5, 10]) {
    const end = await minimize(rosenbrock, start, { maxIterations });
    assert.ok(end.value <= before);
    assert.equal(end.converged, false);
    before = end.value;
  }
});

test("L-BFGS: ends without a step where the gradient is wrong or the value not finite", async () => {
  const uphill = await minimize((x, g) => {
    g[0] = -1;
    return x[0]!;
  }, Float64Array.of(0));
  assert.deepEqual([uphill.converged, uphill.value], [false, 0]);
  const nowhere = await minimize((_, g) => {
    g[0] = 1;
    return Number.NaN;
  }, Float64Array.of(0));
  assert.equal(nowhere.converged, false);
});

test("L-BFGS: an aborted signal ends it with the signal's reason", async () => {
  const signal = AbortSignal.abort(new Error("told to stop"));
  await assert.rejects(minimize(rosenbrock, Float64Array.of(3, 3), { signal }), /told to stop/);
});
