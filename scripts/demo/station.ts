import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync } from "node:fs";
import { cp, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { stringify } from "yaml";
import { isRunning } from "../../agent/cli/control.ts";
import { AgentError, systemCode } from "../../agent/errors.ts";
import { writeFileAtomic } from "../../agent/files.ts";
import { type Connection, connectReadOnly } from "../../agent/store/connection.ts";
import type { Shot } from "./camera.ts";

/** What the configuration of the demo's station depends on. */
export interface StationSettings {
  readonly id: string;
  /** A name of the catalog, or the path of an .onnx file. */
  readonly generalist: string;
  readonly cropBottom: number;
  readonly method: string;
  readonly seed: number;
  readonly mqtt: Readonly<Record<string, unknown>>;
}

/** How a command of the command line ended. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** In every station folder that a demo made: it may be made anew, others may not. */
const MARKER = ".made-by-demo";
/**
 * Points of accuracy that the demo's candidate may lose. With so few training pictures, compressing
 * to 50 % cost 2.7 points on average, from +1.0 to −5.9, in seven runs whose splits differed; the
 * default of 1 would end most demos in a refusal.
 */
export const MAX_DROP_POINTS = 10;
const STOP_MS = 15_000;
const TAIL_LINES = 12;

/**
 * A station in a folder of its own, run as a process as a person would run it: configured by a
 * file, fed by files, asked by the command line and by its database, opened read-only.
 */
export class DemoStation {
  readonly dir: string;
  readonly configPath: string;
  readonly databasePath: string;
  readonly logPath: string;
  readonly #taco: readonly string[];
  readonly #tail: string[] = [];
  readonly #commands = new Set<ChildProcess>();
  #agent: ChildProcess | undefined;
  #stopping = false;
  #database: Connection | undefined;

  /** @param taco program and first arguments of the command line. */
  constructor(dir: string, taco: readonly string[]) {
    this.dir = dir;
    this.configPath = join(dir, "station.yaml");
    this.databasePath = join(dir, "taco.db");
    this.logPath = join(dir, "agent.log");
    this.#taco = taco;
  }

  /**
   * Makes the folder, anew where an earlier demo made it; its generalists stay.
   *
   * @returns whether there was one of an earlier demo.
   * @throws {AgentError} STATION_BUSY where that demo still runs, CONFIG_INVALID for a folder with
   *   anything else in it.
   */
  async prepare(): Promise<boolean> {
    await mkdir(this.dir, { recursive: true });
    const names = await readdir(this.dir);
    const ours = names.includes(MARKER);
    if (names.length > 0 && !ours) {
      throw new AgentError(
        "CONFIG_INVALID",
        `${this.dir} is not empty and was not made by this demo: choose another folder with --dir`,
      );
    }
    if (ours && isRunning(this.dir)) {
      throw new AgentError(
        "STATION_BUSY",
        `an agent runs on ${this.dir}: stop it, or choose another folder with --dir`,
      );
    }
    await writeFile(join(this.dir, MARKER), "Made by scripts/demo.sh, which may empty it again.\n");
    for (const name of names.filter((name) => name !== MARKER && name !== "generalists")) {
      await rm(join(this.dir, name), { recursive: true, force: true });
    }
    for (const name of ["inbox", "labeled"]) await mkdir(join(this.dir, name));
    return ours;
  }

  /** Puts a generalist that was fetched before where the station looks for it. */
  async takeGeneralist(folder: string, name: string): Promise<void> {
    const target = join(this.dir, "generalists", name);
    await rm(target, { recursive: true, force: true });
    await cp(folder, target, { recursive: true });
  }

  /** Writes `station.yaml`; an agent reads it when it starts. */
  async configure(settings: StationSettings): Promise<void> {
    const text = stringify(demoConfig(settings));
    await writeFileAtomic(this.configPath, `# Written by scripts/demo.sh.\n${text}`);
  }

  /** Starts `taco run`; resolves when the station answers for its folder. */
  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const [program, ...first] = this.#taco;
    const child = spawn(program!, [...first, "run", "--config", this.configPath], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#agent = child;
    this.#stopping = false;
    const started = new AbortController();
    createInterface({ input: child.stderr }).on("line", (line) => {
      appendFileSync(this.logPath, `${line}\n`);
      this.#tail.push(line);
      if (this.#tail.length > TAIL_LINES) this.#tail.shift();
      if (line.includes('"step":"agent.started"')) started.abort();
    });
    for (let waitedMs = 0; !started.signal.aborted; waitedMs += 50) {
      this.check();
      if (waitedMs > 60_000) throw this.#failed("the agent did not start within a minute");
      await delay(50, undefined, { signal });
    }
  }

  /**
   * Looks whether the agent still runs.
   *
   * @throws {AgentError} INFERENCE_FAILED with its last words where it ended by itself.
   */
  check(): void {
    const child = this.#agent;
    if (!child || this.#stopping) return;
    if (child.exitCode === null && child.signalCode === null) return;
    throw this.#failed(`the agent ended by itself (${child.signalCode ?? child.exitCode})`);
  }

  /** SIGTERM, and SIGKILL where that does not help. @returns seconds until it had ended. */
  async stop(): Promise<number> {
    const child = this.#agent;
    this.#stopping = true;
    this.#agent = undefined;
    for (const command of this.#commands) command.kill("SIGTERM");
    if (!child || child.exitCode !== null || child.signalCode !== null) return 0;
    const startMs = performance.now();
    const ended = once(child, "exit");
    child.kill("SIGTERM");
    const patience = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    await ended;
    clearTimeout(patience);
    return (performance.now() - startMs) / 1000;
  }

  /** Closes the database; the folder stays. */
  close(): void {
    this.#database?.close();
    this.#database = undefined;
  }

  /** Runs a command of the command line to its end. */
  async taco(...args: string[]): Promise<Outcome> {
    const [program, ...first] = this.#taco;
    const child = spawn(program!, [...first, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    this.#commands.add(child);
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    const [code] = (await once(child, "close")) as [number | null];
    this.#commands.delete(child);
    return { code: code ?? 1, stdout, stderr };
  }

  /** Puts a picture into the inbox, whole under its name at once. */
  async shoot({ name, bytes }: Shot): Promise<void> {
    const hidden = join(this.dir, "inbox", `.${name}.part`);
    await writeFile(hidden, bytes);
    await rename(hidden, join(this.dir, "inbox", name));
  }

  /**
   * Moves a picture from the inbox into the folder of its label, as a person does.
   *
   * @returns false where it is not in the inbox (any more): it was set aside.
   */
  async label({ name, label }: Pick<Shot, "name" | "label">): Promise<boolean> {
    const folder = join(this.dir, "labeled", label);
    await mkdir(folder, { recursive: true });
    try {
      await rename(join(this.dir, "inbox", name), join(folder, name));
      return true;
    } catch (error) {
      if (systemCode(error) === "ENOENT") return false;
      throw error;
    }
  }

  /** Rows of the station's database. The caller vouches that `Row` is what the SQL selects. */
  rows<Row>(sql: string, bindings: Record<string, string | number> = {}): Row[] {
    this.#database ??= connectReadOnly(this.databasePath);
    return this.#database.all<Row>(sql, bindings);
  }

  #failed(what: string): AgentError {
    const words = this.#tail.map((line) => `  ${line.slice(0, 300)}`).join("\n");
    return new AgentError(
      "INFERENCE_FAILED",
      `${what}. Its log is ${this.logPath}; the last lines:\n${words}`,
    );
  }
}

/** What differs from the defaults, each for the reason that stands beside it. */
function demoConfig(settings: StationSettings): Record<string, unknown> {
  const { id, generalist, cropBottom, method, seed, mqtt } = settings;
  return {
    station: { id, fleet: "demo", dir: "." },
    generalist,
    // Looked at quickly, since somebody is watching.
    intake: { scanIntervalSeconds: 5, settleMilliseconds: 200, cropBottom },
    specialize: {
      method,
      seed,
      minLabelsPerClass: 2,
      // So small that a run takes a minute on two cores.
      shots: 16,
      heldOutPerClass: 12,
      calibrationPictures: 160,
    },
    // Long enough to be seen at work, not to show all that it can do.
    fineTune: { maxMinutes: 0.5 },
    // Latency is noisy on a machine that draws pictures at the same time: among runs of less than a
    // millisecond three times as long is nothing unusual.
    gate: { maxDropPoints: MAX_DROP_POINTS, maxLatencyRatio: 3 },
    probation: { frames: 30, maxLatencyRatio: 10 },
    // Runs are asked for; a laptop may be warm and on its battery.
    schedule: { enabled: false, maxTempC: 110, minBatteryPercent: 0 },
    mqtt: { ...mqtt, measurementSeconds: 30 },
  };
}
