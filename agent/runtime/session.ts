import { availableParallelism } from "node:os";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { AgentError, messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";

/** How a session is made; the same values must be used wherever its latency is to be compared. */
export interface SessionConfig {
  /** Tried in this order, by ONNX Runtime's names: `tensorrt`, `cuda`, `webgpu`, `cpu`. */
  executionProviders: readonly string[];
  /**
   * Threads inside one operator; 0 is one a processor that this process may use. ONNX Runtime's own
   * default counts physical cores and finds a single one on some virtual machines.
   */
  intraOpThreads: number;
  log: Logger;
  /**
   * False returns each run's memory to the system, for sessions whose shapes keep changing;
   * true, the default, keeps it for the next run.
   */
  keepMemory?: boolean;
  /**
   * False lets ONNX Runtime find room for each value as it comes; true, the default, lays all of
   * them out in one block beforehand, which for a training step is far larger than what is in use.
   */
  planMemory?: boolean;
  /** Where ONNX Runtime writes the graph that it makes of the model; not at all by default. */
  optimizedModelPath?: string;
}

/** A dense tensor, row-major; `data.length` is the product of `dims`. */
export interface TensorValue {
  /** Float32Array for float32, Float64Array for float64, BigInt64Array for int64. */
  data: Float32Array | Float64Array | BigInt64Array;
  dims: readonly number[];
}

/** Name, element type and shape of a graph input or output; a string is a free dimension. */
export interface TensorInfo {
  name: string;
  type: string;
  dims: readonly (number | string)[];
}

/** A provider that was asked for and could not be had. */
export interface ProviderFallback {
  provider: string;
  reason: string;
}

/**
 * Opens a model on the first execution provider of the list that takes it; each one passed over
 * is logged and returned in `fallbacks`. Blocks the calling thread while the model is read and
 * optimized (and, on TensorRT, its engine built).
 *
 * The Node binding hands TensorRT nothing but the device number, so its engine cache stays off,
 * its default, and no engine of older weights can be picked up (its key is the file's name).
 *
 * @param model path of an ONNX file, or its bytes.
 * @throws {AgentError} MODEL_INVALID with every provider's reason if none takes the model.
 */
export async function openSession(
  model: string | Uint8Array,
  config: SessionConfig,
): Promise<ModelSession> {
  if (config.executionProviders.length === 0) {
    throw new RangeError("executionProviders: expected at least one, got an empty list");
  }
  const fallbacks: ProviderFallback[] = [];
  for (const provider of config.executionProviders) {
    try {
      const session = await createSession(model, provider, config);
      return new ModelSession(session, provider, fallbacks);
    } catch (error) {
      const reason = firstLine(messageOf(error));
      fallbacks.push({ provider, reason });
      config.log.warn({ provider, reason }, "execution provider not usable, trying the next");
    }
  }
  const reasons = fallbacks.map((f) => `${f.provider}: ${f.reason}`).join("; ");
  const name = typeof model === "string" ? model : `a model of ${model.byteLength} bytes`;
  throw new AgentError("MODEL_INVALID", `${name} could not be opened (${reasons})`);
}

function createSession(
  model: string | Uint8Array,
  provider: string,
  config: SessionConfig,
): Promise<InferenceSession> {
  const { optimizedModelPath } = config;
  const options: InferenceSession.SessionOptions = {
    ...(optimizedModelPath === undefined ? {} : { optimizedModelFilePath: optimizedModelPath }),
    executionProviders: [provider],
    logSeverityLevel: 3,
    enableCpuMemArena: config.keepMemory ?? true,
    enableMemPattern: config.planMemory ?? config.keepMemory ?? true,
    intraOpNumThreads: config.intraOpThreads > 0 ? config.intraOpThreads : availableParallelism(),
    // Threads that wait would spin: on a box that decodes, serves and specializes at once they
    // take the time of those that work (a run took twice as long), and power when nothing is on.
    extra: { session: { intra_op: { allow_spinning: "0" } } },
  };
  return typeof model === "string"
    ? InferenceSession.create(model, options)
    : InferenceSession.create(model, options);
}

/** A model held by ONNX Runtime; {@link openSession} makes one, `release()` frees its memory. */
export class ModelSession {
  /** The execution provider that took the model. */
  readonly provider: string;
  readonly fallbacks: readonly ProviderFallback[];
  readonly inputs: readonly TensorInfo[];
  readonly outputs: readonly TensorInfo[];
  readonly #session: InferenceSession;
  readonly #inputByName: ReadonlyMap<string, TensorInfo>;

  constructor(session: InferenceSession, provider: string, fallbacks: readonly ProviderFallback[]) {
    this.#session = session;
    this.provider = provider;
    this.fallbacks = fallbacks;
    this.inputs = session.inputMetadata.map(tensorInfo);
    this.outputs = session.outputMetadata.map(tensorInfo);
    this.#inputByName = new Map(this.inputs.map((input) => [input.name, input]));
  }

  /**
   * Runs the graph once. Blocks the calling thread for the whole of it.
   *
   * @param feeds one value a graph input.
   * @param fetches names of the outputs wanted; all of them by default.
   * @throws {AgentError} MODEL_INVALID if a name, type or shape does not fit the graph or an
   *   output is neither float32, float64 nor int64; INFERENCE_FAILED if ONNX Runtime fails.
   */
  async run(
    feeds: Readonly<Record<string, TensorValue>>,
    fetches?: readonly string[],
  ): Promise<Record<string, TensorValue>> {
    const tensors: Record<string, Tensor> = {};
    for (const [name, value] of Object.entries(feeds)) {
      tensors[name] = this.#tensor(name, value);
    }
    let results: InferenceSession.ReturnType;
    try {
      results = await (fetches === undefined
        ? this.#session.run(tensors)
        : this.#session.run(tensors, fetches));
    } catch (error) {
      throw new AgentError("INFERENCE_FAILED", `ONNX Runtime failed: ${messageOf(error)}`, {
        cause: error,
      });
    }
    return Object.fromEntries(
      Object.entries(results).map(([name, value]) => [name, tensorValue(name, value)]),
    );
  }

  /** Frees the session; it must not be running. */
  release(): Promise<void> {
    return this.#session.release();
  }

  #tensor(name: string, value: TensorValue): Tensor {
    const info = this.#inputByName.get(name);
    if (info === undefined) {
      const known = this.inputs.map((input) => input.name).join(", ");
      throw new AgentError("MODEL_INVALID", `input "${name}": the graph has only ${known}`);
    }
    const { data, dims } = value;
    const type = typeOf(data);
    const count = dims.reduce((product, dim) => product * dim, 1);
    // ONNX Runtime reports no dimensions where the graph does not state the rank.
    const known = info.dims.length > 0;
    const fits =
      !known ||
      (info.dims.length === dims.length && info.dims.every((d, i) => fitsDim(d, dims[i])));
    if (!fits || count !== data.length || info.type !== type) {
      throw new AgentError(
        "MODEL_INVALID",
        `input "${name}": expected ${info.type} [${info.dims.join(", ")}], ` +
          `got ${type} [${dims.join(", ")}] with ${data.length} values`,
      );
    }
    if (data instanceof Float32Array) return new Tensor("float32", data, dims);
    if (data instanceof Float64Array) return new Tensor("float64", data, dims);
    return new Tensor("int64", data, dims);
  }
}

function typeOf(data: TensorValue["data"]): "float32" | "float64" | "int64" {
  if (data instanceof Float32Array) return "float32";
  return data instanceof Float64Array ? "float64" : "int64";
}

/** Whether a concrete size fits a declared one; a named dimension takes any size. */
function fitsDim(declared: number | string, size: number | undefined): boolean {
  return typeof declared === "string" || declared === size;
}

function tensorInfo(meta: InferenceSession.ValueMetadata): TensorInfo {
  return meta.isTensor
    ? { name: meta.name, type: meta.type, dims: meta.shape }
    : { name: meta.name, type: "no tensor", dims: [] };
}

function tensorValue(name: string, value: InferenceSession.OnnxValueMapType[string]): TensorValue {
  if (value instanceof Tensor) {
    const { data, dims } = value;
    if (data instanceof Float32Array || data instanceof Float64Array) return { data, dims };
    if (data instanceof BigInt64Array) return { data, dims };
    throw new AgentError("MODEL_INVALID", `output "${name}": ${value.type} is not supported`);
  }
  throw new AgentError("MODEL_INVALID", `output "${name}" is no tensor`);
}

/** ONNX Runtime's messages run over several lines; the first one says what is wrong. */
function firstLine(message: string): string {
  return (message.split("\n")[0] ?? "").trim();
}
