import { create } from "@bufbuild/protobuf";
import {
  type AttributeProto,
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  GraphProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "onnx-buf";
import { decodeModel, encodeModel, type Model } from "./codec.ts";
import { sparseFromProto, sparseToProto } from "./sparse-tensor.ts";
import { type DataType, type Tensor, tensorFromProto, tensorToProto } from "./tensor.ts";

/** One attribute of a node. `other` keeps what code here never reads: subgraphs, references. */
export type Attribute =
  | { readonly type: "int" | "float"; readonly value: number }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "ints" | "floats"; readonly value: readonly number[] }
  | { readonly type: "strings"; readonly value: readonly string[] }
  | { readonly type: "tensor"; readonly value: Tensor }
  | { readonly type: "other"; readonly proto: AttributeProto };

/** One operation. An empty input or output name stands for an optional one that is left out. */
export interface Node {
  readonly name: string;
  readonly opType: string;
  /** "" is the standard operator set. */
  readonly domain: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, Attribute>;
  /** The message it was read from: keeps what this view does not know. */
  readonly shell?: NodeProto;
}

/** The operator of a node with its set before it: `Conv`, `com.microsoft.nchwc.Conv`. */
export function qualifiedName({ domain, opType }: Node): string {
  return domain === "" ? opType : `${domain}.${opType}`;
}

/** Size of one dimension: a number, the name of a variable, or null where nothing is stated. */
export type Dim = number | string | null;

/** Name, type and shape of a value. */
export interface ValueInfo {
  readonly name: string;
  readonly dataType: DataType;
  /** null where not even the rank is stated. */
  readonly dims: readonly Dim[] | null;
  /** Set for what is no plain tensor (sequence, map), which is kept as it is. */
  readonly shell?: ValueInfoProto;
}

/**
 * A model as plain data, for code that looks at it and changes it. Functions that edit return a
 * new graph that shares unchanged nodes and tensors with the old one; none changes its argument.
 */
export interface Graph {
  readonly name: string;
  /** In an order in which every value is made before it is used. */
  readonly nodes: readonly Node[];
  /** What the caller must feed: inputs that have an initializer are not among them. */
  readonly inputs: readonly ValueInfo[];
  readonly outputs: readonly ValueInfo[];
  /** Stated types of values inside; often empty. */
  readonly valueInfos: ReadonlyMap<string, ValueInfo>;
  readonly initializers: ReadonlyMap<string, Tensor>;
  /** Version of the standard operator set. */
  readonly opset: number;
  readonly irVersion: number;
  /** The message it was read from, for what this view does not know (metadata, functions). */
  readonly shell: Model;
}

/** Versions of ONNX before which every initializer had to be listed as an input too. */
const IR_WITH_FREE_INITIALIZERS = 4;

/**
 * Reads an ONNX file as a graph.
 *
 * @throws {RangeError} if the bytes are no valid model, or need external data.
 */
export function readGraph(bytes: Uint8Array): Graph {
  return toGraph(decodeModel(bytes));
}

/** Writes a graph as an ONNX file. */
export function writeGraph(graph: Graph): Uint8Array<ArrayBuffer> {
  return encodeModel(toModel(graph));
}

/**
 * The graph of a decoded model.
 *
 * @throws {RangeError} if the model has no graph, no standard opset or inconsistent tensors.
 */
export function toGraph(model: Model): Graph {
  const proto = model.graph;
  if (proto === undefined) throw new RangeError("expected a model with a graph, got none");
  const initializers = new Map(proto.initializer.map((t) => [t.name, tensorFromProto(t)]));
  for (const sparse of proto.sparseInitializer) initializers.set(...sparseFromProto(sparse));
  const standard = model.opsetImport.find(({ domain }) => domain === "" || domain === "ai.onnx");
  if (standard === undefined) {
    throw new RangeError("expected an import of the standard operator set, got none");
  }
  return {
    name: proto.name,
    nodes: proto.node.map(nodeFromProto),
    inputs: proto.input.filter((v) => !initializers.has(v.name)).map(valueFromProto),
    outputs: proto.output.map(valueFromProto),
    valueInfos: new Map(proto.valueInfo.map((v) => [v.name, valueFromProto(v)])),
    initializers,
    opset: Number(standard.version),
    irVersion: Number(model.irVersion),
    shell: { ...model, graph: { ...proto, ...NOTHING } },
  };
}

/** What a graph holds itself, its shell does not. */
const NOTHING = { node: [], initializer: [], sparseInitializer: [], input: [], output: [] };

/** The model of a graph; everything that the graph was read with and does not know is in it. */
export function toModel(graph: Graph): Model {
  const { shell } = graph;
  const values = [...graph.inputs];
  const all = [...graph.initializers];
  if (graph.irVersion < IR_WITH_FREE_INITIALIZERS) {
    for (const [name, { dims, dataType }] of graph.initializers) {
      values.push({ name, dataType, dims });
    }
  }
  return {
    ...shell,
    irVersion: BigInt(graph.irVersion),
    opsetImport: [
      create(OperatorSetIdProtoSchema, { version: BigInt(graph.opset) }),
      ...shell.opsetImport.filter(({ domain }) => domain !== "" && domain !== "ai.onnx"),
    ],
    graph: {
      ...(shell.graph ?? create(GraphProtoSchema)),
      name: graph.name,
      node: graph.nodes.map(nodeToProto),
      initializer: all.filter(([, t]) => !t.sparse).map(([name, t]) => tensorToProto(name, t)),
      sparseInitializer: all.filter(([, t]) => t.sparse).map(([name, t]) => sparseToProto(name, t)),
      input: values.map(valueToProto),
      output: graph.outputs.map(valueToProto),
      valueInfo: [...graph.valueInfos.values()].map(valueToProto),
    },
  };
}

function nodeFromProto(proto: NodeProto): Node {
  return {
    name: proto.name,
    opType: proto.opType,
    domain: proto.domain === "ai.onnx" ? "" : proto.domain,
    inputs: proto.input,
    outputs: proto.output,
    attributes: new Map(proto.attribute.map((a) => [a.name, attributeFromProto(a)])),
    shell: proto,
  };
}

function nodeToProto(node: Node): NodeProto {
  return {
    ...(node.shell ?? create(NodeProtoSchema)),
    name: node.name,
    opType: node.opType,
    domain: node.domain,
    input: [...node.inputs],
    output: [...node.outputs],
    attribute: [...node.attributes].map(([name, a]) => attributeToProto(name, a)),
  };
}

const decodeText = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const encodeText = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);

function attributeFromProto(proto: AttributeProto): Attribute {
  const other: Attribute = { type: "other", proto };
  if (proto.refAttrName !== "" || proto.$unknown) return other;
  switch (proto.type) {
    case AttributeType.INT:
      return isSafe(proto.i) ? { type: "int", value: Number(proto.i) } : other;
    case AttributeType.INTS:
      return proto.ints.every(isSafe) ? { type: "ints", value: proto.ints.map(Number) } : other;
    case AttributeType.FLOAT:
      return { type: "float", value: proto.f };
    case AttributeType.FLOATS:
      return { type: "floats", value: proto.floats };
    case AttributeType.STRING:
      return { type: "string", value: decodeText(proto.s) };
    case AttributeType.STRINGS:
      return { type: "strings", value: proto.strings.map(decodeText) };
    case AttributeType.TENSOR:
      return proto.t ? { type: "tensor", value: tensorFromProto(proto.t) } : other;
    default:
      return other;
  }
}

function isSafe(value: bigint): boolean {
  return Number.isSafeInteger(Number(value));
}

function attributeToProto(name: string, attribute: Attribute): AttributeProto {
  switch (attribute.type) {
    case "int":
      return make(name, AttributeType.INT, { i: BigInt(attribute.value) });
    case "ints":
      return make(name, AttributeType.INTS, { ints: attribute.value.map(BigInt) });
    case "float":
      return make(name, AttributeType.FLOAT, { f: attribute.value });
    case "floats":
      return make(name, AttributeType.FLOATS, { floats: [...attribute.value] });
    case "string":
      return make(name, AttributeType.STRING, { s: encodeText(attribute.value) });
    case "strings":
      return make(name, AttributeType.STRINGS, { strings: attribute.value.map(encodeText) });
    case "tensor":
      return make(name, AttributeType.TENSOR, { t: tensorToProto("", attribute.value) });
    case "other":
      return attribute.proto;
  }
}

function make(name: string, type: AttributeType, value: Partial<AttributeProto>): AttributeProto {
  return { ...create(AttributeProtoSchema, { name, type }), ...value };
}

function valueFromProto(proto: ValueInfoProto): ValueInfo {
  const type = proto.type?.value;
  if (type?.case !== "tensorType") {
    return { name: proto.name, dataType: 0 as DataType, dims: null, shell: proto };
  }
  const dims = type.value.shape?.dim.map(({ value }) => {
    if (value.case === "dimValue") return Number(value.value);
    return value.case === "dimParam" && value.value !== "" ? value.value : null;
  });
  return { name: proto.name, dataType: type.value.elemType as DataType, dims: dims ?? null };
}

function valueToProto(info: ValueInfo): ValueInfoProto {
  if (info.shell) return { ...info.shell, name: info.name };
  const tensor = create(TypeProto_TensorSchema, { elemType: info.dataType });
  if (info.dims) {
    const dim = info.dims.map((size) => {
      const proto = create(TensorShapeProto_DimensionSchema);
      if (typeof size === "number") proto.value = { case: "dimValue", value: BigInt(size) };
      else if (size !== null) proto.value = { case: "dimParam", value: size };
      return proto;
    });
    tensor.shape = create(TensorShapeProtoSchema, { dim });
  }
  const type = create(TypeProtoSchema, { value: { case: "tensorType", value: tensor } });
  return create(ValueInfoProtoSchema, { name: info.name, type });
}

/** An integer attribute, or `fallback` (the operator's default) where it is not set. */
export function intAttribute(node: Node, name: string, fallback: number): number {
  const attribute = node.attributes.get(name);
  return attribute?.type === "int" ? attribute.value : fallback;
}

/** A float attribute, or `fallback` where it is not set. */
export function floatAttribute(node: Node, name: string, fallback: number): number {
  const attribute = node.attributes.get(name);
  return attribute?.type === "float" ? attribute.value : fallback;
}

/** A list of integers, or `fallback` where it is not set. */
export function intsAttribute(
  node: Node,
  name: string,
  fallback: readonly number[],
): readonly number[] {
  const attribute = node.attributes.get(name);
  return attribute?.type === "ints" ? attribute.value : fallback;
}

/** A text attribute, or `fallback` where it is not set. */
export function stringAttribute(node: Node, name: string, fallback: string): string {
  const attribute = node.attributes.get(name);
  return attribute?.type === "string" ? attribute.value : fallback;
}
