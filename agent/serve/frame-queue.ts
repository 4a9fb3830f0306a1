import type { Clock } from "../clock.ts";
import { inspectPicture, readPicture } from "../data/picture.ts";
import { AgentError, messageOf } from "../errors.ts";
import type { Preprocessing } from "../model.ts";
import type { Failed, FrameJob } from "./protocol.ts";

/** A frame as it was received. */
export interface Frame {
  id: number;
  path: string;
  job: FrameJob;
}

/** A frame whose picture is decoded, or could not be. */
export interface PreparedFrame {
  id: number;
  arrivedMs: number;
  picture: Prepared;
}

type Prepared =
  | { kind: "tensor"; tensor: Float32Array; widthPx: number; heightPx: number; decodeMs: number }
  | { kind: "inspected"; widthPx: number; heightPx: number; decodeMs: number }
  | Failed;

interface Entry extends Frame {
  arrivedMs: number;
  picture: Promise<Prepared> | undefined;
  decoded: boolean;
}

/**
 * Frames in the order they arrived; the first ones are decoded ahead on sharp's threads, at most
 * `decoders` at a time.
 *
 *     arrived ──▶ [waiting … | decoding ×decoders | decoded …] ──▶ next()
 *
 * The sender bounds its length.
 */
export class FrameQueue {
  readonly #entries: Entry[] = [];
  readonly #options: FrameQueueOptions;
  #decoding = 0;
  #wake: (() => void) | undefined;

  constructor(options: FrameQueueOptions) {
    this.#options = options;
  }

  /** Frames that {@link next} has not returned yet. */
  get length(): number {
    return this.#entries.length;
  }

  /** Those of them that are decoded. */
  get decoded(): number {
    return this.#entries.filter((entry) => entry.decoded).length;
  }

  push(frame: Frame): void {
    const arrivedMs = this.#options.clock.monotonicMs();
    this.#entries.push({ ...frame, arrivedMs, picture: undefined, decoded: false });
    this.#decodeAhead();
    this.#wake?.();
  }

  /** The oldest frame, once it is decoded; waits where there is none. For one caller at a time. */
  async next(): Promise<PreparedFrame> {
    while (this.#entries[0] === undefined) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const entry = this.#entries[0];
    this.#decodeAhead();
    const picture = await (entry.picture ?? this.#decode(entry));
    this.#entries.shift();
    return { id: entry.id, arrivedMs: entry.arrivedMs, picture };
  }

  #decodeAhead(): void {
    for (const entry of this.#entries) {
      if (this.#decoding >= this.#options.decoders) return;
      if (entry.picture === undefined) entry.picture = this.#decode(entry);
    }
  }

  async #decode(entry: Entry): Promise<Prepared> {
    this.#decoding++;
    try {
      return await prepare(entry, this.#options);
    } finally {
      this.#decoding--;
      entry.decoded = true;
      this.#decodeAhead();
    }
  }
}

/** Options of {@link FrameQueue}. */
export interface FrameQueueOptions {
  decoders: number;
  maxMegapixels: number;
  preprocessing: Preprocessing;
  modelSha256: string;
  clock: Clock;
}

async function prepare(frame: Frame, options: FrameQueueOptions): Promise<Prepared> {
  const { maxMegapixels, preprocessing, clock } = options;
  const startMs = clock.monotonicMs();
  try {
    if (frame.job === "classify") {
      return {
        kind: "tensor",
        ...(await readPicture(frame.path, preprocessing, { maxMegapixels })),
      };
    }
    const { widthPx, heightPx } = await inspectPicture(frame.path, { maxMegapixels });
    return { kind: "inspected", widthPx, heightPx, decodeMs: clock.monotonicMs() - startMs };
  } catch (error) {
    return failed(error, options.modelSha256);
  }
}

/** The answer that carries an error to the supervisor. */
export function failed(error: unknown, modelSha256: string | null): Failed {
  const code = error instanceof AgentError ? error.code : "INFERENCE_FAILED";
  return { kind: "failed", code, reason: messageOf(error), modelSha256 };
}
