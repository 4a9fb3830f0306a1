import { buildModel, floatValue, node } from "../agent/onnx/builder.ts";
import { writeGraph } from "../agent/onnx/graph.ts";
import { floatTensor } from "../agent/onnx/tensor.ts";

/** A classifier with few weights: convolutions → mean of each channel → linear → logits. */
export interface TinyModel {
  /** Names of the classes, one output each. */
  classes: readonly string[];
  /** Side of the square input in pixels. */
  side: number;
  /** Index of the class that wins for every picture, so that models can be told apart. */
  favorite: number;
  /** Makes every logit NaN for every picture. */
  nan?: boolean;
  /** Number of 3×3 convolutions of 16 channels, to make a run take time. */
  convolutions?: number;
}

const CHANNELS = 16;

/** The bytes of a {@link TinyModel}. */
export function tinyModel(model: TinyModel): Uint8Array<ArrayBuffer> {
  const count = model.classes.length;
  const features = model.convolutions ? CHANNELS : 3;
  const nodes = [];
  const initializers: Record<string, ReturnType<typeof floatTensor>> = {};
  let last = "input";
  for (let i = 0; i < (model.convolutions ?? 0); i++) {
    const inputs = i === 0 ? 3 : CHANNELS;
    initializers[`kernel${i}`] = floatTensor(
      [CHANNELS, inputs, 3, 3],
      pattern(CHANNELS * inputs * 9),
    );
    nodes.push(node("Conv", [last, `kernel${i}`], [`conv${i}`], { pads: [1, 1, 1, 1] }));
    last = `conv${i}`;
  }
  nodes.push(
    node("GlobalAveragePool", [last], ["pooled"]),
    node("Flatten", ["pooled"], ["features"], { axis: 1 }),
    node("Gemm", ["features", "weights", "bias"], [model.nan ? "finite" : "logits"]),
  );
  initializers["weights"] = floatTensor([features, count], pattern(features * count));
  initializers["bias"] = floatTensor(
    [count],
    model.classes.map((_, i) => (i === model.favorite ? 4 : i / 100)),
  );
  if (model.nan) {
    initializers["zero"] = floatTensor([1], [0]);
    nodes.push(node("Mul", ["finite", "zero"], ["zeros"]));
    nodes.push(node("Div", ["zeros", "zeros"], ["logits"]));
  }
  return writeGraph(
    buildModel({
      inputs: [floatValue("input", ["N", 3, model.side, model.side])],
      outputs: [floatValue("logits", ["N", count])],
      nodes,
      initializers,
    }),
  );
}

/** Small numbers of both signs that keep chains of convolutions bounded. */
function pattern(count: number): number[] {
  return Array.from({ length: count }, (_, i) => (((i * 7) % 11) - 5) / 200);
}
