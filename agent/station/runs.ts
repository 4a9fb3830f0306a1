import { randomBytes } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { type Clock, isoTime } from "../clock.ts";
import { aimOf, fineTuneOf, type StationConfig } from "../config/schema.ts";
import { EnergyMeter } from "../device/energy.ts";
import { AgentError, messageOf } from "../errors.ts";
import { fileExists, readJsonIfExists } from "../files.ts";
import type { BuildMessage } from "../fleet/messages.ts";
import type { GeneralistDescription } from "../generalist/description.ts";
import type { Logger } from "../log.ts";
import type { ModelMetrics } from "../model.ts";
import { chooseClasses, makeSpec } from "../specialize/plan.ts";
import { type RunOutlook, RunProgress } from "../specialize/progress.ts";
import { type MeasureLatency, type RunEvent, runPaths, specialize } from "../specialize/run.ts";
import type { RunResult, RunSpec } from "../specialize/spec.ts";
import { assignRoles, type Role, takeShots } from "../specialize/split.ts";
import type { TrainingPoint } from "../specialize/training-point.ts";
import type { Store } from "../store/store.ts";
import { forgetVanished } from "./pictures.ts";

/** What the flow of runs is made of. */
export interface RunFlowOptions {
  readonly config: StationConfig;
  readonly store: Store;
  readonly build: BuildMessage;
  readonly clock: Clock;
  readonly log: Logger;
  readonly softwareVersion: string;
  readonly generalist: () => Promise<GeneralistDescription>;
  /** Folder of the model that serves now. */
  readonly incumbentDir: () => Promise<string | null>;
  readonly measureLatency: MeasureLatency;
  /** Called with the process id of the specialize child. */
  readonly onChild: (pid: number) => void;
  /** Publishes and serves an accepted candidate. */
  readonly onAccepted: (result: RunResult, candidateDir: string) => Promise<void>;
  readonly onMessages: () => void;
  /** Power that the box draws now, in watts; null where it cannot be read. */
  readonly readWatts: () => Promise<number | null>;
}

/** Folders of finished runs that stay for inspection. */
const KEEP_RUNS = 20;
/** Processes of a run that may be killed one after the other without a stage between two. */
const MAX_DEATHS = 3;
/** A run whose process was killed goes on from its last stage. */
const DEATH_CODES: ReadonlySet<string> = new Set(["RUN_ABORTED", "INFERENCE_FAILED"]);
/** A stage's progress goes into the database at most this often: each is a write to the disk. */
const PROGRESS_MS = 5000;
/** Power is read this often while a run goes on. */
const POWER_MS = 10_000;

/** From labels to a verdict: plans a run, watches over it, records it, and hands on the result. */
export class RunFlow {
  readonly #options: RunFlowOptions;
  readonly #stop = new AbortController();
  #running: { id: string; done: Promise<unknown> } | null = null;

  constructor(options: RunFlowOptions) {
    this.#options = options;
  }

  /** Id of the run under way, or of one that the last process left and {@link resume} takes up. */
  get running(): string | null {
    return this.#running?.id ?? this.#options.store.runs.unfinishedRuns()[0]?.id ?? null;
  }

  /** Whether this process works on a run. */
  get busy(): boolean {
    return this.#running !== null;
  }

  /**
   * Starts a run and resolves with its result, after an accepted candidate was handed on.
   *
   * @throws {AgentError} STATION_BUSY while another one runs; TOO_FEW_LABELS; what a run may
   *   throw. All of it is recorded and reported.
   */
  async start(kind: "scheduled" | "manual" | "remote", reason: string): Promise<RunResult> {
    const { running } = this;
    if (running !== null) {
      throw new AgentError("STATION_BUSY", `run ${running} is under way already`);
    }
    const id = runId(this.#options.clock.nowMs());
    return await this.#occupy(id, async () => {
      const spec = await this.#plan(id).catch((error: unknown) => {
        this.#report(id, "skipped", messageOf(error));
        throw error;
      });
      const { store } = this.#options;
      const dir = this.#dir(id);
      store.transaction(() => {
        store.runs.createRun({ id, kind, reason, spec, seed: spec.options.seed, dir });
        this.#report(id, "started", reason);
      });
      return await this.#execute(spec);
    });
  }

  /** Takes up the run that the last process left unfinished; does nothing while one is under way. */
  async resume(): Promise<void> {
    const { store, log } = this.#options;
    for (const run of store.runs.unfinishedRuns()) {
      if (this.#running || this.#stop.signal.aborted) return;
      const spec = run.spec as RunSpec;
      log.info({ run: run.id }, "taking up an unfinished run");
      try {
        await this.#occupy(run.id, async () => {
          this.#report(run.id, "resumed", null);
          return await this.#execute(spec);
        });
      } catch (error) {
        log.warn({ run: run.id, reason: messageOf(error) }, "the resumed run did not finish");
      }
    }
  }

  /** Ends the run under way; it can be resumed. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.allSettled([this.#running?.done]);
  }

  async #occupy<T>(id: string, work: () => Promise<T>): Promise<T> {
    const done = work();
    this.#running = { id, done };
    try {
      return await done;
    } finally {
      this.#running = null;
    }
  }

  async #plan(id: string): Promise<RunSpec> {
    const { config, store, clock, log, softwareVersion } = this.#options;
    await forgetVanished(store, "labeled", fileExists, log);
    await forgetVanished(store, "inbox", fileExists, log);
    const { specialize: options, inference, intake } = config;
    const labeled = this.#assignRoles();
    const taken = takeShots(labeled, options);
    const chosen = chooseClasses(taken, options.minLabelsPerClass);
    return makeSpec({
      id,
      createdAt: isoTime(clock.nowMs()),
      softwareVersion,
      generalist: await this.#options.generalist(),
      crop: intake,
      incumbentDir: await this.#options.incumbentDir(),
      pictures: chosen.pictures,
      problems: chosen.problems,
      labelMap: config.labelMap,
      options: {
        ...options,
        aim: aimOf(config),
        searchSeconds: 60 * options.searchMinutes,
        latencyTablePath: join(config.station.dir, "latency.json"),
        executionProviders: [...inference.executionProviders],
        maxMegapixels: intake.maxMegapixels,
        fineTune: fineTuneOf(config),
      },
      gate: config.gate,
    });
  }

  /** Every labeled picture with the side of its burst, which is fixed here for new bursts. */
  #assignRoles() {
    const { store, config } = this.#options;
    const labeled = store.labels.labeledPictures().map(({ sha256, path, label, burstId }) => {
      return { path, label, burst: burstId ?? `picture ${sha256.slice(0, 16)}` };
    });
    return store.transaction(() => {
      const known = store.bursts.burstRoles();
      const counts = new Map<string, { train: number; heldOut: number }>();
      const counted = new Set<string>();
      for (const { burst, label } of labeled) {
        const role = known.get(burst);
        if (!role || counted.has(burst)) continue;
        counted.add(burst);
        const count = counts.get(label) ?? { train: 0, heldOut: 0 };
        counts.set(label, { ...count, [role]: count[role] + 1 });
      }
      const { heldOutShare } = config.specialize;
      const given = assignRoles(labeled, known, counts, heldOutShare);
      for (const [burst, role] of given) store.bursts.assignBurstRole(burst, role);
      const roleOf = (burst: string): Role => known.get(burst) ?? given.get(burst) ?? "train";
      return labeled.map((picture) => ({ ...picture, role: roleOf(picture.burst) }));
    });
  }

  async #execute(spec: RunSpec): Promise<RunResult> {
    const { store, clock, log } = this.#options;
    const { id } = spec;
    store.runs.setRunState(id, "running");
    const startMs = clock.monotonicMs();
    try {
      const result = await this.#doStages(spec);
      this.#recordVerdict(result);
      const seconds = (clock.monotonicMs() - startMs) / 1000;
      log.info({ step: "run.verdict", run: id, accepted: result.verdict.accepted }, "verdict");
      if (result.verdict.accepted) {
        await this.#options.onAccepted(result, runPaths(this.#dir(id)).candidate);
      }
      store.transaction(() => {
        store.runs.setRunState(id, "finished");
        this.#report(id, "finished", null, seconds);
      });
      await this.#removeOld(id);
      return result;
    } catch (error) {
      await this.#fail(id, error, (clock.monotonicMs() - startMs) / 1000);
      throw error;
    }
  }

  async #doStages(spec: RunSpec): Promise<RunResult> {
    const over = new AbortController();
    const isOver = AbortSignal.any([over.signal, this.#stop.signal]);
    try {
      return await this.#doStagesInLives(spec, this.#watchEnergy(spec.id, isOver));
    } finally {
      over.abort();
    }
  }

  /** Does the stages; a process killed in one (short memory, a person) costs only that stage. */
  async #doStagesInLives(spec: RunSpec, endTraining: AbortSignal): Promise<RunResult> {
    const { clock, log, measureLatency, onChild } = this.#options;
    const { id } = spec;
    const { signal } = this.#stop;
    const progress = new RunProgress(clock.monotonicMs(), spec.options);
    let savedMs = Number.NEGATIVE_INFINITY;
    for (let deaths = 0; ; ) {
      try {
        return await specialize({
          spec,
          runDir: this.#dir(id),
          measureLatency,
          onEvent: (event) => {
            if (event.type === "stage-finished") deaths = 0;
            if (event.type === "trained") this.#recordTraining(id, event.point);
            const outlook = progress.update(event, clock.monotonicMs());
            const nowMs = clock.monotonicMs();
            const isDue = event.type !== "progress" || nowMs - savedMs >= PROGRESS_MS;
            if (!isDue) return;
            savedMs = nowMs;
            this.#tellProgress(id, event, outlook);
          },
          onChild,
          endTraining,
          clock,
          log,
          signal,
        });
      } catch (error) {
        const isDeath = error instanceof AgentError && DEATH_CODES.has(error.code);
        deaths += 1;
        if (!isDeath || signal.aborted || deaths >= MAX_DEATHS) throw error;
        log.warn(
          { run: id, reason: messageOf(error), deaths },
          "the run goes on from its last stage",
        );
        this.#report(id, "resumed", messageOf(error));
      }
    }
  }

  #recordTraining(id: string, point: TrainingPoint): void {
    const { store, log } = this.#options;
    try {
      store.runs.addTrainingPoint(id, point);
    } catch (error) {
      log.error(
        { run: id, reason: messageOf(error) },
        "a point of the loss curve was not recorded",
      );
    }
  }

  /**
   * Adds up the energy of a run and fires when it has drawn as much as the configuration allows,
   * so that training ends. What one process of the station does not see (before a restart, or
   * without a sensor) is not counted.
   */
  #watchEnergy(id: string, isOver: AbortSignal): AbortSignal {
    const { clock, config, log, readWatts } = this.#options;
    const { maxWattHours } = config.fineTune;
    const spent = new AbortController();
    if (maxWattHours === null) return spent.signal;
    const meter = new EnergyMeter(clock);
    const watch = async (): Promise<void> => {
      while (!isOver.aborted) {
        meter.add(await readWatts());
        if ((meter.energyWh ?? 0) >= maxWattHours) {
          log.info({ run: id, energyWh: meter.energyWh }, "the run's energy is used up");
          spent.abort();
          return;
        }
        await clock.sleep(POWER_MS, isOver);
      }
    };
    watch().catch((error: unknown) => {
      if (!isOver.aborted) log.warn({ run: id, reason: messageOf(error) }, "energy is not watched");
    });
    return spent.signal;
  }

  /** A disk that is full for a while must not cost a run; the verdict records what is missing. */
  #tellProgress(id: string, event: RunEvent, outlook: RunOutlook): void {
    const { store, log } = this.#options;
    try {
      this.#recordStage(id, event, outlook.secondsLeft);
      store.runs.setProgress(id, outlook);
    } catch (error) {
      log.error({ run: id, reason: messageOf(error) }, "the progress of a run was not recorded");
    }
  }

  #recordStage(id: string, event: RunEvent, secondsLeft: number | null): void {
    if (event.type === "progress" || event.type === "trained") return;
    const { store, build, log, onMessages } = this.#options;
    const { stage } = event;
    store.transaction(() => {
      if (event.type === "stage-started") store.runs.startStage(id, stage);
      else {
        const { seconds, runtimeSeconds } = event.report;
        const detail = inRuntime(runtimeSeconds);
        store.runs.endStage(id, stage, { state: "finished", seconds, detail });
      }
      const finished = event.type === "stage-finished";
      const message = build("e/stage", {
        run: id,
        stage,
        state: finished ? "finished" : "started",
        done: finished ? 1 : 0,
        seconds: finished ? event.report.seconds : null,
        secondsLeft,
      });
      store.outbox.enqueue([message]);
    });
    log.info({ step: `run.${stage}.${event.type}`, run: id, stage }, event.type);
    onMessages();
  }

  #recordVerdict(result: RunResult): void {
    const { store, build, onMessages } = this.#options;
    const { run, dense, incumbent, candidate, verdict, heldOut, candidateSha256 } = result;
    const message = build("e/verdict", {
      run,
      candidateSha256,
      accepted: verdict.accepted,
      reasons: verdict.reasons,
      heldOut,
      dense: scoreOf(dense),
      incumbent: incumbent ? scoreOf(incumbent) : null,
      candidate: scoreOf(candidate),
    });
    const entry = {
      runId: run,
      accepted: verdict.accepted,
      onProbation: verdict.onThinEvidence,
      reasons: verdict.reasons,
      metrics: { dense, incumbent, candidate },
      candidateSha256,
    };
    store.transaction(() => {
      this.#completeStages(run, result.stages);
      store.runs.recordVerdict(entry, [message]);
    });
    onMessages();
  }

  /** Of a stage that ended as a process was killed, only the run's folder knows. */
  #completeStages(id: string, stages: RunResult["stages"]): void {
    const { runs } = this.#options.store;
    const told = new Set(runs.stages(id).flatMap((s) => (s.state === "finished" ? [s.name] : [])));
    for (const { name, seconds, runtimeSeconds } of stages) {
      if (told.has(name)) continue;
      runs.startStage(id, name);
      runs.endStage(id, name, { state: "finished", seconds, detail: inRuntime(runtimeSeconds) });
    }
  }

  async #fail(id: string, error: unknown, seconds: number): Promise<void> {
    const { store, log } = this.#options;
    const reason = messageOf(error);
    // Told to stop: the run stays "running", and the next start takes it up.
    if (this.#stop.signal.aborted) return;
    log.error({ run: id, reason }, "run failed");
    store.transaction(() => {
      store.runs.setRunState(id, "failed", reason);
      this.#report(id, "failed", reason, seconds);
    });
    await rm(runPaths(this.#dir(id)).work, { recursive: true, force: true });
    await this.#removeOld(id);
  }

  #report(
    run: string,
    state: "started" | "resumed" | "finished" | "failed" | "skipped",
    reason: string | null,
    seconds: number | null = null,
  ): void {
    const { store, build, onMessages } = this.#options;
    const text = `run ${run} ${state}${reason === null ? "" : `: ${reason}`}`;
    store.events.recordEvent({ kind: "run", text }, [
      build("e/run", { run, state, reason, seconds }),
    ]);
    onMessages();
  }

  /** The dense model of a run served the comparison; candidates stay, of the newest runs. */
  async #removeOld(id: string): Promise<void> {
    await rm(runPaths(this.#dir(id)).dense, { recursive: true, force: true });
    const root = join(this.#options.config.station.dir, "runs");
    // By the order of the database: names are times, and clocks are set back.
    const newest = new Set(this.#options.store.reports.listRuns(KEEP_RUNS).map((run) => run.id));
    for (const name of await readdir(root)) {
      if (!newest.has(name)) await rm(join(root, name), { recursive: true, force: true });
    }
  }

  #dir(id: string): string {
    return join(this.#options.config.station.dir, "runs", id);
  }
}

function inRuntime(seconds: number): string {
  return `${seconds.toFixed(1)} s inside ONNX Runtime`;
}

function scoreOf({ accuracy, macroF1, parameters, nonzero, bytes, latencyMsP50 }: ModelMetrics) {
  return { accuracy, macroF1, parameters, nonzero, bytes, latencyMsP50 };
}

/**
 * Gives bursts the side that earlier runs used them for, from the specs in their folders: after
 * the database was lost, nothing that was trained on may be held out.
 */
export async function restoreBurstRoles(store: Store, runsDir: string, log: Logger): Promise<void> {
  const bursts = v.object({
    pictures: v.array(v.object({ burst: v.string(), role: v.picklist(["train", "heldOut"]) })),
  });
  for (const name of (await readdir(runsDir)).sort()) {
    const spec = v.safeParse(bursts, await readJsonIfExists(runPaths(join(runsDir, name)).spec));
    if (!spec.success) continue;
    for (const { burst, role } of spec.output.pictures) store.bursts.assignBurstRole(burst, role);
    log.info({ run: name }, "took the sides of bursts from the folder of a run");
  }
}

/** Sorts by time of its making: `20261124T020000Z-3fa2`. */
export function runId(nowMs: number): string {
  const time = isoTime(nowMs).replaceAll(/[-:]|\.\d+/g, "");
  return `${time}-${randomBytes(2).toString("hex")}`;
}
