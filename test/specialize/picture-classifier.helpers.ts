import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import sharp from "sharp";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";

/**
 * A residual classifier of `side × side` pictures with three equal blocks, five classes and a
 * softmax at its end, of random weights.
 */
export function pictureClassifier(seed = 1, side = 32): Graph {
  const random = createRandom(seed);
  const weight = (...dims: number[]) => {
    const fanIn = dims.slice(1).reduce((a, b) => a * b, 1);
    const count = dims.reduce((a, b) => a * b, 1);
    const scale = Math.sqrt(2 / fanIn);
    return floatTensor(
      dims,
      Array.from({ length: count }, () => scale * random.normal()),
    );
  };
  const bias = (count: number) =>
    floatTensor(
      [count],
      Array.from({ length: count }, () => 0.1 * random.normal()),
    );
  const pads = { pads: [1, 1, 1, 1] };
  const block = (from: string, name: string) => [
    node("Conv", [from, `${name}.W1`, `${name}.b1`], [`${name}.a`], pads),
    node("Relu", [`${name}.a`], [`${name}.r`]),
    node("Conv", [`${name}.r`, `${name}.W2`, `${name}.b2`], [`${name}.c`], pads),
    node("Add", [`${name}.c`, from], [`${name}.s`]),
    node("Relu", [`${name}.s`], [name]),
  ];
  const weights = (name: string) => ({
    [`${name}.W1`]: weight(40, 16, 3, 3),
    [`${name}.b1`]: bias(40),
    [`${name}.W2`]: weight(16, 40, 3, 3),
    [`${name}.b2`]: bias(16),
  });
  return buildModel({
    inputs: [floatValue("picture", ["N", 3, side, side])],
    outputs: [floatValue("probabilities", ["N", 5])],
    nodes: [
      node("Conv", ["picture", "stem.W", "stem.b"], ["stem"], { ...pads, strides: [2, 2] }),
      node("Relu", ["stem"], ["first"]),
      ...block("first", "second"),
      ...block("second", "third"),
      ...block("third", "fourth"),
      node("GlobalAveragePool", ["fourth"], ["pooled"]),
      node("Flatten", ["pooled"], ["features"]),
      node("Gemm", ["features", "head.W", "head.b"], ["logits"], { transB: 1 }),
      node("Softmax", ["logits"], ["probabilities"], { axis: 1 }),
    ],
    initializers: {
      "stem.W": weight(16, 3, 3, 3),
      "stem.b": bias(16),
      ...weights("second"),
      ...weights("third"),
      ...weights("fourth"),
      "head.W": weight(5, 16),
      "head.b": bias(5),
    },
  });
}

/** Writes pictures of random blotches into a folder, some of them into one within it. */
export async function writePictures(folder: string, count: number, seed = 1): Promise<void> {
  const random = createRandom(seed);
  await mkdir(join(folder, "more"), { recursive: true });
  for (let i = 0; i < count; i++) {
    const data = Buffer.from(Array.from({ length: 108 }, () => random.integer(256)));
    const path = join(folder, i % 3 === 0 ? "more" : "", `picture-${i}.png`);
    await sharp(data, { raw: { width: 6, height: 6, channels: 3 } })
      .resize(40, 40)
      .png()
      .toFile(path);
  }
}
