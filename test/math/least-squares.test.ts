import assert from "node:assert/strict";
import { test } from "node:test";
import { solveRidge } from "../../agent/math/least-squares.ts";
import { createRandom } from "../../agent/math/random.ts";

for (const [samples, inputs] of [
  [40, 7],
  [7, 40],
  [12, 12],
] as const) {
  test(`ridge: the gradient vanishes with ${samples} samples of ${inputs} inputs`, () => {
    const random = createRandom(samples);
    const outputs = 3;
    const X = new Float64Array(samples * inputs).map(() => random.normal());
    const Y = new Float64Array(samples * outputs).map(() => random.normal());
    const lambda = 0.3;
    const W = solveRidge({ X, Y, samples, inputs, outputs, lambda });
    for (let o = 0; o < outputs; o++) {
      for (let j = 0; j < inputs; j++) {
        let gradient = lambda * W[o * inputs + j]!;
        for (let i = 0; i < samples; i++) {
          let error = -Y[i * outputs + o]!;
          for (let k = 0; k < inputs; k++) error += X[i * inputs + k]! * W[o * inputs + k]!;
          gradient += error * X[i * inputs + j]!;
        }
        assert.ok(Math.abs(gradient) < 1e-11);
      }
    }
  });
}

test("ridge: says so where the system cannot be solved", () => {
  const zeros = { X: new Float64Array(6), Y: new Float64Array(3), samples: 3, inputs: 2 };
  assert.throws(() => solveRidge({ ...zeros, outputs: 1, lambda: 0 }), /singular system, got 0/);
  assert.throws(() => solveRidge({ ...zeros, outputs: 1, lambda: -1 }), /0 or more, got -1/);
});
