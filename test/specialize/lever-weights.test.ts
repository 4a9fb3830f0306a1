import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Lever } from "../../agent/compress/budget.ts";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { replaceInitializer } from "../../agent/onnx/initializers.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration } from "../../agent/specialize/environment.ts";
import { weighLevers, withWeights } from "../../agent/specialize/lever-weights.ts";
import { environmentOf } from "./environment.helpers.ts";

const WIDTH = 6;
const PICTURES = 16;
/** What the network makes of each branch further on. */
const GAINS = [3, 0.1];
const BRANCHES = ["a", "b"];
let engine: Engine;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
});
after(() => engine.close());

const random = createRandom(9);
const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal());
const weights = BRANCHES.map(() => normal(WIDTH * WIDTH));
const pictures = normal(2 * PICTURES * WIDTH);

/** y = 3·A·x + 0.1·B·x. */
function network(): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", WIDTH])],
    outputs: [floatValue("y", ["N", WIDTH])],
    nodes: [
      ...BRANCHES.flatMap((name) => [
        node("MatMul", ["x", `w_${name}`], [`product_${name}`]),
        node("Mul", [`product_${name}`, `gain_${name}`], [`scaled_${name}`]),
      ]),
      node("Add", ["scaled_a", "scaled_b"], ["y"]),
    ],
    initializers: Object.fromEntries(
      BRANCHES.flatMap((name, i) => [
        [`w_${name}`, floatTensor([WIDTH, WIDTH], weights[i]!)],
        [`gain_${name}`, floatTensor([1], [GAINS[i]!])],
      ]),
    ),
  });
}

/** Level 1 halves a branch's weights, level 2 takes them away. */
const SHARES = [1, 0.5, 0];
function build(choice: readonly number[]): Promise<Graph> {
  let graph = network();
  choice.forEach((level, i) => {
    const left = weights[i]!.map((w) => SHARES[level]! * w);
    graph = replaceInitializer(graph, `w_${BRANCHES[i]}`, floatTensor([WIDTH, WIDTH], left));
  });
  return Promise.resolve(graph);
}

/** Both branches lose the same by their tables. */
const LEVERS: readonly Lever[] = BRANCHES.map((name) => ({
  name,
  levels: [
    { cost: 36, loss: 0 },
    { cost: 18, loss: 0.25 },
    { cost: 0, loss: 1 },
  ],
}));

/** The second batch is of other pictures, which are more than are needed. */
const calibration: Calibration = {
  batches: 2,
  read: (batch) => {
    const size = PICTURES * WIDTH;
    return Promise.resolve({
      data: pictures.subarray(batch * size, (batch + 1) * size),
      dims: [PICTURES, WIDTH],
    });
  },
};

/** ‖what a share of one branch adds‖² / ‖y‖² over the first 16 pictures, by plain loops. */
function relativeEnergy(branch: number, share: number): number {
  let own = 0;
  let all = 0;
  for (let picture = 0; picture < PICTURES; picture++) {
    for (let col = 0; col < WIDTH; col++) {
      const parts = BRANCHES.map((_, i) => {
        let sum = 0;
        for (let k = 0; k < WIDTH; k++) {
          sum += pictures[picture * WIDTH + k]! * weights[i]![k * WIDTH + col]!;
        }
        return GAINS[i]! * sum;
      });
      own += (share * parts[branch]!) ** 2;
      all += (parts[0]! + parts[1]!) ** 2;
    }
  }
  return own / all;
}

test("lever weights: losses become the error at the output, each lever moved by itself", async () => {
  for (const [share, level] of [
    [0.6, 1],
    [0.1, 2],
  ] as const) {
    const origin = network();
    const weights = await weighLevers(LEVERS, {
      build,
      origin,
      share,
      environment: environmentOf(engine, "", calibration),
    });
    const weighed = withWeights(LEVERS, weights);
    weighed.forEach((lever, branch) => {
      const error = relativeEnergy(branch, 1 - SHARES[level]!);
      const factor = error / LEVERS[branch]!.levels[level]!.loss;
      lever.levels.forEach(({ cost, loss }, at) => {
        const before = LEVERS[branch]!.levels[at]!;
        assert.equal(cost, before.cost);
        assert.ok(Math.abs(loss - factor * before.loss) <= 1e-5 * factor, `${loss} at ${at}`);
      });
    });
    const [large, small] = weighed.map(({ levels }) => levels[2]!.loss);
    assert.ok(large! > 100 * small!, `${large} and ${small}`);
  }
});

test("lever weights: what loses nothing is not run, and what is ruined still has a number", async () => {
  const harmless = LEVERS.map((lever) => ({
    ...lever,
    levels: lever.levels.map((level) => ({ ...level, loss: 0 })),
  }));
  const never = () => Promise.reject(new Error("built for nothing"));
  const options = {
    origin: network(),
    share: 0.5,
    environment: environmentOf(engine, "", calibration),
  };
  const ones = await weighLevers(harmless, { ...options, build: never });
  assert.deepEqual(ones, [1, 1]);
  assert.deepEqual(withWeights(LEVERS, ones), LEVERS);
  const ruined = (choice: readonly number[]) => {
    const graph = network();
    const weight = `w_${BRANCHES[choice.findIndex((level) => level > 0)]}`;
    const values = new Float32Array(WIDTH * WIDTH).fill(Number.MAX_VALUE);
    return Promise.resolve(replaceInitializer(graph, weight, floatTensor([WIDTH, WIDTH], values)));
  };
  for (const weight of await weighLevers(LEVERS, { ...options, build: ruined })) {
    assert.ok(Number.isFinite(weight) && weight >= 1e6, `${weight}`);
  }
});
