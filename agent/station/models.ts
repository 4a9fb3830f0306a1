import { join } from "node:path";
import * as v from "valibot";
import type { Clock } from "../clock.ts";
import type { StationConfig } from "../config/schema.ts";
import { AgentError, messageOf } from "../errors.ts";
import type { BuildMessage } from "../fleet/messages.ts";
import type { Logger } from "../log.ts";
import { knownAnswersSchema, modelManifestSchema, readModelJson } from "../model.ts";
import type { Inference } from "../serve/inference.ts";
import {
  decideProbation,
  observe,
  type ProbationState,
  probationOutcome,
  resumeProbation,
  startProbation,
} from "../serve/probation.ts";
import type { Answer } from "../serve/protocol.ts";
import type { ModelRegistry } from "../serve/registry.ts";
import { swapTo } from "../serve/swap.ts";
import type { RunResult } from "../specialize/spec.ts";
import type { Store } from "../store/store.ts";
import type { SwapRecord } from "../store/swaps.ts";

/** Who or what sends a model back. */
export type RollbackCause = "probation" | "command" | "person" | "damaged";

/** What the flow of models is made of. */
export interface ModelFlowOptions {
  readonly config: StationConfig;
  readonly registry: ModelRegistry;
  readonly store: Store;
  readonly inference: Inference;
  readonly build: BuildMessage;
  readonly clock: Clock;
  readonly log: Logger;
  readonly softwareVersion: string;
  /** The station stops. */
  readonly signal: AbortSignal;
  readonly onMessages: () => void;
}

/** Predictions of the model before that say how it behaved. */
const RECENT_ANSWERS = 500;
/** A model whose process is killed while it loads is tried so often before it counts as refused. */
const LOAD_TRIES = 3;
/** Names the cause of the last rollback in the database, for one that a stop interrupts. */
const ROLLBACK_KEY = "rollback";
/** Counters of a probation go into the database every so many frames. */
const SAVE_EVERY = 20;

const causeSchema = v.object({
  swapId: v.number(),
  cause: v.picklist(["probation", "command", "person", "damaged"]),
});

const probationSchema = v.object({
  modelSha256: v.string(),
  incumbent: v.object({
    medianRunMs: v.nullable(v.number()),
    topLabelShare: v.nullable(v.number()),
  }),
  lastMs: v.number(),
  elapsedMs: v.number(),
  frames: v.number(),
  failed: v.number(),
  runMs: v.array(v.number()),
  labels: v.record(v.string(), v.number()),
  bursts: v.number(),
  lastBurst: v.nullable(v.string()),
});

/**
 * Which model serves: publishes accepted candidates, swaps them in, watches them on probation,
 * and goes back. One change at a time; the pointer `models/current` is the truth and the
 * database is brought in line with it at every start.
 */
export class ModelFlow {
  readonly #options: ModelFlowOptions;
  #probation: { swapId: number; state: ProbationState } | null = null;
  #queue: Promise<unknown> = Promise.resolve();
  #deciding = false;
  /** How the last model was loaded; null where a stop came between. */
  #mode: "beside" | "in place" | null = null;
  #unsaved = 0;

  constructor(options: ModelFlowOptions) {
    this.#options = options;
  }

  /** SHA-256 of the model on probation. */
  get onProbation(): string | null {
    return this.#probation?.state.modelSha256 ?? null;
  }

  /**
   * Brings the database in line with the pointer after a start, and goes on with a probation.
   *
   * @returns the swap or rollback that was under way and is to be {@link tryAgain tried again}.
   */
  async reconcile(): Promise<SwapRecord | null> {
    const { store, registry, clock, log } = this.#options;
    const current = await registry.readCurrent();
    const loading = store.swaps.loadingSwap();
    if (loading && loading.toSha256 === current) {
      // Killed between the pointer's rename and the record of it.
      this.#recordLoaded(loading);
    } else if (loading) {
      store.swaps.interruptLoading("the agent was stopped while the model was loading");
    }
    const open = store.swaps.currentProbation();
    if (open && open.toSha256 !== current) {
      store.swaps.decideSwap(open.id, "interrupted", "another model is current on the disk");
    } else if (open) {
      const saved = v.safeParse(probationSchema, open.probation);
      const nowMs = clock.monotonicMs();
      const state = saved.success
        ? resumeProbation(saved.output, nowMs)
        : startProbation(open.toSha256, { medianRunMs: null, topLabelShare: null }, nowMs);
      this.#probation = { swapId: open.id, state };
      log.info({ model: open.toSha256, frames: state.frames }, "probation goes on");
    }
    this.#recordBoot(current);
    await this.tellModel();
    return loading && loading.toSha256 !== current ? loading : null;
  }

  /** Takes up what {@link reconcile} found interrupted. A model that is gone is left alone. */
  async tryAgain({ id, kind, toSha256, runId, reason }: SwapRecord): Promise<void> {
    const { registry, log } = this.#options;
    if (!(await registry.validateModel(toSha256)).valid) return;
    if (kind === "swap") {
      await this.swap(toSha256, runId, "the swap was interrupted by a stop");
      return;
    }
    try {
      await this.rollback(this.#causeOf(id), reason ?? "interrupted by a stop", toSha256);
    } catch (error) {
      log.error({ to: toSha256, reason: messageOf(error) }, "the rollback was not taken up again");
      this.#problem("REGISTRY_INVALID", messageOf(error));
    }
  }

  /** Publishes the accepted candidate of a run and swaps it in. Does nothing twice. */
  async serveCandidate(result: RunResult, candidateDir: string): Promise<void> {
    const { registry, store, log } = this.#options;
    const manifest = await readModelJson(join(candidateDir, "model.json"), modelManifestSchema);
    const before = store.reports
      .listSwaps(50)
      .find((swap) => swap.runId === result.run && swap.toSha256 === manifest.sha256);
    if (before && before.state !== "interrupted" && before.state !== "loading") return;
    const knownAnswers = await readModelJson(join(candidateDir, "check.json"), knownAnswersSchema);
    await registry.publishModel({
      onnx: join(candidateDir, "model.onnx"),
      manifest,
      knownAnswers,
    });
    log.info({ step: "publish.published", model: manifest.sha256 }, "candidate published");
    store.models.registerModel(manifest);
    await this.swap(manifest.sha256, result.run, result.verdict.reasons.join("; "));
    await this.#prune();
  }

  /** Swaps a published model in, on probation. A refused one is recorded with its reason. */
  async swap(sha256: string, runId: string | null, reason: string): Promise<boolean> {
    return await this.#inTurn(async () => {
      const { store, registry, log } = this.#options;
      const from = await registry.readCurrent();
      if (from === sha256) return true;
      const entry = { fromSha256: from, toSha256: sha256, kind: "swap", runId, reason } as const;
      const id = store.swaps.beginSwap(entry);
      log.info({ step: "swap.begun", model: sha256 }, "swap begun");
      const refusal = await this.#load(sha256);
      if (refusal === null) {
        this.#recordSwitch(id, from, sha256, true);
        await this.tellModel();
        return true;
      }
      this.#recordRefusal(id, from, sha256, refusal);
      return false;
    });
  }

  /**
   * Goes back to the model that served before, or to a given one.
   *
   * @param unless does nothing where another model than this one is current by then.
   * @throws {AgentError} REGISTRY_INVALID where there is no model to go back to, or it is refused.
   */
  async rollback(
    cause: RollbackCause,
    reason: string,
    toSha256?: string,
    unless?: string,
  ): Promise<string> {
    return await this.#inTurn(async () => {
      const { registry, store, log } = this.#options;
      const from = await registry.readCurrent();
      if (from !== null && from === toSha256) return from;
      if (unless !== undefined && from !== unless) return from ?? "";
      const to = toSha256 ?? this.#before(from) ?? (await registry.rollbackTarget());
      if (from === null || to === null || to === from) {
        throw new AgentError("REGISTRY_INVALID", "there is no earlier model to go back to");
      }
      const open = this.#probation;
      this.#probation = null;
      const id = store.transaction(() => {
        if (open) store.swaps.saveProbation(open.swapId, open.state);
        const entry = { fromSha256: from, toSha256: to, kind: "rollback", runId: null } as const;
        const swapId = store.swaps.beginSwap({ ...entry, reason });
        store.state.set(ROLLBACK_KEY, { swapId, cause });
        return swapId;
      });
      const refusal = await this.#load(to);
      if (refusal !== null) {
        store.swaps.decideSwap(id, "refused", refusal);
        // What failed its probation would ask for this at every frame.
        if (open && cause === "probation") {
          store.swaps.decideSwap(open.swapId, "interrupted", `${reason}; no way back: ${refusal}`);
        } else {
          this.#probation = open;
        }
        throw new AgentError("REGISTRY_INVALID", `${to} cannot serve again: ${refusal}`);
      }
      this.#recordRollback({ id, from, to, cause, reason });
      log.warn({ step: "rollback.done", from, to, reason }, "rolled back");
      await this.tellModel();
      return to;
    });
  }

  /** Takes in an answer of the inference child: what a probation is decided on. */
  observe(answer: Answer, burstId: string | null): void {
    const { clock, store } = this.#options;
    const open = this.#probation;
    if (!open) return;
    const outcome = probationOutcome(open.state, answer, burstId ?? "");
    if (outcome === null) return;
    open.state = observe(open.state, outcome, clock.monotonicMs());
    this.#unsaved += 1;
    if (this.#unsaved >= SAVE_EVERY) {
      this.#unsaved = 0;
      store.swaps.saveProbation(open.swapId, open.state);
    }
    this.decide();
  }

  /** Ends the probation where it is time; call it now and then, since time alone may end it. */
  decide(): void {
    const { clock, config, log } = this.#options;
    const open = this.#probation;
    if (!open || this.#deciding) return;
    const decision = decideProbation(open.state, config.probation, clock.monotonicMs());
    if (decision.kind === "continue") return;
    this.#deciding = true;
    const work =
      decision.kind === "commit"
        ? this.#commit(open.swapId, open.state.modelSha256, decision.reason)
        : this.rollback("probation", decision.reason);
    work
      .catch((error: unknown) => {
        log.error({ reason: messageOf(error) }, "the probation could not be ended");
        this.#problem("REGISTRY_INVALID", messageOf(error));
      })
      .finally(() => {
        this.#deciding = false;
      });
  }

  /** Puts the retained `twin/model` into the outbox. */
  async tellModel(): Promise<void> {
    const { registry, store, build, softwareVersion, onMessages } = this.#options;
    const sha256 = await registry.readCurrent();
    const manifest = sha256 === null ? null : await registry.readManifest(sha256);
    store.outbox.enqueue([
      build("twin/model", {
        modelSha256: sha256,
        name: manifest?.name ?? null,
        classes: manifest?.classes.slice(0, MAX_TOLD_CLASSES) ?? [],
        run: manifest?.origin.run ?? null,
        onProbation: this.#probation !== null,
        softwareVersion,
      }),
    ]);
    onMessages();
  }

  /** Saves the counters of a probation and waits for a change under way. */
  async stop(): Promise<void> {
    await this.#queue.catch(() => undefined);
    const open = this.#probation;
    if (open) this.#options.store.swaps.saveProbation(open.swapId, open.state);
  }

  /**
   * Serves a model. @returns why it cannot be served, or null.
   * @throws {AgentError} INFERENCE_FAILED where the station stops meanwhile, which is no verdict.
   */
  async #load(sha256: string): Promise<string | null> {
    const { registry, inference, log, signal } = this.#options;
    for (let tries = 1; ; tries++) {
      const outcome = await swapTo({
        registry,
        inference,
        sha256,
        onStep: (step, detail) => {
          if (step === "swap.loaded")
            this.#mode = detail["mode"] === "beside" ? "beside" : "in place";
          log.info({ step, ...detail }, step);
        },
      });
      if (outcome.kind === "switched") return null;
      const { code, reason } = outcome;
      if (signal.aborted) {
        throw new AgentError("INFERENCE_FAILED", "stopped; the next start tries it again");
      }
      if (code !== "INFERENCE_FAILED" || tries >= LOAD_TRIES) return reason;
      log.warn({ model: sha256, reason, tries }, "the model could not be loaded, trying again");
    }
  }

  /** Killed between the pointer's rename and the record of it. */
  #recordLoaded({ id, kind, fromSha256, toSha256, reason }: SwapRecord): void {
    if (kind !== "rollback" || fromSha256 === null) {
      this.#recordSwitch(id, fromSha256, toSha256, kind === "swap");
      return;
    }
    const cause = this.#causeOf(id);
    const why = reason ?? "interrupted by a stop";
    this.#recordRollback({ id, from: fromSha256, to: toSha256, cause, reason: why });
  }

  #recordRollback(entry: {
    id: number;
    from: string;
    to: string;
    cause: RollbackCause;
    reason: string;
  }): void {
    const { store, build } = this.#options;
    const { id, from, to, cause, reason } = entry;
    store.transaction(() => {
      const open = store.swaps.currentProbation();
      if (open?.toSha256 === from) store.swaps.decideSwap(open.id, "rolled_back", reason);
      store.swaps.markSwitched(id, false);
      this.#event("rollback", `back from ${short(from)} to ${short(to)}: ${reason}`, [
        build("e/rollback", { fromSha256: from, toSha256: to, cause, reason }),
      ]);
    });
  }

  /** The pointer may be another's work: the first start, a repair, a database that was restored. */
  #recordBoot(current: string | null): void {
    const { store, clock } = this.#options;
    const known = store.reports.summary(clock.nowMs()).currentModel?.sha256 ?? null;
    if (current === null || current === known) return;
    const entry = { fromSha256: known, toSha256: current, kind: "boot", runId: null } as const;
    store.transaction(() => {
      const id = store.swaps.beginSwap({ ...entry, reason: "found as current at the start" });
      store.swaps.markSwitched(id, false);
    });
  }

  #causeOf(swapId: number): RollbackCause {
    const kept = v.safeParse(causeSchema, this.#options.store.state.get(ROLLBACK_KEY));
    return kept.success && kept.output.swapId === swapId ? kept.output.cause : "damaged";
  }

  #recordSwitch(id: number, from: string | null, to: string, onProbation: boolean): void {
    const { store, build, clock } = this.#options;
    store.transaction(() => {
      store.swaps.markSwitched(id, onProbation);
      const message = build("e/swap", {
        fromSha256: from,
        toSha256: to,
        state: "swapped",
        reason: onProbation ? "on probation" : null,
        mode: this.#mode,
      });
      this.#event("swap", `${short(to)} serves now${onProbation ? ", on probation" : ""}`, [
        message,
      ]);
      if (!onProbation) return;
      const state = startProbation(to, this.#behavior(from), clock.monotonicMs());
      store.swaps.saveProbation(id, state);
      this.#probation = { swapId: id, state };
    });
  }

  #recordRefusal(id: number, from: string | null, to: string, reason: string): void {
    const { store, build, log } = this.#options;
    log.error({ model: to, reason }, "the candidate was not swapped in");
    store.transaction(() => {
      store.swaps.decideSwap(id, "refused", reason);
      const fields = { fromSha256: from, toSha256: to, state: "failed", mode: null } as const;
      this.#event("swap", `${short(to)} was refused: ${reason}`, [
        build("e/swap", { ...fields, reason }),
      ]);
    });
  }

  async #commit(swapId: number, sha256: string, reason: string): Promise<void> {
    await this.#inTurn(async () => {
      const { store, build } = this.#options;
      const open = this.#probation;
      if (open?.swapId !== swapId) return;
      const before = store.swaps.findSwap(swapId);
      store.transaction(() => {
        store.swaps.saveProbation(swapId, open.state);
        store.swaps.decideSwap(swapId, "committed", reason);
        const message = build("e/swap", {
          fromSha256: before?.fromSha256 ?? null,
          toSha256: sha256,
          state: "committed",
          reason,
          mode: null,
        });
        this.#event("swap", `${short(sha256)} stays: ${reason}`, [message]);
      });
      this.#probation = null;
      await this.tellModel();
    });
  }

  /** How a model behaved that served until now, by its newest predictions. */
  #behavior(sha256: string | null) {
    const recent =
      sha256 === null ? [] : this.#options.store.predictions.newestOf(sha256, RECENT_ANSWERS);
    if (recent.length === 0) return { medianRunMs: null, topLabelShare: null };
    const times = recent.map(({ runMs }) => runMs).sort((a, b) => a - b);
    const counts = new Map<string, number>();
    for (const { label } of recent) counts.set(label, (counts.get(label) ?? 0) + 1);
    return {
      medianRunMs: times[times.length >> 1] ?? null,
      topLabelShare: Math.max(...counts.values()) / recent.length,
    };
  }

  /**
   * The model that the current one took over from, by the record of swaps; never one that was
   * rolled back itself. Null where the record does not say, as after a lost database.
   */
  #before(current: string | null): string | null {
    const swaps = this.#options.store.reports.listSwaps(200);
    const failed = new Set(swaps.filter((s) => s.state === "rolled_back").map((s) => s.toSha256));
    const came = swaps.find(
      (s) => s.kind === "swap" && s.toSha256 === current && s.switchedAt !== null,
    );
    const from = came?.fromSha256 ?? null;
    return from === null || failed.has(from) ? null : from;
  }

  /** The disk keeps the newest models; those named by open swaps stay in any case. */
  async #prune(): Promise<void> {
    const { registry, store } = this.#options;
    const newest = (await registry.listModels()).slice(-KEEP_MODELS).map(({ sha256 }) => sha256);
    for (const sha256 of await registry.pruneModels(new Set(newest))) {
      store.models.markAbsent(sha256);
    }
  }

  #problem(code: string, message: string): void {
    const { build } = this.#options;
    this.#event("problem", message, [build("e/problem", { code, message })]);
  }

  #event(
    kind: string,
    text: string,
    messages: Parameters<Store["events"]["recordEvent"]>[1],
  ): void {
    this.#options.store.events.recordEvent({ kind, text }, messages);
    this.#options.onMessages();
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(work, work);
    this.#queue = result.catch(() => undefined);
    return result;
  }
}

/** Models that stay on the disk, so that a fleet can go back several steps. */
const KEEP_MODELS = 5;
/** A generalist has a thousand classes; `twin/model` is to stay a small message. */
const MAX_TOLD_CLASSES = 200;

function short(sha256: string): string {
  return sha256.slice(0, 12);
}
