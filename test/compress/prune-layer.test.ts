import assert from "node:assert/strict";
import { test } from "node:test";
import { magnitudeMask, wandaMask } from "../../agent/compress/baselines.ts";
import { factorHessian } from "../../agent/compress/damping.ts";
import { biasCorrection, centeredHessian, type LayerGram } from "../../agent/compress/hessian.ts";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { type PruneLayerOptions, pruneLayer } from "../../agent/compress/prune-layer.ts";
import { refit } from "../../agent/compress/refit.ts";
import { retarget } from "../../agent/compress/retarget.ts";
import { createRandom } from "../../agent/math/random.ts";
import {
  closeTo,
  gramOf,
  type RandomLayer,
  randomLayer,
  slowLoss,
  slowOutputError,
  zerosIn,
} from "./layer.helpers.ts";

const HALF: Pattern = { kind: "unstructured", sparsity: 0.5 };

function options(layer: RandomLayer): PruneLayerOptions {
  const { W, X, rows, cols } = layer;
  return { weights: Float32Array.from(W), rows, cols, gram: gramOf(X, cols), pattern: HALF };
}

for (const seed of [1, 2, 3]) {
  test(`layer: the reported loss is the error of its outputs (seed ${seed})`, async () => {
    const layer = randomLayer(5, 24, 80, seed);
    const bias = new Float32Array(5).fill(2);
    const dense = { weights: layer.W, bias };
    for (const centered of [true, false]) {
      const pruned = await pruneLayer({ ...options(layer), bias, centered });
      const error = slowOutputError(layer.X, 24, pruned, dense);
      assert.ok(closeTo(pruned.loss, error, 1e-4), `${pruned.loss} against ${error}`);
      assert.equal(zerosIn(pruned.weights), 60);
      assert.equal(pruned.density, 0.5);
      assert.equal(pruned.dampingUsed, 0.01);
      const shifted = pruned.bias.some((b) => b !== 2);
      assert.equal(shifted, centered);
    }
    assert.deepEqual(bias, new Float32Array(5).fill(2), "the given bias is not changed");
  });

  test(`layer: the bias taking part is never worse on the same mask (seed ${seed})`, async () => {
    const { W, X, H, rows, cols } = randomLayer(5, 24, 80, 10 + seed);
    const dense = { weights: W, bias: new Float64Array(rows) };
    const { mean } = gramOf(X, cols);
    const kept = magnitudeMask(W, rows, cols, HALF);
    const fitted = async (quadratic: Float64Array) => {
      const weights = W.map((w, i) => w * kept[i]!);
      const problem = { target: W, weights, kept, rows, cols, H: quadratic };
      await refit({ ...problem, tolerance: 1e-9, maxIterations: 500 });
      return weights;
    };
    const plain = await fitted(H);
    const affine = await fitted(centeredHessian(H, mean));
    const error = (weights: Float64Array, bias: Float64Array) =>
      slowOutputError(X, cols, { weights, bias }, dense);
    const withoutBias = error(plain, dense.bias);
    const biasAfterwards = error(plain, biasCorrection(W, plain, mean));
    const together = error(affine, biasCorrection(W, affine, mean));
    assert.ok(biasAfterwards < withoutBias && together < biasAfterwards);
  });

  test(`layer: least squares on the mask is never worse (seed ${seed})`, async () => {
    const layer = randomLayer(5, 24, 80, 20 + seed);
    const solved = await pruneLayer({ ...options(layer), damping: 1e-6, refit: false });
    const same = { ...options(layer), damping: 1e-6 };
    const fitted = await pruneLayer({ ...same, solver: "sparsegpt" });
    assert.deepEqual(fitted.kept, solved.kept);
    assert.ok(fitted.loss <= solved.loss);
    const best = await pruneLayer(same);
    assert.ok(best.loss <= fitted.loss * (1 + 1e-6), "ADMM's mask is taken where it is better");
    assert.equal(best.density, fitted.density);
  });
}

test("layer: too large for traces, with many samples or few, it comes close to least squares", async () => {
  for (const samples of [400, 60]) {
    const { W, X, rows, cols } = randomLayer(200, 128, samples, 30);
    const gram = gramOf(X, cols);
    const layer = { weights: Float32Array.from(W), rows, cols, gram, pattern: HALF };
    const pruned = await pruneLayer({ ...layer, centered: false });
    assert.equal(pruned.density, 0.5);
    const { damped, lambda } = await factorHessian(gram.H, cols, 0.01);
    const damping = (weights: ArrayLike<number>) =>
      0.5 * lambda * W.reduce((sum, w, i) => sum + (weights[i]! - w) ** 2, 0);
    const weights = Float64Array.from(pruned.weights);
    const problem = { target: W, weights, kept: pruned.kept, rows, cols, H: damped };
    const before = pruned.loss + damping(pruned.weights);
    const { loss } = await refit({ ...problem, tolerance: 1e-8, maxIterations: 1000 });
    assert.ok(before <= 1.01 * loss, `${samples} samples: ${before} against ${loss}`);
  }
});

test("layer: zero sparsity changes nothing", async () => {
  const layer = randomLayer(4, 12, 40, 4);
  const bias = new Float32Array(4).fill(0.5);
  const pattern: Pattern = { kind: "unstructured", sparsity: 0 };
  const pruned = await pruneLayer({ ...options(layer), bias, pattern });
  assert.deepEqual(pruned.weights, Float32Array.from(layer.W));
  assert.deepEqual(pruned.bias, bias);
  assert.deepEqual([pruned.loss, pruned.relativeLoss, pruned.density], [0, 0, 1]);
});

test("layer: everything pruned leaves the mean output in the bias", async () => {
  const layer = randomLayer(3, 10, 40, 5);
  const pattern: Pattern = { kind: "unstructured", sparsity: 1 };
  const pruned = await pruneLayer({ ...options(layer), pattern });
  assert.equal(zerosIn(pruned.weights), 30);
  assert.ok(closeTo(pruned.relativeLoss, 1, 1e-9));
  const dense = { weights: layer.W, bias: new Float32Array(3) };
  assert.ok(closeTo(pruned.loss, slowOutputError(layer.X, 10, pruned, dense), 1e-4));
});

test("layer: a grouped one is its groups pruned apart", async () => {
  const parts = [randomLayer(2, 9, 50, 6), randomLayer(2, 9, 50, 7)];
  const grams = parts.map((part) => gramOf(part.X, 9));
  const gram: LayerGram = {
    groups: 2,
    cols: 9,
    count: 50,
    H: Float64Array.from(grams.flatMap((one) => [...one.H])),
    mean: Float64Array.from(grams.flatMap((one) => [...one.mean])),
  };
  const weights = Float32Array.from(parts.flatMap((part) => [...part.W]));
  const whole = await pruneLayer({ weights, rows: 4, cols: 9, gram, pattern: HALF });
  const apart = await Promise.all(parts.map((part) => pruneLayer(options(part))));
  assert.deepEqual(
    [...whole.weights],
    apart.flatMap((one) => [...one.weights]),
  );
  assert.deepEqual(
    [...whole.bias],
    apart.flatMap((one) => [...one.bias]),
  );
  assert.ok(closeTo(whole.loss, apart[0]!.loss + apart[1]!.loss, 1e-12));
});

test("layer: N:M groups of a convolution lie along its input channels", async () => {
  const [channels, area] = [10, 9];
  const layer = randomLayer(4, channels * area, 200, 8);
  const pattern: Pattern = { kind: "n:m", n: 2, m: 4 };
  const pruned = await pruneLayer({ ...options(layer), pattern, kernelArea: area });
  for (let r = 0; r < 4; r++) {
    for (let t = 0; t < area; t++) {
      const tap = Array.from({ length: channels }, (_, c) => {
        return pruned.weights[r * channels * area + c * area + t]!;
      });
      const zeros = [tap.slice(0, 4), tap.slice(4, 8), tap.slice(8)].map(zerosIn);
      assert.deepEqual(zeros, [2, 2, 1]);
    }
  }
  const dense = { weights: layer.W, bias: new Float32Array(4) };
  const error = slowOutputError(layer.X, channels * area, pruned, dense);
  assert.ok(closeTo(pruned.loss, error, 1e-3), "weights and columns were put back in order");
  assert.ok(pruned.kept.every((k, i) => k === 1 || pruned.weights[i] === 0));
});

test("layer: awkward statistics give finite weights and honest damping", async () => {
  const cases: Record<string, Float64Array> = {
    "one sample": randomLayer(3, 12, 1, 9).X,
    "fewer samples than columns": randomLayer(3, 12, 5, 9).X,
    "dead inputs": randomLayer(3, 12, 40, 9).X.map((x, i) => (i % 12 === 0 || i % 12 > 9 ? 0 : x)),
    "constant inputs": randomLayer(3, 12, 40, 9).X.map((x, i) => (i % 12 === 5 ? 7 : x)),
    "huge activations": randomLayer(3, 12, 40, 9).X.map((x, i) => (i % 12 === 4 ? 1e12 * x : x)),
    "no input at all": new Float64Array(12 * 40),
  };
  for (const [name, X] of Object.entries(cases)) {
    for (const centered of [true, false]) {
      for (const damping of [0, 0.01]) {
        const layer = { ...randomLayer(3, 12, 40, 9), X };
        const pruned = await pruneLayer({ ...options(layer), centered, damping });
        for (const values of [pruned.weights, pruned.bias, [pruned.loss, pruned.relativeLoss]]) {
          assert.ok(Array.from(values).every(Number.isFinite), `${name}: finite`);
        }
        assert.equal(zerosIn(pruned.weights), 18, name);
        assert.ok(pruned.dampingUsed >= damping && pruned.dampingUsed <= 0.1, name);
      }
    }
  }
});

test("layer: refuses what does not fit", async () => {
  const base = options(randomLayer(3, 12, 40, 10));
  const gram = { ...base.gram, cols: 6 };
  await assert.rejects(pruneLayer({ ...base, gram }), /gram: expected 1 groups of 12/);
  await assert.rejects(pruneLayer({ ...base, kernelArea: 5 }), /divisor of 12 columns, got 5/);
  await assert.rejects(pruneLayer({ ...base, bias: new Float32Array(2) }), /bias: expected 3/);
  const weights = Float32Array.from(base.weights).fill(Number.NaN, 4, 5);
  await assert.rejects(pruneLayer({ ...base, weights }), /weights\[4\]: expected finite/);
  const signal = AbortSignal.abort(new Error("stop"));
  await assert.rejects(pruneLayer({ ...base, signal }), /stop/);
});

/** Inputs after compression: the dense ones disturbed, 2/n·Σ x·x′ᵀ and the dense means. */
function disturbed(layer: RandomLayer, seed: number) {
  const { X, cols, samples } = layer;
  const random = createRandom(seed);
  const after = X.map((x) => Math.max(0, 0.8 * x + 0.1 + 0.2 * random.normal()));
  const C = new Float64Array(cols * cols);
  for (let s = 0; s < samples; s++) {
    for (let i = 0; i < cols; i++) {
      for (let j = 0; j < cols; j++) {
        C[i * cols + j]! += (2 / samples) * X[s * cols + i]! * after[s * cols + j]!;
      }
    }
  }
  const cross: LayerGram = { ...gramOf(X, cols), H: C };
  return { after, cross };
}

/** Mean over inputs of ‖(V·x′ + b) − W·x‖². */
function targetError(
  layer: RandomLayer,
  after: Float64Array,
  V: { readonly weights: ArrayLike<number>; readonly bias: ArrayLike<number> },
): number {
  const { W, X, rows, cols, samples } = layer;
  let error = 0;
  for (let s = 0; s < samples; s++) {
    for (let r = 0; r < rows; r++) {
      let difference = V.bias[r]!;
      for (let j = 0; j < cols; j++) {
        difference += V.weights[r * cols + j]! * after[s * cols + j]!;
        difference -= W[r * cols + j]! * X[s * cols + j]!;
      }
      error += difference ** 2 / samples;
    }
  }
  return error;
}

test("retarget: unchanged inputs change nothing, changed ones are compensated", async () => {
  const layer = randomLayer(4, 10, 200, 11);
  const { W, H, rows, cols } = layer;
  const same = await factorHessian(H, cols, 0.01);
  const kept = await retarget({ weights: W, rows, cols, cross: H, compressed: same });
  assert.ok(kept.every((w, i) => Math.abs(w - W[i]!) < 1e-10));

  const { after, cross } = disturbed(layer, 12);
  const gram = gramOf(after, cols);
  const compressed = await factorHessian(gram.H, cols, 1e-6);
  const moved = await retarget({ weights: W, rows, cols, cross: cross.H, compressed });
  const bias = new Float64Array(rows);
  const best = targetError(layer, after, { weights: moved, bias });
  assert.ok(best < targetError(layer, after, { weights: W, bias }));
  const random = createRandom(13);
  for (let trial = 0; trial < 5; trial++) {
    const other = moved.map((w) => w + 0.02 * random.normal());
    assert.ok(targetError(layer, after, { weights: other, bias }) > best);
  }
});

test("layer: pruned toward the dense outputs it comes closer to them", async () => {
  const layer = randomLayer(4, 20, 300, 14);
  const { after, cross } = disturbed(layer, 15);
  const base = { ...options(layer), gram: gramOf(after, 20) };
  const toward = await pruneLayer({ ...base, cross });
  const plain = await pruneLayer(base);
  assert.ok(targetError(layer, after, toward) < targetError(layer, after, plain));
  assert.equal(zerosIn(toward.weights), 40);
});

test("baselines: keep the exact count by |w| and by |w|·‖x‖", () => {
  const W = Float64Array.of(3, -1, 2, 0.5, 1, 1, 1, 9);
  assert.deepEqual([...magnitudeMask(W, 2, 4, HALF)], [1, 0, 1, 0, 0, 0, 1, 1]);
  const pairs: Pattern = { kind: "n:m", n: 1, m: 2 };
  assert.deepEqual([...magnitudeMask(W, 2, 4, pairs)], [1, 0, 1, 0, 0, 1, 0, 1]);
  const H = new Float64Array(16);
  for (const [j, power] of [1, 1, 1, 10_000].entries()) H[j * 5] = power;
  assert.deepEqual([...wandaMask(W, 2, 4, H, HALF)], [1, 0, 0, 1, 0, 0, 1, 1]);
  assert.deepEqual([...wandaMask(W, 2, 4, H, pairs)], [1, 0, 0, 1, 0, 1, 0, 1]);
  assert.equal(slowLoss(W, W, H), 0);
});
