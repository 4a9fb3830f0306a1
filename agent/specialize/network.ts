import { readFile } from "node:fs/promises";
import { AgentError, messageOf } from "../errors.ts";
import { readerBeside } from "../files.ts";
import { constantValues, foldConstants } from "../onnx/constant-folding.ts";
import { removeDeadCode } from "../onnx/dead-code.ts";
import { withDynamicBatch } from "../onnx/dynamic-batch.ts";
import { withExternalData } from "../onnx/external-data.ts";
import { foldShapes, shapeValues } from "../onnx/fold-shapes.ts";
import { type Dim, type Graph, readGraph, type ValueInfo } from "../onnx/graph.ts";
import { featureGraph, findHead, type Head } from "../onnx/head.ts";
import { normalizeGraph } from "../onnx/normalize.ts";
import { withOnlyOutputs } from "../onnx/subgraph.ts";
import { DataType, dataTypeName, floatTensor, int64Tensor, type Tensor } from "../onnx/tensor.ts";
import type { Engine } from "./engine.ts";

/** A classifier taken apart for specializing. */
export interface Network {
  /** The whole network, normalized: free batch, constants as initializers, shapes folded. */
  readonly graph: Graph;
  readonly head: Head;
  /** From the input to `[N, features]`: everything but the classifier. */
  readonly backbone: Graph;
  readonly inputName: string;
  readonly featuresName: string;
  /** False for a graph that can only be run one picture at a time. */
  readonly batched: boolean;
}

/**
 * The bytes of an ONNX file with everything in them, weights in files beside it included.
 *
 * @throws {AgentError} MODEL_INVALID if it cannot be read.
 */
export async function readModelFile(path: string): Promise<Uint8Array> {
  try {
    return withExternalData(await readFile(path), readerBeside(path));
  } catch (error) {
    throw new AgentError("MODEL_INVALID", `${path} cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/**
 * Reads an ONNX classifier and takes it apart.
 *
 * @param size height and width of the input that it will be used with.
 * @throws {AgentError} MODEL_INVALID where the file is no ONNX classifier that this code
 *   understands, saying why.
 */
export async function loadNetwork(
  bytes: Uint8Array,
  size: { readonly height: number; readonly width: number },
  engine: Engine,
): Promise<Network> {
  const graph = await prepare(bytes, size, engine);
  const head = findHead(graph.graph);
  if ("reason" in head) {
    throw new AgentError(
      "MODEL_INVALID",
      `no classifier at the end of the network: ${head.reason}`,
    );
  }
  const { graph: backbone, featuresName } = featureGraph(graph.graph, head);
  const inputName = backbone.inputs[0]?.name ?? "";
  return { graph: graph.graph, head, backbone, inputName, featuresName, batched: graph.batched };
}

async function prepare(
  bytes: Uint8Array,
  size: { readonly height: number; readonly width: number },
  engine: Engine,
): Promise<{ graph: Graph; batched: boolean }> {
  const normalized = await withFoldedConstants(readNormalized(bytes), engine);
  if (normalized.inputs.length !== 1) {
    const names = normalized.inputs.map(({ name }) => name).join(", ");
    throw new AgentError("MODEL_INVALID", `expected one input, a picture; got ${names || "none"}`);
  }
  const sized = withStatedSize(normalized, size);
  const { graph, problems } = withDynamicBatch(sized);
  if (problems.length > 0) return { graph: sized, batched: false };
  return { graph: await foldMeasuredShapes(graph, size, engine), batched: true };
}

function readNormalized(bytes: Uint8Array): Graph {
  let graph: Graph;
  try {
    graph = normalizeGraph(readGraph(bytes));
  } catch (error) {
    throw new AgentError("MODEL_INVALID", `no readable ONNX model: ${messageOf(error)}`, {
      cause: error,
    });
  }
  // What a Cast makes floats of was only stored so; folding computes it.
  const stored = new Set(graph.nodes.flatMap((n) => (n.opType === "Cast" ? n.inputs : [])));
  const half = [...graph.initializers].find(
    ([name, { dataType }]) =>
      (dataType === DataType.FLOAT16 || dataType === DataType.BFLOAT16) && !stored.has(name),
  );
  if (half === undefined) return graph;
  throw new AgentError(
    "MODEL_INVALID",
    `the weights "${half[0]}" are ${dataTypeName(half[1].dataType)}: export the model again in float32`,
  );
}

/** Has ONNX Runtime work out what exporters compute from constants alone. */
async function withFoldedConstants(graph: Graph, engine: Engine): Promise<Graph> {
  const names = constantValues(graph);
  if (names.length === 0) return graph;
  const constants = { ...withOnlyOutputs(graph, names), inputs: [] };
  const session = await engine.open(removeDeadCode(constants));
  try {
    const results = await session.run({});
    const tensors = Object.entries(results).map(([name, { data, dims }]) => {
      const tensor =
        data instanceof BigInt64Array ? int64Tensor(dims, data) : floatTensor(dims, data);
      return [name, tensor] as const;
    });
    return normalizeGraph(foldConstants(graph, new Map(tensors)));
  } finally {
    await session.release();
  }
}

/** States the picture size that shapes are folded for, where the graph leaves it open. */
function withStatedSize(
  graph: Graph,
  { height, width }: { readonly height: number; readonly width: number },
): Graph {
  const inputs = graph.inputs.map((input): ValueInfo => {
    if (input.dims !== null && input.dims.length !== 4) return input;
    const [batch = null, channels = null, ownHeight, ownWidth] = input.dims ?? [];
    const size = (own: Dim | undefined, wanted: number) => (typeof own === "number" ? own : wanted);
    return {
      ...input,
      dims: [batch ?? "N", channels ?? 3, size(ownHeight, height), size(ownWidth, width)],
    };
  });
  return { ...graph, inputs };
}

/** Batch sizes at which shape arithmetic is measured; both small, neither of them one. */
const BATCHES = [2, 3] as const;

async function foldMeasuredShapes(
  graph: Graph,
  { height, width }: { readonly height: number; readonly width: number },
  engine: Engine,
): Promise<Graph> {
  const names = shapeValues(graph);
  const input = graph.inputs[0]!.name;
  if (names.length === 0) return graph;
  const session = await engine.open(withOnlyOutputs(graph, names));
  try {
    const measured: Map<string, Tensor>[] = [];
    for (const batch of BATCHES) {
      const data = new Float32Array(batch * 3 * height * width);
      const results = await session.run({ [input]: { data, dims: [batch, 3, height, width] } });
      const tensors = Object.entries(results).flatMap(([name, { data: values, dims }]) =>
        values instanceof BigInt64Array
          ? [[name, int64Tensor(dims, Array.from(values, Number))] as const]
          : [],
      );
      measured.push(new Map(tensors));
    }
    return foldShapes(graph, measured[0]!, measured[1]!, BATCHES);
  } finally {
    await session.release();
  }
}
