import { type ChildProcess, type ForkOptions, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Clock } from "../clock.ts";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import type {
  Answer,
  ChildHealth,
  ChildSettings,
  FrameJob,
  FromChild,
  OpenedModel,
  ToChild,
} from "./protocol.ts";

/** The child's own file, with the extension that this one runs under. */
const CHILD_PATH = fileURLToPath(
  new URL(`./inference-child${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url),
);

/** Time between the end of a process's channel and its own. */
const EXIT_GRACE_MS = 1000;
/** Codes of an error in writing to a process that has ended. */
const CLOSED = new Set(["ERR_IPC_CHANNEL_CLOSED", "EPIPE", "ECONNRESET"]);

/** A picture to be worked on, from the moment it is asked for until its one answer. */
export interface Job {
  readonly id: number;
  readonly path: string;
  readonly job: FrameJob;
  readonly settle: (answer: Answer) => void;
  readonly abandon: (error: AgentError) => void;
  /** Deaths of children in which this was the only unanswered frame. */
  deathsAlone: number;
}

/** What the owner of a child is told. */
export interface ChildEvents {
  answered(child: ModelChild): void;
  pong(child: ModelChild, health: ChildHealth): void;
  /** The process is gone and everything it said has been read; told once. */
  gone(child: ModelChild, how: string): void;
}

/** Options of {@link ModelChild}. */
export interface ChildOptions {
  /** Model folders; the first one answers frames, all of them can be measured. */
  modelDirs: readonly string[];
  settings: ChildSettings;
  /** Milliseconds in which all models must be open; a TensorRT engine takes minutes. */
  loadTimeoutMs: number;
  clock: Clock;
  forkOptions: Pick<ForkOptions, "env" | "execArgv">;
}

/** One inference process as the supervisor sees it: its frames in flight, its health, its end. */
export class ModelChild {
  /** Frames sent and not answered, in the order they were sent. */
  readonly inFlight = new Map<number, Job>();
  readonly modelDirs: readonly string[];
  /** Monotonic time of the last sign of life. */
  lastSignMs: number;
  /** Monotonic time since which its oldest frame could have been answered. */
  lastProgressMs: number;
  /** Without life or progress for too long when it was last looked at. */
  suspected = false;
  /** Set by {@link ready}. */
  opened: OpenedModel[] | undefined;
  /** Newest report of the child about itself. */
  health: ChildHealth | undefined;
  /** Why it was killed, where it was. */
  killedBecause: string | undefined;
  /** Told to let its frames run. */
  released = false;
  readonly #options: ChildOptions;
  readonly #events: ChildEvents;
  #process: ChildProcess | undefined;
  #pings = 0;
  #exit: string | undefined;
  #disconnected = false;
  #opening: Settlers<OpenedModel[]> | undefined;
  #measuring: Settlers<number[][]> | undefined;
  readonly #gone = new AbortController();
  readonly #end: Promise<void>;
  #ended: (() => void) | undefined;

  constructor(options: ChildOptions, events: ChildEvents) {
    this.#options = options;
    this.#events = events;
    this.modelDirs = options.modelDirs;
    this.lastSignMs = options.clock.monotonicMs();
    this.lastProgressMs = this.lastSignMs;
    this.#end = new Promise((resolve) => {
      this.#ended = resolve;
    });
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  get alive(): boolean {
    return this.#process !== undefined && this.#exit === undefined;
  }

  /**
   * Starts the process and resolves once its models are open, warm and checked.
   *
   * @throws {AgentError} the child's reason (MODEL_INVALID, MODEL_CHECK_FAILED), or
   *   INFERENCE_FAILED if it died or took too long. It is being killed then.
   */
  async ready(): Promise<OpenedModel[]> {
    const { clock, modelDirs, settings, loadTimeoutMs } = this.#options;
    const opening = new Promise<OpenedModel[]>((resolve, reject) => {
      this.#opening = { resolve, reject };
    });
    this.#fork();
    this.#send({ kind: "open", modelDirs, settings });
    const timer = new AbortController();
    const seconds = Math.round(loadTimeoutMs / 1000);
    const tooLong = clock.sleep(loadTimeoutMs, timer.signal).then(
      () => this.kill(`models not open within ${seconds} s`),
      () => undefined,
    );
    try {
      this.opened = await opening;
      return this.opened;
    } catch (error) {
      this.kill(messageOf(error));
      throw error;
    } finally {
      timer.abort();
      await tooLong;
    }
  }

  /** Lets its frames run; until then they are only decoded ahead. */
  release(): void {
    this.released = true;
    this.lastProgressMs = this.#options.clock.monotonicMs();
    this.#send({ kind: "go" });
  }

  sendFrame(job: Job): void {
    if (this.inFlight.size === 0) this.lastProgressMs = this.#options.clock.monotonicMs();
    this.inFlight.set(job.id, job);
    this.#send({ kind: "frame", id: job.id, path: job.path, job: job.job });
  }

  ping(): void {
    this.#pings++;
    this.#send({ kind: "ping", sequence: this.#pings });
  }

  /** Milliseconds by model, then by round. @throws {AgentError} INFERENCE_FAILED if it dies. */
  measure(rounds: number): Promise<number[][]> {
    return new Promise((resolve, reject) => {
      this.#measuring = { resolve, reject };
      this.#send({ kind: "measure", rounds });
    });
  }

  /** Ends the process at once; also one that is stopped (SIGSTOP) or inside a run. */
  kill(reason: string): void {
    if (!this.alive || this.killedBecause !== undefined) return;
    this.killedBecause = reason;
    this.#process?.kill("SIGKILL");
  }

  /** Asks the process to finish what it has and exit; kills it after `deadlineMs`. */
  async close(deadlineMs: number): Promise<void> {
    if (this.alive) {
      this.#send({ kind: "close" });
      const timer = new AbortController();
      const deadline = this.#options.clock.sleep(deadlineMs, timer.signal).then(
        () => this.kill(`did not close within ${deadlineMs} ms`),
        () => undefined,
      );
      await this.#end;
      timer.abort();
      await deadline;
    }
  }

  #fork(): void {
    const child = fork(CHILD_PATH, [], {
      ...this.#options.forkOptions,
      serialization: "advanced",
      // Standard output belongs to the results of commands.
      stdio: ["ignore", 2, 2, "ipc"],
    });
    this.#process = child;
    child.on("message", (message: FromChild) => this.#handle(message));
    child.once("exit", (code, signal) => {
      this.#exit ??= signal === null ? `exit code ${code}` : `signal ${signal}`;
      this.#finish();
    });
    // What the process said before its end may still be in the channel: wait for its end too.
    child.once("disconnect", () => {
      this.#disconnected = true;
      this.#finish();
      // A process without a channel can no longer be spoken to; mostly it is about to end.
      const killed = this.#options.clock.sleep(EXIT_GRACE_MS, this.#gone.signal);
      killed.then(
        () => this.kill("its channel closed"),
        () => undefined,
      );
    });
    child.on("error", (error) => {
      // Of a process that did start, its end or its channel's end tells the rest.
      if (child.pid !== undefined) return;
      this.#exit = `could not be started: ${error.message}`;
      this.#disconnected = true;
      this.#finish();
    });
  }

  #send(message: ToChild): void {
    const child = this.#process;
    if (child === undefined || !child.connected) return;
    child.send(message, (error) => {
      // Nobody reads any more: the process is gone, or about to be, and its end is handled there.
      if (error === null || CLOSED.has(systemCode(error) ?? "")) return;
      this.kill(`could not be written to: ${error.message}`);
    });
  }

  #handle(message: FromChild): void {
    this.lastSignMs = this.#options.clock.monotonicMs();
    switch (message.kind) {
      case "ready":
        this.#opening?.resolve(message.opened);
        break;
      case "refused":
        this.#opening?.reject(new AgentError(message.code, message.reason));
        break;
      case "answer":
        this.#answer(message.id, message.answer);
        break;
      case "pong":
        this.health = message;
        this.#events.pong(this, message);
        break;
      case "measured":
        this.#measuring?.resolve(message.samplesMs);
        break;
      default:
        message satisfies never;
    }
  }

  #answer(id: number, answer: Answer): void {
    const job = this.inFlight.get(id);
    if (job === undefined) return;
    this.inFlight.delete(id);
    this.lastProgressMs = this.lastSignMs;
    job.settle(answer);
    this.#events.answered(this);
  }

  #finish(): void {
    if (this.#exit === undefined || !this.#disconnected) return;
    this.#gone.abort();
    const how = this.killedBecause ?? this.#exit;
    const error = new AgentError("INFERENCE_FAILED", `the inference process ended: ${how}`);
    this.#opening?.reject(error);
    this.#measuring?.reject(error);
    this.#events.gone(this, how);
    this.#ended?.();
  }
}

interface Settlers<T> {
  resolve: (value: T) => void;
  reject: (error: AgentError) => void;
}
