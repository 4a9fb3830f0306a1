import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../clock.ts";
import { AgentError, type ErrorCode, messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type Latency, summarizeLatency } from "../runtime/latency.ts";
import { availableMemoryBytes } from "../runtime/memory.ts";
import type { ProviderFallback } from "../runtime/session.ts";
import { type ChildOptions, type Job, ModelChild } from "./child-process.ts";
import type {
  Answer,
  ChildHealth,
  ChildSettings,
  Classified,
  Failed,
  FrameJob,
  Inspected,
} from "./protocol.ts";

/** Options of {@link Inference}. */
export interface InferenceOptions {
  /** Folder of the model to serve; asked again at every start of a child, so read the pointer. */
  currentModelDir: () => Promise<string>;
  /** Tried in this order; see `runtime/session.ts`. */
  executionProviders: readonly string[];
  /** 0 is one a processor. */
  intraOpThreads: number;
  /** Frames that a child holds at most, decoded or not. */
  queueLength: number;
  /** Resident size, in 10^6 bytes, beyond which a child is replaced by a fresh one. */
  memoryLimitMb: number;
  heartbeatMs: number;
  /** Without a sign of life, or with frames and none done, for so long a child is replaced. */
  hangMs: number;
  maxMegapixels: number;
  clock: Clock;
  log: Logger;
  /** Pictures decoded ahead at the same time; default 2. */
  decoders?: number;
  /** Time in which a child must have opened its models; default 15 minutes (TensorRT). */
  loadTimeoutMs?: number;
  /** Passed to `child_process.fork`. */
  forkOptions?: ChildOptions["forkOptions"];
  /** Bytes free for another process; the kernel's figure by default. */
  availableMemory?: () => Promise<number>;
  /** A restarted child would not serve the current model: another one must be made current. */
  onModelRefused?: (refusal: { modelDir: string; code: ErrorCode; reason: string }) => void;
}

/** Whether a candidate stands ready; `mode` tells if the live model had to make room for it. */
export type LoadOutcome =
  | { kind: "loaded"; mode: "beside" | "in place" }
  | { kind: "refused"; code: ErrorCode; reason: string };

/** What {@link Inference.status} tells. */
export interface InferenceStatus {
  pid: number | null;
  modelSha256: string | null;
  provider: string | null;
  /** Execution providers that were asked for and could not be had. */
  fallbacks: readonly ProviderFallback[];
  /** The live child's newest report; null before its first heartbeat. */
  health: ChildHealth | null;
  waiting: number;
  inFlight: number;
  /** Children started again after a crash or hang. */
  restarts: number;
  /** Children replaced because they had grown. */
  recycles: number;
}

/** Calls of `classify` and `inspect` that may wait for room at the same time. */
const MAX_WAITING = 4096;
/** Deaths alone with one picture after which the picture is given up: fewer may be chance. */
const POISON_DEATHS = 3;
const FIRST_BACKOFF_MS = 250;
const MAX_BACKOFF_MS = 30_000;
/** So that a limit below what the model needs makes replacements rare, not endless. */
const RECYCLE_PAUSE_MS = 30_000;
/** Memory of a process with a model: Node, sharp and ONNX Runtime, and a multiple of the file. */
const BASE_BYTES = 160 * 1024 * 1024;
const BYTES_PER_MODEL_BYTE = 4;
/** Time for a child without frames to end by itself. */
const CLOSE_MS = 2000;
/** Rounds measured before waiting frames have their turn, at least. */
const ROUNDS_IN_A_ROW = 5;
/** Of fast models there are more, as many as fit: a hiccup must not outlast all of them. */
const TIME_IN_A_ROW_MS = 100;
const MOST_ROUNDS_IN_A_ROW = 50;

/**
 * The supervisor's side of inference: a child process decodes and classifies pictures, and every
 * picture asked for gets exactly one answer, whatever happens to the child.
 *
 *     classify ──▶ waiting ──▶ live child ──▶ answer
 *                                 ▲   old one drains
 *     load ──▶ candidate child ───┘ switch: between two frames
 *
 * A candidate is loaded by a process of its own: creating a session blocks the thread that does
 * it (a minute on TensorRT), a crash in there takes nothing with it, and the old model's memory
 * is really given back at the end.
 */
export class Inference {
  readonly #options: InferenceOptions;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #waiting: Job[] = [];
  /** Unanswered when a child died: sent one at a time, to find which one it died of. */
  readonly #suspects = new Set<number>();
  readonly #children = new Set<ModelChild>();
  readonly #background = new Set<Promise<void>>();
  readonly #abort = new AbortController();
  #live: ModelChild | undefined;
  /** The live child of before, still answering the frames it has. */
  #draining: ModelChild | undefined;
  #candidate: ModelChild | undefined;
  /** A load, switch or measurement is going on. */
  #busy = false;
  /** The live child had to go so that another one has room. */
  #madeRoom = false;
  #paused = false;
  #stopping = false;
  #nextId = 1;
  #failures = 0;
  #restarts = 0;
  #recycles = 0;
  #restarting: Promise<void> | undefined;
  #launchedMs: number | undefined;
  #lastSignMs = 0;
  #nextRecycleMs = 0;
  #watchers: (() => void)[] = [];

  constructor(options: InferenceOptions) {
    this.#options = options;
    this.#log = options.log;
    this.#clock = options.clock;
  }

  /**
   * Starts the first child.
   *
   * @throws {AgentError} MODEL_INVALID or MODEL_CHECK_FAILED if it will not serve the current
   *   model, INFERENCE_FAILED if it died; nothing is left running.
   */
  async start(): Promise<void> {
    this.#lastSignMs = this.#clock.monotonicMs();
    const folder = await this.#options.currentModelDir();
    const child = await this.#launch([folder]);
    this.#makeLive(child);
    void this.#inBackground(this.#beat());
  }

  /**
   * Answers what the children have, at most for `deadlineMs`; calls still waiting are rejected
   * with INFERENCE_FAILED and were not answered.
   */
  async stop(deadlineMs = 10_000): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#notify();
    const error = new AgentError("INFERENCE_FAILED", "inference is stopping");
    for (const job of this.#waiting.splice(0)) job.abandon(error);
    const timer = new AbortController();
    const deadline = this.#clock.sleep(deadlineMs, timer.signal).catch(() => undefined);
    await Promise.race([deadline, this.#until(() => this.#inFlight === 0)]);
    timer.abort();
    this.#abort.abort();
    const children = [...this.#children];
    for (const child of children) {
      for (const job of child.inFlight.values()) job.abandon(error);
      child.inFlight.clear();
    }
    await Promise.all(children.map((child) => child.close(CLOSE_MS)));
    this.#notify();
    await Promise.all(this.#background);
  }

  /**
   * Classifies a picture with the live model; calls are answered in their order as long as no
   * child dies. Waits while the child is full: to feed many, await {@link room} before each.
   *
   * @throws {AgentError} INFERENCE_FAILED if stopping, or if far too many calls are waiting.
   */
  classify(job: { path: string }): Promise<Classified | Failed> {
    return this.#ask(job.path, "classify") as Promise<Classified | Failed>;
  }

  /** As {@link classify}, but only decodes the picture. */
  inspect(path: string): Promise<Inspected | Failed> {
    return this.#ask(path, "inspect") as Promise<Inspected | Failed>;
  }

  /** Resolves as soon as a call would not have to wait for long. */
  async room(signal?: AbortSignal): Promise<void> {
    const { queueLength } = this.#options;
    await this.#until(() => this.#stopping || this.#waiting.length < queueLength, signal);
  }

  /** Whether the live child gave a sign of life within `hangMs`, or is being started. */
  isAlive(): boolean {
    const nowMs = this.#clock.monotonicMs();
    if (nowMs - this.#lastSignMs <= this.#options.hangMs) return true;
    // Starting may take long, but repeated failures are no progress: the watchdog may act then.
    return this.#launchedMs !== undefined && this.#failures <= 1;
  }

  status(): InferenceStatus {
    const live = this.#live;
    const opened = live?.opened?.[0];
    return {
      pid: live?.pid ?? null,
      modelSha256: opened?.sha256 ?? null,
      provider: opened?.provider ?? null,
      fallbacks: opened?.fallbacks ?? [],
      health: live?.health ?? null,
      waiting: this.#waiting.length,
      inFlight: this.#inFlight,
      restarts: this.#restarts,
      recycles: this.#recycles,
    };
  }

  /** Process ids of every child there is now, the live one first. */
  pids(): number[] {
    const children = [...this.#children].sort(
      (a, b) => Number(b === this.#live) - Number(a === this.#live),
    );
    return children.flatMap((child) => child.pid ?? []);
  }

  /**
   * First half of a swap: opens, warms up and checks a candidate in a process of its own, beside
   * the live one where memory allows, else in its place (frames wait then). Follow it by
   * {@link switchToCandidate} or {@link discardCandidate}. Waits for a load or measurement that is
   * going on.
   *
   * @throws {AgentError} INFERENCE_FAILED if stopping.
   */
  async load(modelDir: string): Promise<LoadOutcome> {
    await this.#occupy();
    try {
      const mode = await this.#roomFor([modelDir]);
      const child = await this.#launch([modelDir]);
      this.#candidate = child;
      if (!child.alive) throw new AgentError("INFERENCE_FAILED", "it died once it was loaded");
      return { kind: "loaded", mode };
    } catch (error) {
      await this.discardCandidate();
      const code = error instanceof AgentError ? error.code : "INFERENCE_FAILED";
      return { kind: "refused", code, reason: messageOf(error) };
    }
  }

  /**
   * Second half of a swap: new frames go to the candidate, which decodes them ahead, and it
   * begins to run them when the old model has answered its last one.
   *
   * @returns `lost` if the candidate is no longer alive; the old model goes on then.
   */
  async switchToCandidate(): Promise<"switched" | "lost"> {
    const candidate = this.#candidate;
    if (candidate === undefined || !candidate.alive) return "lost";
    this.#candidate = undefined;
    this.#makeLive(candidate);
    await this.#until(() => candidate.released || !candidate.alive);
    this.#madeRoom = false;
    this.#vacate();
    return "switched";
  }

  /** Ends the candidate; the live model, started again where it had made room, goes on. */
  async discardCandidate(): Promise<void> {
    const candidate = this.#candidate;
    this.#candidate = undefined;
    await candidate?.close(CLOSE_MS);
    this.#takeBackRoom();
    this.#vacate();
  }

  /**
   * Latency of several models in one fresh inference process, opened exactly as they would be
   * served. Frames wait while a few rounds run, then have their turn.
   *
   * @param rounds runs of every model, at least; fast ones run up to ten times as often.
   * @returns one latency a folder, in their order.
   * @throws {AgentError} MODEL_INVALID or MODEL_CHECK_FAILED if one is not fit to be served;
   *   INFERENCE_FAILED if the process died, or if stopping; the signal's reason between rounds.
   */
  async measure(
    modelDirs: readonly string[],
    rounds: number,
    signal?: AbortSignal,
  ): Promise<Latency[]> {
    await this.#occupy();
    let child: ModelChild | undefined;
    try {
      await this.#roomFor(modelDirs);
      child = await this.#launch(modelDirs);
      const samples = modelDirs.map((): number[] => []);
      let inARow = ROUNDS_IN_A_ROW;
      for (let done = 0; done < rounds; done += ROUNDS_IN_A_ROW) {
        signal?.throwIfAborted();
        const some = await this.#alone(child, inARow);
        for (const [i, ms] of some.entries()) samples[i]!.push(...ms);
        inARow = roundsWithin(TIME_IN_A_ROW_MS, some);
      }
      return samples.map(summarizeLatency);
    } finally {
      await child?.close(CLOSE_MS);
      this.#takeBackRoom();
      this.#vacate();
    }
  }

  /** Rounds of a measurement while no frame is in flight; some waiting ones follow them. */
  async #alone(child: ModelChild, rounds: number): Promise<number[][]> {
    this.#paused = true;
    try {
      await this.#until(() => this.#inFlight === 0);
      return await child.measure(rounds);
    } finally {
      this.#paused = false;
      this.#pump();
    }
  }

  /** Begins a load or measurement once no other is going on; ended by whoever began it. */
  async #occupy(): Promise<void> {
    await this.#until(() => this.#stopping || !this.#busy);
    if (this.#stopping) throw new AgentError("INFERENCE_FAILED", "inference is stopping");
    this.#busy = true;
  }

  #vacate(): void {
    this.#busy = false;
    this.#notify();
  }

  /** Makes sure that another process has room, if need be by ending the live one. */
  async #roomFor(modelDirs: readonly string[]): Promise<"beside" | "in place"> {
    let needed = BASE_BYTES;
    for (const folder of modelDirs) needed += BYTES_PER_MODEL_BYTE * (await modelBytes(folder));
    const available = await (this.#options.availableMemory ?? availableMemoryBytes)();
    if (available >= needed || this.#live === undefined) return "beside";
    this.#log.warn(
      { availableBytes: available, neededBytes: needed },
      "too little memory for two models: pictures wait while the next one is loaded",
    );
    this.#madeRoom = true;
    this.#paused = true;
    await this.#until(() => this.#inFlight === 0);
    const live = this.#live;
    this.#live = undefined;
    this.#paused = false;
    await live?.close(this.#options.hangMs);
    return "in place";
  }

  #takeBackRoom(): void {
    if (!this.#madeRoom) return;
    this.#madeRoom = false;
    // Not waited for: if the model is refused, another must be loaded, and that waits for its turn.
    this.#restart();
  }

  #ask(path: string, kind: FrameJob): Promise<Answer> {
    if (this.#stopping) {
      return Promise.reject(new AgentError("INFERENCE_FAILED", "inference is stopping"));
    }
    if (this.#waiting.length >= MAX_WAITING) {
      const message = `${MAX_WAITING} pictures wait already: await room() before each call`;
      return Promise.reject(new AgentError("INFERENCE_FAILED", message));
    }
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      const settle = (answer: Answer): void => {
        this.#suspects.delete(id);
        resolve(answer);
      };
      this.#waiting.push({ id, path, job: kind, settle, abandon: reject, deathsAlone: 0 });
      this.#pump();
    });
  }

  get #inFlight(): number {
    return (this.#live?.inFlight.size ?? 0) + (this.#draining?.inFlight.size ?? 0);
  }

  /** Hands waiting frames to the live child as far as it has room. */
  #pump(): void {
    const window = this.#suspects.size > 0 ? 1 : this.#options.queueLength;
    while (this.#live?.alive && !this.#paused && this.#inFlight < window) {
      const job = this.#waiting.shift();
      if (job === undefined) break;
      this.#live.sendFrame(job);
    }
    this.#notify();
  }

  /** A child with its models open; it is killed if it will not open them. */
  async #launch(modelDirs: readonly string[]): Promise<ModelChild> {
    if (this.#stopping) throw new AgentError("INFERENCE_FAILED", "inference is stopping");
    const { executionProviders, intraOpThreads, maxMegapixels, decoders = 2 } = this.#options;
    const settings: ChildSettings = { executionProviders, intraOpThreads, maxMegapixels, decoders };
    const child = new ModelChild(
      {
        modelDirs,
        settings,
        loadTimeoutMs: this.#options.loadTimeoutMs ?? 15 * 60_000,
        clock: this.#clock,
        forkOptions: this.#options.forkOptions ?? {},
      },
      {
        answered: (which) => this.#answered(which),
        pong: (which, health) => this.#pong(which, health),
        gone: (which, how) => this.#gone(which, how),
      },
    );
    this.#children.add(child);
    this.#launchedMs = this.#clock.monotonicMs();
    try {
      const opened = await child.ready();
      this.#log.info({ pid: child.pid, opened }, "models open");
      return child;
    } finally {
      this.#launchedMs = undefined;
    }
  }

  /** Routes frames to a child; it runs them once the one before has answered its last. */
  #makeLive(child: ModelChild): void {
    const before = this.#live;
    this.#live = child;
    if (!child.alive) {
      this.#gone(child, "it died once it was loaded");
      return;
    }
    this.#lastSignMs = this.#clock.monotonicMs();
    if (before === undefined || before.inFlight.size === 0) {
      child.release();
      if (before !== undefined) void this.#inBackground(before.close(this.#options.hangMs));
    } else {
      this.#draining = before;
    }
    this.#pump();
  }

  #answered(child: ModelChild): void {
    if (child === this.#live) {
      this.#failures = 0;
      this.#lastSignMs = child.lastSignMs;
    }
    if (child === this.#draining && child.inFlight.size === 0) {
      this.#draining = undefined;
      this.#live?.release();
      void this.#inBackground(child.close(this.#options.hangMs));
    }
    this.#pump();
  }

  #pong(child: ModelChild, health: ChildHealth): void {
    if (child !== this.#live) return;
    this.#lastSignMs = child.lastSignMs;
    this.#failures = 0;
    const limitBytes = this.#options.memoryLimitMb * 1e6;
    if (health.rssBytes <= limitBytes || this.#busy || this.#stopping) return;
    if (child.lastSignMs < this.#nextRecycleMs) return;
    this.#nextRecycleMs = child.lastSignMs + RECYCLE_PAUSE_MS;
    this.#log.warn({ rssBytes: health.rssBytes, limitBytes }, "inference process has grown");
    void this.#inBackground(this.#recycle());
  }

  /** Replaces the live child by a fresh one of the current model, between two frames. */
  async #recycle(): Promise<void> {
    const outcome = await this.load(await this.#options.currentModelDir());
    if (outcome.kind === "refused") {
      this.#log.error({ reason: outcome.reason }, "inference process could not be replaced");
    } else if ((await this.switchToCandidate()) === "switched") {
      this.#recycles++;
    } else {
      await this.discardCandidate();
    }
  }

  #gone(child: ModelChild, how: string): void {
    this.#children.delete(child);
    if (!this.#stopping && (child.inFlight.size > 0 || child === this.#live)) {
      this.#log.error(
        { pid: child.pid, how, unanswered: child.inFlight.size },
        "inference process died",
      );
    }
    this.#requeue(child, how);
    if (child === this.#draining) {
      this.#draining = undefined;
      this.#live?.release();
    }
    if (child === this.#live) {
      this.#live = undefined;
      if (!this.#stopping) {
        this.#restarts++;
        this.#failures++;
        this.#restart();
      }
    }
    this.#pump();
  }

  /** Puts a dead child's frames back in front, but those that killed it again and again. */
  #requeue(child: ModelChild, how: string): void {
    const jobs = [...child.inFlight.values()];
    child.inFlight.clear();
    const [only] = jobs;
    if (jobs.length === 1 && only !== undefined && ++only.deathsAlone >= POISON_DEATHS) {
      const modelSha256 = child.opened?.[0]?.sha256 ?? null;
      const reason = `the inference process died ${POISON_DEATHS} times on this picture (${how})`;
      only.settle({ kind: "failed", code: "PICTURE_UNREADABLE", reason, modelSha256 });
      return;
    }
    for (const job of jobs) this.#suspects.add(job.id);
    this.#waiting.unshift(...jobs);
    this.#waiting.sort((a, b) => a.id - b.id);
  }

  #restart(): void {
    this.#restarting ??= this.#inBackground(
      this.#tryToRestart().finally(() => {
        this.#restarting = undefined;
        this.#notify();
      }),
    );
  }

  async #tryToRestart(): Promise<void> {
    while (!this.#stopping && this.#live === undefined) {
      const doublings = Math.max(0, this.#failures - 1);
      const backoffMs = Math.min(FIRST_BACKOFF_MS * 2 ** doublings, MAX_BACKOFF_MS);
      await this.#clock.sleep(backoffMs, this.#abort.signal).catch(() => undefined);
      if (this.#stopping || this.#live !== undefined) return;
      let modelDir = "";
      try {
        modelDir = await this.#options.currentModelDir();
        const child = await this.#launch([modelDir]);
        // A swap may have brought another one meanwhile, which may have died again since: then the
        // model that was current when this one was launched is so no more.
        const isCurrent = await this.#options.currentModelDir().then(
          (now) => now === modelDir,
          // The next try says why it cannot be told.
          () => false,
        );
        if (this.#stopping || this.#live !== undefined || !isCurrent) await child.close(CLOSE_MS);
        else this.#makeLive(child);
      } catch (error) {
        const code = error instanceof AgentError ? error.code : "INFERENCE_FAILED";
        const reason = messageOf(error);
        if (this.#stopping) return;
        this.#failures++;
        this.#log.error({ code, reason }, "inference process did not start");
        if (code !== "INFERENCE_FAILED") this.#options.onModelRefused?.({ modelDir, code, reason });
      }
    }
  }

  async #beat(): Promise<void> {
    while (!this.#abort.signal.aborted) {
      await this.#clock.sleep(this.#options.heartbeatMs, this.#abort.signal).catch(() => undefined);
      for (const child of this.#children) {
        if (child.opened !== undefined) this.#look(child);
      }
    }
  }

  /** Asks a child for a sign of life, or kills one that gives none or gets no frame done. */
  #look(child: ModelChild): void {
    const { hangMs } = this.#options;
    const nowMs = this.#clock.monotonicMs();
    const silentMs = nowMs - child.lastSignMs;
    const idleMs = child.released && child.inFlight.size > 0 ? nowMs - child.lastProgressMs : 0;
    const stuckMs = Math.max(silentMs, idleMs);
    // Twice in a row: if this process was held up itself, the answer may lie unread.
    if (stuckMs > hangMs && child.suspected) {
      const what = silentMs > hangMs ? "no sign of life" : "no picture done";
      child.kill(`hung: ${what} for ${Math.round(stuckMs)} ms`);
      return;
    }
    child.suspected = stuckMs > hangMs;
    child.ping();
  }

  /** Keeps a promise until it is settled, so that {@link stop} can wait for it. */
  #inBackground(task: Promise<void>): Promise<void> {
    const kept = task
      .catch((error: unknown) => {
        this.#log.error({ error: messageOf(error) }, "inference task failed");
      })
      .finally(() => this.#background.delete(kept));
    this.#background.add(kept);
    return kept;
  }

  #notify(): void {
    for (const wake of this.#watchers.splice(0)) wake();
  }

  /** Resolves once the condition holds, looked at after every change. */
  async #until(condition: () => boolean, signal?: AbortSignal): Promise<void> {
    const wakeAll = (): void => this.#notify();
    signal?.addEventListener("abort", wakeAll);
    try {
      while (!condition()) {
        signal?.throwIfAborted();
        await new Promise<void>((resolve) => {
          this.#watchers.push(resolve);
        });
      }
    } finally {
      signal?.removeEventListener("abort", wakeAll);
    }
  }
}

async function modelBytes(folder: string): Promise<number> {
  let bytes = 0;
  for (const name of await readdir(folder)) bytes += (await stat(join(folder, name))).size;
  return bytes;
}

/** Rounds that take some time, by the fastest of those measured. */
function roundsWithin(limitMs: number, samplesMs: readonly number[][]): number {
  const roundMs = samplesMs.reduce((sum, ms) => sum + Math.min(...ms), 0);
  const rounds = Math.floor(limitMs / roundMs);
  return Math.max(ROUNDS_IN_A_ROW, Math.min(MOST_ROUNDS_IN_A_ROW, rounds));
}
