import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openDataset } from "../../agent/data/dataset.ts";
import { readPicture } from "../../agent/data/picture.ts";
import { resolveGeneralist } from "../../agent/generalist/add.ts";
import { createLogger } from "../../agent/log.ts";
import { type Preprocessing, preprocessingAt } from "../../agent/model.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import {
  fitHead,
  type SpecialistHead,
  type TrainingFeatures,
} from "../../agent/specialize/fit-head.ts";
import { loadNetwork, type Network } from "../../agent/specialize/network.ts";
import { splitByShots } from "../../agent/specialize/split.ts";

const ROOT = join(import.meta.dirname, "..", "..", "..", "shared", "bench");

/** What to measure on. */
export interface SpecialistOptions {
  /** A model of the bench data, without `.onnx`. */
  readonly model: string;
  /** A folder of labeled pictures of the bench data. */
  readonly labels: string;
  /** Training pictures a class; default 32. */
  readonly shots?: number;
  readonly seed?: number;
  /** Threads of one operator; default 0, one a processor. */
  readonly threads?: number;
  /** Height and width of the network's input; default the model's own. */
  readonly size?: number;
  /** Held-out pictures a class, at most; default all that are left. */
  readonly heldOut?: number;
  /** Pictures in a batch; default 8. */
  readonly batchSize?: number;
  /** Calibration pictures, mirrored copies included; default 320. */
  readonly calibrationPictures?: number;
}

/** A network's features, judged by a head fitted on the training pictures. */
interface Judged {
  readonly accuracy: number;
  /** One a held-out picture, always in the same order. */
  readonly correct: readonly boolean[];
  readonly head: SpecialistHead;
}

/** A generalist, its station's pictures, and what is needed to judge a network made from it. */
export interface Specialist {
  readonly engine: Engine;
  readonly network: Network;
  readonly preprocessing: Preprocessing;
  /** Training pictures, then their mirror images, class by class in turn. */
  readonly calibration: Calibration;
  /** As many pictures of ImageNet, one a class, and their mirror images. */
  genericCalibration(): Promise<Calibration>;
  environment(overrides?: Partial<CompressEnvironment>): CompressEnvironment;
  /** Features of the training pictures, without their mirror images. */
  trainingFeatures(backbone: Graph): Promise<TrainingFeatures>;
  /** @param backbone from the picture to `[N, features]`. */
  evaluate(backbone: Graph): Promise<Judged>;
  /** Judges ready-made features → logits: a graph from the picture to `[N, classes]`. */
  evaluateModel(model: Graph): Promise<{ accuracy: number; correct: boolean[] }>;
  close(): Promise<void>;
}

interface Labeled {
  readonly path: string;
  readonly label: string;
  readonly burst: string;
  readonly role: "train" | "heldOut";
}

/** Whether the bench data is beside this checkout. */
export function benchDataPresent(): boolean {
  return existsSync(join(ROOT, "models")) && existsSync(join(ROOT, "images"));
}

/** Opens a generalist and its pictures; `close` it at the end. */
export async function openSpecialist(options: SpecialistOptions): Promise<Specialist> {
  const { shots = 32, seed = 1, batchSize = 8, calibrationPictures = 320 } = options;
  const log = createLogger("error");
  const modelPath = join(ROOT, "models", `${options.model}.onnx`);
  const described = await resolveGeneralist({ source: modelPath, dir: tmpdir(), log });
  const own = described.preprocessing;
  const size = options.size ?? own.height;
  const preprocessing = preprocessingAt(own, { height: size, width: size });
  const engine = await createEngine({
    executionProviders: ["cpu"],
    intraOpThreads: options.threads ?? 0,
    log,
  });
  const network = await loadNetwork(await readFile(modelPath), own, engine);
  const dataset = await openDataset(join(ROOT, "images", options.labels), { burstGapSeconds: 60 });
  const pictures: Labeled[] = splitByShots(dataset.pictures, {
    shots,
    heldOutPerClass: options.heldOut ?? 1000,
    seed,
  });
  const classes = [...new Set(pictures.map(({ label }) => label))].sort();
  const levels = new Map<string, Float32Array>();
  const pixels = async (path: string): Promise<Float32Array> => {
    const known = levels.get(path);
    if (known) return known;
    const { tensor } = await readPicture(path, preprocessing, { maxMegapixels: 100 });
    levels.set(path, tensor);
    return tensor;
  };
  const read = (list: readonly { path: string; flipped: boolean }[]): Calibration => ({
    batches: Math.ceil(list.length / batchSize),
    read: async (batch) => {
      const part = list.slice(batch * batchSize, (batch + 1) * batchSize);
      const data = new Float32Array(part.length * 3 * size * size);
      for (const [i, { path, flipped }] of part.entries()) {
        const tensor = await pixels(path);
        data.set(flipped ? mirrored(tensor, size) : tensor, i * tensor.length);
      }
      return { data, dims: [part.length, 3, size, size] };
    },
  });
  const both = (paths: readonly string[]) =>
    paths.flatMap((path) => [
      { path, flipped: false },
      { path, flipped: true },
    ]);
  const train = inTurn(pictures.filter(({ role }) => role === "train"));
  const heldOut = pictures.filter(({ role }) => role === "heldOut");
  const trainSamples = both(train.map(({ path }) => path));
  const heldOutSamples = heldOut.map(({ path }) => ({ path, flipped: false }));
  const run = async (graph: Graph, calibration: Calibration): Promise<Float32Array[]> => {
    const session = await engine.open(graph);
    const rows: Float32Array[] = [];
    try {
      for (let batch = 0; batch < calibration.batches; batch++) {
        const value = await calibration.read(batch);
        const result = await session.run({ [graph.inputs[0]!.name]: value });
        const data = result[graph.outputs[0]!.name]!.data as Float32Array;
        const width = data.length / value.dims[0]!;
        for (let i = 0; i < value.dims[0]!; i++) rows.push(data.slice(i * width, (i + 1) * width));
      }
    } finally {
      await session.release();
    }
    return rows;
  };
  const trainingFeatures = async (backbone: Graph, mirrored: boolean) => {
    const samples = mirrored ? trainSamples : trainSamples.filter(({ flipped }) => !flipped);
    const rows = await run(backbone, read(samples));
    const inputs = rows[0]!.length;
    const features = new Float32Array(rows.length * inputs);
    for (const [i, row] of rows.entries()) features.set(row, i * inputs);
    const pictures = mirrored ? train.flatMap((picture) => [picture, picture]) : train;
    return {
      features,
      inputs,
      labels: pictures.map(({ label }) => classes.indexOf(label)),
      bursts: pictures.map(({ burst }) => burst),
      classes: classes.length,
    };
  };
  const workDir = await mkdtemp(join(tmpdir(), "taco-bench-"));
  const plainFirst = [...trainSamples].sort((a, b) => Number(a.flipped) - Number(b.flipped));
  const calibration = read(plainFirst.slice(0, calibrationPictures));
  const truths = heldOut.map(({ label }) => classes.indexOf(label));
  const judge = (logits: readonly ArrayLike<number>[]) => {
    const correct = logits.map((row, i) => largest(row) === truths[i]);
    return { accuracy: correct.filter(Boolean).length / correct.length, correct };
  };
  return {
    engine,
    network,
    preprocessing,
    calibration,
    genericCalibration: () => {
      const folder = join(ROOT, "images", "imagenet-sample");
      const paths = readdirSync(folder).filter((name) => name.endsWith(".jpg"));
      paths.sort();
      const step = Math.max(1, Math.floor((2 * paths.length) / calibrationPictures));
      const some = paths.filter((_, i) => i % step === 0).map((name) => join(folder, name));
      return Promise.resolve(read(both(some).slice(0, calibrationPictures)));
    },
    environment: (overrides = {}) => ({
      engine,
      calibration,
      workDir,
      memoryBytes: 128 * 2 ** 20,
      damping: 0.01,
      onProgress: () => undefined,
      signal: new AbortController().signal,
      ...overrides,
    }),
    trainingFeatures: (backbone) => trainingFeatures(backbone, false),
    evaluate: async (backbone) => {
      const head = await fitHead(await trainingFeatures(backbone, true), null, {
        seed,
        gemm: engine.gemm,
        signal: new AbortController().signal,
      });
      const rows = await run(backbone, read(heldOutSamples));
      return { ...judge(rows.map((row) => logitsOf(head, row))), head };
    },
    evaluateModel: async (model) => judge(await run(model, read(heldOutSamples))),
    close: async () => {
      await engine.close();
      await rm(workDir, { recursive: true, force: true });
    },
  };
}

function logitsOf(head: SpecialistHead, features: Float32Array): Float64Array {
  const inputs = features.length;
  return Float64Array.from(head.bias, (bias, c) => {
    let sum = bias;
    for (let i = 0; i < inputs; i++) sum += head.weights[c * inputs + i]! * features[i]!;
    return sum;
  });
}

function largest(row: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  return best;
}

/** One picture of each class, then the next of each. */
function inTurn(pictures: readonly Labeled[]): Labeled[] {
  const byClass = new Map<string, Labeled[]>();
  for (const picture of pictures) {
    byClass.set(picture.label, [...(byClass.get(picture.label) ?? []), picture]);
  }
  const queues = [...byClass.values()];
  const longest = Math.max(...queues.map(({ length }) => length));
  return Array.from({ length: longest }, (_, turn) =>
    queues.flatMap((queue) => queue.slice(turn, turn + 1)),
  ).flat();
}

function mirrored(tensor: Float32Array, size: number): Float32Array {
  const out = new Float32Array(tensor.length);
  for (let row = 0; row < tensor.length; row += size) {
    for (let x = 0; x < size; x++) out[row + x] = tensor[row + size - 1 - x]!;
  }
  return out;
}
