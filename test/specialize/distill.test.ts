import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { floatTensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { type DistillOptions, distill, type PairOfViews } from "../../agent/specialize/distill.ts";
import { createEngine } from "../../agent/specialize/engine.ts";
import type { TrainingPoint } from "../../agent/specialize/training-point.ts";
import { randomAt } from "../../agent/train/batches.ts";

const SIDE = 8;
const CLASSES = 3;
const CHANNELS = 8;

const engine = await createEngine({
  executionProviders: ["cpu"],
  intraOpThreads: 1,
  log: createLogger("error"),
});
const folder = await mkdtemp(join(tmpdir(), "taco-distill-"));
after(async () => {
  await engine.close();
  await rm(folder, { recursive: true });
});

/** Two convolutions and a linear head. */
function network(seed: number): Graph {
  const random = createRandom(seed);
  const weights = (dims: readonly number[], size: number) => {
    const count = dims.reduce((a, b) => a * b, 1);
    const values = Float32Array.from({ length: count }, () => size * random.normal());
    return floatTensor(dims, values);
  };
  return buildModel({
    inputs: [floatValue("x", ["N", 3, SIDE, SIDE])],
    outputs: [floatValue("logits", ["N", CLASSES])],
    nodes: [
      node("Conv", ["x", "w0", "b0"], ["c0"], { pads: [1, 1, 1, 1] }),
      node("Relu", ["c0"], ["r0"]),
      node("Conv", ["r0", "w1", "b1"], ["c1"], { pads: [1, 1, 1, 1] }),
      node("Relu", ["c1"], ["r1"]),
      node("GlobalAveragePool", ["r1"], ["p"]),
      node("Flatten", ["p"], ["f"]),
      node("Gemm", ["f", "w2", "b2"], ["logits"], { transB: 1 }),
    ],
    initializers: {
      w0: weights([CHANNELS, 3, 3, 3], 0.3),
      b0: weights([CHANNELS], 0.1),
      w1: weights([CHANNELS, CHANNELS, 3, 3], 0.2),
      b1: weights([CHANNELS], 0.1),
      w2: weights([CLASSES, CHANNELS], 2),
      b2: weights([CLASSES], 0.1),
    },
  });
}

const teacher = network(1);

/** The teacher with the smaller half of `w1` gone: what pruning leaves. */
function prunedStudent(): Graph {
  const dense = toFloat32(teacher.initializers.get("w1")!);
  const limit = [...dense].map(Math.abs).sort((a, b) => a - b)[dense.length >> 1]!;
  const pruned = dense.map((value) => (Math.abs(value) < limit ? 0 : value));
  const w1 = floatTensor(teacher.initializers.get("w1")!.dims, pruned);
  return { ...teacher, initializers: new Map(teacher.initializers).set("w1", w1) };
}

/** Noise of one color a class. */
function views(labels: readonly number[], uniform: () => number): PairOfViews {
  const plane = SIDE * SIDE;
  const data = new Float32Array(labels.length * 3 * plane);
  const targets = new Float32Array(labels.length * CLASSES);
  labels.forEach((label, i) => {
    targets[i * CLASSES + label] = 1;
    for (let at = 0; at < 3 * plane; at++) {
      const own = Math.floor(at / plane) === label ? 1 : 0;
      data[i * 3 * plane + at] = own + 2 * uniform() - 1;
    }
  });
  const value = { data, dims: [labels.length, 3, SIDE, SIDE] };
  return { student: value, teacher: value, targets };
}

const LABELS = Array.from({ length: 24 }, (_, i) => i % CLASSES);

function optionsOf(overrides: Partial<DistillOptions> = {}): DistillOptions {
  return {
    student: prunedStudent(),
    teacher,
    features: [{ student: "f", teacher: "f" }],
    border: "x",
    pictures: {
      labels: LABELS,
      classes: CLASSES,
      read: (batch, step, place) => {
        const labels = batch.map((picture) => LABELS[picture]!);
        return Promise.resolve(views(labels, randomAt(5, step, place).uniform));
      },
      validation: {
        batches: 2,
        read: (batch) => Promise.resolve(views([0, 1, 2, 0, 1, 2], randomAt(9, batch).uniform)),
      },
    },
    objective: {
      distillation: 1,
      temperature: 2,
      features: 1,
      labels: 0,
      logitOffsets: [0, 0, 0],
    },
    training: {
      seed: 3,
      optimizer: { kind: "adamw", beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0 },
      schedule: { peak: 5e-3, warmUp: 0.1, floor: 0 },
      limits: { steps: 60, budgetMs: Number.POSITIVE_INFINITY },
      clipNorm: 10,
      averageDecay: 0.8,
      guard: { tolerance: 10, maxSetbacks: 2 },
      earlyStopping: { patience: 100, coolDown: 0, leastGain: 0 },
    },
    batchSize: 12,
    microBatch: 6,
    lessonFile: { path: join(folder, "lessons.f32"), maxBytes: 0 },
    judgeEvery: 10,
    engine,
    resume: null,
    onCheckpoint: () => Promise.resolve(),
    onPoint: () => undefined,
    onProgress: () => undefined,
    end: new AbortController().signal,
    signal: new AbortController().signal,
    ...overrides,
  };
}

function weightsOf(graph: Graph): number[] {
  return [...graph.initializers.values()].flatMap((tensor) => [...toFloat32(tensor)]);
}

test("distill: brings a pruned network back to its teacher, and leaves its zeros zero", async () => {
  const points: TrainingPoint[] = [];
  const shares: number[] = [];
  const options = optionsOf({
    onPoint: (point) => points.push(point),
    onProgress: (share) => shares.push(share),
  });
  const before = toFloat32(options.student.initializers.get("w1")!);
  const { graph, steps, validationLoss, ended } = await distill(options);
  assert.equal(steps, 60);
  assert.equal(ended, null);
  const losses = points.map(({ loss }) => loss);
  assert.deepEqual(
    points.map(({ step }) => step),
    [10, 20, 30, 40, 50, 60],
  );
  assert.ok(losses.at(-1)! < 0.3 * losses[0]!, `losses ${losses}`);
  assert.ok(validationLoss!.after <= Math.min(...points.map((point) => point.validationLoss!)));
  assert.deepEqual(
    shares,
    [...shares].sort((a, b) => a - b),
  );
  const trained = toFloat32(graph.initializers.get("w1")!);
  assert.ok(before.every((value, i) => value !== 0 || trained[i] === 0));
  assert.ok(before.some((value, i) => value !== trained[i]));
  assert.deepEqual(
    [...toFloat32(options.student.initializers.get("w1")!)],
    [...before],
    "the given network stays as it is",
  );
});

test("distill: what lies before the border stays as it is", async () => {
  const options = optionsOf({ border: "r0" });
  const { graph } = await distill(options);
  const values = (from: Graph, name: string) => [...toFloat32(from.initializers.get(name)!)];
  for (const name of ["w0", "b0"]) {
    assert.deepEqual(values(graph, name), values(options.student, name));
  }
  for (const name of ["w1", "b1", "w2", "b2"]) {
    assert.notDeepEqual(values(graph, name), values(options.student, name));
  }
});

test("distill: micro-batches add up to the batch", async () => {
  const training = { ...optionsOf().training, limits: { steps: 3, budgetMs: 1e9 } };
  const read = (batch: readonly number[]) => {
    // The same pictures however the batch is cut.
    const parts = batch.map((picture) => views([LABELS[picture]!], randomAt(5, picture).uniform));
    const joined = (pick: (part: PairOfViews) => Float32Array) =>
      Float32Array.from(parts.flatMap((part) => [...pick(part)]));
    const data = joined(({ student }) => student.data as Float32Array);
    const value = { data, dims: [batch.length, 3, SIDE, SIDE] };
    const targets = joined((part) => part.targets);
    return Promise.resolve({ student: value, teacher: value, targets });
  };
  const pictures = { ...optionsOf().pictures, read };
  const objective = { ...optionsOf().objective, features: 0 };
  const shared = { training, pictures, objective };
  const whole = await distill(optionsOf({ ...shared, microBatch: 12 }));
  const parts = await distill(optionsOf({ ...shared, microBatch: 4 }));
  const [a, b] = [weightsOf(whole.graph), weightsOf(parts.graph)];
  assert.ok(a.every((value, i) => Math.abs(value - b[i]!) < 2e-4));
});

test("distill: goes on from a checkpoint to the very same weights", async () => {
  const contents: Uint8Array[] = [];
  const keep = (content: Uint8Array) => {
    contents.push(content.slice());
    return Promise.resolve();
  };
  const options = optionsOf({ onCheckpoint: keep, checkpointMs: 0 });
  const whole = await distill(options);
  assert.equal(contents.length, 6);
  const resumed = await distill(optionsOf({ resume: contents[2]! }));
  assert.equal(resumed.steps, whole.steps);
  assert.deepEqual(weightsOf(resumed.graph), weightsOf(whole.graph));
});

test("distill: ends with what it has when it is told to", async () => {
  const end = new AbortController();
  const options = optionsOf({
    end: end.signal,
    onProgress: (share) => {
      if (share > 0.5) end.abort();
    },
  });
  const { graph, steps, ended } = await distill(options);
  assert.ok(steps > 20 && steps < 60);
  assert.match(ended!, /energy/);
  assert.notDeepEqual(weightsOf(graph), weightsOf(options.student));
});

test("distill: a training that diverges is given up, and the network is as it was", async () => {
  const { training } = optionsOf();
  const options = optionsOf({
    training: { ...training, guard: { tolerance: 10, maxSetbacks: 1 } },
    pictures: {
      ...optionsOf().pictures,
      read: (batch) => {
        const data = new Float32Array(batch.length * 3 * SIDE * SIDE).fill(Number.NaN);
        const value = { data, dims: [batch.length, 3, SIDE, SIDE] };
        const targets = new Float32Array(batch.length * CLASSES);
        return Promise.resolve({ student: value, teacher: value, targets });
      },
    },
  });
  const { graph, ended } = await distill(options);
  assert.match(ended!, /diverged: the loss is NaN/);
  assert.deepEqual(weightsOf(graph), weightsOf(options.student));
});

test("distill: lessons that were kept come again, to the same weights after a resume", async () => {
  const reads: string[] = [];
  const contents: Uint8Array[] = [];
  const { pictures, training } = optionsOf();
  const path = join(folder, "kept.f32");
  const floats = 6 * (3 * SIDE * SIDE + 2 * CLASSES + CHANNELS);
  const shared: Partial<DistillOptions> = {
    training: { ...training, limits: { steps: 120, budgetMs: Number.POSITIVE_INFINITY } },
    lessonFile: { path, maxBytes: 70 * 2 * 4 * floats },
    pictures: {
      ...pictures,
      read: (batch, step, place) => {
        reads.push(`${step} ${place}`);
        return pictures.read(batch, step, place);
      },
    },
    onCheckpoint: (content) => {
      contents.push(content.slice());
      return Promise.resolve();
    },
    checkpointMs: 0,
  };
  const whole = await distill(optionsOf(shared));
  const [shape, ...made] = reads.splice(0);
  assert.equal(shape, "0 0", "one to see the size of a view");
  assert.deepEqual(
    made,
    Array.from({ length: 140 }, (_, i) => `${Math.floor(i / 2)} ${i % 2}`),
  );
  assert.ok(!existsSync(path), "nothing is left on disk");
  const resumed = await distill(optionsOf({ ...shared, resume: contents[6]! }));
  assert.deepEqual(weightsOf(resumed.graph), weightsOf(whole.graph));
  reads.length = 0;
  await distill(optionsOf({ ...shared, lessonFile: { path, maxBytes: 63 * 2 * 4 * floats } }));
  assert.equal(new Set(reads).size, 240, "too few to repeat: every step has its own");
});
