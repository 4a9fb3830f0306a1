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

/** Pictures of one run of a network without gradients: more are no faster, and take more memory. */
const FORWARD_BATCH = 4;

/**
 * Runs a network over a batch of pictures, a few at a time.
 *
 * @param pictures `[N, …]`. @param names outputs that are wanted, each `[N, …]`.
 * @returns one float32 value a name, in their order, each of all N pictures.
 */
export async function runInParts(
  session: EngineSession,
  input: string,
  pictures: TensorValue,
  names: readonly string[],
): Promise<TensorValue[]> {
  const [count = 0, ...rest] = pictures.dims;
  if (count <= FORWARD_BATCH) {
    const results = await session.run({ [input]: pictures });
    return names.map((name) => results[name]!);
  }
  const size = pictures.data.length / count;
  const whole: { data: Float32Array; dims: number[] }[] = [];
  for (let from = 0; from < count; from += FORWARD_BATCH) {
    const to = Math.min(count, from + FORWARD_BATCH);
    const data = pictures.data.subarray(from * size, to * size);
    const results = await session.run({ [input]: { data, dims: [to - from, ...rest] } });
    for (const [i, name] of names.entries()) {
      const { data: part, dims } = results[name]!;
      const row = part.length / (to - from);
      whole[i] ??= { data: new Float32Array(count * row), dims: [count, ...dims.slice(1)] };
      whole[i].data.set(part as Float32Array, from * row);
    }
  }
  return whole;
}

/** All heavy work of a run: graphs and matrix products by ONNX Runtime, and the time they took. */
export interface Engine {
  /** @param how see {@link SessionConfig}. */
  open(
    graph: Graph,
    how?: Pick<SessionConfig, "planMemory" | "optimizedModelPath">,
  ): Promise<EngineSession>;
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
