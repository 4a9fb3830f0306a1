import type { ErrorCode } from "../errors.ts";
import type { ProviderFallback } from "../runtime/session.ts";

/** How an inference child opens its models; the same for every child of a station. */
export interface ChildSettings {
  executionProviders: readonly string[];
  intraOpThreads: number;
  /** Pictures decoded at the same time, ahead of the one that is being classified. */
  decoders: number;
  maxMegapixels: number;
}

/** What is to be done with a picture: `inspect` only decodes it. */
export type FrameJob = "classify" | "inspect";

/** From the supervisor to an inference child. Frames are answered in the order they arrive. */
export type ToChild =
  | { kind: "open"; modelDirs: readonly string[]; settings: ChildSettings }
  /** Let frames be run; until then they are only decoded ahead. */
  | { kind: "go" }
  | { kind: "frame"; id: number; path: string; job: FrameJob }
  | { kind: "ping"; sequence: number }
  /** Run every opened model `rounds` times in turns. */
  | { kind: "measure"; rounds: number }
  /** Finish what is queued, release the sessions, exit. */
  | { kind: "close" };

/** From an inference child to the supervisor. */
export type FromChild =
  | { kind: "ready"; opened: OpenedModel[]; rssBytes: number }
  | { kind: "refused"; code: ErrorCode; reason: string }
  | { kind: "answer"; id: number; answer: Answer }
  | ({ kind: "pong"; sequence: number } & ChildHealth)
  /** Milliseconds by model, then by round. */
  | { kind: "measured"; samplesMs: number[][] };

/** A model that a child opened, warmed up and found to give its known answers. */
export interface OpenedModel {
  sha256: string;
  provider: string;
  fallbacks: ProviderFallback[];
  /** Reading, optimizing, warming up and checking together. */
  loadMs: number;
  /** Largest relative difference from the known answers. */
  worstDifference: number;
}

/** What a child tells about itself between two frames. */
export interface ChildHealth {
  rssBytes: number;
  /** Frames received and not answered yet. */
  queued: number;
  /** Those of them that are decoded. */
  decoded: number;
  framesDone: number;
  framesFailed: number;
}

/** A class and its softmax probability. */
export interface LabelProbability {
  label: string;
  probability: number;
}

/** The answer for a picture that was classified. */
export interface Classified {
  kind: "classified";
  label: string;
  /** Softmax probability of `label`, in [0, 1]. */
  probability: number;
  /** The five most probable classes (or all, where there are fewer), falling. */
  top5: LabelProbability[];
  modelSha256: string;
  runMs: number;
  decodeMs: number;
  /** From its arrival in the child to the start of its run, decoding included. */
  queuedMs: number;
  /** Of the whole upright picture. */
  widthPx: number;
  heightPx: number;
}

/** The answer for a picture that was only decoded. */
export interface Inspected {
  kind: "inspected";
  widthPx: number;
  heightPx: number;
  decodeMs: number;
}

/** The answer for a picture that could not be used, or that the model failed on. */
export interface Failed {
  kind: "failed";
  code: ErrorCode;
  reason: string;
  /** Model that was live, where one was. */
  modelSha256: string | null;
}

/** What comes back for one frame. */
export type Answer = Classified | Inspected | Failed;
