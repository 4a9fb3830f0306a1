import { isAbsolute, relative } from "node:path";
import type { FoundPicture } from "../data/intake.ts";
import type { Quarantine } from "../data/quarantine.ts";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import type { BuildMessage } from "../fleet/messages.ts";
import type { Logger } from "../log.ts";
import type { Answer, Classified } from "../serve/protocol.ts";
import type { Store } from "../store/store.ts";
import { burstOf, cameraFolder } from "./bursts.ts";

/** What the flow of pictures is made of. */
export interface PictureFlowOptions {
  readonly store: Store;
  readonly quarantine: Quarantine;
  readonly build: BuildMessage;
  readonly log: Logger;
  readonly inboxDir: string;
  readonly labeledDir: string;
  readonly burstGapSeconds: number;
  readonly predictionEvents: boolean;
  /** Decodes and classifies a picture; waits while the inference child's queue is full. */
  readonly classify: (path: string) => Promise<Answer>;
  /** Only decodes. */
  readonly inspect: (path: string) => Promise<Answer>;
  /** Told of every answer of the model that serves. */
  readonly onAnswer: (answer: Answer, burstId: string | null) => void;
  /** Messages were put into the outbox. */
  readonly onMessages: () => void;
}

/** A picture to classify. */
interface Waiting {
  readonly mediaId: number;
  readonly path: string;
  readonly sha256: string;
  readonly burstId: string | null;
  readonly capturedAt: string | null;
}

/** Answers that may be outstanding for a while: no model yet, or the child is being replaced. */
const RETRY_CODES: ReadonlySet<string> = new Set(["INFERENCE_FAILED"]);

/**
 * From a found file to its one prediction (inbox) or its label (labeled). Everything is recorded
 * before it is acted on, so that whatever is killed in between is taken up again by the next scan
 * or by {@link resume}.
 */
export class PictureFlow {
  readonly #options: PictureFlowOptions;
  readonly #folderOf: (path: string) => string;
  /** Pictures being classified, so that a rescan or a resume does not ask twice. */
  readonly #underWay = new Set<number>();
  /** Labels not told to the fleet yet, by label. */
  readonly #newLabels = new Map<string, number>();

  constructor(options: PictureFlowOptions) {
    this.#options = options;
    this.#folderOf = cameraFolder(options.inboxDir, options.labeledDir);
  }

  /** Takes a file that the intake found; resolves when it is dealt with. */
  async take(found: FoundPicture): Promise<void> {
    const { store, burstGapSeconds, log } = this.#options;
    const burstId = burstOf(found, store.pictures, this.#folderOf, burstGapSeconds);
    const { kind, path, sha256, sizeBytes, mtimeMs, capturedAt, captureTimeSource } = found;
    const recorded = store.pictures.recordPicture({
      sha256,
      path,
      source: kind,
      sizeBytes,
      mtimeMs,
      widthPx: null,
      heightPx: null,
      capturedAt,
      captureTimeSource,
      burstId,
    });
    log.debug({ step: "intake.recorded", path, kind }, "picture recorded");
    if (kind === "labeled" && found.label !== undefined) {
      await this.#label(found, recorded.mediaId, found.label);
    } else if (recorded.state === "waiting") {
      const { mediaId } = recorded;
      await this.#classify({ mediaId, path, sha256, burstId, capturedAt });
    }
  }

  /** Classifies what was found before and has no prediction yet. */
  async resume(signal: AbortSignal): Promise<void> {
    const { store, log } = this.#options;
    let afterId = 0;
    for (;;) {
      const waiting = store.pictures.waitingPictures(RESUME_PAGE, afterId);
      if (waiting.length === 0) return;
      log.info({ pictures: waiting.length }, "classifying pictures that were left waiting");
      for (const picture of waiting) {
        if (signal.aborted) return;
        // The intake may have dealt with it since the page was read.
        if (store.pictures.findPicture(picture.sha256)?.state !== "waiting") continue;
        await this.#classify(picture);
      }
      afterId = waiting.at(-1)!.mediaId;
    }
  }

  /** Tells the fleet of labels that came since the last call: one message for many. */
  tellLabels(): void {
    if (this.#newLabels.size === 0) return;
    const { store, build, onMessages } = this.#options;
    const total: Record<string, number> = {};
    for (const { label } of store.labels.labeledPictures()) total[label] = (total[label] ?? 0) + 1;
    const added = Object.fromEntries(this.#newLabels);
    const text = Object.entries(added)
      .map(([label, n]) => `${n} × ${label}`)
      .join(", ");
    const message = build("e/labels", { source: "human", added, total });
    store.events.recordEvent({ kind: "labels", text: `new labels: ${text}` }, [message]);
    this.#newLabels.clear();
    onMessages();
  }

  async #classify(picture: Waiting): Promise<void> {
    if (this.#underWay.has(picture.mediaId)) return;
    this.#underWay.add(picture.mediaId);
    try {
      const answer = await this.#answer(picture);
      if (answer) await this.#record(picture, answer);
    } finally {
      this.#underWay.delete(picture.mediaId);
    }
  }

  /** Null where nothing could answer: the picture waits for the next resume. */
  async #answer(picture: Waiting): Promise<Answer | null> {
    try {
      return await this.#options.classify(picture.path);
    } catch (error) {
      if (!(error instanceof AgentError) || !RETRY_CODES.has(error.code)) throw error;
      this.#options.log.debug({ path: picture.path, reason: error.message }, "not classified yet");
      return null;
    }
  }

  async #record(picture: Waiting, answer: Answer): Promise<void> {
    const { store, log, onAnswer } = this.#options;
    if (answer.kind === "classified") {
      this.#predicted(picture, answer);
    } else if (answer.kind === "failed") {
      const now = store.pictures.findPicture(picture.sha256);
      // The model's fault, or the file was moved meanwhile: it waits, and the next resume asks.
      if (RETRY_CODES.has(answer.code) || now?.path !== picture.path) {
        log.warn({ path: picture.path, reason: answer.reason }, "not classified yet");
      } else {
        await this.#reject(picture, answer.reason);
      }
    }
    onAnswer(answer, picture.burstId);
  }

  #predicted(picture: Waiting, answer: Classified): void {
    const { store, build, predictionEvents, log, onMessages } = this.#options;
    const { label, probability, top5, modelSha256, runMs, decodeMs, queuedMs } = answer;
    const { mediaId, sha256, burstId, capturedAt } = picture;
    const messages = predictionEvents
      ? [
          build("e/prediction", {
            pictureSha256: sha256,
            path: this.#shown(picture.path),
            burst: burstId,
            capturedAt,
            label,
            probability,
            top: top5,
            modelSha256,
            runMs,
            decodeMs,
          }),
        ]
      : [];
    const prediction = {
      mediaId,
      label,
      probability,
      top5,
      modelSha256,
      runMs,
      decodeMs,
      queuedMs,
    };
    store.predictions.recordPrediction(prediction, messages);
    log.debug({ step: "intake.predicted", path: picture.path, label }, "picture classified");
    onMessages();
  }

  async #label(found: FoundPicture, mediaId: number, label: string): Promise<void> {
    const { store, inspect, log } = this.#options;
    const answer = await inspect(found.path);
    if (answer.kind === "failed") {
      if (RETRY_CODES.has(answer.code)) throw new AgentError(answer.code, answer.reason);
      await this.#reject({ mediaId, ...found }, answer.reason);
      return;
    }
    const entry = { mediaId, label, source: "human", origin: found.path } as const;
    if (store.labels.setLabel(entry)) {
      this.#newLabels.set(label, (this.#newLabels.get(label) ?? 0) + 1);
    }
    log.debug({ step: "intake.labeled", path: found.path, label }, "label recorded");
  }

  /** Records why a file cannot be used, then moves it away; a file that cannot be moved stays. */
  async #reject(
    { mediaId, path, sha256 }: Pick<Waiting, "mediaId" | "path" | "sha256">,
    reason: string,
  ): Promise<void> {
    const { store, quarantine, build, log, onMessages } = this.#options;
    const moved = await quarantine.put(path, reason);
    if (!moved.moved) log.warn({ path, why: moved.why }, "could not be moved to quarantine");
    store.transaction(() => {
      const quarantinedPath = moved.moved ? moved.path : null;
      const rejection = { mediaId, path, reason, quarantinedPath, sizeBytes: null };
      if (!store.pictures.reject(rejection)) return;
      const message = build("e/quarantine", {
        path: this.#shown(path),
        pictureSha256: sha256,
        sizeBytes: null,
        reason,
      });
      const text = `${this.#shown(path)}: ${reason}`;
      store.events.recordEvent({ kind: "quarantine", text }, [message]);
    });
    log.warn({ path, reason }, "picture set aside");
    onMessages();
  }

  #shown(path: string): string {
    const { inboxDir, labeledDir } = this.#options;
    for (const root of [inboxDir, labeledDir]) {
      const below = relative(root, path);
      if (below !== "" && !below.startsWith("..") && !isAbsolute(below)) return below;
    }
    return path;
  }
}

const RESUME_PAGE = 200;

/**
 * Ends the labels and records of files that are gone: a person took the picture out of its
 * label's folder, or moved it to another one. Files that cannot be looked at count as there.
 */
export async function forgetVanished(
  store: Store,
  source: "inbox" | "labeled",
  exists: (path: string) => Promise<boolean>,
  log: Logger,
): Promise<number> {
  let gone = 0;
  for (const { path } of store.pictures.knownFiles(source)) {
    try {
      if (await exists(path)) continue;
    } catch (error) {
      log.warn({ path, code: systemCode(error), reason: messageOf(error) }, "cannot look at file");
      continue;
    }
    store.pictures.forgetFile(path);
    gone += 1;
  }
  return gone;
}
