import type { Graph } from "../../agent/onnx/graph.ts";
import { classifier, Draft, gelu, layerNorm, linear, type NetworkOptions } from "./draft.ts";

/** Widths and depths of the four stages (Liu et al. 2022, section 3). */
export interface ConvnextShape extends NetworkOptions {
  readonly widths: readonly number[];
  readonly depths: readonly number[];
}

/** A ConvNeXt as torchvision writes it: channels-last LayerNorm between Transposes, LayerScale. */
export function convnext(name: string, shape: ConvnextShape): Graph {
  const draft = new Draft(shape);
  const { widths, depths, classes = 1000 } = shape;
  const stem = conv(draft, "input", "stem", { from: 3, to: widths[0]!, kernel: 4, stride: 4 });
  let x = channelNorm(draft, stem, "stem.norm", widths[0]!);
  widths.forEach((width, stage) => {
    if (stage > 0) {
      const from = widths[stage - 1]!;
      const normal = channelNorm(draft, x, `downsample${stage}.norm`, from);
      x = conv(draft, normal, `downsample${stage}`, { from, to: width, kernel: 2, stride: 2 });
    }
    for (let block = 0; block < depths[stage]!; block++) {
      x = convnextBlock(draft, x, `stages.${stage}.${block}`, width);
    }
  });
  const features = widths.at(-1)!;
  const pooled = draft.add("GlobalAveragePool", [x], "pool");
  const normal = channelNorm(draft, pooled, "head.norm", features);
  classifier(draft, draft.add("Flatten", [normal], "flatten", { axis: 1 }), features, classes);
  return draft.finish(name, classes);
}

function convnextBlock(draft: Draft, x: string, name: string, width: number): string {
  const spread = conv(draft, x, `${name}.dwconv`, {
    from: width,
    to: width,
    kernel: 7,
    groups: width,
  });
  const last = draft.add("Transpose", [spread], `${name}/last`, { perm: [0, 2, 3, 1] });
  const normal = layerNorm(draft, last, `${name}.norm`, width);
  const wide = gelu(draft, linear(draft, normal, `${name}.fc1`, [width, 4 * width]), `${name}.act`);
  const narrow = linear(draft, wide, `${name}.fc2`, [4 * width, width]);
  const first = draft.add("Transpose", [narrow], `${name}/first`, { perm: [0, 3, 1, 2] });
  const scale = draft.uniform(`${name}.layer_scale`, [width, 1, 1], 0.3, 0.1);
  return draft.add("Add", [draft.add("Mul", [scale, first], `${name}/scaled`), x], name);
}

function channelNorm(draft: Draft, x: string, name: string, width: number): string {
  const last = draft.add("Transpose", [x], `${name}/last`, { perm: [0, 2, 3, 1] });
  const normal = layerNorm(draft, last, name, width);
  return draft.add("Transpose", [normal], `${name}/first`, { perm: [0, 3, 1, 2] });
}

interface ConvShape {
  readonly from: number;
  readonly to: number;
  readonly kernel: number;
  readonly stride?: number;
  readonly groups?: number;
}

function conv(draft: Draft, input: string, name: string, shape: ConvShape): string {
  const { from, to, kernel, stride = 1, groups = 1 } = shape;
  const inputs = from / groups;
  const dims = [to, inputs, kernel, kernel];
  const weight = draft.weight(`${name}.weight`, dims, inputs * kernel * kernel);
  const bias = draft.uniform(`${name}.bias`, [to], 0, 0.02);
  const pad = stride === 1 ? (kernel - 1) / 2 : 0;
  return draft.add("Conv", [input, weight, bias], name, {
    kernel_shape: [kernel, kernel],
    strides: [stride, stride],
    pads: [pad, pad, pad, pad],
    dilations: [1, 1],
    group: groups,
  });
}
