import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import sharp from "sharp";
import { stringify } from "yaml";
import { systemCode } from "../../agent/errors.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { writeGraph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { openStoreReadOnly } from "../../agent/store/open.ts";
import type { Reports } from "../../agent/store/reports.ts";
import { buildAgent } from "./build.helpers.ts";

/** Labels of the drawn test pictures; each is a color and a direction of stripes. */
export const LABELS = ["badger", "deer", "fox"] as const;

const MAIN = await buildAgent();
const SIDE = 32;
const CHANNELS = 48;

/**
 * A small convolutional generalist with random weights and ten classes, and its sidecar: enough
 * layers and inputs that pruning really prunes, and a run takes a second or two.
 */
export async function writeTinyGeneralist(dir: string): Promise<string> {
  const random = createRandom(5);
  const kernel = (rows: number, inputs: number) =>
    floatTensor(
      [rows, inputs, 3, 3],
      Array.from({ length: rows * inputs * 9 }, () => random.normal() / Math.sqrt(inputs * 4)),
    );
  const classes = Array.from({ length: 10 }, (_, i) => `thing ${i}`);
  const conv = (from: string, k: string, to: string) =>
    node("Conv", [from, k], [to], { pads: [1, 1, 1, 1], strides: [2, 2] });
  const graph = buildModel({
    inputs: [floatValue("input", ["N", 3, SIDE, SIDE])],
    outputs: [floatValue("logits", ["N", classes.length])],
    nodes: [
      conv("input", "k1", "c1"),
      node("Relu", ["c1"], ["r1"]),
      conv("r1", "k2", "c2"),
      node("Relu", ["c2"], ["r2"]),
      conv("r2", "k3", "c3"),
      node("Relu", ["c3"], ["r3"]),
      node("GlobalAveragePool", ["r3"], ["pooled"]),
      node("Flatten", ["pooled"], ["features"], { axis: 1 }),
      node("Gemm", ["features", "w", "b"], ["logits"], { transB: 1 }),
    ],
    initializers: {
      k1: kernel(CHANNELS, 3),
      k2: kernel(CHANNELS, CHANNELS),
      k3: kernel(CHANNELS, CHANNELS),
      w: floatTensor(
        [classes.length, CHANNELS],
        Array.from({ length: classes.length * CHANNELS }, () => random.normal() / 7),
      ),
      b: floatTensor([classes.length], new Array(classes.length).fill(0)),
    },
  });
  await mkdir(dir, { recursive: true });
  const path = join(dir, "tiny.onnx");
  await writeFile(path, writeGraph(graph));
  await writeFile(join(dir, "labels.txt"), `${classes.join("\n")}\n`);
  const sidecar = {
    name: "tiny",
    input: { name: "input", shape: ["N", 3, SIDE, SIDE], layout: "NCHW", dtype: "float32" },
    output: { name: "logits", shape: ["N", classes.length], dtype: "float32" },
    classes: classes.length,
    labels: "labels.txt",
    preprocessing: {
      color: "RGB",
      mean: [0.5, 0.5, 0.5],
      std: [0.25, 0.25, 0.25],
      resize: `straight to ${SIDE}x${SIDE}, aspect not kept, bicubic`,
      crop: "none",
    },
  };
  await writeFile(join(dir, "tiny.json"), JSON.stringify(sidecar));
  return path;
}

/** A JPEG of a label: its stripes and color under noise; every number gives other bytes. */
export function drawPicture(label: (typeof LABELS)[number], number: number): Promise<Buffer> {
  const random = createRandom(1000 * LABELS.indexOf(label) + number);
  const size = 48;
  const data = Buffer.alloc(size * size * 3);
  const phase = random.uniform() * 6;
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const along = label === "badger" ? x : label === "deer" ? y : x + y;
      const stripe = 128 + 70 * Math.sin(along / 3 + phase);
      for (let c = 0; c < 3; c++) {
        const tint = c === LABELS.indexOf(label) ? 40 : 0;
        data[(y * size + x) * 3 + c] = Math.max(
          0,
          Math.min(255, stripe + tint + 40 * random.normal()),
        );
      }
    }
  }
  return sharp(data, { raw: { width: size, height: size, channels: 3 } })
    .jpeg({ quality: 85 })
    .toBuffer();
}

/** A line of the agent's log. */
export type LogLine = Record<string, unknown> & { step?: string; level?: string; msg?: string };

/** A station in a folder of its own, run as a process like a person would. */
export class TestStation {
  readonly dir: string;
  readonly configPath: string;
  readonly lines: LogLine[] = [];
  readonly #root: string;
  #process: ChildProcess | undefined;
  #listeners = new Set<(line: LogLine) => void>();

  private constructor(root: string) {
    this.#root = root;
    this.dir = join(root, "station");
    this.configPath = join(root, "station.yaml");
  }

  /** @param overrides sections of the configuration, merged one level deep. */
  static async make(overrides: Record<string, unknown> = {}): Promise<TestStation> {
    const root = await mkdtemp(join(tmpdir(), "taco-station-"));
    const station = new TestStation(root);
    const generalist = await writeTinyGeneralist(join(root, "generalist"));
    const base: Record<string, Record<string, unknown>> = {
      station: { id: "test-station", dir: station.dir },
      intake: { scanIntervalSeconds: 1, settleMilliseconds: 50 },
      inference: { heartbeatSeconds: 1, hangSeconds: 10 },
      specialize: {
        method: "unstructured:0.5",
        minLabelsPerClass: 4,
        shots: 16,
        seed: 3,
        batchSize: 8,
      },
      // Most journeys are about other things than training.
      fineTune: { enabled: false, maxMinutes: 0.5 },
      gate: { maxDropPoints: 100, maxLatencyRatio: 100 },
      probation: { frames: 5, minutes: 1000, maxLatencyRatio: 100, maxLabelShare: 1 },
      schedule: { enabled: false, minNewLabels: 0, minHoursBetweenRuns: 0 },
      log: { level: "debug" },
    };
    const config: Record<string, unknown> = { ...base, generalist };
    for (const [name, value] of Object.entries(overrides)) {
      const isSection = typeof value === "object" && value !== null && !Array.isArray(value);
      config[name] = isSection ? { ...base[name], ...value } : value;
    }
    await writeFile(station.configPath, stringify(config));
    return station;
  }

  /** Starts the agent; resolves at its first sign of life in the log. */
  async start(): Promise<void> {
    const child = spawn(process.execPath, [MAIN, "run", "--config", this.configPath], {
      stdio: ["ignore", "inherit", "pipe"],
    });
    this.#process = child;
    createInterface({ input: child.stderr }).on("line", (text) => {
      const line = parseLine(text);
      this.lines.push(line);
      for (const listener of this.#listeners) listener(line);
    });
    await this.until((line) => line.step === "agent.started");
  }

  get pid(): number {
    return this.#process?.pid ?? 0;
  }

  /** Whether the supervisor runs. */
  get alive(): boolean {
    return this.#process?.exitCode === null && this.#process.signalCode === null;
  }

  /** Children of the supervisor that run a file of this name, oldest first. */
  async children(file: "inference-child.js" | "child.js"): Promise<number[]> {
    const { pid } = this;
    const list = await readIfThere(`/proc/${pid}/task/${pid}/children`);
    const found: number[] = [];
    for (const child of list.trim().split(" ").filter(Boolean)) {
      const [, script] = (await readIfThere(`/proc/${child}/cmdline`)).split("\0");
      if (script?.endsWith(`/${file}`)) found.push(Number(child));
    }
    return found;
  }

  /** Asks the station's database, as the command line does. */
  ask<T>(question: (reports: Reports) => T): T {
    const store = openStoreReadOnly(join(this.dir, "taco.db"));
    try {
      return question(store.reports);
    } finally {
      store.close();
    }
  }

  /** Resolves when so many pictures have their prediction. */
  async predicted(count: number, timeoutMs?: number): Promise<void> {
    const total = () => this.ask((reports) => reports.summary(Date.now()).predictionsTotal);
    await eventually(`${count} predictions`, () => total() === count, timeoutMs);
  }

  /** Resolves when so many pictures have their label. */
  async labeled(count: number): Promise<void> {
    const total = () => this.ask((reports) => reports.summary(Date.now()).labeledPictures);
    await eventually(`${count} labels`, () => total() === count);
  }

  /** Calls `listener` with every line from now on. @returns how to stop it. */
  onLine(listener: (line: LogLine) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves with the first line from now on that fits. */
  until(fits: (line: LogLine) => boolean, timeoutMs = 60_000): Promise<LogLine> {
    const before = this.lines.length;
    return new Promise((resolve, reject) => {
      const done = (error: Error | null, line?: LogLine) => {
        clearTimeout(timer);
        stop();
        this.#process?.off("exit", gone);
        if (line) resolve(line);
        else reject(error);
      };
      const tail = () => JSON.stringify(this.lines.slice(Math.max(before, this.lines.length - 8)));
      const timer = setTimeout(() => done(new Error(`no such line; last: ${tail()}`)), timeoutMs);
      const gone = () => setTimeout(() => done(new Error(`the agent ended: ${tail()}`)), 100);
      const stop = this.onLine((line) => {
        if (fits(line)) done(null, line);
      });
      this.#process?.once("exit", gone);
    });
  }

  /** Kills the supervisor at once and waits for its end; its children end by themselves. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  }

  /** SIGTERM. @returns seconds until it had ended. */
  async stop(): Promise<number> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return 0;
    const start = performance.now();
    child.kill("SIGTERM");
    await once(child, "exit");
    return (performance.now() - start) / 1000;
  }

  /** Runs a command of the command line. @returns what it printed, and its exit code. */
  async taco(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    const child = spawn(process.execPath, [MAIN, ...args]);
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (chunk) => {
      stdout += String(chunk);
    });
    child.stderr.on("data", (chunk) => {
      stderr += String(chunk);
    });
    const [code] = (await once(child, "close")) as [number];
    return { code, stdout, stderr };
  }

  /** Puts pictures into the inbox. @returns their names. */
  async shoot(count: number, from = 0): Promise<string[]> {
    const inbox = join(this.dir, "inbox");
    await mkdir(inbox, { recursive: true });
    const names: string[] = [];
    for (let i = from; i < from + count; i++) {
      const label = LABELS[i % LABELS.length]!;
      const name = `${String(i).padStart(5, "0")}.jpg`;
      await writeFile(join(inbox, name), await drawPicture(label, i));
      names.push(name);
    }
    return names;
  }

  /** Puts labeled pictures into their folders, `count` a label. */
  async label(count: number, from = 100_000): Promise<void> {
    for (const label of LABELS) {
      const folder = join(this.dir, "labeled", label);
      await mkdir(folder, { recursive: true });
      for (let i = from; i < from + count; i++) {
        await writeFile(join(folder, `${i}.jpg`), await drawPicture(label, i));
      }
    }
  }

  async remove(): Promise<void> {
    await this.kill();
    await rm(this.#root, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Of a process that has ended there is nothing to read. */
async function readIfThere(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ESRCH") return "";
    throw error;
  }
}

function parseLine(text: string): LogLine {
  try {
    return JSON.parse(text) as LogLine;
  } catch {
    return { msg: text };
  }
}

/** Resolves once the condition holds, asked every 50 ms. */
export async function eventually(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 60_000,
): Promise<void> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    try {
      if (await condition()) return;
    } catch (error) {
      if (performance.now() > end) throw error;
    }
    if (performance.now() > end) throw new Error(`never happened: ${what}`);
    await delay(50);
  }
}
