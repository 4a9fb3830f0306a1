import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { readPicture } from "../data/picture.ts";
import { messageOf } from "../errors.ts";
import { readJsonIfExists, sha256, writeFileAtomic, writeJsonAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import { type HeadWeights, headLogits } from "../math/standardized-space.ts";
import {
  type ModelManifest,
  modelManifestSchema,
  type Preprocessing,
  readModelJson,
} from "../model.ts";
import { node } from "../onnx/builder.ts";
import { type Graph, readGraph, writeGraph } from "../onnx/graph.ts";
import { readHead } from "../onnx/head.ts";
import { countParameters } from "../onnx/initializers.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import { DataType, floatTensor } from "../onnx/tensor.ts";
import { makeKnownAnswers } from "../runtime/known-answers.ts";
import { openSession } from "../runtime/session.ts";
import { compressNetwork, type Progress } from "./compress-network.ts";
import type { Engine } from "./engine.ts";
import type { Calibration, LayerReport } from "./environment.ts";
import { type FrameOutcome, outcomesOf, scoreFrames } from "./evaluate.ts";
import type { Evaluation, ModelEvaluation } from "./evaluation-file.ts";
import { fitHead, mapLabels, type SpecialistHead, sliceHead } from "./fit-head.ts";
import { uniformPattern } from "./layer-patterns.ts";
import { loadNetwork, type Network } from "./network.ts";
import { type CachedPicture, fillPictureCache, PictureCache } from "./picture-cache.ts";
import { runPaths } from "./run.ts";
import {
  parsePattern,
  prunesNothing,
  type RunSpec,
  STAGES,
  type StageName,
  type StageReport,
} from "./spec.ts";

/** What the stages of a run need beside its spec. */
export interface StageContext {
  readonly spec: RunSpec;
  readonly runDir: string;
  readonly engine: Engine;
  readonly log: Logger;
  readonly onStage: (name: StageName, report: StageReport | null) => void;
  readonly onProgress: (stage: StageName, done: number, total: number) => void;
  readonly signal: AbortSignal;
}

/** Activations of one border that stay in memory; two borders are held at a time. */
const BORDER_MEMORY_BYTES = 128 * 2 ** 20;
/** A checkpoint of the network while it is compressed, at most this often. */
const CHECKPOINT_MS = 20_000;
/** Seeds and tolerance of the known answers; float32 sums differ by about 1e-5 between machines. */
export const ANSWER_SEEDS = [1, 2, 3];
export const ANSWER_TOLERANCE = 5e-3;

/**
 * Does the stages of a run that are not done yet, each from what the ones before left on disk, and
 * leaves `dense/`, `candidate/` and `evaluation.json` behind.
 */
export async function runStages(context: StageContext): Promise<void> {
  const { spec, runDir } = context;
  const paths = runPaths(runDir);
  await mkdir(paths.work, { recursive: true });
  const reports = await finishedStages(paths.stages);
  const stage = async (name: StageName, work: () => Promise<void>): Promise<void> => {
    if (reports.some((report) => report.name === name)) return;
    context.onStage(name, null);
    const start = performance.now();
    const before = context.engine.runtimeSeconds();
    await work();
    const seconds = (performance.now() - start) / 1000;
    const report = { name, seconds, runtimeSeconds: context.engine.runtimeSeconds() - before };
    reports.push(report);
    await writeJsonAtomic(paths.stages, reports);
    context.onStage(name, report);
  };
  const run = new Run(context, paths);
  try {
    await stage("pictures", () => run.decodePictures());
    await run.load();
    await stage("features", () => run.denseFeatures());
    await stage("head", () => run.fitDenseHead());
    await stage("compress", () => run.compress());
    await stage("head-refit", () => run.refitHead());
    await stage("evaluate", () => run.evaluate());
  } finally {
    await run.close();
  }
  context.log.debug({ run: spec.id }, "all stages done");
}

async function finishedStages(path: string): Promise<StageReport[]> {
  const known = v.picklist(STAGES);
  const schema = v.array(
    v.object({ name: known, seconds: v.number(), runtimeSeconds: v.number() }),
  );
  return v.parse(schema, (await readJsonIfExists(path)) ?? []);
}

const listedPictures = v.object({
  pictures: v.array(
    v.object({
      path: v.string(),
      label: v.string(),
      burst: v.string(),
      role: v.picklist(["train", "heldOut"]),
    }),
  ),
  problems: v.array(v.object({ subject: v.string(), reason: v.string() })),
});

const headFile = v.object({
  kind: v.picklist(["sliced", "adapted", "fitted"]),
  l2: v.number(),
  weights: v.array(v.number()),
  bias: v.array(v.number()),
});

const compressFile = v.object({
  segments: v.number(),
  reports: v.array(
    v.object({
      name: v.string(),
      method: v.string(),
      sparsity: v.number(),
      relativeLoss: v.nullable(v.number()),
    }),
  ),
});

/** A row of the picture cache, as it is or mirrored. */
interface Sample {
  readonly row: number;
  readonly flipped: boolean;
}

class Run {
  readonly #context: StageContext;
  readonly #paths: ReturnType<typeof runPaths>;
  readonly #classes: readonly string[];
  #network: Network | undefined;
  #cache: PictureCache | undefined;
  #pictures: readonly CachedPicture[] = [];
  #problems: readonly { subject: string; reason: string }[] = [];

  constructor(context: StageContext, paths: ReturnType<typeof runPaths>) {
    this.#context = context;
    this.#paths = paths;
    this.#classes = [...new Set(context.spec.pictures.map((p) => p.label))].sort();
  }

  async decodePictures(): Promise<void> {
    const { spec, onProgress, signal } = this.#context;
    const { preprocessing } = spec.generalist;
    const limits = { maxMegapixels: spec.options.maxMegapixels };
    await fillPictureCache(
      this.#work("pictures.u8"),
      spec.pictures,
      preprocessing,
      async (path) => (await readPicture(path, preprocessing, limits)).tensor,
      (done) => onProgress("pictures", done, spec.pictures.length),
      signal,
    );
  }

  /** Opens what every later stage reads. */
  async load(): Promise<void> {
    const { spec, engine } = this.#context;
    const { preprocessing, modelPath } = spec.generalist;
    const listed = v.parse(listedPictures, await readJsonIfExists(this.#work("pictures.u8.json")));
    this.#pictures = listed.pictures;
    this.#problems = listed.problems;
    this.#cache = await PictureCache.open(this.#work("pictures.u8"), preprocessing);
    this.#network = await loadNetwork(await readFile(modelPath), preprocessing, engine);
  }

  async close(): Promise<void> {
    await this.#cache?.close();
  }

  async denseFeatures(): Promise<void> {
    const { backbone } = this.#loaded().network;
    const samples = [...this.#rows("heldOut"), ...this.#trainingSamples()];
    const features = await this.#run(backbone, samples, "features");
    await writeFileAtomic(this.#work("features.f32"), new Uint8Array(features.buffer));
  }

  async fitDenseHead(): Promise<void> {
    const heldOut = this.#rows("heldOut").length;
    const features = (await this.#readFeatures()).subarray(heldOut * this.#inputs());
    await this.#writeHead("head.json", await this.#fit(features));
  }

  async compress(): Promise<void> {
    const { spec, engine, onProgress, signal } = this.#context;
    const { backbone } = this.#loaded().network;
    if (prunesNothing(spec.options)) {
      const reports = findPrunableLayers(backbone).map(({ name }) => leftDense(name));
      await this.#writeProgress({ graph: backbone, reports, segments: Number.MAX_SAFE_INTEGER });
      return;
    }
    const samples = this.#calibrationSamples();
    const resume = await this.#readProgress();
    if (resume?.segments === Number.MAX_SAFE_INTEGER) return;
    let savedAt = performance.now();
    const { graph, reports } = await compressNetwork(backbone, {
      patternOf: uniformPattern(
        backbone,
        parsePattern(spec.options.pattern, spec.options.sparsity),
      ),
      blockSize: spec.options.blockSize,
      damping: spec.options.damping,
      engine,
      calibration: this.#calibration(samples),
      workDir: this.#paths.work,
      memoryBytes: BORDER_MEMORY_BYTES,
      ...(resume ? { resume } : {}),
      onProgress: (done, total) => onProgress("compress", done, total),
      onSegment: async (progress) => {
        if (performance.now() - savedAt < CHECKPOINT_MS) return;
        await this.#writeProgress(progress);
        savedAt = performance.now();
      },
      signal,
    });
    await this.#writeProgress({ graph, reports, segments: Number.MAX_SAFE_INTEGER });
  }

  async refitHead(): Promise<void> {
    if (prunesNothing(this.#context.spec.options)) {
      // The same features would give the same head.
      await this.#writeHead("refit.json", await this.#readHead("head.json"));
      return;
    }
    const { graph } = await this.#compressed();
    const features = await this.#run(graph, this.#trainingSamples(), "head-refit");
    await this.#writeHead("refit.json", await this.#fit(features));
  }

  async evaluate(): Promise<void> {
    const { spec } = this.#context;
    const { backbone } = this.#loaded().network;
    const heldOut = this.#rows("heldOut");
    const compressed = await this.#compressed();
    const denseHead = await this.#readHead("head.json");
    const features = await this.#readFeatures();
    const held = features.subarray(0, heldOut.length * this.#inputs());
    const denseLogits = Float32Array.from(await headLogits(denseHead, held));
    const denseModel = withLinearHead(backbone, denseHead);
    const dense = await this.#write(this.#paths.dense, denseModel, denseHead, []);
    const head = await this.#readHead("refit.json");
    const model = withLinearHead(compressed.graph, head);
    const candidate = await this.#write(this.#paths.candidate, model, head, compressed.reports);
    const logits = await this.#run(readGraph(candidate.file), heldOut, "evaluate");
    const evaluation: Evaluation = {
      dense: evaluationOf(this.#outcomes(denseLogits, heldOut), this.#classes, true, dense),
      candidate: evaluationOf(this.#outcomes(logits, heldOut), this.#classes, true, candidate),
      incumbent: spec.incumbentDir === null ? null : await this.#incumbent(spec.incumbentDir),
      heldOut: {
        frames: heldOut.length,
        bursts: new Set(heldOut.map(({ row }) => this.#pictures[row]!.burst)).size,
      },
      training: { pictures: this.#rows("train").length, classes: [...this.#classes] },
      problems: [...spec.problems, ...this.#problems],
    };
    await writeJsonAtomic(this.#paths.evaluation, evaluation);
  }

  /** The incumbent on the same held-out pictures, through its own preprocessing. */
  async #incumbent(dir: string): Promise<ModelEvaluation> {
    const { spec, log, signal } = this.#context;
    const manifest = await readModelJson(join(dir, "model.json"), modelManifestSchema);
    const file = await readFile(join(dir, "model.onnx"));
    const heldOut = this.#rows("heldOut");
    const { preprocessing, classes, inputName, outputName } = manifest;
    const same = JSON.stringify(preprocessing) === JSON.stringify(spec.generalist.preprocessing);
    const { cache } = this.#loaded();
    const session = await openSession(file, { ...spec.options, log });
    const logits = new Float32Array(heldOut.length * classes.length);
    try {
      for (const [index, { row }] of heldOut.entries()) {
        signal.throwIfAborted();
        const data = same ? await cache.read([row]) : await this.#decodeAgain(row, preprocessing);
        const dims = [1, 3, preprocessing.height, preprocessing.width];
        const answer = (await session.run({ [inputName]: { data, dims } }))[outputName]?.data;
        if (!(answer instanceof Float32Array)) throw new TypeError(`"${outputName}" is no float32`);
        logits.set(answer, index * classes.length);
      }
    } finally {
      await session.release();
    }
    const specialized = manifest.origin.run !== null;
    const names = specialized ? (name: string) => name : this.#labelOfGeneralist();
    const frames = outcomesOf(logits, classes, this.#frames(heldOut), names);
    const counted = { ...countParameters(readGraph(file)), bytes: file.length };
    return evaluationOf(frames, classes.map(names), specialized, counted);
  }

  /** A held-out picture by other rules; NaN, hence wrong, where its file was taken away since. */
  async #decodeAgain(row: number, preprocessing: Preprocessing): Promise<Float32Array> {
    const { spec, log } = this.#context;
    const { path } = this.#pictures[row]!;
    try {
      const limits = { maxMegapixels: spec.options.maxMegapixels };
      return (await readPicture(path, preprocessing, limits)).tensor;
    } catch (error) {
      log.warn({ path, reason: messageOf(error) }, "a held-out picture is gone for the incumbent");
      return new Float32Array(3 * preprocessing.height * preprocessing.width).fill(Number.NaN);
    }
  }

  /** From a class name of the generalist to the station's label for it. */
  #labelOfGeneralist(): (name: string) => string {
    const { generalist, labelMap } = this.#context.spec;
    const named = { classes: generalist.classes, aliases: generalist.classAliases };
    const indices = mapLabels(this.#classes, named, labelMap);
    const labels = new Map<string, string>();
    this.#classes.forEach((label, i) => {
      const name = generalist.classes[indices[i]!];
      if (name !== undefined) labels.set(name, label);
    });
    return (name) => labels.get(name) ?? name;
  }

  #fit(features: Float32Array): Promise<SpecialistHead> {
    const { spec, engine, signal } = this.#context;
    const { network } = this.#loaded();
    const samples = this.#trainingSamples();
    const { generalist, labelMap } = spec;
    const named = { classes: generalist.classes, aliases: generalist.classAliases };
    const classOf = mapLabels(this.#classes, named, labelMap);
    const { W, b } = readHead(network.graph, network.head);
    const rows = sliceHead({ weights: W, bias: b }, classOf);
    const complete = classOf.every((c) => c >= 0);
    const prior = classOf.some((c) => c >= 0) ? { rows, complete } : null;
    return fitHead(
      {
        features,
        inputs: this.#inputs(),
        labels: samples.map(({ row }) => this.#classes.indexOf(this.#pictures[row]!.label)),
        bursts: samples.map(({ row }) => this.#pictures[row]!.burst),
        classes: this.#classes.length,
      },
      prior,
      { seed: spec.options.seed, gemm: engine.gemm, signal },
    );
  }

  /** Runs a graph over samples and returns its one output, `samples × width`, row-major. */
  async #run(graph: Graph, samples: readonly Sample[], stage: StageName): Promise<Float32Array> {
    const { engine, onProgress, signal } = this.#context;
    const input = graph.inputs[0]!.name;
    const output = graph.outputs[0]!.name;
    const session = await engine.open(graph);
    const calibration = this.#calibration(samples);
    let result: Float32Array | undefined;
    let offset = 0;
    try {
      for (let batch = 0; batch < calibration.batches; batch++) {
        signal.throwIfAborted();
        const value = await calibration.read(batch);
        const data = (await session.run({ [input]: value }))[output]?.data;
        if (!(data instanceof Float32Array)) throw new TypeError(`"${output}" is no float32 value`);
        const width = data.length / value.dims[0]!;
        result ??= new Float32Array(samples.length * width);
        result.set(data, offset);
        offset += data.length;
        onProgress(stage, Math.min(samples.length, offset / width), samples.length);
      }
    } finally {
      await session.release();
    }
    return result ?? new Float32Array(0);
  }

  #calibration(samples: readonly Sample[]): Calibration {
    const { spec } = this.#context;
    const { cache, network } = this.#loaded();
    const { height, width } = spec.generalist.preprocessing;
    const size = network.batched ? spec.options.batchSize : 1;
    return {
      batches: Math.ceil(samples.length / size),
      read: async (batch) => {
        const part = samples.slice(batch * size, (batch + 1) * size);
        const data = new Float32Array(part.length * 3 * height * width);
        for (const [i, { row, flipped }] of part.entries()) {
          data.set(await cache.read([row], flipped), i * 3 * height * width);
        }
        return { data, dims: [part.length, 3, height, width] };
      },
    };
  }

  #rows(role: "train" | "heldOut"): Sample[] {
    return this.#pictures.flatMap((picture, row) =>
      picture.role === role ? [{ row, flipped: false }] : [],
    );
  }

  /** Each training picture and its mirror image: an animal walks either way. */
  #trainingSamples(): Sample[] {
    return this.#rows("train").flatMap(({ row }) => [
      { row, flipped: false },
      { row, flipped: true },
    ]);
  }

  /** Class by class in turn, so that a limit takes as many of each. */
  #calibrationSamples(): Sample[] {
    const queues = this.#classes.map((label) =>
      this.#trainingSamples().filter(({ row }) => this.#pictures[row]!.label === label),
    );
    const longest = Math.max(...queues.map((queue) => queue.length));
    const inTurn = Array.from({ length: longest }, (_, turn) =>
      queues.flatMap((queue) => queue.slice(turn, turn + 1)),
    ).flat();
    return inTurn.slice(0, this.#context.spec.options.calibrationPictures);
  }

  #frames(samples: readonly Sample[]): CachedPicture[] {
    return samples.map(({ row }) => this.#pictures[row]!);
  }

  #outcomes(logits: Float32Array, samples: readonly Sample[]): FrameOutcome[] {
    return outcomesOf(logits, this.#classes, this.#frames(samples));
  }

  async #write(
    dir: string,
    graph: Graph,
    head: SpecialistHead,
    reports: readonly LayerReport[],
  ): Promise<{ file: Uint8Array; parameters: number; nonzero: number; bytes: number }> {
    const { spec, log } = this.#context;
    const file = writeGraph(graph);
    const zeros = reports.filter((r) => r.relativeLoss !== null);
    const what = zeros.length > 0 ? zeros[0]!.method : "dense";
    const manifest: ModelManifest = {
      formatVersion: 1,
      sha256: sha256(file),
      name: `${spec.generalist.name} · ${this.#classes.length} classes · ${what}`,
      createdAt: spec.createdAt,
      softwareVersion: spec.softwareVersion,
      origin: {
        generalist: spec.generalist.name,
        generalistSha256: spec.generalist.sha256,
        run: spec.id,
        incumbentSha256: await incumbentSha256(spec.incumbentDir),
      },
      classes: [...this.#classes],
      inputName: graph.inputs[0]!.name,
      outputName: graph.outputs[0]!.name,
      preprocessing: spec.generalist.preprocessing,
      metrics: null,
      layers: [
        ...reports.map((report) => ({ ...report })),
        { name: "head", method: `${head.kind}, l2 ${head.l2}`, sparsity: 0, relativeLoss: null },
      ],
    };
    const session = await openSession(file, { ...spec.options, log });
    try {
      const answers = await makeKnownAnswers(session, manifest, ANSWER_SEEDS, ANSWER_TOLERANCE);
      await rm(dir, { recursive: true, force: true });
      await mkdir(dir, { recursive: true });
      await writeJsonAtomic(join(dir, "check.json"), answers);
    } finally {
      await session.release();
    }
    await writeJsonAtomic(join(dir, "model.json"), manifest);
    await writeFileAtomic(join(dir, "model.onnx"), file);
    return { file, ...countParameters(graph), bytes: file.length };
  }

  async #compressed(): Promise<{ graph: Graph; reports: readonly LayerReport[] }> {
    const progress = await this.#readProgress();
    if (!progress) throw new RangeError("the compressed network is missing from the run's folder");
    return progress;
  }

  async #readProgress(): Promise<Progress | undefined> {
    const state = await readJsonIfExists(this.#work("compressed.json"));
    if (state === undefined) return undefined;
    const { segments, reports } = v.parse(compressFile, state);
    const graph = readGraph(await readFile(this.#work(`compressed-${segments}.onnx`)));
    return { graph, segments, reports };
  }

  /** The network first, under a name of its own, then the state that points at it. */
  async #writeProgress({ graph, segments, reports }: Progress): Promise<void> {
    const old = await readJsonIfExists(this.#work("compressed.json"));
    await writeFileAtomic(this.#work(`compressed-${segments}.onnx`), writeGraph(graph));
    await writeJsonAtomic(this.#work("compressed.json"), { segments, reports });
    if (old === undefined) return;
    const before = v.parse(compressFile, old).segments;
    if (before !== segments) await rm(this.#work(`compressed-${before}.onnx`), { force: true });
  }

  async #writeHead(name: string, head: SpecialistHead): Promise<void> {
    const values = { ...head, weights: [...head.weights], bias: [...head.bias] };
    await writeJsonAtomic(this.#work(name), values);
  }

  async #readHead(name: string): Promise<SpecialistHead> {
    const head = v.parse(headFile, await readJsonIfExists(this.#work(name)));
    return {
      ...head,
      weights: Float32Array.from(head.weights),
      bias: Float32Array.from(head.bias),
    };
  }

  async #readFeatures(): Promise<Float32Array> {
    const bytes = await readFile(this.#work("features.f32"));
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  }

  #inputs(): number {
    return this.#loaded().network.head.features;
  }

  #work(name: string): string {
    return join(this.#paths.work, name);
  }

  #loaded(): { network: Network; cache: PictureCache } {
    if (!this.#network || !this.#cache) throw new TypeError("the run's network is not loaded yet");
    return { network: this.#network, cache: this.#cache };
  }
}

function leftDense(name: string): LayerReport {
  return { name, method: "dense: sparsity 0 is asked for", sparsity: 0, relativeLoss: null };
}

/** The network with a linear classifier on its features: output `logits`, `[N, classes]`. */
function withLinearHead(backbone: Graph, head: HeadWeights): Graph {
  const features = backbone.outputs[0]!.name;
  const classes = head.bias.length;
  const inputs = head.weights.length / classes;
  const initializers = new Map(backbone.initializers)
    .set("taco_head_weight", floatTensor([classes, inputs], head.weights))
    .set("taco_head_bias", floatTensor([classes], head.bias));
  const names = [features, "taco_head_weight", "taco_head_bias"];
  return {
    ...backbone,
    nodes: [...backbone.nodes, node("Gemm", names, ["logits"], { transB: 1 })],
    initializers,
    outputs: [{ name: "logits", dataType: DataType.FLOAT, dims: ["N", classes] }],
  };
}

function evaluationOf(
  frames: readonly FrameOutcome[],
  classes: readonly string[],
  specialized: boolean,
  size: { parameters: number; nonzero: number; bytes: number },
): ModelEvaluation {
  const { parameters, nonzero, bytes } = size;
  return {
    classes: [...classes],
    specialized,
    scores: scoreFrames(frames, classes),
    parameters,
    nonzero,
    bytes,
    frames: frames.map(({ burst, truth, predicted, confidence }) => ({
      burst,
      truth,
      predicted,
      finite: Number.isFinite(confidence),
    })),
  };
}

async function incumbentSha256(dir: string | null): Promise<string | null> {
  if (dir === null) return null;
  return (await readModelJson(join(dir, "model.json"), modelManifestSchema)).sha256;
}
