import { randomUUID } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { availableParallelism, loadavg, totalmem } from "node:os";
import { basename, join } from "node:path";
import { type Clock, isoTime } from "./clock.ts";
import type { StationConfig } from "./config/schema.ts";
import { Intake } from "./data/intake.ts";
import { Quarantine } from "./data/quarantine.ts";
import { RunCgroup } from "./device/cgroup.ts";
import { readHardware } from "./device/hardware.ts";
import { lowerPriority } from "./device/priority.ts";
import { SystemdNotifier } from "./device/sd-notify.ts";
import { SensorReader } from "./device/sensors.ts";
import { AgentError, messageOf } from "./errors.ts";
import { type Command, type CommandResult, CommandRunner } from "./fleet/commands.ts";
import { FleetConnection } from "./fleet/connection.ts";
import { type BuildMessage, messageBuilder } from "./fleet/messages.ts";
import { OutboxPump } from "./fleet/pump.ts";
import type { GeneralistDescription } from "./generalist/description.ts";
import type { Logger } from "./log.ts";
import { createRandom } from "./math/random.ts";
import { knownAnswersSchema, modelManifestSchema, readModelJson } from "./model.ts";
import { ScheduleLoop } from "./schedule/loop.ts";
import {
  type Decision,
  decide,
  type ScheduleRules,
  type ScheduleState,
} from "./schedule/policy.ts";
import { Inference, type InferenceOptions } from "./serve/inference.ts";
import { ModelRegistry } from "./serve/registry.ts";
import { ControlFolder } from "./station/control.ts";
import { prepareGeneralist } from "./station/generalist.ts";
import { LATENCY_ROUNDS } from "./station/latency.ts";
import { ModelFlow } from "./station/models.ts";
import { PictureFlow } from "./station/pictures.ts";
import { deviceFields, hardwareMessage, InferenceWindow } from "./station/reports.ts";
import { RunFlow, restoreBurstRoles } from "./station/runs.ts";
import { type OpenOutcome, openStore } from "./store/open.ts";
import { lockStation, type StationLock } from "./store/station-lock.ts";
import type { Store } from "./store/store.ts";

/** What a station's agent is made of. */
export interface AgentOptions {
  readonly config: StationConfig;
  readonly clock: Clock;
  readonly log: Logger;
  readonly environment: NodeJS.ProcessEnv;
  readonly softwareVersion: string;
}

const SCHEDULE_INTERVAL_MS = 30_000;
const CONTROL_INTERVAL_MS = 1000;
/** A command may look whether an agent runs at the moment this one starts. */
const LOCK_WAIT_MS = 3000;
/** Labels that came, a probation that time ends, pictures left waiting: looked at this often. */
const TICK_MS = 2000;
/** Pictures that a model could not answer are asked again this often. */
const RESUME_MS = 60_000;
/** Room for a run: cached pictures and activations, two models, checkpoints. */
const RUN_DISK_BYTES = 2e9;
const FIRST_RETRY_MS = 5000;
const LAST_RETRY_MS = 15 * 60_000;
/** How often it is looked whether a backup is due. */
const BACKUP_LOOK_MS = 10 * 60_000;
/** The diary's length; predictions, runs and models are kept for ever. */
const KEPT_EVENT_DAYS = 400;
/** Time that frames under way get at the end. */
const DRAIN_MS = 4000;

/** Builds the parts of a station and starts and stops them in order; the only place that knows all. */
export class Agent {
  readonly #options: AgentOptions;
  readonly #stop = new AbortController();
  readonly #background = new Set<Promise<void>>();
  #parts: Parts | undefined;
  /** Execution provider that `twin/hardware` names. */
  #toldProvider: string | null = null;
  #lock: StationLock | undefined;

  constructor(options: AgentOptions) {
    this.#options = options;
  }

  /**
   * Starts the station. Resolves when it is up; pictures are taken in as soon as there is a model,
   * and a generalist that must be fetched first is fetched in the background. Until then the
   * folders keep what comes.
   *
   * @throws {AgentError} STATION_BUSY, STORE_TOO_NEW, STORE_FAILED or DISK_FULL.
   */
  async start(): Promise<void> {
    const { config, clock, log, environment, softwareVersion } = this.#options;
    const { dir } = config.station;
    for (const name of ["inbox", "labeled", "quarantine", "models", "runs", "backups"]) {
      await mkdir(join(dir, name), { recursive: true });
    }
    this.#lock = lockStation(join(dir, "station.lock"), LOCK_WAIT_MS);
    const cgroup = new RunCgroup({ root: config.device.sysfsRoot, environment });
    for (const reason of await cgroup.start()) log.debug({ reason }, "runs have no group");
    const { store, outcome } = await openStore({
      path: join(dir, "taco.db"),
      backupDir: join(dir, "backups"),
      keepBackups: config.store.keepBackups,
      outboxLimitBytes: config.mqtt === null ? 0 : config.mqtt.outboxLimitMb * 1e6,
      softwareVersion,
      clock,
      log,
    });
    const parts = buildParts(this.#options, store, cgroup, this.#stop.signal);
    this.#parts = parts;
    await this.#repair(parts, outcome);
    parts.commands.recover(store.commands.executingCommands());
    parts.connection?.start();
    parts.pump?.start();
    this.#inBackground("serving", () => this.#serve(parts));
    await parts.control.start();
    parts.schedule.start();
    this.#every(TICK_MS, "tick", () => this.#tick(parts));
    this.#every(BACKUP_LOOK_MS, "backup", () => this.#backup(parts), true);
    const { mqtt } = config;
    if (mqtt) this.#every(mqtt.measurementSeconds * 1000, "measurements", () => measure(parts));
    await parts.notifier.start(`station ${config.station.id}`);
    log.info({ step: "agent.started", station: config.station.id, dir }, "station started");
  }

  /** Drains what is under way, within seconds, and leaves everything ready for the next start. */
  async stop(): Promise<void> {
    const parts = this.#parts;
    this.#stop.abort();
    if (parts) {
      await parts.notifier.stop();
      await parts.schedule.stop();
      await parts.control.stop();
      // Together: a run may wait for a model that loads, pictures for the one that serves.
      const ended = Promise.all([parts.intake.stop(), parts.runs.stop()]);
      await parts.inference.stop(DRAIN_MS);
      await ended;
      await Promise.allSettled(this.#background);
      await parts.models.stop();
      await parts.pump?.stop();
      await parts.connection?.stop();
      await parts.store.close();
    }
    this.#lock?.release();
    this.#options.log.info({ step: "agent.stopped" }, "station stopped");
  }

  /** Brings registry and database in line after whatever happened to either. */
  async #repair({ store, registry, build }: Parts, outcome: OpenOutcome): Promise<void> {
    const { log } = this.#options;
    const back = store.reports.listSwaps(100).filter(({ state }) => state === "rolled_back");
    const report = await registry.repair(new Set(back.map(({ toSha256 }) => toSha256)));
    const valid = (await registry.listModels()).flatMap((m) => (m.valid ? [m.manifest] : []));
    store.models.rebuildModels(valid);
    if (outcome.kind !== "ok") {
      await restoreBurstRoles(store, join(this.#options.config.station.dir, "runs"), log);
    }
    const texts = [
      ...report.broken.map(({ sha256, reason }) => `model ${sha256} set aside: ${reason}`),
      ...(report.reason === null || report.current === null
        ? []
        : [`model ${report.current} is current now: ${report.reason}`]),
      ...(outcome.kind === "ok" || outcome.kind === "created"
        ? []
        : [`the database was ${outcome.kind}: ${outcome.reason}`]),
    ];
    for (const text of texts) {
      log.error({ text }, "repaired at start");
      const code = text.startsWith("model") ? "REGISTRY_INVALID" : "STORE_FAILED";
      const message = build("e/problem", { code, message: text });
      store.events.recordEvent({ kind: "problem", text }, [message]);
    }
  }

  /** Gets a model to serve, serves it, and takes up what the last process left unfinished. */
  async #serve(parts: Parts): Promise<void> {
    const { store, models, pictures } = parts;
    await this.#untilDone("the first model", () => this.#firstModel(parts));
    await this.#untilDone("inference", () => this.#startInference(parts));
    const pending = await models.reconcile();
    await parts.intake.start();
    await this.#tellHardware(parts);
    if (pending) await models.tryAgain(pending);
    this.#every(RESUME_MS, "unfinished runs", () => this.#resumeRuns(parts), true);
    this.#every(RESUME_MS, "waiting pictures", () => pictures.resume(this.#stop.signal), true);
    store.events.recordEvent({ kind: "start", text: "the station serves" });
  }

  /** Goes on with an unfinished run, but not on a box that is too hot or has too little power. */
  async #resumeRuns({ runs, store, ...parts }: Parts): Promise<void> {
    if (store.runs.unfinishedRuns().length === 0 || runs.busy) return;
    const { config, clock, log } = this.#options;
    // What it was planned on is settled; it is itself the run that other ones wait for.
    const settled = { runningRun: null, probationRunning: null, classesReady: 2 };
    const readState = async () => ({ ...(await parts.readState()), ...settled });
    const refusal = await whyNot(true, { config, clock, readState });
    if (refusal === null) await runs.resume();
    else log.info({ reason: refusal }, "an unfinished run waits");
  }

  /** Where the registry is empty: the generalist itself, with all its classes. */
  async #firstModel(parts: Parts): Promise<void> {
    const { registry, store } = parts;
    if ((await registry.readCurrent()) !== null) return;
    const { config, clock, softwareVersion } = this.#options;
    const outDir = join(config.station.dir, "generalists", ".first-model");
    await parts.generalist({
      outDir,
      createdAt: isoTime(clock.nowMs()),
      softwareVersion,
      executionProviders: config.inference.executionProviders,
      intraOpThreads: config.inference.intraOpThreads,
    });
    const manifest = await readModelJson(join(outDir, "model.json"), modelManifestSchema);
    const knownAnswers = await readModelJson(join(outDir, "check.json"), knownAnswersSchema);
    await registry.publishModel({ onnx: join(outDir, "model.onnx"), manifest, knownAnswers });
    await registry.setCurrent(manifest.sha256);
    store.models.registerModel(manifest);
  }

  /** A current model that this machine cannot serve gives way to the one before it. */
  async #startInference({ inference, registry, store, build }: Parts): Promise<void> {
    try {
      await inference.start();
    } catch (error) {
      const code = error instanceof AgentError ? error.code : "INFERENCE_FAILED";
      const from = await registry.readCurrent();
      const to = await registry.rollbackTarget();
      if ((code !== "MODEL_INVALID" && code !== "MODEL_CHECK_FAILED") || !from || !to) throw error;
      const reason = `it cannot be served here: ${messageOf(error)}`;
      await registry.setCurrent(to);
      const message = build("e/rollback", {
        fromSha256: from,
        toSha256: to,
        cause: "damaged",
        reason,
      });
      store.events.recordEvent({ kind: "rollback", text: reason }, [message]);
      throw error;
    }
  }

  async #tellHardware({ store, build, inference, pump }: Parts): Promise<void> {
    const { config, clock } = this.#options;
    const hardware = await readHardware({ root: config.device.sysfsRoot, clock });
    const status = inference.status();
    store.outbox.enqueue([hardwareMessage(build, hardware, status)]);
    this.#toldProvider = status.provider;
    pump?.wake();
  }

  /** By the wall clock, since a station that is cut off every night is never up for long. */
  async #backup({ store }: Parts): Promise<void> {
    const { config, clock } = this.#options;
    const last = Number(store.state.get("lastBackupMs") ?? 0);
    const sinceMs = clock.nowMs() - last;
    // A clock that was set back makes it negative: better one backup more than none.
    if (sinceMs >= 0 && sinceMs < config.store.backupHours * 3_600_000) return;
    await store.backup();
    store.state.set("lastBackupMs", clock.nowMs());
    store.predictions.retain({ eventsDays: KEPT_EVENT_DAYS });
  }

  async #tick(parts: Parts): Promise<void> {
    parts.models.decide();
    parts.pictures.tellLabels();
    // Another child may have come up on another execution provider.
    const { provider } = parts.inference.status();
    if (provider !== null && provider !== this.#toldProvider) await this.#tellHardware(parts);
  }

  /** Tries until it works or the station stops, waiting longer each time. */
  async #untilDone(what: string, work: () => Promise<void>): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    for (let waitMs = FIRST_RETRY_MS; ; waitMs = Math.min(LAST_RETRY_MS, 2 * waitMs)) {
      try {
        return await work();
      } catch (error) {
        signal.throwIfAborted();
        log.error({ what, reason: messageOf(error), retryMs: waitMs }, "failed, trying again");
        this.#recordProblem(error);
        await clock.sleep(waitMs, signal);
      }
    }
  }

  #recordProblem(error: unknown): void {
    const parts = this.#parts;
    if (!parts) return;
    const code = error instanceof AgentError ? error.code : null;
    const message = messageOf(error);
    try {
      const report = parts.build("e/problem", { code, message });
      parts.store.events.recordEvent({ kind: "problem", text: message }, [report]);
      parts.pump?.wake();
    } catch (failure) {
      this.#options.log.error(
        { message, reason: messageOf(failure) },
        "a problem was not recorded",
      );
    }
  }

  /** Does something again and again until the station stops; an error is told and outlived. */
  #every(intervalMs: number, what: string, work: () => Promise<void>, atOnce = false): void {
    const { clock } = this.#options;
    const { signal } = this.#stop;
    this.#inBackground(what, async () => {
      if (!atOnce) await clock.sleep(intervalMs, signal);
      while (!signal.aborted) {
        try {
          await work();
        } catch (error) {
          if (signal.aborted) return;
          this.#options.log.error({ what, reason: messageOf(error) }, "failed, goes on");
          this.#recordProblem(error);
        }
        await clock.sleep(intervalMs, signal);
      }
    });
  }

  #inBackground(what: string, work: () => Promise<void>): void {
    const task = work()
      .catch((error: unknown) => {
        if (this.#stop.signal.aborted) return;
        this.#options.log.error({ what, reason: messageOf(error) }, "background work failed");
        this.#recordProblem(error);
      })
      .finally(() => this.#background.delete(task));
    this.#background.add(task);
  }
}

/** Everything a station is made of. */
interface Parts {
  readonly config: StationConfig;
  readonly store: Store;
  readonly registry: ModelRegistry;
  readonly inference: Inference;
  readonly window: InferenceWindow;
  readonly sensors: SensorReader;
  readonly readState: () => Promise<Omit<ScheduleState, "nowMs">>;
  readonly build: BuildMessage;
  readonly pictures: PictureFlow;
  readonly models: ModelFlow;
  readonly runs: RunFlow;
  readonly intake: Intake;
  readonly control: ControlFolder;
  readonly commands: CommandRunner;
  readonly schedule: ScheduleLoop;
  readonly notifier: SystemdNotifier;
  readonly connection: FleetConnection | null;
  readonly pump: OutboxPump | null;
  /** Describes the generalist and, where asked, makes the first model of it. */
  readonly generalist: (
    firstModel: Parameters<typeof prepareGeneralist>[0]["firstModel"],
  ) => Promise<GeneralistDescription>;
}

function buildParts(
  options: AgentOptions,
  store: Store,
  cgroup: RunCgroup,
  signal: AbortSignal,
): Parts {
  const { config, clock, log, environment, softwareVersion } = options;
  const { dir, id } = config.station;
  const { intake: rules } = config;
  const build = messageBuilder(id, clock, randomUUID);
  const registry = new ModelRegistry({ modelsDir: join(dir, "models") });
  const window = new InferenceWindow(clock);
  const inference = stationInference(options, registry, ({ modelDir, reason }) => {
    models
      .rollback("damaged", `it cannot be started again: ${reason}`, undefined, basename(modelDir))
      .catch((error: unknown) => log.error({ reason: messageOf(error) }, "no model to go back to"));
  });
  const onMessages = () => pump?.wake();
  const generalist: Parts["generalist"] = (firstModel) =>
    prepareGeneralist(
      {
        source: config.generalist,
        cacheDir: join(dir, "generalists"),
        cropTop: rules.cropTop,
        cropBottom: rules.cropBottom,
        firstModel,
      },
      signal,
    );
  const models: ModelFlow = new ModelFlow({
    config,
    registry,
    store,
    inference,
    build,
    clock,
    log,
    softwareVersion,
    signal,
    onMessages,
  });
  const pictures = new PictureFlow({
    store,
    quarantine: new Quarantine({
      folder: join(dir, "quarantine"),
      maxMb: rules.maxQuarantineMb,
      clock,
    }),
    build,
    log,
    inboxDir: join(dir, "inbox"),
    labeledDir: join(dir, "labeled"),
    burstGapSeconds: rules.burstGapSeconds,
    predictionEvents: config.mqtt?.predictionEvents ?? false,
    classify: (path) => inference.classify({ path }),
    inspect: (path) => inference.inspect(path),
    onAnswer: (answer, burstId) => {
      window.add(answer);
      models.observe(answer, burstId);
    },
    onMessages,
  });
  const sensors = new SensorReader({ root: config.device.sysfsRoot, stationDir: dir, log });
  const runs = new RunFlow({
    config,
    store,
    build,
    clock,
    log,
    softwareVersion,
    generalist: () => generalist(null),
    incumbentDir: async () => {
      const current = await registry.readCurrent();
      return current === null ? null : registry.folder(current);
    },
    measureLatency: async (dirs) =>
      (await inference.measure(dirs, LATENCY_ROUNDS)).map(({ medianMs }) => medianMs),
    onChild: (pid) => {
      const placed = Promise.all([cgroup.place(pid), lowerPriority(pid)]);
      placed.then(
        (refused) => log.debug({ pid, refused: refused.flat() }, "run put behind everything else"),
        (error: unknown) => log.warn({ reason: messageOf(error) }, "run keeps its priority"),
      );
    },
    onAccepted: (result, candidateDir) => models.serveCandidate(result, candidateDir),
    onMessages,
    readWatts: async () => (await sensors.read()).powerWatts,
  });
  const intake = new Intake({
    inboxDir: join(dir, "inbox"),
    labeledDir: join(dir, "labeled"),
    scanIntervalMs: rules.scanIntervalSeconds * 1000,
    settleMs: rules.settleMilliseconds,
    clock,
    log,
    known: (path, sizeBytes, mtimeMs) => store.pictures.isKnownFile(path, sizeBytes, mtimeMs),
    onPicture: (found) => pictures.take(found),
    concurrency: Math.max(4, config.inference.queueLength),
  });
  const readState = () => scheduleState({ config, store, sensors, runs, models });
  const commands = new CommandRunner({
    journal: store.commands,
    enqueue: (message) => {
      store.outbox.enqueue([message]);
      onMessages();
    },
    build,
    transaction: (work) => store.transaction(work),
    onCommand: (command) =>
      carryOut(command, { config, clock, runs, models, intake, readState, store }),
    clock,
    logger: log,
  });
  const connection = config.mqtt && fleetConnection(options, config.mqtt, commands);
  const pump: OutboxPump | null =
    connection &&
    new OutboxPump({
      outbox: store.outbox,
      connection,
      clock,
      logger: log,
      inFlight: config.mqtt?.inFlight ?? 1,
    });
  const control = new ControlFolder({
    dir: join(dir, "control"),
    clock,
    log,
    intervalMs: CONTROL_INTERVAL_MS,
    onCommand: (op, commandId, payload) =>
      commands.receive({
        topic: `cmd/${op}/${commandId}`,
        payload,
        retained: false,
        expiresMonotonicMs: undefined,
      }),
  });
  const schedule = new ScheduleLoop({
    rules: config.schedule,
    clock,
    log,
    intervalMs: SCHEDULE_INTERVAL_MS,
    readState,
    onDecision: (decision) => {
      // Every write is a write to the disk, and most decisions are those of half a minute ago.
      const kept = JSON.stringify(store.state.get("schedule"));
      if (JSON.stringify(decision) !== kept) store.state.set("schedule", decision);
    },
    onRun: () => {
      runs.start("scheduled", "the schedule's conditions are met").catch((error: unknown) => {
        log.error({ reason: messageOf(error) }, "the scheduled run did not finish");
      });
      return Promise.resolve();
    },
  });
  // A station that still fetches its first model waits for the network, which no restart helps.
  const isAlive = async () => (await registry.readCurrent()) === null || inference.isAlive();
  return {
    config,
    store,
    registry,
    inference,
    window,
    sensors,
    readState,
    build,
    pictures,
    models,
    runs,
    intake,
    control,
    commands,
    schedule,
    notifier: new SystemdNotifier({ environment, clock, log, isAlive }),
    connection: connection ?? null,
    pump: pump ?? null,
    generalist,
  };
}

function stationInference(
  { config, clock, log }: AgentOptions,
  registry: ModelRegistry,
  onModelRefused: NonNullable<InferenceOptions["onModelRefused"]>,
): Inference {
  const { inference: rules, intake } = config;
  return new Inference({
    currentModelDir: async () => {
      const current = await registry.readCurrent();
      if (current === null) throw new AgentError("REGISTRY_INVALID", "there is no current model");
      return registry.folder(current);
    },
    executionProviders: rules.executionProviders,
    intraOpThreads: rules.intraOpThreads,
    queueLength: rules.queueLength,
    memoryLimitMb: rules.memoryLimitMb,
    heartbeatMs: rules.heartbeatSeconds * 1000,
    hangMs: rules.hangSeconds * 1000,
    maxMegapixels: intake.maxMegapixels,
    clock,
    log,
    onModelRefused,
  });
}

function fleetConnection(
  { config, clock, log, environment, softwareVersion }: AgentOptions,
  mqtt: NonNullable<StationConfig["mqtt"]>,
  commands: CommandRunner,
): FleetConnection {
  return new FleetConnection({
    fleet: config.station.fleet,
    station: config.station.id,
    url: mqtt.url,
    protocolVersion: mqtt.protocolVersion,
    username: mqtt.username,
    passwordFile: mqtt.passwordFile,
    caFile: mqtt.caFile,
    keepaliveSeconds: mqtt.keepaliveSeconds,
    softwareVersion,
    clock,
    random: createRandom(clock.nowMs()).uniform,
    newId: randomUUID,
    logger: log,
    onMessage: (message) => commands.receive(message),
    environment,
  });
}

const scheduleMemory = (value: unknown): { scheduled: number | null; anchor: number | null } => {
  const kept = (value ?? {}) as Partial<Decision>;
  return { scheduled: kept.lastScheduledMs ?? null, anchor: kept.clockAnchorMs ?? null };
};

async function scheduleState(
  parts: Pick<Parts, "config" | "store" | "sensors" | "runs" | "models">,
): Promise<Omit<ScheduleState, "nowMs">> {
  const { config, store, sensors, runs, models } = parts;
  const reading = await sensors.read();
  const last = store.runs.lastRun();
  const counts = new Map<string, number>();
  for (const { label } of store.labels.labeledPictures()) {
    counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  const { minLabelsPerClass } = config.specialize;
  const memory = scheduleMemory(store.state.get("schedule"));
  return {
    lastRunStartedMs: last ? Date.parse(last.startedAt ?? last.createdAt) : null,
    lastScheduledMs: memory.scheduled,
    clockAnchorMs: memory.anchor,
    newLabels: store.labels.countNewLabelsSince(last?.id ?? null),
    classesReady: [...counts.values()].filter((n) => n >= minLabelsPerClass).length,
    sensors: reading,
    runningRun: runs.running,
    probationRunning: models.onProbation,
    diskFreeBytes: reading.diskFreeBytes,
    diskNeededBytes: RUN_DISK_BYTES,
  };
}

async function carryOut(
  command: Command,
  parts: Pick<Parts, "config" | "runs" | "models" | "intake" | "store"> & {
    clock: Clock;
    readState: () => Promise<Omit<ScheduleState, "nowMs">>;
  },
): Promise<CommandResult> {
  const { runs, models, intake } = parts;
  switch (command.op) {
    case "refresh":
      intake.rescan();
      await models.tellModel();
      return { state: "successful" };
    case "rollback": {
      const to = await models.rollback("command", "asked for", command.payload.toSha256);
      return { state: "successful", reason: `${to} serves now` };
    }
    case "specialize": {
      const refusal = await whyNot(command.payload.force, parts);
      if (refusal !== null) return { state: "failed", reason: refusal };
      const { run, verdict } = await runs.start("remote", `command ${command.id}`);
      const judged = verdict.accepted ? "accepted" : "refused";
      return { state: "successful", reason: `${run}: ${judged}: ${verdict.reasons.join("; ")}` };
    }
  }
}

/** A command may come at any hour; unless forced, labels and distance count, and heat always. */
async function whyNot(
  force: boolean,
  {
    config,
    clock,
    readState,
  }: Pick<Parameters<typeof carryOut>[1], "config" | "clock" | "readState">,
): Promise<string | null> {
  const rules: ScheduleRules = {
    ...config.schedule,
    enabled: true,
    cron: "* * * * *",
    ...(force ? { minNewLabels: 0, minHoursBetweenRuns: 0, quietHours: [] } : {}),
  };
  const state = await readState();
  const decision = decide(rules, { ...state, lastScheduledMs: 0, nowMs: clock.nowMs() });
  return decision.action === "run" ? null : decision.reasons.join(" ");
}

/** Load of the last minute over the processors: 100 is busy, more is a queue. */
function cpuLoadPercent(): number {
  return (100 * (loadavg()[0] ?? 0)) / availableParallelism();
}

async function measure(parts: Parts): Promise<void> {
  const { store, build, window, inference, sensors, pump, connection } = parts;
  const reading = await sensors.read();
  const counts = pump?.counts;
  store.outbox.enqueue([
    build("m/inference", window.take(inference.status())),
    build("m/device", deviceFields(reading, totalmem(), cpuLoadPercent())),
    build("m/outbox", {
      pending: store.outbox.pendingCount(),
      pendingBytes: store.outbox.pendingBytes(),
      droppedFull: store.outbox.droppedCount(),
      droppedRefused: counts?.dropped ?? 0,
      delivered: counts?.delivered ?? 0,
      connects: connection?.connects ?? 0,
    }),
  ]);
  pump?.wake();
}
