import type { Logger } from "../log.ts";
import type { Gemm } from "../math/gemm.ts";
import { type Graph, writeGraph } from "../onnx/graph.ts";
import { openGemm } from "../runtime/gemm.ts";
import {
  type ModelSession,
  openSession,
  type SessionConfig,
  type TensorValue,
} from "../runtime/session.ts";

/** A graph ready to run. Always release it: its weights live outside of JavaScript's heap. */
export interface EngineSession {
  /** The execution provider that took the graph. */
  readonly provider: string;
  run(feeds: Readonly<Record<string, TensorValue>>): Promise<Record<string, TensorValue>>;
  release(): Promise<void>;
}

/** All heavy work of a run: graphs and matrix products by ONNX Runtime, and the time they took. */
export interface Engine {
  /** @param how see {@link SessionConfig}. */
  open(graph: Graph, how?: Pick<SessionConfig, "planMemory">): Promise<EngineSession>;
  readonly gemm: Gemm;
  /** Seconds spent inside ONNX Runtime since the engine was made. */
  runtimeSeconds(): number;
  close(): Promise<void>;
}

/** Makes the engine of a run; `close` it at the end. */
export async function createEngine(options: {
  executionProviders: readonly string[];
  intraOpThreads: number;
  log: Logger;
}): Promise<Engine> {
  let milliseconds = 0;
  const timed = async <T>(work: () => Promise<T>): Promise<T> => {
    const start = performance.now();
    try {
      return await work();
    } finally {
      milliseconds += performance.now() - start;
    }
  };
  const runtimeGemm = await openGemm(options);
  return {
    open: async (graph, how) => {
      const config = { ...options, ...how };
      const session: ModelSession = await timed(() => openSession(writeGraph(graph), config));
      return {
        provider: session.provider,
        run: (feeds) => timed(() => session.run(feeds)),
        release: () => session.release(),
      };
    },
    gemm: (a, b, transpose) => timed(() => runtimeGemm.gemm(a, b, transpose)),
    runtimeSeconds: () => milliseconds / 1000,
    close: () => runtimeGemm.release(),
  };
}
