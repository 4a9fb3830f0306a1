import type { Graph } from "../onnx/graph.ts";
import type { TensorValue } from "../runtime/session.ts";
import type { Engine } from "./engine.ts";

/** The calibration pictures as the network's input, batch by batch, the same at every call. */
export interface Calibration {
  readonly batches: number;
  read(batch: number): Promise<TensorValue>;
}

/** A calibration set cut off after some batches. */
export function firstBatches(calibration: Calibration, most: number): Calibration {
  const batches = Math.min(most, calibration.batches);
  return { batches, read: (batch) => calibration.read(batch) };
}

/** Some batches of a calibration set, in the order given. */
export function someBatches(calibration: Calibration, batches: readonly number[]): Calibration {
  return { batches: batches.length, read: (batch) => calibration.read(batches[batch]!) };
}

/** One thing that was done to one layer; a layer to which several were done has several. */
export interface LayerReport {
  readonly name: string;
  /** `unstructured:0.5`, `structured 96 → 48`, `int8`, or `dense: ` and the reason. */
  readonly method: string;
  /** Share of zeros in the layer's weights. */
  readonly sparsity: number;
  /** ‖(Ŵ−W)X‖² / ‖WX‖² on the calibration pictures; null where the layer was left alone. */
  readonly relativeLoss: number | null;
}

/** What a pass could not do, and why. */
export interface Refusal {
  /** Node, layer or group. */
  readonly name: string;
  readonly reason: string;
}

/** What every pass over a network works with. */
export interface CompressEnvironment {
  readonly engine: Engine;
  readonly calibration: Calibration;
  /** Folder for what does not fit in memory; what a pass leaves there it removes again. */
  readonly workDir: string;
  /** Bytes of activations kept in memory at one border. */
  readonly memoryBytes: number;
  /** λ as a share of the mean diagonal of the Hessian. */
  readonly damping: number;
  readonly onProgress: (done: number, total: number) => void;
  readonly signal: AbortSignal;
}

/** What a pass over a network made. */
export interface PassResult {
  readonly graph: Graph;
  /** In the order of the network. */
  readonly reports: readonly LayerReport[];
  readonly refused: readonly Refusal[];
}
