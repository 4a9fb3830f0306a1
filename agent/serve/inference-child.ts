import { setImmediate as nextTurn } from "node:timers/promises";
import { systemClock } from "../clock.ts";
import { AgentError, messageOf } from "../errors.ts";
import { createLogger } from "../log.ts";
import { runClassifier } from "../runtime/classifier.ts";
import { seededPicture } from "../runtime/known-answers.ts";
import { measureByTurns } from "../runtime/latency.ts";
import { FrameQueue, failed, type PreparedFrame } from "./frame-queue.ts";
import type { Answer, FromChild, ToChild } from "./protocol.ts";
import { openServedModel, type ServedModel } from "./served-model.ts";
import { topLabels } from "./softmax.ts";

/**
 * The inference process: opens the model it is told to, then decodes and classifies pictures one
 * after the other until its channel closes. It owns nothing on disk, so it may be killed at any
 * moment. `InferenceSession.run()` blocks this thread; messages are read between two frames while
 * the next pictures are decoded on other threads.
 */
class InferenceChild {
  readonly #log = createLogger("warn");
  #models: ServedModel[] = [];
  #queue: FrameQueue | undefined;
  #held = true;
  #closing = false;
  #unanswered = 0;
  #framesDone = 0;
  #framesFailed = 0;
  #letGo: (() => void) | undefined;

  /** Handles one message; those that take long let further ones be handled meanwhile. */
  async handle(message: ToChild): Promise<void> {
    switch (message.kind) {
      case "open":
        await this.#open(message);
        break;
      case "go":
        this.#held = false;
        this.#letGo?.();
        break;
      case "frame":
        this.#unanswered++;
        this.#queue?.push(message);
        break;
      case "ping":
        send({ kind: "pong", sequence: message.sequence, ...this.#health() });
        break;
      case "measure":
        await this.#measure(message.rounds);
        break;
      case "close":
        this.#closing = true;
        await this.#closeIfDone();
        break;
      default:
        message satisfies never;
    }
  }

  async #open(message: ToChild & { kind: "open" }): Promise<void> {
    try {
      for (const folder of message.modelDirs) {
        const parts = { log: this.#log, clock: systemClock };
        this.#models.push(await openServedModel(folder, message.settings, parts));
      }
    } catch (error) {
      const code = error instanceof AgentError ? error.code : "MODEL_INVALID";
      send({ kind: "refused", code, reason: messageOf(error) });
      return;
    }
    const live = this.#models[0];
    if (live === undefined) throw new RangeError("expected at least one model to open");
    const { decoders, maxMegapixels } = message.settings;
    const { preprocessing, sha256 } = live.manifest;
    this.#queue = new FrameQueue({
      decoders,
      maxMegapixels,
      preprocessing,
      modelSha256: sha256,
      clock: systemClock,
    });
    const opened = this.#models.map((model) => model.opened);
    send({ kind: "ready", opened, rssBytes: process.memoryUsage.rss() });
    await this.#serve(live, this.#queue);
  }

  async #serve(live: ServedModel, queue: FrameQueue): Promise<void> {
    for (;;) {
      const frame = await queue.next();
      if (this.#held) {
        await new Promise<void>((resolve) => {
          this.#letGo = resolve;
        });
      }
      const answer = await answerFrame(live, frame);
      this.#framesDone++;
      this.#unanswered--;
      if (answer.kind === "failed") this.#framesFailed++;
      send({ kind: "answer", id: frame.id, answer });
      if (this.#closing) await this.#closeIfDone();
    }
  }

  async #measure(rounds: number): Promise<void> {
    const probes = this.#models.map(({ session, manifest }) => async (round: number) => {
      const picture = seededPicture(round, manifest.preprocessing);
      const startMs = systemClock.monotonicMs();
      await runClassifier(session, manifest, picture);
      return systemClock.monotonicMs() - startMs;
    });
    send({ kind: "measured", samplesMs: await measureByTurns(probes, rounds, () => nextTurn()) });
  }

  #health() {
    return {
      rssBytes: process.memoryUsage.rss(),
      queued: this.#unanswered,
      decoded: this.#queue?.decoded ?? 0,
      framesDone: this.#framesDone,
      framesFailed: this.#framesFailed,
    };
  }

  async #closeIfDone(): Promise<void> {
    if (this.#unanswered > 0) return;
    for (const { session } of this.#models.splice(0)) await session.release();
    process.exit(0);
  }
}

async function answerFrame(live: ServedModel, frame: PreparedFrame): Promise<Answer> {
  const { session, manifest } = live;
  const { picture } = frame;
  if (picture.kind !== "tensor") return picture;
  try {
    const startMs = systemClock.monotonicMs();
    const logits = await runClassifier(session, manifest, picture.tensor);
    const runMs = systemClock.monotonicMs() - startMs;
    const top5 = topLabels(logits, manifest.classes, 5);
    return {
      kind: "classified",
      ...top5[0]!,
      top5,
      modelSha256: manifest.sha256,
      runMs,
      decodeMs: picture.decodeMs,
      queuedMs: startMs - frame.arrivedMs,
      widthPx: picture.widthPx,
      heightPx: picture.heightPx,
    };
  } catch (error) {
    return failed(error, manifest.sha256);
  }
}

function send(message: FromChild): void {
  // Without a channel the supervisor is gone and this process about to end.
  if (process.connected) process.send?.(message);
}

/** Ends the process as an uncaught error would, with a line in the log. */
function die(error: unknown): void {
  createLogger("error").error({ error: messageOf(error) }, "inference child failed");
  process.exit(1);
}

const child = new InferenceChild();
process.on("message", (message: ToChild) => {
  child.handle(message).catch(die);
});
// Nothing is lost by dying at once, and waiting for a run or an engine build would only keep
// memory from the next supervisor's child.
process.on("disconnect", () => process.kill(process.pid, "SIGKILL"));
// Ctrl-C and systemd signal every process of the station; the supervisor decides when this one
// ends, so that it can still answer what is queued.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", () => undefined);
