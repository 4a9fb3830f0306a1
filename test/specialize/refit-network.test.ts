import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { floatTensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration } from "../../agent/specialize/environment.ts";
import { pruneTowardDense, refitNetwork } from "../../agent/specialize/refit-network.ts";
import { environmentOf } from "./environment.helpers.ts";

const [INPUTS, HIDDEN, OUTPUTS, PICTURES] = [10, 12, 5, 32];
const DAMPING = 0.01;
let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-refit-"));
});
after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

const random = createRandom(31);
const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal());
const WEIGHTS = { first: normal(INPUTS * HIDDEN), second: normal(HIDDEN * OUTPUTS) };

/** y = relu(x·W₁)·W₂. */
function network(first: Float32Array, second: Float32Array): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", INPUTS])],
    outputs: [floatValue("y", ["N", OUTPUTS])],
    nodes: [
      node("MatMul", ["x", "first"], ["h"]),
      node("Relu", ["h"], ["r"]),
      node("MatMul", ["r", "second"], ["y"]),
    ],
    initializers: {
      first: floatTensor([INPUTS, HIDDEN], first),
      second: floatTensor([HIDDEN, OUTPUTS], second),
    },
  });
}

/** A third of the weights left, and no more done about it. */
function thinned(weights: Float32Array, seed: number): Float32Array {
  const { uniform } = createRandom(seed);
  return weights.map((w) => (uniform() < 1 / 3 ? w : 0));
}

const dense = network(WEIGHTS.first, WEIGHTS.second);
const pruned = network(thinned(WEIGHTS.first, 1), thinned(WEIGHTS.second, 2));

/** @param scaleOf size of the pictures of a batch. */
function pictures(batches: number, scaleOf: (batch: number) => number = () => 1): Calibration {
  return {
    batches,
    read: (batch) => {
      const own = createRandom(100 + batch);
      const data = Float32Array.from(
        { length: PICTURES * INPUTS },
        () => scaleOf(batch) * own.normal(),
      );
      return Promise.resolve({ data, dims: [PICTURES, INPUTS] });
    },
  };
}

const valuesOf = (graph: Graph, name: string) => toFloat32(graph.initializers.get(name)!);

/** relu(x·W), `PICTURES × HIDDEN`, in double precision. */
function hidden(x: Float32Array, weights: Float32Array): Float64Array {
  const out = new Float64Array(PICTURES * HIDDEN);
  for (let n = 0; n < PICTURES; n++) {
    for (let c = 0; c < HIDDEN; c++) {
      let sum = 0;
      for (let k = 0; k < INPUTS; k++) sum += x[n * INPUTS + k]! * weights[k * HIDDEN + c]!;
      out[n * HIDDEN + c] = Math.max(0, sum);
    }
  }
  return out;
}

/** Solves A·x = b by elimination with pivots. */
function solve(A: number[][], b: number[]): number[] {
  const n = b.length;
  const rows = A.map((row, i) => [...row, b[i]!]);
  for (let c = 0; c < n; c++) {
    let pivot = c;
    for (let r = c; r < n; r++) {
      if (Math.abs(rows[r]![c]!) > Math.abs(rows[pivot]![c]!)) pivot = r;
    }
    [rows[c], rows[pivot]] = [rows[pivot]!, rows[c]!];
    for (let r = 0; r < n; r++) {
      if (r === c) continue;
      const factor = rows[r]![c]! / rows[c]![c]!;
      for (let k = c; k <= n; k++) rows[r]![k]! -= factor * rows[c]![k]!;
    }
  }
  return rows.map((row, i) => row[n]! / row[i]!);
}

/**
 * min over the kept w of E|w·x′ − y|² + λ/2·|w − s|², λ = damping · mean diagonal of 2E[x′x′ᵀ], by
 * the normal equations of each output.
 */
async function oracle(calibration: Calibration, learned: readonly number[]): Promise<Float64Array> {
  const start = valuesOf(pruned, "second");
  const H = Array.from({ length: HIDDEN }, () => new Array<number>(HIDDEN).fill(0));
  const T = Array.from({ length: HIDDEN }, () => new Array<number>(OUTPUTS).fill(0));
  const count = learned.length * PICTURES;
  for (const batch of learned) {
    const x = (await calibration.read(batch)).data as Float32Array;
    const own = hidden(x, valuesOf(pruned, "first"));
    const wanted = hidden(x, WEIGHTS.first);
    for (let n = 0; n < PICTURES; n++) {
      const aims = Array.from({ length: OUTPUTS }, (_, o) => {
        let y = 0;
        for (let k = 0; k < HIDDEN; k++) {
          y += wanted[n * HIDDEN + k]! * WEIGHTS.second[k * OUTPUTS + o]!;
        }
        return y;
      });
      for (let i = 0; i < HIDDEN; i++) {
        const left = (2 / count) * own[n * HIDDEN + i]!;
        for (let j = 0; j < HIDDEN; j++) H[i]![j]! += left * own[n * HIDDEN + j]!;
        for (let o = 0; o < OUTPUTS; o++) T[i]![o]! += left * aims[o]!;
      }
    }
  }
  const lambda = (DAMPING * H.reduce((sum, row, i) => sum + row[i]!, 0)) / HIDDEN;
  const result = new Float64Array(HIDDEN * OUTPUTS);
  for (let o = 0; o < OUTPUTS; o++) {
    const kept = Array.from({ length: HIDDEN }, (_, k) => k).filter(
      (k) => start[k * OUTPUTS + o] !== 0,
    );
    const A = kept.map((i) => kept.map((j) => H[i]![j]! + (i === j ? lambda : 0)));
    const b = kept.map((i) => T[i]![o]! + lambda * start[i * OUTPUTS + o]!);
    solve(A, b).forEach((w, at) => {
      result[kept[at]! * OUTPUTS + o] = w;
    });
  }
  return result;
}

/** {@link pruned} fitted on its own mask to some batches. */
function fitKept(calibration: Calibration) {
  return refitNetwork(dense, pruned, {
    ...environmentOf(engine, workDir, calibration),
    places: new Map(),
    include: () => true,
    stream: true,
    correct: false,
    zeros: true,
  });
}

test("kept weights: least squares on the mask, aiming at the dense network, on what it gets", async () => {
  const calibration = pictures(4);
  const { graph, losses } = await fitKept(calibration);
  const wanted = await oracle(calibration, [0, 1, 2, 3]);
  const got = valuesOf(graph, "second");
  let size = 0;
  let error = 0;
  wanted.forEach((w, i) => {
    assert.equal(got[i] === 0, valuesOf(pruned, "second")[i] === 0, `zero at ${i}`);
    size += w * w;
    error += (got[i]! - w) ** 2;
  });
  // The descent stops at half a percent of its residual.
  assert.ok(Math.sqrt(error / size) < 0.01, `${Math.sqrt(error / size)}`);
  // What reads the picture has no errors before it.
  assert.deepEqual(valuesOf(graph, "first"), valuesOf(pruned, "first"));
  assert.deepEqual([...losses.keys()], [layerNamed("second")]);
});

/** ‖y − W₂·relu(x·W₁)‖² / ‖y‖² over some batches, y the dense network's. */
async function lossOf(graph: Graph, calibration: Calibration, batches: readonly number[]) {
  let [error, size] = [0, 0];
  for (const batch of batches) {
    const x = (await calibration.read(batch)).data as Float32Array;
    const answers = [graph, dense].map((each) => {
      const h = hidden(x, valuesOf(each, "first"));
      const second = valuesOf(each, "second");
      return Array.from({ length: PICTURES * OUTPUTS }, (_, i) => {
        const [n, o] = [Math.floor(i / OUTPUTS), i % OUTPUTS];
        let sum = 0;
        for (let k = 0; k < HIDDEN; k++) sum += h[n * HIDDEN + k]! * second[k * OUTPUTS + o]!;
        return sum;
      });
    });
    answers[1]!.forEach((y, i) => {
      error += (answers[0]![i]! - y) ** 2;
      size += y * y;
    });
  }
  return error / size;
}

const layerNamed = (weight: string) =>
  findPrunableLayers(dense).find(({ weightName }) => weightName === weight)!.name;

/** Prunes both layers; the plain pass takes the weights of {@link pruned}, and is written down. */
async function prune(calibration: Calibration) {
  const sparsity = valuesOf(pruned, "second").filter((w) => w === 0).length / (HIDDEN * OUTPUTS);
  const pattern = { kind: "unstructured", sparsity } as const;
  const asked: string[][] = [];
  const result = await pruneTowardDense(dense, {
    ...environmentOf(engine, workDir, calibration),
    patterns: new Map(["first", "second"].map((name) => [layerNamed(name), pattern])),
    plain: (some) => {
      asked.push([...some.keys()]);
      const own = (name: string) =>
        valuesOf(some.has(layerNamed(name)) ? pruned : dense, name).slice();
      const graph = network(own("first"), own("second"));
      const reports = [...some.keys()].map((name) => ({
        name,
        method: "plain",
        sparsity: 0.5,
        relativeLoss: 0.1,
      }));
      return Promise.resolve({ graph, reports, refused: [] });
    },
  });
  return { ...result, asked, sparsity };
}

test("pruning: the mask is chosen for the dense answer to what the layer gets", async () => {
  // Of a few batches the last judges; what reads the picture is pruned by the plain pass.
  const calibration = pictures(5);
  const { graph, reports, asked, sparsity } = await prune(calibration);
  const learned = [0, 1, 2, 3];
  const kept = await fitKept(pictures(4));
  const before = await lossOf(kept.graph, calibration, learned);
  const after = await lossOf(graph, calibration, learned);
  assert.ok(after < 0.9 * before, `${after} with a mask of its own, ${before} with the given one`);
  assert.deepEqual(asked, [[layerNamed("first")]]);
  const [first, second, ...others] = reports;
  assert.deepEqual(others, []);
  assert.deepEqual([first!.name, first!.method], [layerNamed("first"), "plain"]);
  assert.match(second!.method, /^unstructured:0\.\d+$/);
  const { relativeLoss } = second!;
  assert.equal(second!.sparsity, sparsity);
  assert.ok(Math.abs(relativeLoss! / after - 1) < 1e-4, `${relativeLoss} reported, is ${after}`);
});

test("pruning: what was learned by heart, or cannot be judged, is left to the plain pass", async () => {
  // Only negative sums reach the layer where it learns: what it makes of them is worth nothing.
  const apart = pictures(16, (batch) => (batch % 8 === 7 ? 1 : 0));
  for (const calibration of [pictures(1), apart]) {
    const { graph, reports, asked } = await prune(calibration);
    assert.deepEqual(valuesOf(graph, "second"), valuesOf(pruned, "second"));
    assert.deepEqual(asked.at(-1), [layerNamed("first"), layerNamed("second")]);
    assert.ok(reports.every(({ method }) => method === "plain"));
  }
});
