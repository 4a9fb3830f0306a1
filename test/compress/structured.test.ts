import assert from "node:assert/strict";
import { test } from "node:test";
import { affineRefit, aimOf } from "../../agent/compress/affine-refit.ts";
import { factorHessian } from "../../agent/compress/damping.ts";
import { centeredHessian } from "../../agent/compress/hessian.ts";
import { eliminateUnits, prepareUnits } from "../../agent/compress/structured.ts";
import { choleskyInverse } from "../../agent/math/cholesky.ts";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";
import { randomLayer } from "./layer.helpers.ts";

/** Units of `size` neighboring columns. */
function unitsOf(cols: number, size: number): number[][] {
  return Array.from({ length: cols / size }, (_, u) =>
    Array.from({ length: size }, (_, i) => u * size + i),
  );
}

/** H + λI as the solvers use it. */
async function dampedOf(H: Float64Array, cols: number, damping: number): Promise<Float64Array> {
  return (await factorHessian(H, cols, damping)).damped;
}

function submatrix(M: Float64Array, cols: number, I: readonly number[], J: readonly number[]) {
  return Float64Array.from(I.flatMap((i) => J.map((j) => M[i * cols + j]!)));
}

/** ½tr((Ŵ−W)H(Ŵ−W)ᵀ) with Ŵ = W·H_:K·(H_KK)⁻¹ on K and zero elsewhere, in plain loops. */
function bestLoss(
  W: Float64Array,
  rows: number,
  cols: number,
  H: Float64Array,
  K: readonly number[],
): { loss: number; weights: Float64Array } {
  const k = K.length;
  const inverse = choleskyInverse(submatrix(H, cols, K, K), k) ?? new Float64Array(0);
  const weights = new Float64Array(rows * cols);
  let loss = 0;
  for (let r = 0; r < rows; r++) {
    const product = K.map((j) => {
      let sum = 0;
      for (let i = 0; i < cols; i++) sum += W[r * cols + i]! * H[i * cols + j]!;
      return sum;
    });
    for (let a = 0; a < k; a++) {
      for (let b = 0; b < k; b++) weights[r * cols + K[a]!]! += product[b]! * inverse[b * k + a]!;
    }
    for (let i = 0; i < cols; i++) {
      for (let j = 0; j < cols; j++) {
        const at = r * cols;
        const di = weights[at + i]! - W[at + i]!;
        loss += 0.5 * di * H[i * cols + j]! * (weights[at + j]! - W[at + j]!);
      }
    }
  }
  return { loss, weights };
}

function energyOf(W: Float64Array, rows: number, cols: number, H: Float64Array): number {
  return bestLoss(W, rows, cols, H, []).loss;
}

for (const [size, pairs] of [
  [1, 1],
  [3, 1],
  [2, 2],
] as const) {
  test(`structured: losses of ${pairs} consumers with units of ${size} are those of the best refit at every level`, async () => {
    const cols = 36;
    const layers = Array.from({ length: pairs }, (_, i) =>
      randomLayer(7 + 5 * i, cols, 150, 11 + i),
    );
    const columns = unitsOf(cols, size);
    const systems = await Promise.all(
      layers.map(({ W, rows, H }) => prepareUnits({ weights: W, rows, cols, H, columns }, 0.01)),
    );
    const { order, losses } = await eliminateUnits(systems);
    assert.deepEqual(
      [...order].sort((a, b) => a - b),
      columns.map((_, u) => u),
    );
    assert.equal(losses[0], 0);
    for (let removed = 0; removed <= columns.length; removed++) {
      const K = order.slice(removed).flatMap((unit) => columns[unit]!);
      let expected = 0;
      for (const { W, rows, H } of layers) {
        const damped = await dampedOf(H, cols, 0.01);
        expected +=
          bestLoss(W, rows, cols, damped, K).loss / energyOf(W, rows, cols, damped) / pairs;
      }
      assert.ok(Math.abs(losses[removed]! - expected) < 1e-9, `${removed}: ${losses[removed]}`);
    }
    assert.ok(Math.abs(losses.at(-1)! - 1) < 1e-9);
  });
}

test("structured: each step removes the unit that a search by brute force removes", async () => {
  const { W, rows, cols, H } = randomLayer(6, 16, 90, 3);
  const damped = await dampedOf(H, cols, 0.01);
  const columns = unitsOf(cols, 2);
  const { order } = await eliminateUnits([
    await prepareUnits({ weights: W, rows, cols, H, columns }, 0.01),
  ]);
  const alive = new Set(columns.keys());
  for (const removed of order) {
    const costs = [...alive].map((unit) => {
      const K = [...alive].filter((u) => u !== unit).flatMap((u) => columns[u]!);
      return { unit, loss: bestLoss(W, rows, cols, damped, K).loss };
    });
    costs.sort((a, b) => a.loss - b.loss);
    assert.equal(removed, costs[0]!.unit);
    alive.delete(removed);
  }
});

test("structured: more columns than are gathered between two updates, by an injected product too", async () => {
  const { W, rows, cols, H } = randomLayer(12, 370, 500, 8);
  const columns = unitsOf(cols, 1);
  const consumer = { weights: W, rows, cols, H, columns };
  const exact = await eliminateUnits([await prepareUnits(consumer, 0.01)]);
  for (const removed of [100, 369]) {
    const K = exact.order.slice(removed);
    const damped = await dampedOf(H, cols, 0.01);
    const expected = bestLoss(W, rows, cols, damped, K).loss / energyOf(W, rows, cols, damped);
    assert.ok(Math.abs(exact.losses[removed]! - expected) < 1e-9 * expected + 1e-12);
  }
  const single = await eliminateUnits([await prepareUnits(consumer, 0.01, referenceGemm)], {
    gemm: referenceGemm,
  });
  for (const removed of [100, 300]) {
    const [a, b] = [single.losses[removed]!, exact.losses[removed]!];
    assert.ok(Math.abs(a - b) < 2e-3 * b, `${removed}: ${a} in single precision, ${b} in double`);
  }
});

test("structured: survivors of the elimination are the closed-form refit", async () => {
  const { W, rows, cols, H } = randomLayer(9, 24, 100, 21);
  const columns = unitsOf(cols, 3);
  const { order } = await eliminateUnits([
    await prepareUnits({ weights: W, rows, cols, H, columns }, 0.01),
  ]);
  const K = order.slice(4).flatMap((unit) => columns[unit]!);
  K.sort((a, b) => a - b);
  const all = Array.from({ length: cols }, (_, j) => j);
  const damped = await dampedOf(H, cols, 0.01);
  const lambda = damped[0]! - H[0]!;
  const gram = submatrix(H, cols, K, K);
  const meanDiagonal = K.reduce((sum, j) => sum + H[j * (cols + 1)]!, 0) / K.length;
  const { weights } = await affineRefit({
    aim: await aimOf(W, rows, submatrix(H, cols, all, K)),
    start: columnsOf(W, rows, cols, K),
    rows,
    cols: K.length,
    gram,
    damping: lambda / meanDiagonal,
  });
  const expected = eliminate(
    W,
    rows,
    cols,
    damped,
    order.slice(0, 4).flatMap((u) => columns[u]!),
  );
  const got = columnsOf(expected, rows, cols, K);
  for (let i = 0; i < got.length; i++) assert.ok(Math.abs(weights[i]! - got[i]!) < 1e-9);
});

function columnsOf(W: Float64Array, rows: number, cols: number, K: readonly number[]) {
  const out = new Float64Array(rows * K.length);
  for (let r = 0; r < rows; r++) {
    for (const [k, j] of K.entries()) out[r * K.length + k] = W[r * cols + j]!;
  }
  return out;
}

/** The textbook update, one column after another: W −= w_p·H⁻¹_p:/H⁻¹_pp and the same for H⁻¹. */
function eliminate(
  W: Float64Array,
  rows: number,
  cols: number,
  H: Float64Array,
  removed: readonly number[],
): Float64Array {
  const out = W.slice();
  const A = choleskyInverse(H, cols)!;
  for (const p of removed) {
    const row = A.slice(p * cols, (p + 1) * cols);
    for (let r = 0; r < rows; r++) {
      const e = out[r * cols + p]! / row[p]!;
      for (let j = 0; j < cols; j++) out[r * cols + j]! -= e * row[j]!;
    }
    for (let i = 0; i < cols; i++) {
      for (let j = 0; j < cols; j++) A[i * cols + j]! -= (row[i]! * row[j]!) / row[p]!;
    }
  }
  return out;
}

test("structured: units of zero weights go first and cost nothing", async () => {
  const { W, rows, cols, H } = randomLayer(8, 20, 100, 5);
  const columns = unitsOf(cols, 2);
  for (const unit of [1, 7]) {
    for (let r = 0; r < rows; r++) for (const j of columns[unit]!) W[r * cols + j] = 0;
  }
  const { order, losses } = await eliminateUnits([
    await prepareUnits({ weights: W, rows, cols, H, columns }, 0.01),
  ]);
  assert.deepEqual(order.slice(0, 2), [1, 7]);
  assert.ok(losses[2]! < 1e-12, `${losses[2]}`);
  assert.ok(losses[3]! > 1e-6, `${losses[3]}`);
});

test("structured: is better than taking the smallest weights, also after least squares", async () => {
  const { W, rows, cols, H } = randomLayer(32, 60, 400, 17);
  const columns = unitsOf(cols, 1);
  const damped = await dampedOf(H, cols, 0.001);
  const { order, losses } = await eliminateUnits([
    await prepareUnits({ weights: W, rows, cols, H, columns }, 0.001),
  ]);
  const size = columns.map((_, j) => {
    let sum = 0;
    for (let r = 0; r < rows; r++) sum += W[r * cols + j]! ** 2;
    return sum;
  });
  const kept = columns.map((_, j) => j).sort((a, b) => size[b]! - size[a]!);
  const theirs = bestLoss(W, rows, cols, damped, kept.slice(0, 30)).loss;
  const ours = losses[30]! * energyOf(W, rows, cols, damped);
  assert.ok(ours < 0.85 * theirs, `${ours} against ${theirs}`);
  assert.equal(order.length, 60);
});

test("structured: dead, constant and repeated inputs and too few samples give numbers and say the damping", async () => {
  const random = createRandom(4);
  const samples = 5;
  const cols = 24;
  const X = new Float64Array(samples * cols).map(() => random.normal());
  const mean = new Float64Array(cols);
  for (let s = 0; s < samples; s++) {
    X[s * cols + 1] = 0;
    X[s * cols + 2] = 3;
    X[s * cols + 4] = X[s * cols + 3]!;
    for (let j = 0; j < cols; j++) mean[j]! += X[s * cols + j]! / samples;
  }
  const H = new Float64Array(cols * cols);
  for (let i = 0; i < H.length; i++) {
    for (let s = 0; s < samples; s++) {
      H[i]! += (2 / samples) * X[s * cols + Math.floor(i / cols)]! * X[s * cols + (i % cols)]!;
    }
  }
  const rows = 3;
  const weights = new Float64Array(rows * cols).map(() => random.normal());
  for (const damping of [0, 0.01]) {
    const system = await prepareUnits(
      { weights, rows, cols, H: centeredHessian(H, mean), columns: unitsOf(cols, 1) },
      damping,
    );
    assert.ok(damping > 0 ? system.damping === damping : system.damping >= 1e-8);
    const { order, losses } = await eliminateUnits([system]);
    assert.ok(losses.every((loss) => Number.isFinite(loss) && loss >= 0));
    const place = (unit: number) => order.indexOf(unit);
    assert.ok(place(1) < 2 && place(2) < 2, `constant inputs go first: ${order}`);
    for (let k = 1; k <= cols; k++) assert.ok(losses[k]! >= losses[k - 1]!, `level ${k}`);
  }
});

test("structured: a layer of zeros and one picture cost nothing", async () => {
  const cols = 6;
  const zeros = { weights: new Float64Array(2 * cols), rows: 2, cols, columns: unitsOf(cols, 1) };
  const system = await prepareUnits({ ...zeros, H: new Float64Array(cols * cols) }, 0.01);
  const { losses } = await eliminateUnits([system]);
  assert.ok(losses.every((loss) => loss === 0));
});

test("structured: columns of no unit stay and are refitted", async () => {
  const { W, rows, cols, H } = randomLayer(5, 14, 80, 6);
  const columns = unitsOf(cols, 2).slice(0, 4);
  const { order, losses } = await eliminateUnits([
    await prepareUnits({ weights: W, rows, cols, H, columns }, 0.01),
  ]);
  const damped = await dampedOf(H, cols, 0.01);
  const rest = [8, 9, 10, 11, 12, 13];
  const K = [...columns[order.at(-1)!]!, ...rest];
  const expected = bestLoss(W, rows, cols, damped, K).loss / energyOf(W, rows, cols, damped);
  assert.ok(Math.abs(losses[3]! - expected) < 1e-9);
});

test("structured: says what does not fit", async () => {
  const { W, rows, cols, H } = randomLayer(4, 6, 40, 2);
  const consumer = { weights: W, rows, cols, H, columns: [[0], [6]] };
  await assert.rejects(prepareUnits(consumer, 0.01), /expected 0 to 5, got 6/);
  const first = await prepareUnits({ ...consumer, columns: [[0]] }, 0.01);
  const second = await prepareUnits({ ...consumer, columns: [[0], [1]] }, 0.01);
  await assert.rejects(eliminateUnits([first, second]), /expected 1 units in each, got 2/);
});
