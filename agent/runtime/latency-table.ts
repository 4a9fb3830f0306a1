import { mkdir } from "node:fs/promises";
import { availableParallelism, cpus } from "node:os";
import { dirname } from "node:path";
import { env } from "onnxruntime-node";
import * as v from "valibot";
import { messageOf } from "../errors.ts";
import { readJsonIfExists, writeJsonAtomic } from "../files.ts";
import { measureByTurns, summarizeLatency } from "./latency.ts";
import type { SessionConfig } from "./session.ts";

/** What latencies depend on beside the graph and its shapes. */
export interface Machine {
  /** Model name of the processor, as the system gives it. */
  readonly cpu: string;
  /** Execution providers, in the order in which they are tried. */
  readonly providers: readonly string[];
  /** Version of ONNX Runtime. */
  readonly runtime: string;
  /** Threads inside one operator. */
  readonly threads: number;
}

/** This machine, used as a session config says. */
export function thisMachine(
  config: Pick<SessionConfig, "executionProviders" | "intraOpThreads">,
): Machine {
  const { intraOpThreads, executionProviders } = config;
  return {
    cpu: cpus()[0]?.model.trim() ?? process.arch,
    providers: executionProviders,
    runtime: env.versions.node ?? env.versions.common,
    threads: intraOpThreads > 0 ? intraOpThreads : availableParallelism(),
  };
}

/** Something that can be run again and again, and let go at the end. */
export interface TimedRun {
  /** @returns milliseconds. */
  run(): Promise<number>;
  release(): Promise<void>;
}

/** Something to measure. */
export interface LatencyJob {
  /** Names it in the table; two jobs of one key must take the same time. */
  readonly key: string;
  readonly open: () => Promise<TimedRun>;
}

/** How {@link LatencyTable.measure} works. */
export interface MeasureOptions {
  /** Jobs that are open, and take turns, at one time; default 12. */
  readonly atOnce?: number;
  /** Time that one group of jobs may take, in milliseconds; default 4000. */
  readonly limitMs?: number;
  /**
   * Takes its turn in every group: figures of a group in which it was slower than ever are lowered
   * by as much, so that groups measured while the machine was busy compare with the others.
   */
  readonly reference?: LatencyJob;
  readonly signal: AbortSignal;
}

const fileSchema = v.object({
  formatVersion: v.literal(1),
  machines: v.record(v.string(), v.record(v.string(), v.pipe(v.number(), v.minValue(0)))),
});

/** Entries kept for one machine: some hundred networks' worth, a megabyte. */
const MAX_ENTRIES = 20_000;
const DEFAULT_AT_ONCE = 12;
const DEFAULT_LIMIT_MS = 4000;
const WARM_UP_ROUNDS = 2;
/** Rounds between two looks at whether the figures still fall. */
const ROUNDS = 5;
const MIN_LOOKS = 2;
const MAX_LOOKS = 8;
/** Figures that fall by less than this share of their sum are taken to have settled. */
const SETTLED = 0.01;

/**
 * Measured latencies of parts of networks on this machine, kept in a file so that they are
 * measured once. A figure is the least of several medians over a few rounds each: other programs
 * can only add to the time of a run, and a median does not see single hiccups.
 */
export class LatencyTable {
  readonly #path: string | null;
  readonly #machine: string;
  readonly #others: Record<string, Record<string, number>>;
  readonly #entries: Map<string, number>;

  private constructor(
    path: string | null,
    machine: string,
    machines: Record<string, Record<string, number>>,
  ) {
    this.#path = path;
    this.#machine = machine;
    const { [machine]: own = {}, ...others } = machines;
    this.#others = others;
    this.#entries = new Map(Object.entries(own));
  }

  /**
   * Opens the table of a machine. A file that cannot be read is logged and written anew, since
   * all that is in it can be measured again.
   *
   * @param path null: nothing is kept.
   */
  static async open(
    path: string | null,
    machine: Machine,
    log: SessionConfig["log"],
  ): Promise<LatencyTable> {
    const { cpu, providers, runtime, threads } = machine;
    const key = `${cpu} · ${providers.join("+")} · onnxruntime ${runtime} · ${threads} threads`;
    let machines: Record<string, Record<string, number>> = {};
    try {
      const value = path === null ? undefined : await readJsonIfExists(path);
      if (value !== undefined) machines = v.parse(fileSchema, value).machines;
    } catch (error) {
      log.error({ path, reason: messageOf(error) }, "latency table unreadable, measuring anew");
    }
    return new LatencyTable(path, key, machines);
  }

  /** An empty table that is kept nowhere. */
  static forgetful(): LatencyTable {
    return new LatencyTable(null, "", {});
  }

  /** Milliseconds of one run; undefined where it was not measured yet. */
  get(key: string): number | undefined {
    return this.#entries.get(key);
  }

  /** Measures the jobs that the table does not know yet, by turns, and keeps the table. */
  async measure(jobs: readonly LatencyJob[], options: MeasureOptions): Promise<void> {
    const { atOnce = DEFAULT_AT_ONCE, signal, reference } = options;
    const missing = new Map<string, LatencyJob>();
    for (const job of jobs) if (!this.#entries.has(job.key)) missing.set(job.key, job);
    const all = [...missing.values()];
    for (let start = 0; start < all.length; start += atOnce) {
      signal.throwIfAborted();
      const group = all.slice(start, start + atOnce);
      const [first, ...figures] = reference
        ? await measureGroup([reference, ...group], options)
        : [1, ...(await measureGroup(group, options))];
      const best = reference ? Math.min(first!, this.get(reference.key) ?? first!) : 1;
      if (reference) this.#entries.set(reference.key, best);
      group.forEach(({ key }, i) => {
        this.#entries.set(key, (figures[i]! * best) / first!);
      });
    }
    if (all.length > 0) await this.#save();
  }

  async #save(): Promise<void> {
    for (const key of this.#entries.keys()) {
      if (this.#entries.size <= MAX_ENTRIES) break;
      this.#entries.delete(key);
    }
    if (this.#path === null) return;
    await mkdir(dirname(this.#path), { recursive: true });
    await writeJsonAtomic(this.#path, {
      formatVersion: 1,
      machines: { ...this.#others, [this.#machine]: Object.fromEntries(this.#entries) },
    });
  }
}

async function measureGroup(
  jobs: readonly LatencyJob[],
  { limitMs = DEFAULT_LIMIT_MS, signal }: MeasureOptions,
): Promise<number[]> {
  const open: TimedRun[] = [];
  try {
    for (const job of jobs) open.push(await job.open());
    return await settledMedians(open, limitMs, signal);
  } finally {
    for (const timed of open) await timed.release();
  }
}

async function settledMedians(
  open: readonly TimedRun[],
  limitMs: number,
  signal: AbortSignal,
): Promise<number[]> {
  const probes = open.map((timed) => () => timed.run());
  const pause = () => {
    signal.throwIfAborted();
    return new Promise<void>((resolve) => setImmediate(resolve));
  };
  const start = performance.now();
  await measureByTurns(probes, WARM_UP_ROUNDS, pause);
  let least = open.map(() => Number.POSITIVE_INFINITY);
  for (let look = 1; look <= MAX_LOOKS; look++) {
    const samples = await measureByTurns(probes, ROUNDS, pause);
    const medians = samples.map((list) => summarizeLatency(list).medianMs);
    const next = least.map((ms, i) => Math.min(ms, medians[i]!));
    const gain = 1 - sum(next) / sum(least);
    least = next;
    const settled = look >= MIN_LOOKS && gain < SETTLED;
    if (settled || performance.now() - start > limitMs) break;
  }
  return least;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
