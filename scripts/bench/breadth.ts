import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readPicture } from "../../agent/data/picture.ts";
import { messageOf } from "../../agent/errors.ts";
import { resolveGeneralist } from "../../agent/generalist/add.ts";
import { createLogger } from "../../agent/log.ts";
import { parseMethod } from "../../agent/method.ts";
import type { Preprocessing } from "../../agent/model.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { toSparseInitializers } from "../../agent/onnx/sparse-initializer.ts";
import { extractSubgraph } from "../../agent/onnx/subgraph.ts";
import { openSession, type TensorValue } from "../../agent/runtime/session.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration } from "../../agent/specialize/environment.ts";
import { loadNetwork } from "../../agent/specialize/network.ts";
import { type NetworkOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { applyPlan, planOf } from "../../agent/specialize/pipeline.ts";
import { buildNetwork, type NetworkName, PUBLISHED_PARAMETERS } from "../networks/build-network.ts";

const ROOT = join(import.meta.dirname, "..", "..", "..", "shared", "bench");

/** What is tried on every network, as users write it. */
const METHODS = ["unstructured:0.5", "nm:2:4", "structured:0.5", "int8", "int4"] as const;

/** Pictures that the passes see, in one batch each half. */
const CALIBRATION_PICTURES = 8;
/** Pictures that nothing was fitted to. */
const HELD_BACK_PICTURES = 4;

/** What became of one network under one method. */
export type Cell =
  | {
      readonly state: "ok";
      readonly parameters: number;
      readonly nonzero: number;
      readonly bytes: number;
      /**
       * ‖ŷ − y‖² / ‖y − ȳ‖² of the logits on pictures that nothing was fitted to, ȳ their mean: of
       * random weights most of a logit is the same for every picture. null where all of it is.
       */
      readonly relativeError: number | null;
      readonly seconds: number;
      /** Layers and groups that were changed. */
      readonly changed: number;
      /** Those that were left as they were, by reason. */
      readonly left: Readonly<Record<string, number>>;
    }
  | { readonly state: "refused"; readonly reason: string };

/** A network and the pictures that go with it. */
export interface BreadthSubject {
  readonly bytes: Uint8Array;
  readonly size: number;
  readonly pictures: (count: number, from: number) => Promise<Float32Array[]>;
}

/**
 * Everything that is compressed against every way of compressing it: read, pruned, narrowed,
 * quantized, written, loaded again and run at batches of one and two. Each cell holds figures or
 * the reason for a refusal.
 *
 * The full-size networks take most of the time: 4608 columns of a layer cost minutes to solve.
 *
 * @param names networks to try; all by default.
 * @param methods how; all by default.
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchBreadth(
  names?: readonly string[],
  methods: readonly string[] = METHODS,
): Promise<object> {
  if (!existsSync(join(ROOT, "graphs"))) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const table: Record<string, unknown> = {};
  for (const [name, open] of Object.entries(subjects())) {
    if (names && !names.includes(name)) continue;
    process.stderr.write(`  ${name} …\n`);
    const start = performance.now();
    const cells = await breadthOf(await open(), methods);
    table[name] = { ...cells, seconds: seconds(start), peakMemoryBytes: peakMemory() };
  }
  return { calibrationPictures: CALIBRATION_PICTURES, heldBackPictures: HELD_BACK_PICTURES, table };
}

function seconds(since: number): number {
  return Math.round((performance.now() - since) / 100) / 10;
}

/** Of this process so far; ru_maxrss is in kibibytes (getrusage(2)). */
function peakMemory(): number {
  return process.resourceUsage().maxRSS * 1024;
}

/** What the networks of the bench data and the built ones are prepared as, where nothing says. */
const IMAGENET: Omit<Preprocessing, "height" | "width"> = {
  mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225],
  resize: { mode: "stretch" },
  kernel: "cubic",
  cropTop: 0,
  cropBottom: 0,
};

function subjects(): Record<string, () => Promise<BreadthSubject>> {
  const all: Record<string, () => Promise<BreadthSubject>> = {};
  const subject = (bytes: Uint8Array, preprocessing: Preprocessing): BreadthSubject => ({
    bytes,
    size: preprocessing.height,
    pictures: (count, from) => samplePictures(preprocessing, count, from),
  });
  for (const file of onnxFiles("graphs")) {
    all[file] = async () =>
      subject(await readFile(join(ROOT, "graphs", file)), { ...IMAGENET, height: 64, width: 64 });
  }
  for (const file of onnxFiles("models")) {
    all[file] = async () => {
      const source = join(ROOT, "models", file);
      const log = createLogger("error");
      const { preprocessing } = await resolveGeneralist({ source, dir: tmpdir(), log });
      return subject(await readFile(source), preprocessing);
    };
  }
  for (const name of Object.keys(PUBLISHED_PARAMETERS) as NetworkName[]) {
    all[name] = () =>
      Promise.resolve(
        subject(writeGraph(buildNetwork(name)), { ...IMAGENET, height: 224, width: 224 }),
      );
  }
  return all;
}

function onnxFiles(folder: string): string[] {
  return readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(".onnx"));
}

function samplePictures(
  preprocessing: Preprocessing,
  count: number,
  from: number,
): Promise<Float32Array[]> {
  const folder = join(ROOT, "images", "imagenet-sample");
  const files = readdirSync(folder).filter((name) => name.endsWith(".jpg"));
  const chosen = files.sort().slice(from, from + count);
  return Promise.all(
    chosen.map(async (file) => {
      const limits = { maxMegapixels: 100 };
      return (await readPicture(join(folder, file), preprocessing, limits)).tensor;
    }),
  );
}

/** One network under every method, or some. */
export async function breadthOf(
  subject: BreadthSubject,
  methods: readonly string[] = METHODS,
): Promise<Record<string, Cell>> {
  const workDir = await mkdtemp(join(tmpdir(), "taco-breadth-"));
  const log = createLogger("error");
  const engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 0, log });
  try {
    const { size, bytes } = subject;
    const network = await loadNetwork(bytes, { height: size, width: size }, engine);
    const { graph, head, inputName } = network;
    const dense = head.cut ? extractSubgraph(graph, [inputName], [head.logitsName]) : graph;
    const calibration = batches(await subject.pictures(CALIBRATION_PICTURES, 0), size);
    const rest = await subject.pictures(HELD_BACK_PICTURES, CALIBRATION_PICTURES);
    const trial: Trial = { dense, engine, calibration, heldBack: batches(rest, size), workDir };
    const cells: Record<string, Cell> = {};
    for (const method of methods) cells[method] = await tried(trial, method);
    return cells;
  } finally {
    await engine.close();
    await rm(workDir, { recursive: true, force: true });
  }
}

/** Pictures by fours. */
function batches(pictures: readonly Float32Array[], size: number): Calibration {
  const each = 4;
  return {
    batches: Math.ceil(pictures.length / each),
    read: (batch) => {
      const part = pictures.slice(batch * each, (batch + 1) * each);
      const data = new Float32Array(part.length * 3 * size * size);
      part.forEach((picture, i) => {
        data.set(picture, i * picture.length);
      });
      return Promise.resolve({ data, dims: [part.length, 3, size, size] });
    },
  };
}

interface Trial {
  readonly dense: Graph;
  readonly engine: Engine;
  readonly calibration: Calibration;
  readonly heldBack: Calibration;
  readonly workDir: string;
}

async function tried(trial: Trial, text: string): Promise<Cell> {
  const method = parseMethod(text);
  if (method.kind !== "fixed") throw new RangeError(`expected a fixed method, got "${text}"`);
  const start = performance.now();
  const { dense, engine, calibration, heldBack, workDir } = trial;
  const { signal } = new AbortController();
  const environment = {
    engine,
    calibration,
    workDir,
    memoryBytes: 128 * 2 ** 20,
    damping: 0.01,
    onProgress: () => undefined,
    signal,
  };
  try {
    const { plan, refused } = planOf(method, dense);
    const done = await applyPlan(dense, plan, {
      environmentAt: () => Promise.resolve(environment),
    });
    const changed = done.reports.filter((report) => !report.method.startsWith("dense"));
    const all = [...refused, ...done.refused];
    if (changed.length === 0) return { state: "refused", reason: all[0]?.reason ?? "no layer" };
    const graph = toSparseInitializers(done.graph);
    const bytes = await loadedAgain(graph, heldBack, workDir);
    const [before, after] = [
      await outputsOf(dense, heldBack, engine, signal),
      await outputsOf(done.graph, heldBack, engine, signal),
    ];
    return {
      state: "ok",
      ...countParameters(graph),
      bytes,
      relativeError: relativeError(before, after),
      seconds: seconds(start),
      changed: changed.length,
      left: counted(all.map(({ reason }) => reason)),
    };
  } catch (error) {
    return { state: "refused", reason: messageOf(error) };
  }
}

/** @throws {RangeError} if an output is not finite. */
function relativeError(dense: NetworkOutputs, other: NetworkOutputs): number | null {
  const { rows, width } = dense;
  let [error, energy] = [0, 0];
  for (let i = 0; i < width; i++) {
    const column = Array.from({ length: rows }, (_, row) => dense.data[row * width + i]!);
    const mean = column.reduce((a, b) => a + b, 0) / rows;
    column.forEach((value, row) => {
      error += (other.data[row * width + i]! - value) ** 2;
      energy += (value - mean) ** 2;
    });
  }
  if (!Number.isFinite(error)) throw new RangeError("the outputs are not finite");
  return energy === 0 ? null : Number((error / energy).toPrecision(3));
}

/** How often each reason was given. */
function counted(reasons: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const reason of reasons) counts[reason] = (counts[reason] ?? 0) + 1;
  return counts;
}

/**
 * Writes the network, opens the file anew and runs it on one picture and on two.
 *
 * @returns the size of the file in bytes.
 * @throws {RangeError} if an output is not finite, or a picture's depends on who is beside it.
 */
async function loadedAgain(graph: Graph, pictures: Calibration, folder: string): Promise<number> {
  const path = join(folder, "written.onnx");
  await writeFile(path, writeGraph(graph));
  const again = countParameters(readGraph(await readFile(path)));
  if (again.nonzero !== countParameters(graph).nonzero) {
    throw new RangeError(`${again.nonzero} weights that are not zero after reading it again`);
  }
  const log = createLogger("error");
  const session = await openSession(path, { executionProviders: ["cpu"], intraOpThreads: 0, log });
  try {
    const { data, dims } = await pictures.read(0);
    const one = dims.slice(1).reduce((a, b) => a * b, 1);
    const run = async (count: number): Promise<Float32Array> => {
      const part: TensorValue = {
        data: (data as Float32Array).slice(0, count * one),
        dims: [count, ...dims.slice(1)],
      };
      const results = await session.run({ [graph.inputs[0]!.name]: part });
      return results[graph.outputs[0]!.name]!.data as Float32Array;
    };
    const [single, pair] = [await run(1), await run(2)];
    const largest = single.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    single.forEach((value, i) => {
      if (!(Math.abs(value - pair[i]!) <= 0.05 * largest + 1e-6)) {
        throw new RangeError(`logit ${i}: ${value} alone, ${pair[i]} beside another picture`);
      }
    });
    return (await stat(path)).size;
  } finally {
    await session.release();
    await rm(path, { force: true });
  }
}
