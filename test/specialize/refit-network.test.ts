import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { replaceInitializer } from "../../agent/onnx/initializers.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { floatTensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration } from "../../agent/specialize/environment.ts";
import { fitPruned } from "../../agent/specialize/refit-network.ts";
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

test("kept weights: least squares on the mask, aiming at the dense network, on what it gets", async () => {
  // The last batch of a few judges; of the others, as many as statistics are made of.
  const calibration = pictures(5);
  const { graph, reports } = await fitPruned(dense, pruned, {
    ...environmentOf(engine, workDir, calibration),
    patterns: new Map(),
  });
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
  const [report, ...others] = reports;
  assert.deepEqual(others, []);
  assert.equal(report!.method, "refitted");
  const zeros = wanted.filter((w) => w === 0).length;
  assert.ok(Math.abs(report!.sparsity - zeros / wanted.length) < 1e-9);
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

test("patterns: the mask is chosen for the dense answer to what the layer gets", async () => {
  const calibration = pictures(5);
  const environment = environmentOf(engine, workDir, calibration);
  const fit = async (patterns: ReadonlyMap<string, Pattern>) => {
    const { graph, reports } = await fitPruned(dense, pruned, { ...environment, patterns });
    return { graph, report: reports.find(({ method }) => method === "refitted")! };
  };
  const kept = await fit(new Map());
  const pattern = { kind: "unstructured", sparsity: kept.report.sparsity } as const;
  const layer = findPrunableLayers(dense).find(({ weightName }) => weightName === "second")!;
  const chosen = await fit(new Map([[layer.name, pattern]]));
  const [before, after] = await Promise.all(
    [kept, chosen].map(({ graph }) => lossOf(graph, calibration, [0, 1, 2, 3])),
  );
  assert.ok(
    after! < 0.9 * before!,
    `${after} with a mask of its own, ${before} with the given one`,
  );
  const { sparsity, relativeLoss } = chosen.report;
  assert.equal(sparsity, pattern.sparsity);
  assert.ok(Math.abs(relativeLoss! / after! - 1) < 0.02, `${relativeLoss} reported, is ${after}`);
});

test("kept weights: what does not help on pictures kept back, or cannot be judged, is left", async () => {
  // Only negative sums reach the layer where it learns: what it makes of them is worth nothing.
  const apart = pictures(16, (batch) => (batch % 8 === 7 ? 1 : 0));
  const shifted = replaceInitializer(
    pruned,
    "second",
    floatTensor([HIDDEN, OUTPUTS], WEIGHTS.second),
  );
  for (const [graph, calibration] of [
    [pruned, pictures(1)],
    [shifted, apart],
  ] as const) {
    const environment = environmentOf(engine, workDir, calibration);
    const result = await fitPruned(dense, graph, { ...environment, patterns: new Map() });
    assert.equal(result.graph, graph);
    assert.deepEqual(result.reports, []);
  }
});
