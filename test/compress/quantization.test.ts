import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import {
  ActivationHistogram,
  activationRanges,
  gateRange,
} from "../../agent/compress/activation-range.ts";
import { factorHessian } from "../../agent/compress/damping.ts";
import { columnRanges, equalizationFactors, rowRanges } from "../../agent/compress/equalization.ts";
import { gptq } from "../../agent/compress/gptq.ts";
import { quantizeLayer } from "../../agent/compress/quantize-layer.ts";
import { fitQuantizer } from "../../agent/compress/quantizer.ts";
import { createRandom } from "../../agent/math/random.ts";
import { gramOf, hessian, randomLayer } from "./layer.helpers.ts";

const PATH = join(import.meta.dirname, "../../../shared/golden/obs-family.json");
const ABSENT = "the golden values are not beside this checkout (../shared/golden)";

interface GoldenGptq {
  readonly kind: string;
  readonly params: { readonly bits: number; readonly symmetric: boolean; readonly order: string };
  readonly rows: number;
  readonly cols: number;
  readonly samples: number;
  readonly W: number[];
  readonly X: number[];
  readonly quantized: number[];
  readonly scale: number[];
}

function goldenCases(): GoldenGptq[] {
  if (!existsSync(PATH)) return [];
  const { cases } = JSON.parse(readFileSync(PATH, "utf8")) as { cases: GoldenGptq[] };
  return cases.filter(({ kind }) => kind === "gptq");
}

/** ½·tr(δHδᵀ) by three loops. */
function quadratic(after: ArrayLike<number>, before: ArrayLike<number>, H: Float64Array): number {
  const cols = Math.sqrt(H.length);
  let sum = 0;
  for (let row = 0; row < before.length; row += cols) {
    for (let i = 0; i < cols; i++) {
      for (let j = 0; j < cols; j++) {
        const [a, b] = [row + i, row + j];
        sum += 0.5 * (after[a]! - before[a]!) * H[i * cols + j]! * (after[b]! - before[b]!);
      }
    }
  }
  return sum;
}

test("gptq: the authors' own grids, and never a larger loss than their codes or rounding", {
  skip: existsSync(PATH) ? false : ABSENT,
}, async () => {
  const cases = goldenCases();
  assert.equal(cases.length, 4);
  for (const golden of cases) {
    const { rows, cols, samples, params } = golden;
    const W = Float64Array.from(golden.W);
    // The released code counts the whole batch as one sample: H = 2·Σ x·xᵀ.
    const H = hessian(Float64Array.from(golden.X), cols).map((value) => value * samples);
    const factored = await factorHessian(H, cols, 0.01);
    const grid = { smallestRange: 1, narrow: false, ...params };
    const quantizer = fitQuantizer(W, rows, cols, grid);
    golden.scale.forEach((scale, r) => {
      assert.ok(Math.abs(scale - quantizer.scale[r]!) < 1e-5 * scale, `scale of row ${r}`);
    });
    const result = await gptq({
      weights: W,
      rows,
      cols,
      hessian: factored,
      quantizer,
      activationOrder: params.order !== "natural",
    });
    const theirs = quadratic(golden.quantized, W, factored.damped);
    assert.ok(Math.abs(result.loss - quadratic(result.weights, W, factored.damped)) < 1e-9);
    assert.ok(result.loss <= theirs * (1 + 1e-6), `${result.loss} against their ${theirs}`);
    assert.ok(result.loss <= result.roundingLoss);
  }
});

test("quantize layer: zeros stay zero, codes say what the weights are, better than rounding", async () => {
  const { W, X, rows, cols } = randomLayer(12, 24, 400, 3);
  const weights = Float32Array.from(W, (w, i) => (i % 3 === 0 ? 0 : w));
  const quantized = await quantizeLayer({
    weights,
    rows,
    cols,
    gram: gramOf(X, cols),
    quantizer: { bits: 4 },
  });
  for (const [i, w] of quantized.weights.entries()) {
    const r = Math.floor(i / cols);
    const value = quantized.scale[r]! * (quantized.codes[i]! - quantized.zero[r]!);
    assert.ok(Math.abs(w - value) < 1e-6 * Math.max(1, Math.abs(value)));
    if (weights[i] === 0) assert.equal(quantized.codes[i], quantized.zero[r]);
  }
  assert.ok(quantized.loss < quantized.roundingLoss);
  assert.ok(quantized.relativeLoss > 0 && quantized.relativeLoss < 0.05);
});

test("activation ranges: constant, huge and one-sided tensors give finite grids", () => {
  for (const values of [[0, 0, 0], [7, 7], [-3e18, 1e18, 5], [1e-30], [0, 1, 2, 6]]) {
    for (const type of ["u8", "s8"] as const) {
      const histogram = new ActivationHistogram();
      histogram.add(Float32Array.from(values));
      for (const { scale, zeroPoint, error } of activationRanges(histogram, type)) {
        assert.ok(scale > 0 && Number.isFinite(scale), `${values}: scale ${scale}`);
        assert.ok(Number.isInteger(zeroPoint) && Math.abs(zeroPoint) <= 255);
        assert.ok(Number.isFinite(error));
      }
    }
  }
  assert.throws(() => new ActivationHistogram().add(Float32Array.of(Number.NaN)), /finite/);
});

test("activation ranges: with outliers the least squares beat the whole range", () => {
  const random = createRandom(4);
  const histogram = new ActivationHistogram();
  const values = Float32Array.from({ length: 20_000 }, (_, i) =>
    i % 5000 === 0 ? 40 : random.normal(),
  );
  histogram.add(values);
  const [best] = activationRanges(histogram, "u8");
  const whole = activationRanges(histogram, "u8").find(({ method }) => method === "min-max");
  assert.ok(best!.error <= whole!.error);
});

test("activation ranges: one that begins where a gate closes holds all above, at fine steps", () => {
  const random = createRandom(5);
  const histogram = new ActivationHistogram();
  histogram.add(Float32Array.from({ length: 20_000 }, () => 4 * random.normal() - 3));
  const { scale, zeroPoint } = gateRange(histogram, 3);
  assert.ok(Math.abs(scale * zeroPoint - 3) < 1e-5);
  assert.ok(scale * (255 - zeroPoint) > 0.7 * histogram.max);
  const { scale: whole } = activationRanges(histogram, "u8").find((r) => r.method === "min-max")!;
  assert.ok(scale < 0.75 * whole);
  const below = new ActivationHistogram();
  below.add(Float32Array.of(-9, -5));
  assert.deepEqual(gateRange(below, 3), { scale: Math.fround(3 / 254), zeroPoint: 254 });
  assert.throws(() => gateRange(histogram, 0), RangeError);
});

test("equalization: producer and consumer end with equal ranges and the same product", () => {
  const { W: produced } = randomLayer(6, 5, 10, 1);
  const { W: consumed } = randomLayer(4, 6, 10, 2);
  const factors = equalizationFactors(rowRanges(produced, 6, 5), columnRanges(consumed, 4, 6));
  const first = produced.map((w, i) => w / factors[Math.floor(i / 5)]!);
  const second = consumed.map((w, i) => w * factors[i % 6]!);
  const ratios = rowRanges(first, 6, 5).map((range, c) => range / columnRanges(second, 4, 6)[c]!);
  for (const ratio of ratios) assert.ok(Math.abs(ratio / ratios[0]! - 1) < 1e-9);
  for (let r = 0; r < 4; r++) {
    for (let j = 0; j < 5; j++) {
      const at = (A: Float64Array, B: Float64Array) =>
        [0, 1, 2, 3, 4, 5].reduce((sum, c) => sum + A[r * 6 + c]! * B[c * 5 + j]!, 0);
      assert.ok(Math.abs(at(consumed, produced) - at(second, first)) < 1e-9);
    }
  }
});
