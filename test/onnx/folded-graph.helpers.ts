import { withDynamicBatch } from "../../agent/onnx/dynamic-batch.ts";
import { foldShapes, shapeValues } from "../../agent/onnx/fold-shapes.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { withOnlyOutputs } from "../../agent/onnx/subgraph.ts";
import { int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { batchDims, benchGraph, randomInput, runGraph } from "./run-graph.helpers.ts";

/** A bench graph as a network is prepared for the passes: free batch, shapes folded. */
export function foldedBenchGraph(name: string): Promise<Graph> {
  return folded(withDynamicBatch(benchGraph(name)).graph);
}

/** The graph with its shape arithmetic replaced by constants, measured by ONNX Runtime. */
export async function folded(graph: Graph): Promise<Graph> {
  const names = shapeValues(graph);
  if (names.length === 0) return graph;
  const measured: Map<string, Tensor>[] = [];
  for (const batch of [2, 3]) {
    const feeds = { [graph.inputs[0]!.name]: randomInput(batchDims(graph, batch), 1) };
    const results = await runGraph(withOnlyOutputs(graph, names), feeds);
    const tensors = Object.entries(results).flatMap(([name, { data, dims }]) =>
      (data as unknown) instanceof BigInt64Array ? [[name, int64Tensor(dims, data)] as const] : [],
    );
    measured.push(new Map(tensors));
  }
  return foldShapes(graph, measured[0]!, measured[1]!, [2, 3]);
}
