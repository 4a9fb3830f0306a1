import assert from "node:assert/strict";
import { test } from "node:test";
import { type AttributeValue, node } from "../../agent/onnx/builder.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, type DifferentiatedCase, randomIn } from "./gradient.helpers.ts";
import { byReference } from "./reference.helpers.ts";
import { randomValues } from "./run-graph.helpers.ts";

type Attributes = Record<string, AttributeValue>;

/** A convolution of random values with a bias. */
function convolution(
  x: readonly number[],
  w: readonly number[],
  attributes: Attributes,
  seed = 1,
): DifferentiatedCase {
  return byReference({
    nodes: [node("Conv", ["x", "w", "b"], ["y"], attributes)],
    inputs: { x: randomIn(x, seed), w: randomIn(w, seed + 1), b: randomIn([w[0]!], seed + 2) },
  });
}

/** Whole numbers from `low` to `high`, seeded. */
function chooser(seed: number): (low: number, high: number) => number {
  const values = randomValues(64, seed);
  let at = 0;
  return (low, high) => low + Math.floor(((values[at++]! + 1) / 2) * (high - low + 1));
}

test("gradient of Conv: random kernels, strides, dilations, pads and groups", async () => {
  for (let seed = 1; seed <= 16; seed++) {
    const choose = chooser(seed);
    const groups = choose(1, 3);
    const [inner, outer] = [choose(1, 2), choose(1, 3)];
    const pair = (low: number, high: number) => [choose(low, high), choose(low, high)];
    const kernel = pair(1, 3);
    const dilations = pair(1, 2);
    const pads = [...pair(0, 2), ...pair(0, 2)];
    const attributes = { group: groups, strides: pair(1, 3), dilations, pads };
    const x = [choose(1, 2), groups * inner, ...pair(5, 7)];
    await assertGradients(convolution(x, [groups * outer, inner, ...kernel], attributes, seed));
  }
});

test("gradient of Conv: depthwise, of any stride, dilation and channel multiplier", async () => {
  for (const [strides, dilations, multiplier, kernel] of [
    [[1, 1], [1, 1], 1, [3, 3]],
    [[1, 1], [2, 1], 1, [3, 5]],
    [[2, 2], [1, 1], 1, [5, 5]],
    [[2, 1], [1, 2], 1, [3, 2]],
    [[1, 1], [1, 1], 2, [3, 3]],
    [[2, 2], [1, 1], 2, [3, 3]],
    [[1, 1], [1, 1], 1, [1, 1]],
  ] as const) {
    const pads = kernel.map((size, i) => Math.floor((dilations[i]! * (size - 1)) / 2));
    const attributes = { group: 4, strides, dilations, pads: [...pads, ...pads] };
    await assertGradients(convolution([2, 4, 6, 7], [4 * multiplier, 1, ...kernel], attributes));
  }
});

test("gradient of Conv: rows and columns that no window reaches get none", async () => {
  await assertGradients(convolution([1, 2, 8, 6], [3, 2, 3, 3], { strides: [3, 2] }));
  await assertGradients(convolution([1, 2, 8, 6], [2, 1, 3, 3], { strides: [3, 2], group: 2 }));
});

test("gradient of Conv: padding that is wider than the kernel", async () => {
  const wide = { pads: [3, 1, 0, 2] };
  await assertGradients(convolution([2, 2, 4, 4], [3, 2, 2, 2], wide));
  await assertGradients(convolution([2, 2, 4, 4], [2, 1, 2, 2], { ...wide, group: 2 }));
  await assertGradients(convolution([2, 2, 4, 4], [3, 2, 1, 1], { pads: [1, 0, 1, 1] }));
});

test("gradient of Conv: 1×1 with strides and groups, and with more weights than pixels", async () => {
  await assertGradients(convolution([2, 4, 5, 4], [6, 2, 1, 1], { group: 2 }));
  await assertGradients(convolution([2, 4, 5, 4], [3, 4, 1, 1], { strides: [2, 2] }));
  await assertGradients(convolution([3, 6, 1, 1], [5, 6, 1, 1], {}));
  await assertGradients(convolution([3, 6, 1, 2], [8, 3, 1, 1], { group: 2 }));
});

test("gradient of Conv: automatic padding is that of the pads it stands for", async () => {
  // 6 rows at stride 2 under 3 taps are padded by 1, 7 columns at stride 3 under 4 by 3.
  for (const [auto_pad, pads] of [
    ["SAME_UPPER", [0, 1, 1, 2]],
    ["SAME_LOWER", [1, 2, 0, 1]],
    ["VALID", [0, 0, 0, 0]],
  ] as const) {
    const strides = [2, 3];
    const stated = convolution([1, 2, 6, 7], [2, 2, 3, 4], { strides, pads });
    const nodes = [node("Conv", ["x", "w", "b"], ["y"], { strides, auto_pad })];
    await assertGradients({ ...stated, nodes });
  }
});

test("gradient of Conv: along one axis", async () => {
  for (const [group, strides, pads] of [
    [1, [1], [1, 1]],
    [4, [2], [2, 1]],
    [2, [3], [0, 0]],
  ] as const) {
    const attributes = { group, strides: [1, ...strides], pads: [0, pads[0], 0, pads[1]] };
    const flat = convolution([2, 4, 1, 9], [4, 4 / group, 1, 3], attributes);
    const lines = ({ dims, data }: { dims: readonly number[]; data: ArrayLike<number> }) => ({
      dims: dims.filter((_, axis) => axis !== 2),
      data,
    });
    const { x, w, b } = flat.inputs;
    await assertGradients({
      nodes: [node("Conv", ["x", "w", "b"], ["y"], { group, strides, pads })],
      inputs: { x: lines(x!), w: lines(w!), b: b! },
      oracle: (inputs) => {
        const planes = inputs.map(({ dims, data }, i) =>
          i === 2 ? { dims, data } : { dims: [dims[0]!, dims[1]!, 1, dims[2]!], data },
        );
        return lines(flat.oracle(planes));
      },
    });
  }
});

test("gradient of Conv: what is not asked for is not built", async () => {
  const { nodes, inputs } = convolution([2, 2, 5, 5], [3, 2, 3, 3], {});
  const { x, ...frozen } = inputs;
  const constants = Object.entries(frozen).map(
    ([name, { dims, data }]) => [name, floatTensor(dims, Float32Array.from(data))] as const,
  );
  const graph = await assertGradients(
    byReference({ nodes, inputs: { x: x! }, constants: Object.fromEntries(constants) }),
  );
  assert.equal(graph.nodes.filter(({ opType }) => opType === "Conv").length, 2);
});
