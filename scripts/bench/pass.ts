import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readPicture } from "../../agent/data/picture.ts";
import { resolveGeneralist } from "../../agent/generalist/add.ts";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { writeGraph } from "../../agent/onnx/graph.ts";
import { ActivationStore } from "../../agent/specialize/activation-store.ts";
import { compressNetwork } from "../../agent/specialize/compress-network.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration } from "../../agent/specialize/environment.ts";
import { uniformPattern } from "../../agent/specialize/layer-patterns.ts";
import { loadNetwork, type Network } from "../../agent/specialize/network.ts";
import { buildNetwork } from "../networks/build-network.ts";
import { measureApart } from "./measure-apart.ts";

const ROOT = join(import.meta.dirname, "..", "..", "..", "shared", "bench");
const SIDE = 224;
const BATCH = 8;
const MIB = 2 ** 20;

/** One pass to measure. */
interface PassJob {
  /** A model of the bench data, or a shape that `buildNetwork` knows. */
  readonly network: string;
  readonly pictures: number;
}

/** What the targets speak of, then what shows how it grows. */
const JOBS: readonly PassJob[] = [
  { network: "efficientnet_b0_imagenet1k", pictures: 320 },
  { network: "efficientnet_b0_imagenet1k", pictures: 80 },
  { network: "efficientnet_b0_imagenet1k", pictures: 1280 },
  { network: "squeezenet1.1_imagenet1k", pictures: 320 },
  { network: "resnet-50", pictures: 320 },
  { network: "vit-base-16", pictures: 320 },
];

/** How long one pass took against plainly running the pictures, and the memory of its process. */
interface PassFigures extends PassJob {
  readonly plainSeconds: readonly number[];
  readonly passSeconds: number;
  /** The pass over two plain runs, one before and one after it. */
  readonly ratio: number;
  /** The same ratio in processor time, which other work on the machine disturbs less. */
  readonly processorRatio: number;
  /** Seconds by what they went to; `rest` is everything in JavaScript. */
  readonly seconds: Readonly<Record<"sessions" | "runs" | "products" | "rest", number>>;
  readonly peakMemoryMiB: number;
  readonly layers: number;
  readonly meanRelativeLoss: number;
  readonly largestRelativeLoss: number;
}

/** How the time of one network's passes grows with the pictures: seconds ≈ fixed + each · n. */
interface Growth {
  readonly network: string;
  readonly fixedSeconds: number;
  readonly secondsPerPicture: number;
  /** How far the measured times are from that line at most, as a share of them. */
  readonly largestDeviation: number;
}

/**
 * One full sequential pass of statistics and unstructured 50 %, each in a process of its own, with
 * plain runs of the same pictures before and after it, and how that grows with the pictures. One
 * job alone: `node --import tsx scripts/bench/pass.ts <network> <pictures>`.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchPass(jobs: readonly PassJob[] = JOBS): Promise<object> {
  if (!existsSync(join(ROOT, "models"))) {
    return { skipped: "../shared/bench is not beside this checkout" };
  }
  const rows: PassFigures[] = [];
  for (const job of jobs) {
    process.stderr.write(`  ${job.network}, ${job.pictures} pictures …\n`);
    const args = [job.network, `${job.pictures}`];
    rows.push(await measureApart<PassFigures>(import.meta.filename, args));
  }
  const networks = [...new Set(jobs.map(({ network }) => network))];
  return { rows, growth: networks.flatMap((network) => growthOf(network, rows)) };
}

/** The least-squares line through the times of one network; none through a single time. */
function growthOf(network: string, rows: readonly PassFigures[]): Growth[] {
  const own = rows.filter((row) => row.network === network);
  if (own.length < 2) return [];
  const mean = (of: (row: PassFigures) => number) =>
    own.reduce((sum, row) => sum + of(row), 0) / own.length;
  const x = mean(({ pictures }) => pictures);
  const y = mean(({ passSeconds }) => passSeconds);
  const slope =
    mean((row) => (row.pictures - x) * (row.passSeconds - y)) /
    mean((row) => (row.pictures - x) ** 2);
  const deviations = own.map(
    ({ pictures, passSeconds }) => Math.abs(y + slope * (pictures - x) - passSeconds) / passSeconds,
  );
  return [
    {
      network,
      fixedSeconds: y - slope * x,
      secondsPerPicture: slope,
      largestDeviation: Math.max(...deviations),
    },
  ];
}

async function measure(job: PassJob): Promise<PassFigures> {
  const log = createLogger("error");
  const engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 0, log });
  const workDir = await mkdtemp(join(tmpdir(), "taco-bench-"));
  const store = new ActivationStore(join(workDir, "pictures.f32"), 0);
  try {
    const network = await open(job.network, engine);
    const calibration = await calibrationOf(job, store);
    const before = await runPlainly(network, calibration, engine);
    const start = clock();
    const timed = timedEngine(engine);
    const { reports } = await compressNetwork(network.backbone, {
      engine: timed.engine,
      calibration,
      workDir,
      memoryBytes: 128 * MIB,
      damping: 0.01,
      patternOf: uniformPattern(network.backbone, { kind: "unstructured", sparsity: 0.5 }),
      onProgress: () => undefined,
      signal: new AbortController().signal,
    });
    const pass = since(start);
    const peakMemoryMiB = Math.round(process.resourceUsage().maxRSS / 1024);
    const after = await runPlainly(network, calibration, engine);
    const losses = reports.flatMap((r) => (r.relativeLoss === null ? [] : [r.relativeLoss]));
    const { sessions, runs, products } = timed.seconds;
    return {
      ...job,
      plainSeconds: [before.wall, after.wall],
      passSeconds: pass.wall,
      ratio: pass.wall / (before.wall + after.wall),
      processorRatio: pass.processor / (before.processor + after.processor),
      seconds: { sessions, runs, products, rest: pass.wall - sessions - runs - products },
      peakMemoryMiB,
      layers: losses.length,
      meanRelativeLoss: losses.reduce((sum, loss) => sum + loss, 0) / losses.length,
      largestRelativeLoss: Math.max(...losses),
    };
  } finally {
    await store.dispose();
    await engine.close();
    await rm(workDir, { recursive: true, force: true });
  }
}

async function open(name: string, engine: Engine): Promise<Network> {
  const shaped = name === "resnet-50" || name === "vit-base-16";
  const bytes = shaped
    ? writeGraph(buildNetwork(name))
    : await readFile(join(ROOT, "models", `${name}.onnx`));
  return loadNetwork(bytes, { height: SIDE, width: SIDE }, engine);
}

/** Labeled photographs for a trained network, smooth noise for one of random weights. */
async function calibrationOf(job: PassJob, store: ActivationStore): Promise<Calibration> {
  const picture = await pictureSource(job);
  const size = 3 * SIDE * SIDE;
  const batches = Math.ceil(job.pictures / BATCH);
  const dims: number[][] = [];
  for (let batch = 0; batch < batches; batch++) {
    const count = Math.min(BATCH, job.pictures - batch * BATCH);
    const data = new Float32Array(count * size);
    for (let i = 0; i < count; i++) data.set(await picture(batch * BATCH + i), i * size);
    await store.write(batch, data);
    dims.push([count, 3, SIDE, SIDE]);
  }
  return {
    batches,
    read: async (batch) => ({ data: await store.read(batch), dims: dims[batch]! }),
  };
}

async function pictureSource(job: PassJob): Promise<(index: number) => Promise<Float32Array>> {
  const model = join(ROOT, "models", `${job.network}.onnx`);
  if (!existsSync(model)) return (index) => Promise.resolve(smoothNoise(index));
  const log = createLogger("error");
  const { preprocessing } = await resolveGeneralist({ source: model, dir: tmpdir(), log });
  const folder = join(ROOT, "images", "monkeys-10");
  const paths = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".jpg"))
    .sort();
  return async (index) => {
    // Steps through the classes; after the last picture come the mirrored ones.
    const path = join(folder, paths[(index * 7) % paths.length]!);
    const { tensor } = await readPicture(path, preprocessing, { maxMegapixels: 100 });
    return index < paths.length ? tensor : mirrored(tensor);
  };
}

function mirrored(tensor: Float32Array): Float32Array {
  const out = new Float32Array(tensor.length);
  for (let i = 0; i < out.length; i++) {
    const column = i % SIDE;
    out[i] = tensor[i - column + SIDE - 1 - column]!;
  }
  return out;
}

function smoothNoise(seed: number): Float32Array {
  const random = createRandom(seed + 1);
  let last = 0;
  return Float32Array.from({ length: 3 * SIDE * SIDE }, () => {
    last = 0.9 * last + 0.44 * random.normal();
    return last;
  });
}

interface Times {
  /** Seconds by the clock. */
  readonly wall: number;
  /** Seconds of all processors together. */
  readonly processor: number;
}

function clock(): Times {
  const { user, system } = process.cpuUsage();
  return { wall: performance.now() / 1000, processor: (user + system) / 1e6 };
}

function since(start: Times): Times {
  const now = clock();
  return { wall: now.wall - start.wall, processor: now.processor - start.processor };
}

async function runPlainly(
  network: Network,
  calibration: Calibration,
  engine: Engine,
): Promise<Times> {
  const start = clock();
  const session = await engine.open(network.backbone);
  try {
    for (let batch = 0; batch < calibration.batches; batch++) {
      await session.run({ [network.inputName]: await calibration.read(batch) });
    }
  } finally {
    await session.release();
  }
  return since(start);
}

/** An engine that knows what its time went to. */
function timedEngine(engine: Engine) {
  const seconds = { sessions: 0, runs: 0, products: 0 };
  const timed = async <T>(kind: keyof typeof seconds, work: () => Promise<T>): Promise<T> => {
    const start = performance.now();
    try {
      return await work();
    } finally {
      seconds[kind] += (performance.now() - start) / 1000;
    }
  };
  const watched: Engine = {
    ...engine,
    open: async (graph, how) => {
      const session = await timed("sessions", () => engine.open(graph, how));
      return {
        ...session,
        run: (feeds) => timed("runs", () => session.run(feeds)),
        release: () => timed("sessions", () => session.release()),
      };
    },
    gemm: (a, b, options) => timed("products", () => engine.gemm(a, b, options)),
  };
  return { engine: watched, seconds };
}

if (process.argv[1] === import.meta.filename) {
  const [, , network = "", pictures = ""] = process.argv;
  const figures = await measure({ network, pictures: Number(pictures) });
  if (process.send) process.send(figures, () => process.exit(0));
  else process.stdout.write(`${JSON.stringify(figures, null, 2)}\n`);
}
