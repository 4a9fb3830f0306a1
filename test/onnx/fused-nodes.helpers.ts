import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InferenceSession } from "onnxruntime-node";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";

/** The nodes that ONNX Runtime makes of a graph, by operator. */
export async function fusedNodes(graph: Graph): Promise<Record<string, number>> {
  const path = join(tmpdir(), `taco-fused-${process.pid}.onnx`);
  const session = await InferenceSession.create(writeGraph(graph), {
    optimizedModelFilePath: path,
    logSeverityLevel: 3,
  });
  await session.release();
  try {
    const counts: Record<string, number> = {};
    for (const { opType } of readGraph(readFileSync(path)).nodes) {
      counts[opType] = (counts[opType] ?? 0) + 1;
    }
    return counts;
  } finally {
    rmSync(path);
  }
}
