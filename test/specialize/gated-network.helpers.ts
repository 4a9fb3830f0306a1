import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import type { Calibration } from "../../agent/specialize/environment.ts";

/** Batches of smooth pictures of many contrasts, so that gates have something to react to. */
export function pictures(batches: number, seed: number): Calibration {
  return {
    batches,
    read: (batch) => {
      const random = createRandom(1000 * seed + batch);
      const data = new Float32Array(4 * 3 * 144);
      for (let plane = 0; plane < 12; plane++) {
        const [size, a, b, shift] = [0.3 + random.uniform(), ...[0, 0, 0].map(random.normal)];
        for (let i = 0; i < 144; i++) {
          const wave = Math.sin(a! * (i % 12) + b! * Math.floor(i / 12) + shift!);
          data[plane * 144 + i] = size! * (wave + 0.3 * random.normal());
        }
      }
      return Promise.resolve({ data, dims: [4, 3, 12, 12] });
    },
  };
}

/** Two blocks of expansion, depthwise convolution, squeeze-excite and projection. */
export function gatedNetwork(): Graph {
  const random = createRandom(4);
  const initializers: Record<string, ReturnType<typeof floatTensor>> = {};
  const weight = (name: string, ...dims: number[]): string => {
    const count = dims.reduce((a, b) => a * b, 1);
    const scale = dims.length === 1 ? 0.1 : Math.sqrt((2 * dims[0]!) / count);
    initializers[name] = floatTensor(
      dims,
      Array.from({ length: count }, () => scale * random.normal()),
    );
    return name;
  };
  const conv = (from: string, to: string, dims: readonly number[], attributes = {}): Node =>
    node("Conv", [from, weight(`${to}.W`, ...dims), weight(`${to}.b`, dims[0]!)], [to], attributes);
  const swish = (from: string): Node[] => [
    node("Sigmoid", [from], [`${from}.g`]),
    node("Mul", [from, `${from}.g`], [`${from}.s`]),
  ];
  const same = { pads: [1, 1, 1, 1] };
  const block = (from: string, name: string): Node[] => [
    conv(from, `${name}.e`, [24, 8, 1, 1]),
    ...swish(`${name}.e`),
    conv(`${name}.e.s`, `${name}.d`, [24, 1, 3, 3], { ...same, group: 24 }),
    ...swish(`${name}.d`),
    node("GlobalAveragePool", [`${name}.d.s`], [`${name}.pool`]),
    conv(`${name}.pool`, `${name}.r`, [6, 24, 1, 1]),
    ...swish(`${name}.r`),
    conv(`${name}.r.s`, `${name}.x`, [24, 6, 1, 1]),
    node("Sigmoid", [`${name}.x`], [`${name}.factor`]),
    node("Mul", [`${name}.factor`, `${name}.d.s`], [`${name}.gated`]),
    conv(`${name}.gated`, `${name}.p`, [8, 24, 1, 1]),
    node("Add", [`${name}.p`, from], [name]),
  ];
  const nodes = [
    conv("x", "stem", [8, 3, 3, 3], { ...same, strides: [2, 2] }),
    ...swish("stem"),
    ...block("stem.s", "first"),
    ...block("first", "second"),
    node("GlobalAveragePool", ["second"], ["pooled"]),
    node("Flatten", ["pooled"], ["features"]),
  ];
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("features", ["N", 8])],
    nodes,
    initializers,
  });
}
