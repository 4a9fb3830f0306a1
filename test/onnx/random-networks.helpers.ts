import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { floatTensor, int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { randomValues } from "./run-graph.helpers.ts";

/** A value on the way, with its channels. */
interface Stream {
  readonly name: string;
  readonly channels: number;
}

/**
 * A convolutional network of random wiring, the same for the same seed: convolutions of every
 * grouping, sums, concatenations, slices, gates and activations over whatever was made before.
 */
export function randomNetwork(seed: number): Graph {
  const numbers = Array.from(randomValues(4096, seed), (v) => (v + 1) / 2);
  const below = (count: number): number => Math.floor(numbers.pop()! * count);
  const nodes: Node[] = [];
  const initializers = new Map<string, Tensor>([["axis", int64Tensor([1], [1])]]);
  const weights = (name: string, dims: readonly number[]): string => {
    const count = dims.reduce((a, b) => a * b, 1);
    const scale = 1.5 / Math.sqrt(dims.slice(1).reduce((a, b) => a * b, 1));
    initializers.set(
      name,
      floatTensor(
        dims,
        randomValues(count, seed + initializers.size).map((v) => v * scale),
      ),
    );
    return name;
  };
  const add = (opType: string, inputs: readonly string[], channels: number, attributes = {}) => {
    const name = `${opType}${nodes.length}`;
    nodes.push(node(opType, inputs, [name], attributes));
    return { name, channels };
  };
  const conv = (x: Stream, channels: number, group = 1, kernel = 1): Stream => {
    const at = nodes.length;
    const w = weights(`w${at}`, [channels, x.channels / group, kernel, kernel]);
    const pads = new Array<number>(4).fill((kernel - 1) / 2);
    return add("Conv", [x.name, w, weights(`b${at}`, [channels])], channels, { group, pads });
  };
  const streams: Stream[] = [conv({ name: "input", channels: 3 }, 8)];
  const any = (): Stream => streams[below(streams.length)]!;
  const steps: ((x: Stream) => Stream)[] = [
    (x) => conv(x, 4 * (1 + below(3)), 1, below(2) ? 3 : 1),
    (x) => conv(x, x.channels, x.channels, 3),
    (x) => conv(x, x.channels, 2),
    (x) => add(["Relu", "HardSwish", "Sigmoid"][below(3)]!, [x.name], x.channels),
    (x) => add("AveragePool", [x.name], x.channels, { kernel_shape: [3, 3], pads: [1, 1, 1, 1] }),
    (x) => {
      const y = any();
      return add(
        "Add",
        [x.name, (y.channels === x.channels ? y : conv(y, x.channels)).name],
        x.channels,
      );
    },
    (x) => {
      const y = any();
      return add("Concat", [x.name, y.name], x.channels + y.channels, { axis: 1 });
    },
    (x) => {
      const [start, end] = [below(2), x.channels - 1 - below(2)];
      const bounds = [start, end].map((value, i) => {
        const name = `bound${nodes.length}_${i}`;
        initializers.set(name, int64Tensor([1], [value]));
        return name;
      });
      return conv(add("Slice", [x.name, ...bounds, "axis"], end - start), 8);
    },
    (x) => {
      const pooled = add("GlobalAveragePool", [x.name], x.channels);
      const gate = add("Sigmoid", [conv(conv(pooled, 4), x.channels).name], x.channels);
      return add("Mul", [gate.name, x.name], x.channels);
    },
  ];
  for (let i = 0; i < 12; i++) streams.push(steps[below(steps.length)]!(any()));
  // Everything is read by the classifier, so that every group shows in the output.
  const all = add(
    "Concat",
    streams.map(({ name }) => name),
    streams.reduce((sum, s) => sum + s.channels, 0),
    { axis: 1 },
  );
  const pooled = add("GlobalAveragePool", [conv(all, 6).name], 6);
  nodes.push(node("Flatten", [pooled.name], ["output"]));
  return buildModel({
    inputs: [floatValue("input", ["N", 3, 6, 6])],
    outputs: [floatValue("output", null)],
    nodes,
    initializers,
  });
}
