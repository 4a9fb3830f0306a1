import assert from "node:assert/strict";
import { test } from "node:test";
import { type ChannelGroup, findChannelGroups } from "../../agent/onnx/channel-groups.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import {
  findPrunableLayers,
  readWeightMatrix,
  writeWeightMatrix,
} from "../../agent/onnx/prunable-layers.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { assertCutEqualsMask } from "./channel-cuts.helpers.ts";
import { foldedBenchGraph } from "./folded-graph.helpers.ts";
import { randomValues } from "./run-graph.helpers.ts";

/** Units of the groups of each kind, in the order of the network. */
interface Expected {
  readonly internal: readonly number[];
  readonly heads?: readonly number[];
  readonly residual?: readonly number[];
  /** Layers refused beside the classifier, each with what its reason must say. */
  readonly refused?: readonly (readonly [string, RegExp])[];
}

function times(count: number, ...units: number[]): number[] {
  return Array.from({ length: count }, () => units).flat();
}

const LAYER_NORM = /LayerNormalization ".*" takes statistics over all of them/;
const SHUFFLE = /Reshape ".*" cuts \[\d+,\d+,\d+\] into \[2,/;

/** MobileNetV2: stem, first block's projection, hidden widths, last projection, features. */
const MOBILENET_V2: Expected = {
  internal: [
    32,
    16,
    96,
    ...times(2, 144),
    ...times(3, 192),
    ...times(4, 384),
    ...times(3, 576),
    ...times(3, 960),
    320,
    1280,
  ],
  residual: [24, 32, 64, 96, 160],
};

const RESNET: Expected = {
  // The stem, then two inner widths of each bottleneck.
  internal: [16, ...times(4, 16), ...times(4, 32), ...times(4, 64), ...times(4, 128)],
  residual: [64, 128, 256, 512],
};

const DEIT: Expected = {
  heads: times(4, 3),
  internal: times(4, 384),
  refused: [["/patch/Conv", /takes statistics over all of them/]],
};

const EXPECTED: Record<string, Expected> = {
  // The stream is padded with zeros where it widens: one stream of three widths.
  "models/cifar_resnet20": {
    internal: [...times(3, 16), ...times(3, 32), ...times(3, 64)],
    residual: [64],
  },
  "models/cifar_resnet56": {
    internal: [...times(9, 16), ...times(9, 32), ...times(9, 64)],
    residual: [64],
  },
  "models/efficientnet_b0_imagenet1k": {
    // Stem, squeeze-excite width, projection; then hidden and squeeze-excite width of each block.
    internal: [
      32,
      8,
      16,
      96,
      4,
      ...times(2, 144, 6),
      ...times(2, 240, 10),
      ...times(3, 480, 20),
      ...times(3, 672, 28),
      ...times(4, 1152, 48),
      320,
      1280,
    ],
    residual: [24, 40, 80, 112, 192],
  },
  "models/mobilenetv1_0.25_imagenet1k": {
    internal: [8, 16, 32, 32, 64, 64, ...times(6, 128), 256, 256],
  },
  "models/mobilenetv2_1.0_imagenet1k": MOBILENET_V2,
  "models/mobilenetv2_inat_bird": MOBILENET_V2,
  "models/squeezenet1.1_imagenet1k": {
    // Squeeze width and both expand widths of each fire module.
    internal: [
      64,
      ...times(2, 16, 64, 64),
      ...times(2, 32, 128, 128),
      ...times(2, 48, 192, 192),
      ...times(2, 64, 256, 256),
    ],
  },
  "models/vit_tiny_patch16_224_imagenet1k": {
    heads: times(12, 3),
    internal: times(12, 768),
    refused: [["/patch/Conv", LAYER_NORM]],
  },
  "graphs/convnext_small_like_opset17": {
    internal: [96, 96, 192, 192, ...times(3, 384), 768, 768],
    refused: [
      ["/features/features.0/features.0.0/Conv", LAYER_NORM],
      ["/features/features.2/features.2.1/Conv", LAYER_NORM],
      ["/features/features.4/features.4.1/Conv", LAYER_NORM],
      ["/features/features.6/features.6.1/Conv", LAYER_NORM],
    ],
  },
  "graphs/deit_small_like_opset13": DEIT,
  "graphs/deit_small_like_opset17": DEIT,
  "graphs/mobilenet_v3_small_opset17": {
    internal: [
      16, 8, 16, 72, 88, 96, 24, 240, 64, 240, 64, 120, 32, 144, 40, 288, 72, 576, 144, 576, 144,
      576, 1024,
    ],
    residual: [24, 40, 48, 96],
  },
  "graphs/resnet_bottleneck_small_opset17": RESNET,
  "graphs/resnet_bottleneck_small_unfused_bn_opset13": RESNET,
  "graphs/shufflenet_v2_x0_5_opset17": {
    internal: [...times(5, 24), ...times(8, 48), ...times(4, 96), 1024],
    refused: [
      ["/stage2/stage2.0/branch1/branch1.2/Conv", SHUFFLE],
      ["/stage2/stage2.3/branch2/branch2.5/Conv", SHUFFLE],
      ["/stage3/stage3.0/branch1/branch1.2/Conv", SHUFFLE],
      ["/stage3/stage3.7/branch2/branch2.5/Conv", SHUFFLE],
      ["/stage4/stage4.0/branch1/branch1.2/Conv", SHUFFLE],
      ["/stage4/stage4.3/branch2/branch2.5/Conv", SHUFFLE],
    ],
  },
  "graphs/torchvision_vit_small_like_opset17": {
    heads: times(3, 3),
    internal: times(3, 384),
    refused: [["/conv_proj/Conv", LAYER_NORM]],
  },
};

function unitsOf(groups: readonly ChannelGroup[], kind: ChannelGroup["kind"]): number[] {
  return groups.flatMap((group) => (group.kind === kind ? [group.units] : []));
}

/** torchvision starts a classifier with zeros, behind which every network does the same. */
function withoutZeroLayers(graph: Graph): Graph {
  return findPrunableLayers(graph).reduce((g, layer) => {
    const W = readWeightMatrix(g, layer);
    return W.some((w) => w !== 0) ? g : writeWeightMatrix(g, layer, randomValues(W.length, 3));
  }, graph);
}

for (const [name, expected] of Object.entries(EXPECTED)) {
  const absent = benchPath(`${name}.onnx`) === undefined;
  test(`channel groups: ${name} has those of its architecture, and cut ones equal masked ones`, {
    skip: absent && BENCH_ABSENT,
  }, async () => {
    const graph = await foldedBenchGraph(name);
    const { groups, refused } = findChannelGroups(graph);
    assert.deepEqual(unitsOf(groups, "internal"), expected.internal);
    assert.deepEqual(unitsOf(groups, "heads"), expected.heads ?? []);
    assert.deepEqual(unitsOf(groups, "residual"), expected.residual ?? []);
    assert.equal(new Set(groups.map(({ id }) => id)).size, groups.length);
    const others = refused.filter(({ reason }) => !/^they are the output/.test(reason));
    assert.equal(others.length, refused.length - 1, "the classifier alone makes the output");
    const reasons = expected.refused ?? [];
    assert.deepEqual(
      others.map((r) => r.name),
      reasons.map(([layer]) => layer),
    );
    others.forEach(({ reason }, i) => {
      assert.match(reason, reasons[i]![1]);
    });
    const cut = await assertCutEqualsMask(withoutZeroLayers(graph), groups);
    const [before, after] = [countParameters(graph).parameters, countParameters(cut).parameters];
    assert.ok(after < 0.95 * before, `${before} → ${after}`);
  });
}
