import assert from "node:assert/strict";
import { test } from "node:test";
import { chooseL2 } from "../../agent/math/choose-l2.ts";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";
import { classWeights, softmaxObjective } from "../../agent/math/softmax.ts";
import { fitSoftmaxHead } from "../../agent/math/softmax-head.ts";
import { type HeadData, headLogits } from "../../agent/math/standardized-space.ts";

/** Classes around their own centers, `noise` apart. */
function clusters(samples: number, inputs: number, classes: number, noise: number): HeadData {
  const random = createRandom(samples + inputs);
  const centers = Float64Array.from({ length: classes * inputs }, () => random.normal());
  const labels = Array.from({ length: samples }, (_, i) => i % classes);
  const features = new Float32Array(samples * inputs);
  for (let i = 0; i < features.length; i++) {
    const center = centers[labels[Math.floor(i / inputs)]! * inputs + (i % inputs)]!;
    features[i] = 3 + ((i % inputs) + 1) * (center + noise * random.normal());
  }
  return { features, samples, inputs, labels, classes };
}

async function accuracy(data: HeadData, head: { weights: Float32Array; bias: Float32Array }) {
  const logits = await headLogits(head, data.features);
  let right = 0;
  for (let i = 0; i < data.samples; i++) {
    const own = Array.from(logits.subarray(i * data.classes, (i + 1) * data.classes));
    if (own.indexOf(Math.max(...own)) === data.labels[i]) right++;
  }
  return right / data.samples;
}

test("softmax objective: its gradient is that of central differences", async () => {
  const random = createRandom(5);
  const [samples, inputs, classes] = [13, 6, 4];
  const R = new Float64Array(samples * inputs).map(() => random.normal());
  const labels = Array.from({ length: samples }, () => random.integer(classes));
  const objective = softmaxObjective({
    R,
    samples,
    inputs,
    classes,
    labels,
    sampleWeights: classWeights(labels, classes, true),
    offset: new Float64Array(classes * samples).map(() => random.normal()),
    l2: 0.3,
  });
  const x = new Float64Array(classes * (inputs + 1)).map(() => random.normal());
  const gradient = new Float64Array(x.length);
  await objective(x, gradient);
  const step = 1e-5;
  for (let i = 0; i < x.length; i++) {
    const at = (delta: number) => {
      const moved = x.slice();
      moved[i]! += delta;
      return objective(moved, new Float64Array(x.length));
    };
    const slope = ((await at(step)) - (await at(-step))) / (2 * step);
    assert.ok(Math.abs(slope - gradient[i]!) < 1e-8, `x[${i}]: ${slope} against ${gradient[i]}`);
  }
});

test("softmax objective: huge logits stay finite", async () => {
  const problem = { samples: 2, inputs: 1, classes: 2, labels: [0, 1] };
  const R = Float64Array.of(1e6, -1e6);
  const objective = softmaxObjective({
    ...problem,
    R,
    sampleWeights: Float64Array.of(0.5, 0.5),
    l2: 1e-3,
  });
  const gradient = new Float64Array(4);
  assert.ok(Number.isFinite(await objective(Float64Array.of(-9, 9, 0, 0), gradient)));
  assert.ok(gradient.every(Number.isFinite));
});

test("head: fewer samples than features and the other way around reach the same optimum", async () => {
  const wide = clusters(24, 40, 3, 2);
  const options = { l2: 0.05, tolerance: 1e-9, maxIterations: 1000 };
  const dual = await fitSoftmaxHead(wide, options);
  // Every sample three times: the same mean loss, but now more samples than features.
  const tall = {
    ...wide,
    samples: 72,
    labels: [...Array.from(wide.labels), ...Array.from(wide.labels), ...Array.from(wide.labels)],
    features: Float32Array.from([...wide.features, ...wide.features, ...wide.features]),
  };
  const primal = await fitSoftmaxHead(tall, options);
  assert.ok(dual.converged && primal.converged);
  assert.ok(Math.abs(dual.loss - primal.loss) < 1e-7);
  assert.ok(dual.weights.every((w, i) => Math.abs(w - primal.weights[i]!) < 1e-5));
  assert.ok(dual.bias.every((b, i) => Math.abs(b - primal.bias[i]!) < 1e-4));
  const byEngine = await fitSoftmaxHead(wide, { ...options, gemm: referenceGemm });
  assert.ok(Math.abs(dual.loss - byEngine.loss) < 1e-6);
});

test("head: separates clusters on raw features", async () => {
  const data = clusters(90, 20, 5, 0.5);
  const head = await fitSoftmaxHead(data, { l2: 0.01 });
  assert.equal(await accuracy(data, head), 1);
});

test("head: a strong penalty gives the prior back, a prior at the optimum stays", async () => {
  const data = clusters(60, 12, 3, 3);
  const random = createRandom(8);
  const prior = {
    weights: new Float32Array(36).map(() => 0.1 * random.normal()),
    bias: new Float32Array(3).map(() => random.normal()),
  };
  const held = await fitSoftmaxHead({ ...data, prior }, { l2: 1e7 });
  assert.ok(held.weights.every((w, i) => Math.abs(w - prior.weights[i]!) < 1e-5));
  const best = await fitSoftmaxHead(data, { l2: 1e-3, tolerance: 1e-8 });
  const again = await fitSoftmaxHead({ ...data, prior: best }, { l2: 1e-3 });
  assert.ok(again.loss <= best.loss, "the penalty counts from the prior");
});

test("head: balanced classes weigh the same however many samples they have", async () => {
  const random = createRandom(11);
  const labels = Array.from({ length: 100 }, (_, i) => (i < 95 ? 0 : 1));
  const features = Float32Array.from(labels, (label) => label + 2 * random.normal());
  const data = { features, samples: 100, inputs: 1, labels, classes: 2 };
  const plain = await fitSoftmaxHead(data, { l2: 10, balanced: false });
  const balanced = await fitSoftmaxHead(data, { l2: 10 });
  assert.ok(plain.bias[0]! - plain.bias[1]! > 2);
  assert.ok(Math.abs(balanced.bias[0]! - balanced.bias[1]!) < 0.5);
});

test("head: no NaN from constant features, one sample, or a class without samples", async () => {
  const constant = { features: new Float32Array(12).fill(5), samples: 4, inputs: 3 };
  const one = { features: Float32Array.of(1, 2, 3), samples: 1, inputs: 3, labels: [1] };
  for (const data of [
    { ...constant, labels: [0, 1, 0, 1], classes: 3 },
    { ...one, classes: 2 },
    { ...clusters(20, 4, 2, 1), classes: 5 },
  ]) {
    const head = await fitSoftmaxHead(data, { l2: 1e-3 });
    for (const array of [head.weights, head.bias]) assert.ok(array.every(Number.isFinite));
  }
});

test("head: refuses labels outside the classes, features that are not finite, sizes", async () => {
  const data = clusters(6, 2, 2, 1);
  await assert.rejects(fitSoftmaxHead({ ...data, classes: 1 }, { l2: 1 }), /labels\[1\].*got 1/);
  const features = Float32Array.from(data.features).fill(Number.NaN, 3, 4);
  await assert.rejects(fitSoftmaxHead({ ...data, features }, { l2: 1 }), /finite/);
  await assert.rejects(fitSoftmaxHead({ ...data, inputs: 3 }, { l2: 1 }), /features: expected 18/);
  await assert.rejects(fitSoftmaxHead(data, { l2: 0 }), /l2: expected more than 0/);
});

test("choice of penalty: strong for noise, weaker for signal; the same seed, the same choice", async () => {
  const groupsOf = (data: HeadData) =>
    Array.from({ length: data.samples }, (_, i) => `burst ${Math.floor(i / 6)}-${i % 3}`);
  const signal = clusters(90, 30, 3, 1);
  const random = createRandom(4);
  const noise = { ...signal, labels: Array.from({ length: 90 }, () => random.integer(3)) };
  const options = { groups: groupsOf(signal), seed: 1 };
  const forSignal = await chooseL2(signal, options);
  const forNoise = await chooseL2(noise, { ...options, groups: noise.labels.map((_, i) => i) });
  assert.equal(forSignal.judged, 90);
  assert.ok(forSignal.l2 < forNoise.l2, `${forSignal.l2} for signal, ${forNoise.l2} for noise`);
  assert.deepEqual(await chooseL2(signal, options), forSignal);
});

test("choice of penalty: frames of one burst never judge each other", async () => {
  // Pure noise, but every sample comes as four copies: only leaking copies would make it look good.
  const random = createRandom(12);
  const single = new Float32Array(20 * 10).map(() => random.normal());
  const features = Float32Array.from([...single, ...single, ...single, ...single]);
  const own = Array.from({ length: 20 }, (_, i) => i % 2);
  const labels = [...own, ...own, ...own, ...own];
  const data = { features, samples: 80, inputs: 10, labels, classes: 2 };
  const honest = await chooseL2(data, { groups: labels.map((_, i) => i % 20), seed: 2 });
  const leaking = await chooseL2(data, { groups: labels.map((_, i) => i), seed: 2 });
  assert.ok(Math.min(...honest.scores.map((s) => s.score)) > 0.6);
  assert.ok(Math.min(...leaking.scores.map((s) => s.score)) < 0.55);
});

test("choice of penalty: a class with one burst is always trained on", async () => {
  const data = clusters(40, 8, 4, 1);
  const groups = Array.from({ length: 40 }, (_, i) => (i % 4 === 3 ? "only" : `${i % 8}`));
  const chosen = await chooseL2(data, { groups, seed: 1, folds: 2 });
  assert.equal(chosen.judged, 30);
  const alone = Array.from({ length: 40 }, (_, i) => `${i % 4}`);
  const fallen = await chooseL2(data, { groups: alone, seed: 1, fallback: 0.7 });
  assert.deepEqual([fallen.l2, fallen.scores, fallen.judged], [0.7, [], 0]);
  assert.ok(fallen.likelihoods.every(Number.isNaN), "nobody was held out");
  const known = chosen.likelihoods.filter((p) => p > 0 && p <= 1).length;
  assert.equal(known, 30, "one probability a sample that was held out");
});
