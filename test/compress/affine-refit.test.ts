import assert from "node:assert/strict";
import { test } from "node:test";
import { affineBias, affineRefit, aimOf } from "../../agent/compress/affine-refit.ts";
import { createRandom } from "../../agent/math/random.ts";

const SAMPLES = 200;
const ROWS = 4;
const COLS = 9;
const KEPT = 6;

/** Inputs x, other inputs x′ that say much but not all of them, and weights of a dense layer. */
function twoNetworks(seed: number) {
  const random = createRandom(seed);
  const X = new Float64Array(SAMPLES * COLS).map(() => random.normal() + 0.5);
  const mix = new Float64Array(COLS * KEPT).map(() => random.normal());
  const own = new Float64Array(SAMPLES * KEPT);
  for (let s = 0; s < SAMPLES; s++) {
    for (let k = 0; k < KEPT; k++) {
      own[s * KEPT + k] = 0.3 * random.normal() - 1;
      for (let j = 0; j < COLS; j++) own[s * KEPT + k]! += X[s * COLS + j]! * mix[j * KEPT + k]!;
    }
  }
  const W = new Float64Array(ROWS * COLS).map(() => random.normal());
  const start = new Float64Array(ROWS * KEPT).map(() => random.normal());
  return { X, own, W, start };
}

/** 2/n·Σ a·bᵀ. */
function moments(A: Float64Array, a: number, B: Float64Array, b: number): Float64Array {
  const out = new Float64Array(a * b);
  for (let s = 0; s < SAMPLES; s++) {
    for (let i = 0; i < out.length; i++) {
      out[i]! += (2 / SAMPLES) * A[s * a + Math.floor(i / b)]! * B[s * b + (i % b)]!;
    }
  }
  return out;
}

function meanOf(A: Float64Array, width: number): Float64Array {
  const mean = new Float64Array(width);
  for (let i = 0; i < A.length; i++) mean[i % width]! += A[i]! / SAMPLES;
  return mean;
}

function less(A: Float64Array, mean: Float64Array): Float64Array {
  return A.map((value, i) => value - mean[i % mean.length]!);
}

/** Mean ‖V·x′ + v − W·x‖², sample by sample. */
function errorOf(
  { X, own, W }: ReturnType<typeof twoNetworks>,
  V: Float64Array,
  v: Float64Array,
): number {
  let sum = 0;
  for (let s = 0; s < SAMPLES; s++) {
    for (let r = 0; r < ROWS; r++) {
      let difference = v[r]!;
      for (let k = 0; k < KEPT; k++) difference += V[r * KEPT + k]! * own[s * KEPT + k]!;
      for (let j = 0; j < COLS; j++) difference -= W[r * COLS + j]! * X[s * COLS + j]!;
      sum += difference ** 2 / SAMPLES;
    }
  }
  return sum;
}

/** The fit with means taken off. */
async function centeredFit(data: ReturnType<typeof twoNetworks>, damping: number) {
  const { X, own, W, start } = data;
  const [x, ownMean] = [meanOf(X, COLS), meanOf(own, KEPT)];
  const [Xc, ownC] = [less(X, x), less(own, ownMean)];
  const fit = await affineRefit({
    aim: await aimOf(W, ROWS, moments(Xc, COLS, ownC, KEPT)),
    start,
    rows: ROWS,
    cols: KEPT,
    gram: moments(ownC, KEPT, ownC, KEPT),
    damping,
  });
  const aimMean = new Float64Array(ROWS).map((_, r) =>
    x.reduce((sum, m, j) => sum + W[r * COLS + j]! * m, 0),
  );
  return {
    ...fit,
    bias: affineBias(aimMean, fit.weights, ownMean),
    H: moments(Xc, COLS, Xc, COLS),
  };
}

test("affine refit: no weight or bias can be moved without making the error larger", async () => {
  const data = twoNetworks(1);
  const { weights, bias } = await centeredFit(data, 0);
  const best = errorOf(data, weights, bias);
  for (const step of [1e-3, -1e-3]) {
    for (let i = 0; i < weights.length; i++) {
      const moved = weights.slice();
      moved[i]! += step;
      assert.ok(errorOf(data, moved, bias) > best, `weight ${i}`);
    }
    for (let r = 0; r < ROWS; r++) {
      const moved = bias.slice();
      moved[r]! += step;
      assert.ok(errorOf(data, weights, moved) > best, `bias ${r}`);
    }
  }
});

test("affine refit: says how much of the aim is reached", async () => {
  const data = twoNetworks(2);
  for (const damping of [0, 0.1, 1]) {
    const { weights, bias, explained, H } = await centeredFit(data, damping);
    let energy = 0;
    for (let r = 0; r < ROWS; r++) {
      for (let i = 0; i < H.length; i++) {
        const pair = data.W[r * COLS + Math.floor(i / COLS)]! * data.W[r * COLS + (i % COLS)]!;
        energy += 0.5 * pair * H[i]!;
      }
    }
    const error = errorOf(data, weights, bias);
    assert.ok(Math.abs(energy - explained - error) < 1e-9 * energy, `damping ${damping}`);
  }
});

test("affine refit: damping pulls toward the start, and a start that is right stays", async () => {
  const data = twoNetworks(3);
  const far = await centeredFit(data, 10);
  const near = await centeredFit(data, 0.01);
  const distance = (weights: Float64Array) =>
    Math.hypot(...weights.map((w, i) => w - data.start[i]!));
  assert.ok(distance(far.weights) < 0.5 * distance(near.weights));
  const { own } = data;
  const gram = moments(own, KEPT, own, KEPT);
  const same = await affineRefit({
    aim: await aimOf(data.start, ROWS, gram),
    start: data.start,
    rows: ROWS,
    cols: KEPT,
    gram,
    damping: 0.01,
  });
  for (let i = 0; i < data.start.length; i++) {
    assert.ok(Math.abs(same.weights[i]! - data.start[i]!) < 1e-12);
  }
});

test("affine refit: inputs that never change keep their weights; no inputs at all give numbers", async () => {
  const data = twoNetworks(4);
  for (const columns of [[2], [0, 1, 2, 3, 4, 5]]) {
    const own = data.own.map((value, i) => (columns.includes(i % KEPT) ? 0 : value));
    const fit = await affineRefit({
      aim: await aimOf(data.W, ROWS, moments(data.X, COLS, own, KEPT)),
      start: data.start,
      rows: ROWS,
      cols: KEPT,
      gram: moments(own, KEPT, own, KEPT),
      damping: 0.01,
    });
    for (let r = 0; r < ROWS; r++) {
      for (const k of columns) {
        assert.equal(fit.weights[r * KEPT + k], data.start[r * KEPT + k]);
      }
    }
    assert.ok(fit.weights.every(Number.isFinite) && Number.isFinite(fit.explained));
  }
});

test("affine refit: fewer samples than inputs give numbers and say the damping", async () => {
  const random = createRandom(5);
  const x = new Float64Array(KEPT).map(() => random.normal());
  const gram = new Float64Array(KEPT * KEPT).map(
    (_, i) => 2 * x[Math.floor(i / KEPT)]! * x[i % KEPT]!,
  );
  const start = new Float64Array(ROWS * KEPT);
  const aim = new Float64Array(ROWS * KEPT).map((_, i) => x[i % KEPT]!);
  const problem = { aim, start, rows: ROWS, cols: KEPT, gram };
  const fit = await affineRefit({ ...problem, damping: 0 });
  assert.ok(fit.damping > 0 && fit.weights.every(Number.isFinite));
  assert.equal((await affineRefit({ ...problem, damping: 0.01 })).damping, 0.01);
});
