import assert from "node:assert/strict";
import { test } from "node:test";
import { factorHessian } from "../../agent/compress/damping.ts";
import { maskOfTraces, traceRemovals } from "../../agent/compress/exact-obs.ts";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { pruneLayer } from "../../agent/compress/prune-layer.ts";
import { refit } from "../../agent/compress/refit.ts";
import { sparseGpt } from "../../agent/compress/sparsegpt.ts";
import { createRandom } from "../../agent/math/random.ts";
import { cheapest, fix, inverseOf, removalCost, slowRow } from "./exact.helpers.ts";
import {
  closeTo,
  gramOf,
  hessian,
  type RandomLayer,
  randomLayer,
  slowLoss,
  zerosIn,
} from "./layer.helpers.ts";

async function tracesOf({ W, H, rows, cols }: RandomLayer, damping = 0.01) {
  const factored = await factorHessian(H, cols, damping);
  const traces = await traceRemovals({ weights: W, rows, cols, hessian: factored });
  return { factored, ...traces };
}

/** Least squares on a mask, all the way. */
async function fitted({ W, rows, cols }: RandomLayer, kept: Uint8Array, H: Float64Array) {
  const weights = W.map((w, i) => (kept[i] === 1 ? w : 0));
  const problem = { target: W, weights, kept, rows, cols, H };
  await refit({ ...problem, tolerance: 1e-10, maxIterations: 1000 });
  return { weights, loss: slowLoss(weights, W, H) };
}

/** The sum of each row's first losses, as many as it has zeros. */
function tracedLoss(losses: Float64Array, kept: Uint8Array, cols: number): number {
  let sum = 0;
  for (let at = 0; at < kept.length; at += cols) {
    const zeros = zerosIn(kept.subarray(at, at + cols));
    for (let step = 0; step < zeros; step++) sum += losses[at + step]!;
  }
  return sum;
}

for (const seed of [1, 2, 3, 4]) {
  test(`exact traces: each step is the surgeon's, one weight at a time (seed ${seed})`, async () => {
    const random = createRandom(seed);
    const layer = randomLayer(1 + random.integer(5), 2 + random.integer(30), 60, 40 + seed);
    const { W, cols } = layer;
    const { factored, order, losses } = await tracesOf(layer);
    const inverse = inverseOf(factored.damped);
    for (let at = 0; at < W.length; at += cols) {
      const row = slowRow(W.subarray(at, at + cols), inverse);
      for (let step = at; step < at + cols; step++) {
        const p = cheapest(row, (j) => removalCost(row, j))!;
        assert.equal(order[step], p, `step ${step - at}`);
        fix(row, p, 0);
        assert.ok(closeTo(losses[step]!, row.losses.at(-1)!, 1e-8));
      }
    }
  });

  test(`exact traces: losses sum to the true increase at every level (seed ${seed})`, async () => {
    const layer = randomLayer(6, 18, 70, 50 + seed);
    const { factored, order, losses } = await tracesOf(layer);
    for (const zeros of [0, 1, 37, 54, 80, 107, 108]) {
      const kept = maskOfTraces({ order, losses }, 6, 18, zeros);
      assert.equal(zerosIn(kept), zeros);
      const { weights, loss } = await fitted(layer, kept, factored.damped);
      assert.ok(closeTo(loss, tracedLoss(losses, kept, 18), 1e-8) || loss < 1e-12);
      assert.ok(weights.every((w, i) => kept[i] === 1 || w === 0));
    }
  });

  test(`exact traces: lose far less than FastOBC, refitted or not (seed ${seed})`, async () => {
    const layer = randomLayer(16, 32, 120, 60 + seed);
    const { factored, order, losses } = await tracesOf(layer);
    const { U, damped } = factored;
    for (const sparsity of [0.3, 0.5, 0.7]) {
      const pattern: Pattern = { kind: "unstructured", sparsity };
      const { kept, loss } = await sparseGpt({ ...layer, weights: layer.W.slice(), U, pattern });
      const mask = maskOfTraces({ order, losses }, 16, 32, zerosIn(kept));
      const exact = (await fitted(layer, mask, damped)).loss;
      assert.ok(exact < 0.8 * loss, `${exact} against ${loss}`);
      const refitted = (await fitted(layer, kept, damped)).loss;
      assert.ok(exact < 0.95 * refitted, `${exact} against ${refitted} refitted`);
    }
  });
}

test("exact traces: where a removal only pays with the next one, they are weighed together", () => {
  // Two rows: the first gives one weight for 5 and then two for nothing.
  const order = Int32Array.of(2, 0, 1, 1, 0, 2);
  const losses = Float64Array.of(5, 0, 0, 2, 3, 4);
  assert.deepEqual([...maskOfTraces({ order, losses }, 2, 3, 3)], [0, 0, 0, 1, 1, 1]);
  assert.deepEqual([...maskOfTraces({ order, losses }, 2, 3, 4)], [0, 0, 0, 1, 0, 1]);
  assert.throws(() => maskOfTraces({ order, losses }, 2, 2, 1), /order: expected/);
});

test("exact traces: dead inputs go first, at no cost", async () => {
  const layer = randomLayer(3, 12, 40, 9);
  const X = layer.X.map((x, i) => (i % 12 === 0 || i % 12 === 7 ? 0 : x));
  const { order, losses } = await tracesOf({ ...layer, X, H: hessian(X, 12) });
  for (let at = 0; at < 36; at += 12) {
    assert.deepEqual(new Set(order.subarray(at, at + 2)), new Set([0, 7]));
    assert.deepEqual([...losses.subarray(at, at + 2)], [0, 0]);
    assert.ok(losses.subarray(at + 2, at + 12).every((loss) => loss > 0));
  }
});

test("exact traces: awkward statistics give finite losses that still add up", async () => {
  const { X } = randomLayer(3, 12, 40, 9);
  const cases: Record<string, Float64Array> = {
    "one sample": X.subarray(0, 12),
    "fewer samples than columns": X.subarray(0, 60),
    "repeated inputs": X.map((_, i) => X[i - (i % 2)]!),
    "constant inputs": X.map((x, i) => (i % 12 === 5 ? 7 : x)),
    "huge activations": X.map((x, i) => (i % 12 === 4 ? 1e12 * x : x)),
    "tiny activations": X.map((x) => 1e-20 * x),
    "nothing at all": new Float64Array(480),
  };
  for (const [name, inputs] of Object.entries(cases)) {
    for (const damping of [0, 0.01]) {
      const layer = { ...randomLayer(3, 12, 40, 9), X: inputs, H: hessian(inputs, 12) };
      const { factored, order, losses } = await tracesOf(layer, damping);
      assert.ok(
        losses.every((loss) => loss >= 0 && Number.isFinite(loss)),
        name,
      );
      for (let at = 0; at < 36; at += 12) {
        assert.equal(new Set(order.subarray(at, at + 12)).size, 12, name);
      }
      const all = slowLoss(new Float64Array(36), layer.W, factored.damped);
      const sum = losses.reduce((a, b) => a + b, 0);
      assert.ok(closeTo(sum, all, 1e-5) || all === 0, `${name}, ${damping}: ${sum}, not ${all}`);
    }
  }
});

test("exact traces: stop at an aborted signal, refuse what does not fit", async () => {
  const { W, H } = randomLayer(3, 12, 40, 9);
  const factored = await factorHessian(H, 12, 0.01);
  const problem = { weights: W, rows: 3, cols: 12, hessian: factored };
  const signal = AbortSignal.abort(new Error("stop"));
  await assert.rejects(traceRemovals({ ...problem, signal }), /stop/);
  await assert.rejects(traceRemovals({ ...problem, rows: 4 }), /weights: expected/);
});

test("layer: by default as good as exact traces, better than by ADMM in the mean", async () => {
  let [better, logarithm] = [0, 0];
  for (let seed = 1; seed <= 5; seed++) {
    const { W, X, rows, cols } = randomLayer(24, 20, 150, 70 + seed);
    const gram = gramOf(X, cols);
    for (const sparsity of [0.5, 0.7, 0.9]) {
      const pattern: Pattern = { kind: "unstructured", sparsity };
      const layer = { weights: Float32Array.from(W), rows, cols, gram, pattern };
      const exact = await pruneLayer(layer);
      const admm = await pruneLayer({ ...layer, solver: "admm" });
      assert.equal(zerosIn(exact.weights), zerosIn(admm.weights));
      // Above 70 % both are tried. The refit ends at half a percent, and damping counts in it.
      if (sparsity > 0.7) assert.ok(exact.loss < 1.01 * admm.loss);
      if (exact.loss < admm.loss) better++;
      logarithm += Math.log(exact.loss / admm.loss) / 15;
    }
  }
  assert.ok(better >= 9 && logarithm < -0.01, `better in ${better} of 15, ${logarithm} on average`);
});

test("layer: traces that levels share are made once, and change nothing", async () => {
  const { W, X } = randomLayer(6, 14, 90, 5);
  const layer = { weights: Float32Array.from(W), rows: 6, cols: 14, gram: gramOf(X, 14) };
  const shared = { levels: 3, byGroup: new Map() };
  for (const sparsity of [0.3, 0.5, 0.9]) {
    const pattern: Pattern = { kind: "unstructured", sparsity };
    const together = await pruneLayer({ ...layer, pattern, shared });
    assert.deepEqual(together, await pruneLayer({ ...layer, pattern }));
    assert.equal(shared.byGroup.size, 1);
  }
});
