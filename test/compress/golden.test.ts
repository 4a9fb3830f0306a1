import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { factorHessian } from "../../agent/compress/damping.ts";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { quadraticLoss, refit } from "../../agent/compress/refit.ts";
import { sparseGpt } from "../../agent/compress/sparsegpt.ts";
import { closeTo, hessian, slowLoss, zerosIn } from "./layer.helpers.ts";

const PATH = join(import.meta.dirname, "../../../shared/golden/obs-family.json");
const ABSENT = "the golden values are not beside this checkout (../shared/golden)";

/** One case of what the authors' released code computed (float32). */
interface GoldenCase {
  readonly kind: string;
  readonly params: Readonly<Record<string, string>>;
  readonly rows: number;
  readonly cols: number;
  readonly samples: number;
  readonly W: number[];
  readonly X: number[];
  readonly pruned: number[];
  readonly loss?: number;
}

function goldenCases(): GoldenCase[] {
  if (!existsSync(PATH)) return [];
  const { cases } = JSON.parse(readFileSync(PATH, "utf8")) as { cases: GoldenCase[] };
  return cases.filter((golden) => golden.kind.startsWith("sparsegpt"));
}

/**
 * The released code counts the whole batch as one sample (H = 2·Σ x·xᵀ), and gives dead inputs a
 * diagonal of 1 that counts in the mean: both are undone here by an equivalent damping.
 */
async function prepare(golden: GoldenCase) {
  const { rows, cols, samples } = golden;
  const W = Float64Array.from(golden.W);
  const H = hessian(Float64Array.from(golden.X), cols).map((value) => value * samples);
  const diagonal = Array.from({ length: cols }, (_, j) => H[j * (cols + 1)]!);
  const live = diagonal.filter((value) => value > 0);
  const sum = live.reduce((a, b) => a + b, 0);
  const theirMean = (sum + cols - live.length) / cols;
  const damping = (Number(golden.params["relativeDamping"]) * theirMean) / (sum / live.length);
  const factored = await factorHessian(H, cols, damping);
  assert.equal(factored.damping, damping, "no damping had to be added");
  return { W, H, rows, cols, factored, blockSize: Number(golden.params["blockSize"]) };
}

/** "score ≤ sorted[k]" prunes k + 1 weights of every block: ask for one more. */
function patternOf(golden: GoldenCase, blockSize: number, extra: number): Pattern {
  const { params, rows } = golden;
  if (params["zeros"] !== undefined) {
    return { kind: "n:m", n: Number(params["zeros"]), m: Number(params["group"]) };
  }
  const count = rows * blockSize;
  const zeros = Math.floor(Number(params["sparsity"]) * count) + extra;
  return { kind: "unstructured", sparsity: zeros / count };
}

test("golden values: the SparseGPT cases are there", { skip: !existsSync(PATH) && ABSENT }, () => {
  assert.equal(goldenCases().length, 7);
});

for (const [index, golden] of goldenCases().entries()) {
  const name = `golden ${index} (${golden.kind}, ${JSON.stringify(golden.params)})`;

  test(`${name}: gives the authors' weights and loss`, async () => {
    const { W, H, factored, rows, cols, blockSize } = await prepare(golden);
    const { U, dead } = factored;
    const weights = W.slice();
    const pattern = patternOf(golden, blockSize, 1);
    const result = await sparseGpt({ weights, rows, cols, U, dead, pattern, blockSize });
    const largest = Math.max(...golden.W.map(Math.abs));
    for (const [i, expected] of golden.pruned.entries()) {
      assert.ok(Math.abs(weights[i]! - expected) < 1e-3 * largest, `weight ${i}`);
      assert.equal(weights[i] === 0, expected === 0, `zero ${i}`);
    }
    if (golden.loss !== undefined) assert.ok(closeTo(result.loss, golden.loss, 1e-4));
    assert.ok(closeTo(slowLoss(weights, W, factored.damped), result.loss, 1e-9));
    assert.ok(slowLoss(weights, W, H) <= result.loss, "damping only adds");
  });

  test(`${name}: is beaten by least squares on the same mask`, async () => {
    const { W, factored, rows, cols } = await prepare(golden);
    const weights = Float64Array.from(golden.pruned);
    const kept = Uint8Array.from(golden.pruned, (w) => (w === 0 ? 0 : 1));
    const theirs = await quadraticLoss(weights, W, rows, factored.damped);
    const ours = await refit({ target: W, weights, kept, rows, cols, H: factored.damped });
    assert.ok(ours.loss < theirs, `${ours.loss} against ${theirs}`);
    assert.equal(zerosIn(weights), zerosIn(golden.pruned));
  });

  test(`${name}: the count is exact without the extra weight`, async () => {
    const { W, factored, rows, cols, blockSize } = await prepare(golden);
    const pattern = patternOf(golden, blockSize, 0);
    const { U, dead } = factored;
    await sparseGpt({ weights: W, rows, cols, U, dead, pattern, blockSize });
    const share = pattern.kind === "n:m" ? pattern.n / pattern.m : pattern.sparsity;
    assert.equal(zerosIn(W), Math.round(share * rows * cols));
  });
}
