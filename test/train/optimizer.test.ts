import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import {
  type Optimizer,
  sumOfSquares,
  type TrainedParameter,
  updateWeights,
  zeroMoments,
} from "../../agent/train/optimizer.ts";

const ADAM = { kind: "adamw", beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.1 } as const;
const SGD = { kind: "sgd", momentum: 0.9, nesterov: false, weightDecay: 0.1 } as const;

function parameter(initial: Float32Array): TrainedParameter {
  return { name: "w", initial, decays: true, rateFactor: 1 };
}

function randomFloats(count: number, seed: number): Float32Array {
  const random = createRandom(seed);
  return new Float32Array(count).map(() => random.normal());
}

/** The rules as they stand in the papers, one weight at a time, in double precision. */
function slowUpdates(
  optimizer: Optimizer,
  start: number,
  gradients: readonly number[],
  rate: number,
  decay: number,
): number {
  let w = start;
  let m = 0;
  let v = 0;
  gradients.forEach((g, i) => {
    const t = i + 1;
    w = w - rate * decay * w;
    if (optimizer.kind === "adamw") {
      m = optimizer.beta1 * m + (1 - optimizer.beta1) * g;
      v = optimizer.beta2 * v + (1 - optimizer.beta2) * g * g;
      const mHat = m / (1 - optimizer.beta1 ** t);
      const vHat = v / (1 - optimizer.beta2 ** t);
      w = w - (rate * mHat) / (Math.sqrt(vHat) + optimizer.epsilon);
    } else {
      m = optimizer.momentum * m + g;
      w = w - rate * (optimizer.nesterov ? g + optimizer.momentum * m : m);
    }
  });
  return w;
}

const OPTIMIZERS: Record<string, Optimizer> = {
  AdamW: ADAM,
  "AdamW without memory": { ...ADAM, beta1: 0, beta2: 0 },
  "AdamW with a large epsilon": { ...ADAM, epsilon: 0.5 },
  SGD: { ...SGD, momentum: 0 },
  momentum: SGD,
  "Nesterov momentum": { ...SGD, nesterov: true },
};

for (const [name, optimizer] of Object.entries(OPTIMIZERS)) {
  for (const decays of [true, false]) {
    test(`optimizer: ${name}, decay ${decays}, is the paper's rule in single precision`, () => {
      const count = 40;
      const steps = 60;
      const initial = randomFloats(count, 1);
      const weights = initial.slice();
      const moments = zeroMoments(optimizer, parameter(initial));
      const gradients = Array.from({ length: steps }, (_, t) => randomFloats(count, 10 + t));
      const scale = 0.5;
      gradients.forEach((gradient, t) => {
        const how = { rate: 0.01, gradient: scale, updates: t + 1 };
        updateWeights(optimizer, weights, moments, gradient, decays, how);
      });
      for (let i = 0; i < count; i++) {
        const own = gradients.map((gradient) => scale * gradient[i]!);
        const expected = slowUpdates(optimizer, initial[i]!, own, 0.01, decays ? 0.1 : 0);
        assert.ok(Math.abs(weights[i]! - expected) < 2e-6, `${weights[i]} is not ${expected}`);
      }
    });
  }
}

test("optimizer: AdamW without memory or decay goes one rate against the gradient's sign", () => {
  const weights = Float32Array.of(1, 1, 1, 1);
  const gradient = Float32Array.of(1e-3, -50, 7, -1e-2);
  const optimizer = { ...ADAM, beta1: 0, beta2: 0, weightDecay: 0, epsilon: 1e-30 };
  const how = { rate: 0.25, gradient: 1, updates: 1 };
  updateWeights(
    optimizer,
    weights,
    zeroMoments(optimizer, parameter(weights)),
    gradient,
    true,
    how,
  );
  for (const [i, sign] of [1, -1, 1, -1].entries()) {
    assert.ok(Math.abs(weights[i]! - (1 - 0.25 * sign)) < 1e-6);
  }
});

test("optimizer: the first step of AdamW has the size of the rate, whatever its memories", () => {
  for (const [beta1, beta2] of [
    [0.9, 0.999],
    [0.5, 0.5],
  ] as const) {
    const optimizer = { ...ADAM, beta1, beta2, weightDecay: 0 };
    const weights = new Float32Array(3);
    const moments = zeroMoments(optimizer, parameter(weights));
    const gradient = Float32Array.of(3, -0.2, 1e-3);
    const how = { rate: 0.01, gradient: 1, updates: 1 };
    updateWeights(optimizer, weights, moments, gradient, false, how);
    for (const [i, w] of weights.entries()) {
      assert.ok(Math.abs(w + 0.01 * Math.sign(gradient[i]!)) < 1e-6);
    }
  }
});

test("optimizer: decay alone shrinks by 1 − rate·decay a step", () => {
  for (const optimizer of [ADAM, SGD]) {
    const weights = Float32Array.of(2);
    const moments = zeroMoments(optimizer, parameter(weights));
    for (let t = 1; t <= 20; t++) {
      const how = { rate: 0.1, gradient: 1, updates: t };
      updateWeights(optimizer, weights, moments, new Float32Array(1), true, how);
    }
    assert.ok(Math.abs(weights[0]! - 2 * 0.99 ** 20) < 1e-6);
  }
});

test("optimizer: squares are added in double precision, and show every fault", () => {
  assert.equal(sumOfSquares(Float32Array.of(3, 4)), 25);
  assert.ok(sumOfSquares(Float32Array.of(3e38, 3e38)) < Number.POSITIVE_INFINITY);
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    assert.equal(Number.isFinite(sumOfSquares(Float32Array.of(1, bad))), false);
  }
});

test("optimizer: what is frozen needs no memory", () => {
  const frozen = { ...parameter(new Float32Array(1000)), rateFactor: 0 };
  assert.deepEqual(
    [zeroMoments(ADAM, frozen).first.length, zeroMoments(ADAM, frozen).second.length],
    [0, 0],
  );
});
