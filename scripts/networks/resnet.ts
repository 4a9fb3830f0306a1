import type { Graph } from "../../agent/onnx/graph.ts";
import { classifier, Draft, type NetworkOptions } from "./draft.ts";

/** Widths and depths of a residual network (He et al. 2016, table 1). */
export interface ResnetShape extends NetworkOptions {
  readonly kind: "basic" | "bottleneck";
  /** Blocks of each stage. */
  readonly depths: readonly number[];
  /** Width of the first stage, doubled at each next one; default 64. */
  readonly width?: number;
}

/** A residual network as torchvision writes it, its batch norms left in. */
export function resnet(name: string, shape: ResnetShape): Graph {
  const draft = new Draft(shape);
  const { kind, depths, width = 64, classes = 1000 } = shape;
  const stem = convNorm(draft, "input", "conv1", { from: 3, to: width, kernel: 7, stride: 2 });
  let x = draft.add("MaxPool", [draft.add("Relu", [stem], "relu")], "maxpool", {
    kernel_shape: [3, 3],
    strides: [2, 2],
    pads: [1, 1, 1, 1],
  });
  let channels = width;
  depths.forEach((depth, stage) => {
    for (let block = 0; block < depth; block++) {
      const inner = width * 2 ** stage;
      const from = channels;
      channels = kind === "basic" ? inner : 4 * inner;
      const stride = stage > 0 && block === 0 ? 2 : 1;
      const label = `layer${stage + 1}.${block}`;
      x = residualBlock(draft, x, label, { kind, from, inner, to: channels, stride });
    }
  });
  const pooled = draft.add("GlobalAveragePool", [x], "avgpool");
  classifier(draft, draft.add("Flatten", [pooled], "flatten", { axis: 1 }), channels, classes);
  return draft.finish(name, classes);
}

interface Block {
  readonly kind: "basic" | "bottleneck";
  readonly from: number;
  readonly inner: number;
  readonly to: number;
  readonly stride: number;
}

/** The last norm is scaled down so that activations stay of one size through all blocks. */
const BRANCH_GAIN = 0.3;

function residualBlock(draft: Draft, x: string, name: string, block: Block): string {
  const { kind, from, inner, to, stride } = block;
  const relu = (input: string) => draft.add("Relu", [input], `${input}/relu`);
  const layer = (input: string, at: number, more: Omit<ConvShape, "kernel">, kernel: number) =>
    convNorm(draft, input, `${name}.conv${at}`, { ...more, kernel });
  let branch: string;
  if (kind === "basic") {
    branch = relu(layer(x, 1, { from, to: inner, stride }, 3));
    branch = layer(branch, 2, { from: inner, to, gain: BRANCH_GAIN }, 3);
  } else {
    branch = relu(layer(x, 1, { from, to: inner }, 1));
    branch = relu(layer(branch, 2, { from: inner, to: inner, stride }, 3));
    branch = layer(branch, 3, { from: inner, to, gain: BRANCH_GAIN }, 1);
  }
  const straight = from === to && stride === 1;
  const skip = straight
    ? x
    : convNorm(draft, x, `${name}.downsample`, { from, to, kernel: 1, stride, gain: Math.SQRT1_2 });
  return relu(draft.add("Add", [branch, skip], `${name}.add`));
}

interface ConvShape {
  readonly from: number;
  readonly to: number;
  readonly kernel: number;
  readonly stride?: number;
  readonly gain?: number;
}

function convNorm(draft: Draft, input: string, name: string, shape: ConvShape): string {
  const { from, to, kernel, stride = 1, gain = 1 } = shape;
  const fanIn = from * kernel * kernel;
  // Half of what a ReLU lets through is zero: √2 puts that back (He et al. 2015, eq. 10).
  const weight = draft.weight(`${name}.weight`, [to, from, kernel, kernel], fanIn, Math.SQRT2);
  const pad = (kernel - 1) / 2;
  const conv = draft.add("Conv", [input, weight], `${name}/Conv`, {
    kernel_shape: [kernel, kernel],
    strides: [stride, stride],
    pads: [pad, pad, pad, pad],
    dilations: [1, 1],
    group: 1,
  });
  const norm = `${name}.bn`;
  return draft.add(
    "BatchNormalization",
    [
      conv,
      draft.uniform(`${norm}.weight`, [to], gain, 0.2 * gain),
      draft.uniform(`${norm}.bias`, [to], 0, 0.1),
      draft.uniform(`${norm}.running_mean`, [to], 0, 0.1),
      draft.uniform(`${norm}.running_var`, [to], 1, 0.3),
    ],
    norm,
    { epsilon: 1e-5, momentum: 0.9 },
  );
}
