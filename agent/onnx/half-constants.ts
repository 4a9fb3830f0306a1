import { node } from "./builder.ts";
import type { Graph, Node } from "./graph.ts";
import { freeName } from "./query.ts";
import { DataType, floatToHalf, halfToFloat, type Tensor } from "./tensor.ts";

/** Values from which on half of their bytes are more than the node that makes them floats again. */
const FEWEST = 64;
/** What float16 rounds a value to, at most, of the largest of its tensor. */
const LARGEST_ERROR = 2 ** -11;

/**
 * Stores float32 constants (biases, positions, factors) as float16 with a Cast behind each, which
 * ONNX Runtime computes once when it loads the model. Tensors that float16 has no range for stay.
 *
 * @param left initializers that stay as they are.
 */
export function halveConstants(graph: Graph, left: ReadonlySet<string>): Graph {
  const initializers = new Map(graph.initializers);
  const casts: Node[] = [];
  const taken = new Set<string>();
  for (const [name, tensor] of graph.initializers) {
    const half = left.has(name) ? null : halved(tensor);
    if (half === null) continue;
    const stored = freeName(graph, `${name}_h`, taken);
    taken.add(stored);
    initializers.delete(name);
    initializers.set(stored, half);
    casts.push(node("Cast", [stored], [name], { to: DataType.FLOAT }, ""));
  }
  return { ...graph, nodes: [...casts, ...graph.nodes], initializers };
}

function halved({ data, dataType, dims }: Tensor): Tensor | null {
  if (dataType !== DataType.FLOAT || !(data instanceof Float32Array)) return null;
  if (data.length < FEWEST) return null;
  const bits = Uint16Array.from(data, floatToHalf);
  let largest = 0;
  for (const value of data) largest = Math.max(largest, Math.abs(value));
  const limit = LARGEST_ERROR * largest;
  if (data.some((value, i) => !(Math.abs(halfToFloat(bits[i]!) - value) <= limit))) return null;
  return { dims, dataType: DataType.FLOAT16, data: bits };
}
