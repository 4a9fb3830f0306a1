import type { Graph } from "../../agent/onnx/graph.ts";
import type { Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";

/** The environment of a pass, with little memory and nobody who watches. */
export function environmentOf(
  engine: Engine,
  workDir: string,
  calibration: Calibration,
): CompressEnvironment {
  return {
    engine,
    calibration,
    workDir,
    memoryBytes: 2 ** 20,
    damping: 0.01,
    onProgress: () => undefined,
    signal: new AbortController().signal,
  };
}

/** The engine of a device on which one run of a graph takes at least so many milliseconds. */
export function deviceWith(engine: Engine, costMs: (graph: Graph) => number): Engine {
  return {
    ...engine,
    open: async (graph, how) => {
      const session = await engine.open(graph, how);
      const least = costMs(graph);
      return {
        ...session,
        run: (feeds) => {
          for (const start = performance.now(); performance.now() < start + least; );
          return session.run(feeds);
        },
        release: () => session.release(),
      };
    },
  };
}
