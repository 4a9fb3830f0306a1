import type { Graph } from "../onnx/graph.ts";
import { measureByTurns, summarizeLatency } from "../runtime/latency.ts";
import type { Engine, EngineSession } from "./engine.ts";

/** A network and the size of the picture that it takes. */
export interface TimedGraph {
  readonly graph: Graph;
  readonly height: number;
  readonly width: number;
}

const MIN_ROUNDS = 11;
const MAX_ROUNDS = 61;
/** Time that all rounds together should take, in milliseconds. */
const WANTED_MS = 4000;

/**
 * Median milliseconds of one run of each network, taken by turns in one process so that whatever
 * else the machine does weighs on all alike.
 *
 * @param batch pictures in one run.
 * @returns milliseconds by network.
 */
export async function compareLatency(
  graphs: readonly TimedGraph[],
  batch: number,
  engine: Engine,
  signal: AbortSignal,
): Promise<number[]> {
  const sessions: EngineSession[] = [];
  try {
    for (const { graph } of graphs) sessions.push(await engine.open(graph));
    const probes = graphs.map(({ graph, height, width }, i) => {
      // Not zeros: a network of dead activations would meet denormals or skip nothing real.
      const data = Float32Array.from({ length: batch * 3 * height * width }, (_, at) =>
        Math.sin(at),
      );
      const feeds = { [graph.inputs[0]!.name]: { data, dims: [batch, 3, height, width] } };
      return async () => {
        const start = performance.now();
        await sessions[i]!.run(feeds);
        return performance.now() - start;
      };
    });
    const pause = () => {
      signal.throwIfAborted();
      return new Promise<void>((resolve) => setImmediate(resolve));
    };
    // The first runs allocate; what they take tells how many rounds there is time for.
    await measureByTurns(probes, 2, pause);
    const trial = await measureByTurns(probes, 1, pause);
    const roundMs = trial.flat().reduce((sum, ms) => sum + ms, 0);
    const rounds = Math.round(Math.max(MIN_ROUNDS, Math.min(MAX_ROUNDS, WANTED_MS / roundMs)));
    const samples = await measureByTurns(probes, rounds, pause);
    return samples.map((list) => summarizeLatency(list).medianMs);
  } finally {
    for (const session of sessions) await session.release();
  }
}
