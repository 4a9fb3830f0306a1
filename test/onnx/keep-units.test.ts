import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import {
  type ChannelGroup,
  type ChannelGroups,
  findChannelGroups,
} from "../../agent/onnx/channel-groups.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { keepUnits } from "../../agent/onnx/keep-units.ts";
import { findPrunableLayers, writeBias } from "../../agent/onnx/prunable-layers.ts";
import { floatTensor, int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";
import {
  assertCutEqualsMask,
  outputDifference,
  withMaskedConsumers,
} from "./channel-cuts.helpers.ts";
import { folded } from "./folded-graph.helpers.ts";
import { randomNetwork } from "./random-networks.helpers.ts";
import { randomValues } from "./run-graph.helpers.ts";

/** Constants of a small network: shapes get random values, lists become int64. */
interface Constants {
  readonly weights: Readonly<Record<string, readonly number[]>>;
  readonly lists?: Readonly<Record<string, readonly number[]>>;
}

/** A network from `input` [N, …] to `output`. */
function network(
  input: readonly number[],
  nodes: readonly Node[],
  { weights, lists = {} }: Constants,
  opset = 17,
): Graph {
  const initializers = new Map<string, Tensor>();
  Object.entries(weights).forEach(([name, dims], i) => {
    const count = dims.reduce((a, b) => a * b, 1);
    // Variances of a BatchNormalization must be positive.
    const values = randomValues(count, 100 + i).map((v) => (name === "variance" ? v * v + 0.1 : v));
    initializers.set(name, floatTensor(dims, values));
  });
  for (const [name, values] of Object.entries(lists)) {
    initializers.set(name, int64Tensor([values.length], values));
  }
  return buildModel({
    inputs: [floatValue("input", ["N", ...input])],
    outputs: [floatValue("output", null)],
    nodes,
    initializers,
    opset,
  });
}

const same = { pads: [1, 1, 1, 1] };

function groupOf({ groups, refused }: ChannelGroups, id: string): ChannelGroup {
  const group = groups.find((g) => g.id === id);
  assert.ok(group, `no group "${id}"; refused: ${JSON.stringify(refused)}`);
  return group;
}

/** Checks the groups of a network (`id kind units`), and that cutting them equals masking. */
function assertGroups(graph: Graph, expected: readonly string[]): Promise<Graph> {
  const found = findChannelGroups(graph);
  const names = found.groups.map(({ id, kind, units }) => `${id} ${kind} ${units}`);
  assert.deepEqual(names, expected, JSON.stringify(found.refused));
  return assertCutEqualsMask(graph, found.groups, { share: 0.5 });
}

test("cut: a grouped convolution loses whole groups, with what they read and make", async () => {
  const graph = network(
    [3, 6, 6],
    [
      node("Conv", ["input", "w1", "b1"], ["a"]),
      node("Relu", ["a"], ["r"]),
      node("Conv", ["r", "w2", "b2"], ["b"], { ...same, group: 4 }),
      node("Conv", ["b", "w3"], ["output"]),
    ],
    { weights: { w1: [8, 3, 1, 1], b1: [8], w2: [12, 2, 3, 3], b2: [12], w3: [5, 12, 1, 1] } },
  );
  const cut = await assertGroups(graph, ["a internal 4"]);
  assert.deepEqual(cut.initializers.get("w2")!.dims, [6, 2, 3, 3]);
  assert.deepEqual(cut.nodes[2]!.attributes.get("group"), { type: "int", value: 2 });
});

test("cut: a depthwise convolution of two outputs a channel follows its input", async () => {
  const graph = network(
    [3, 6, 6],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("Conv", ["a", "w2"], ["b"], { ...same, group: 4 }),
      node("Conv", ["b", "w3"], ["output"]),
    ],
    { weights: { w1: [4, 3, 1, 1], w2: [8, 1, 3, 3], w3: [5, 8, 1, 1] } },
  );
  const { producers } = groupOf(findChannelGroups(graph), "a");
  assert.deepEqual(
    producers.map(({ layer, rows }) => [layer, rows[1]]),
    [
      ["a", [1]],
      ["b", [2, 3]],
    ],
  );
  await assertGroups(graph, ["a internal 4"]);
});

test("cut: branches behind a Concat are groups of their own, found anew after each other", async () => {
  const graph = network(
    [3, 6, 6],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("Conv", ["input", "w2"], ["b"]),
      node("Concat", ["a", "b", "a"], ["c"], { axis: 1 }),
      node("Relu", ["c"], ["r"]),
      node("Conv", ["r", "w3"], ["output"], same),
    ],
    { weights: { w1: [4, 3, 1, 1], w2: [6, 3, 1, 1], w3: [5, 14, 3, 3] } },
  );
  const { consumers } = groupOf(findChannelGroups(graph), "b");
  assert.deepEqual(consumers[0]!.columns[0], [36, 37, 38, 39, 40, 41, 42, 43, 44]);
  const cut = await assertGroups(graph, ["a internal 4", "b internal 6"]);
  assert.deepEqual(cut.initializers.get("w3")!.dims, [5, 7, 3, 3]);
});

test("cut: a residual stream loses the same channels at every layer", async () => {
  const graph = network(
    [3, 6, 6],
    [
      node("Conv", ["input", "w1", "b1"], ["x"]),
      node("Conv", ["x", "w2"], ["h"]),
      node("Relu", ["h"], ["hr"]),
      node("Conv", ["hr", "w3"], ["f"]),
      node("Add", ["x", "f"], ["y"]),
      node("GlobalAveragePool", ["y"], ["p"]),
      node("Flatten", ["p"], ["features"]),
      node("Gemm", ["features", "w4", "b4"], ["output"], { transB: 1 }),
    ],
    {
      weights: {
        w1: [6, 3, 1, 1],
        b1: [6],
        w2: [8, 6, 1, 1],
        w3: [6, 8, 1, 1],
        w4: [5, 6],
        b4: [5],
      },
    },
  );
  await assertGroups(graph, ["x residual 6", "h internal 8"]);
});

test("cut: readers of one shared constant that shrink get a copy, the others keep it", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1", "shared"], ["a"]),
      node("Relu", ["a"], ["r"]),
      node("Conv", ["r", "w2", "shared"], ["b"]),
      node("Relu", ["b"], ["s"]),
      node("Conv", ["s", "w3", "shared"], ["output"]),
    ],
    { weights: { w1: [4, 3, 1, 1], shared: [4], w2: [4, 4, 1, 1], w3: [4, 4, 1, 1] } },
  );
  const cut = await assertGroups(graph, ["a internal 4", "b internal 4"]);
  assert.deepEqual(cut.initializers.get("shared")!.dims, [4]);
});

for (const opset of [11, 13, 18]) {
  test(`cut: halves of a gated unit shrink alike, and the Split gets sizes (opset ${opset})`, async () => {
    const attributes = { axis: 1, ...(opset === 18 ? { num_outputs: 2 } : {}) };
    const graph = network(
      [3, 4, 4],
      [
        node("Conv", ["input", "w1", "b1"], ["a"]),
        node("Split", ["a"], ["left", "right"], attributes),
        node("Sigmoid", ["right"], ["gate"]),
        node("Mul", ["left", "gate"], ["m"]),
        node("Conv", ["m", "w2"], ["output"]),
      ],
      { weights: { w1: [12, 3, 1, 1], b1: [12], w2: [4, 6, 1, 1] } },
      opset,
    );
    const cut = await assertGroups(graph, ["a internal 6"]);
    assert.deepEqual(cut.initializers.get("w1")!.dims, [6, 3, 1, 1]);
  });
}

test("cut: a Slice moves its bounds, counted from either end", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("Slice", ["a", "zero", "four", "axis"], ["front"]),
      node("Slice", ["a", "minusFive", "minusTwo", "axis"], ["middle"]),
      node("Slice", ["a", "six", "end", "axis"], ["back"]),
      node("Conv", ["front", "w2"], ["f"]),
      node("Conv", ["middle", "w3"], ["m"]),
      node("Conv", ["back", "w4"], ["b"]),
      node("Add", ["f", "m"], ["fm"]),
      node("Add", ["fm", "b"], ["output"]),
    ],
    {
      weights: { w1: [10, 3, 1, 1], w2: [2, 4, 1, 1], w3: [2, 3, 1, 1], w4: [2, 4, 1, 1] },
      lists: {
        zero: [0],
        four: [4],
        minusFive: [-5],
        minusTwo: [-2],
        six: [6],
        end: [2 ** 53],
        axis: [1],
      },
    },
  );
  const group = groupOf(findChannelGroups(graph), "a");
  // Of 10 channels: 0-3 in front, 5-7 in the middle, 6-9 at the back; 4 is read by nobody.
  const keep = [1, 3, 4, 7, 8];
  const cut = keepUnits(graph, group, keep);
  assert.ok((await outputDifference(withMaskedConsumers(graph, group, keep), cut, 2)) < 1e-5);
  assert.deepEqual(cut.initializers.get("w2")!.dims, [2, 2, 1, 1]);
  assert.deepEqual(cut.initializers.get("w3")!.dims, [2, 1, 1, 1]);
  assert.throws(() => keepUnits(graph, group, [4, 8]), /would keep no channel/);
});

test("cut: channels of a Flatten with height and width are columns of the Gemm behind it", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1", "b1"], ["a"]),
      node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["n"]),
      node("PRelu", ["n", "slope"], ["r"]),
      node("MaxPool", ["r"], ["p"], { kernel_shape: [2, 2], strides: [2, 2] }),
      node("Flatten", ["p"], ["flat"]),
      node("Gemm", ["flat", "w2", "b2"], ["output"]),
    ],
    {
      weights: {
        w1: [6, 3, 1, 1],
        b1: [6],
        scale: [6],
        shift: [6],
        mean: [6],
        variance: [6],
        slope: [6, 1, 1],
        w2: [24, 5],
        b2: [5],
      },
    },
  );
  const { consumers } = groupOf(findChannelGroups(graph), "a");
  assert.deepEqual(consumers[0]!.columns[2], [8, 9, 10, 11]);
  await assertGroups(graph, ["a internal 6"]);
});

test("cut: padding, resizing, reshaping and reducing over the picture keep channels apart", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("Pad", ["a", "pads"], ["padded"]),
      node("Resize", ["padded", "", "", "sizes"], ["large"], { mode: "nearest" }),
      node("InstanceNormalization", ["large", "scale", "shift"], ["n"]),
      node("Reshape", ["n", "target"], ["tokens"]),
      node("Transpose", ["tokens"], ["t"], { perm: [0, 2, 1] }),
      node("ReduceMean", ["t"], ["mean"], { axes: [1], keepdims: 1 }),
      node("Sub", ["t", "mean"], ["centered"]),
      node("MatMul", ["centered", "w2"], ["product"]),
      node("Add", ["bias", "product"], ["biased"]),
      node("Unsqueeze", ["biased", "one"], ["u"]),
      node("Squeeze", ["u", "one"], ["output"]),
    ],
    {
      weights: { w1: [5, 3, 1, 1], scale: [9], shift: [9], w2: [9, 7], bias: [7] },
      lists: {
        // Two channels of zeros in front, two behind, and a border around the picture.
        pads: [0, 2, 1, 1, 0, 2, 1, 1],
        sizes: [2, 9, 12, 12],
        target: [0, 9, -1],
        one: [1],
      },
    },
  );
  const group = groupOf(findChannelGroups(graph), "a");
  assert.equal(group.units, 5);
  const cut = keepUnits(graph, group, [0, 2, 4]);
  assert.deepEqual(
    await outputDifference(withMaskedConsumers(graph, group, [0, 2, 4]), cut, 2).then(
      (d) => d < 1e-5,
    ),
    true,
  );
  assert.deepEqual(cut.initializers.get("target")!.data[1], 7n);
  assert.deepEqual(cut.initializers.get("sizes")!.data[1], 7n);
});

/** Attention of 4 heads of 3 over 16 tokens of 5 channels, with q, k and v made in some way. */
function attention(
  make: readonly Node[],
  constants: Constants,
  how: { keys?: string; values?: string } = {},
): Graph {
  const { keys = "k", values = "v" } = how;
  return network(
    [5, 16],
    [
      node("Transpose", ["input"], ["tokens"], { perm: [0, 2, 1] }),
      ...make,
      node("Transpose", [keys], ["kt"], { perm: [0, 1, 3, 2] }),
      node("MatMul", ["q", "kt"], ["products"]),
      node("Mul", ["products", "scale"], ["scaled"]),
      node("Add", ["scaled", "position"], ["logits"]),
      node("Softmax", ["logits"], ["weights"], { axis: -1 }),
      node("MatMul", ["weights", values], ["context"]),
      node("Transpose", ["context"], ["turned"], { perm: [0, 2, 1, 3] }),
      node("Reshape", ["turned", "merge"], ["merged"]),
      node("MatMul", ["merged", "proj"], ["projected"]),
      node("Add", ["projected", "projBias"], ["output"]),
    ],
    {
      weights: {
        ...constants.weights,
        scale: [1],
        // A bias of each head and pair of tokens, as Swin adds it.
        position: [1, 4, 16, 16],
        proj: [12, 5],
        projBias: [5],
      },
      lists: { merge: [0, 0, 12], ...constants.lists },
    },
  );
}

test("heads: of separate query, key and value layers", async () => {
  const linear = (name: string) => [
    node("MatMul", ["tokens", `w${name}`], [`${name}1`]),
    node("Add", [`b${name}`, `${name}1`], [`${name}2`]),
    node("Reshape", [`${name}2`, "heads"], [`${name}3`]),
    node("Transpose", [`${name}3`], [name], { perm: [0, 2, 1, 3] }),
  ];
  const graph = attention([...linear("q"), ...linear("k"), ...linear("v")], {
    weights: { wq: [5, 12], bq: [12], wk: [5, 12], bk: [12], wv: [5, 12], bv: [12] },
    lists: { heads: [0, 16, 4, 3] },
  });
  const group = groupOf(findChannelGroups(graph), "q1");
  assert.deepEqual(
    group.producers.map(({ layer, rows }) => [layer, rows[1]]),
    ["q1", "k1", "v1"].map((layer) => [layer, [3, 4, 5]]),
  );
  assert.deepEqual(group.consumers, [
    { layer: "projected", columns: [0, 1, 2, 3].map((h) => [3 * h, 3 * h + 1, 3 * h + 2]) },
  ]);
  const cut = await assertGroups(graph, ["q1 heads 4"]);
  assert.deepEqual(cut.initializers.get("position")!.dims, [1, 2, 16, 16]);
});

test("heads: of one layer for query, key and value, taken apart by Gather, heads first", async () => {
  const graph = attention(
    [
      node("MatMul", ["tokens", "wqkv"], ["qkv1"]),
      node("Add", ["qkv1", "bqkv"], ["qkv2"]),
      // [N, T, h, 3, d], as some write it, where timm has [N, T, 3, h, d].
      node("Reshape", ["qkv2", "heads"], ["qkv3"]),
      node("Transpose", ["qkv3"], ["qkv4"], { perm: [3, 0, 2, 1, 4] }),
      node("Gather", ["qkv4", "first"], ["q"], { axis: 0 }),
      node("Gather", ["qkv4", "second"], ["k"], { axis: 0 }),
      node("Gather", ["qkv4", "third"], ["v"], { axis: 0 }),
    ],
    { weights: { wqkv: [5, 36], bqkv: [36] }, lists: { heads: [0, 16, 4, 3, 3] } },
  );
  const scalar = (value: number) => int64Tensor([], [value]);
  const initializers = new Map(graph.initializers)
    .set("first", scalar(0))
    .set("second", scalar(1))
    .set("third", scalar(2));
  const whole = { ...graph, initializers };
  const { producers } = groupOf(findChannelGroups(whole), "qkv1");
  assert.deepEqual(producers[0]!.rows[1], [9, 10, 11, 12, 13, 14, 15, 16, 17]);
  await assertGroups(whole, ["qkv1 heads 4"]);
});

test("heads: two query heads that share keys and values go together", async () => {
  const repeat = (name: string) => [
    node("MatMul", ["tokens", `w${name}`], [`${name}1`]),
    node("Reshape", [`${name}1`, "shared"], [`${name}2`]),
    node("Transpose", [`${name}2`], [`${name}3`], { perm: [0, 2, 1, 3] }),
    node("Unsqueeze", [`${name}3`, "two"], [`${name}4`]),
    node("Expand", [`${name}4`, "twice"], [`${name}5`]),
    node("Reshape", [`${name}5`, "all"], [name]),
  ];
  const graph = attention(
    [
      node("MatMul", ["tokens", "wq"], ["q1"]),
      node("Reshape", ["q1", "heads"], ["q2"]),
      node("Transpose", ["q2"], ["q"], { perm: [0, 2, 1, 3] }),
      ...repeat("k"),
      ...repeat("v"),
    ],
    {
      weights: { wq: [5, 12], wk: [5, 6], wv: [5, 6] },
      lists: {
        heads: [0, 16, 4, 3],
        shared: [0, 16, 2, 3],
        two: [2],
        twice: [1, 2, 2, 16, 3],
        all: [-1, 4, 16, 3],
      },
    },
  );
  const cut = await assertGroups(graph, ["q1 heads 2"]);
  assert.deepEqual(cut.initializers.get("wq")!.dims, [5, 6]);
  assert.deepEqual(cut.initializers.get("wk")!.dims, [5, 3]);
});

test("cut: a squeeze-excite branch follows its channels and has a width of its own", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("GlobalAveragePool", ["a"], ["pooled"]),
      node("Conv", ["pooled", "w2", "b2"], ["squeezed"]),
      node("Relu", ["squeezed"], ["r"]),
      node("Conv", ["r", "w3", "b3"], ["expanded"]),
      node("HardSigmoid", ["expanded"], ["gate"]),
      node("Mul", ["gate", "a"], ["gated"]),
      node("Conv", ["gated", "w4"], ["output"]),
    ],
    {
      weights: {
        w1: [8, 3, 1, 1],
        w2: [4, 8, 1, 1],
        b2: [4],
        w3: [8, 4, 1, 1],
        b3: [8],
        w4: [5, 8, 1, 1],
      },
    },
  );
  await assertGroups(graph, ["a internal 8", "squeezed internal 4"]);
});

test("refused: what is in the way is named with its reason", () => {
  const reasonOf = (middle: readonly Node[], constants: Partial<Constants> = {}) => {
    const graph = network(
      [3, 4, 4],
      [node("Conv", ["input", "w1"], ["a"]), ...middle, node("Conv", ["m", "w2"], ["output"])],
      {
        weights: { w1: [6, 3, 1, 1], w2: [4, 6, 1, 1], ...constants.weights },
        lists: constants.lists ?? {},
      },
    );
    const { groups, refused } = findChannelGroups(graph);
    assert.deepEqual(groups, []);
    assert.equal(refused[0]!.name, "a");
    return refused[0]!.reason;
  };
  assert.match(reasonOf([node("Softmax", ["a"], ["m"], { axis: 1 })]), /^Softmax "m" takes stat/);
  assert.match(reasonOf([node("LRN", ["a"], ["m"], { size: 3 })]), /^LRN "m" takes statistics/);
  assert.match(
    reasonOf([
      node("ReduceMean", ["a"], ["mean"], { axes: [1] }),
      node("Sub", ["a", "mean"], ["m"]),
    ]),
    /^ReduceMean "mean" takes statistics/,
  );
  assert.match(
    reasonOf([node("Gather", ["a", "order"], ["m"], { axis: 1 })], {
      lists: { order: [5, 4, 3, 2, 1, 0] },
    }),
    /^Gather "m" picks some of them/,
  );
  assert.match(
    reasonOf(
      [
        node("Reshape", ["a", "split"], ["s"]),
        node("Transpose", ["s"], ["t"], { perm: [0, 2, 1, 3, 4] }),
        node("Reshape", ["t", "merge"], ["m"]),
      ],
      { lists: { split: [-1, 2, 3, 4, 4], merge: [-1, 6, 4, 4] } },
    ),
    /^Reshape "s" cuts \[6,4,4\] into \[2,3,4,4\]/,
  );
  assert.match(reasonOf([node("Einsum", ["a"], ["m"])]), /^Einsum "m" cannot be followed/);
  assert.match(
    reasonOf([node("Add", ["a", "input"], ["m"])], {
      weights: { w1: [3, 3, 1, 1], w2: [4, 3, 1, 1] },
    }),
    /^Add "m" adds or multiplies something of a fixed size/,
  );
});

test("refused: channels that a network hands out, and heads of sizes computed while it runs", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("Shape", ["a"], ["shape"]),
      node("Reshape", ["a", "shape"], ["r"]),
      node("Conv", ["r", "w2"], ["output"]),
    ],
    { weights: { w1: [6, 3, 1, 1], w2: [4, 6, 1, 1] } },
  );
  assert.deepEqual(findChannelGroups(graph).refused, [
    { name: "a", reason: 'Reshape "r" reads a size that is computed while the network runs' },
    { name: "output", reason: 'they are the output "output" of the network' },
  ]);
  await assertGroups(await folded(graph), ["a internal 6"]);
});

test("cut: a group found before a layer was given a bias is found anew", async () => {
  const graph = network(
    [3, 4, 4],
    [
      node("Conv", ["input", "w1"], ["a"]),
      node("Relu", ["a"], ["r"]),
      node("Transpose", ["r"], ["t"], { perm: [0, 2, 3, 1] }),
      node("MatMul", ["t", "w2"], ["b"]),
      node("Relu", ["b"], ["s"]),
      node("MatMul", ["s", "w3"], ["output"]),
    ],
    { weights: { w1: [6, 3, 1, 1], w2: [6, 6], w3: [6, 6] } },
  );
  const { groups } = findChannelGroups(graph);
  let biased = graph;
  for (const name of ["a", "b", "output"]) {
    const layer = findPrunableLayers(biased).find((l) => l.name === name)!;
    biased = writeBias(biased, layer, randomValues(6, 9));
  }
  await assertCutEqualsMask(biased, groups, { share: 0.5 });
});

test("cut: in networks of random wiring, every group cut equals every group masked", async () => {
  const found = { internal: 0, heads: 0, residual: 0 };
  for (let seed = 1; seed <= 25; seed++) {
    const graph = randomNetwork(seed);
    const { groups } = findChannelGroups(graph);
    for (const { kind } of groups) found[kind]++;
    await assertCutEqualsMask(graph, groups, {
      share: 0.75,
      seed,
      batches: [2],
      sameStructure: false,
    });
  }
  assert.ok(found.internal > 75 && found.residual > 10, JSON.stringify(found));
});

test("cut: units must be ascending, within the group and at least one", () => {
  const graph = network(
    [3, 4, 4],
    [node("Conv", ["input", "w1"], ["a"]), node("Conv", ["a", "w2"], ["output"])],
    { weights: { w1: [6, 3, 1, 1], w2: [4, 6, 1, 1] } },
  );
  const group = groupOf(findChannelGroups(graph), "a");
  for (const keep of [[], [3, 2], [1, 1], [6], [-1], [0.5]]) {
    assert.throws(() => keepUnits(graph, group, keep), /expected ascending units in 0\.\.5/);
  }
  assert.equal(keepUnits(graph, group, [0, 1, 2, 3, 4, 5]), graph);
  const cut = keepUnits(graph, group, [0, 1, 2]);
  assert.throws(() => keepUnits(cut, group, [0, 1]), /no group "a" of 6 units \(now 3\)/);
  assert.deepEqual(graph.initializers.get("w1")!.dims, [6, 3, 1, 1], "the argument is as it was");
});
