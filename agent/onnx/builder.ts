import { create } from "@bufbuild/protobuf";
import { GraphProtoSchema, ModelProtoSchema } from "onnx-buf";
import type { Attribute, Dim, Graph, Node, ValueInfo } from "./graph.ts";
import { DataType, type Tensor } from "./tensor.ts";

/** What {@link node} takes for an attribute: an integer number is an int, any other a float. */
export type AttributeValue = number | string | readonly number[] | Tensor | Attribute;

/**
 * A node of the standard operator set, or of the one that stands before the operator's last dot:
 * `com.microsoft.nchwc.Conv`.
 *
 * Whole numbers become `int`, other numbers `float`: for a float attribute that happens to be
 * whole (`alpha: 1`) pass `{ type: "float", value: 1 }`.
 */
export function node(
  opType: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Readonly<Record<string, AttributeValue>> = {},
  name = outputs[0] ?? "",
): Node {
  const entries = Object.entries(attributes).map(
    ([key, value]) => [key, attribute(value)] as const,
  );
  const dot = opType.lastIndexOf(".");
  return {
    name,
    opType: opType.slice(dot + 1),
    domain: opType.slice(0, Math.max(dot, 0)),
    inputs,
    outputs,
    attributes: new Map(entries),
  };
}

function attribute(value: AttributeValue): Attribute {
  if (typeof value === "number") return { type: Number.isInteger(value) ? "int" : "float", value };
  if (typeof value === "string") return { type: "string", value };
  if (isList(value)) return { type: value.every(Number.isInteger) ? "ints" : "floats", value };
  return "dataType" in value ? { type: "tensor", value } : value;
}

function isList(value: object): value is readonly number[] {
  return Array.isArray(value);
}

/** A float32 value of the given shape; null dims: rank unknown. */
export function floatValue(name: string, dims: readonly Dim[] | null): ValueInfo {
  return { name, dataType: DataType.FLOAT, dims };
}

/** The parts of a graph; see {@link buildModel}. */
export interface GraphParts {
  readonly inputs: readonly ValueInfo[];
  readonly outputs: readonly ValueInfo[];
  readonly nodes: readonly Node[];
  readonly initializers?: Readonly<Record<string, Tensor>> | ReadonlyMap<string, Tensor>;
  /** Version of the standard operator set; default 17. */
  readonly opset?: number;
  /** Default 8, which every runtime of the last years reads. */
  readonly irVersion?: number;
  readonly name?: string;
}

/** Puts a graph together; nodes must already be in order. Write it with `writeGraph`. */
export function buildModel(parts: GraphParts): Graph {
  const { initializers = {} } = parts;
  const name = parts.name ?? "taco";
  return {
    name,
    nodes: [...parts.nodes],
    inputs: [...parts.inputs],
    outputs: [...parts.outputs],
    valueInfos: new Map(),
    initializers: new Map(
      initializers instanceof Map ? initializers : Object.entries(initializers),
    ),
    opset: parts.opset ?? 17,
    irVersion: parts.irVersion ?? 8,
    shell: create(ModelProtoSchema, {
      producerName: "taco-agent",
      graph: create(GraphProtoSchema, { name }),
    }),
  };
}
