import { appendFileSync } from "node:fs";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import type { Aim } from "../aim.ts";
import { chooseFromFront } from "../compress/budget.ts";
import { readPicture } from "../data/picture.ts";
import { messageOf } from "../errors.ts";
import { readJsonIfExists, sha256, writeFileAtomic, writeJsonAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import { headLogits } from "../math/standardized-space.ts";
import { changesNothing, formatMethod, parseMethod } from "../method.ts";
import {
  type ModelManifest,
  modelManifestSchema,
  type Preprocessing,
  preprocessingAt,
  readModelJson,
} from "../model.ts";
import { type Graph, readGraph, writeGraph } from "../onnx/graph.ts";
import { readHead, withLinearHead } from "../onnx/head.ts";
import { countParameters } from "../onnx/initializers.ts";
import { toSparseInitializers } from "../onnx/sparse-initializer.ts";
import { makeKnownAnswers } from "../runtime/known-answers.ts";
import { LatencyTable, thisMachine } from "../runtime/latency-table.ts";
import { openSession } from "../runtime/session.ts";
import type { Progress } from "./compress-network.ts";
import { type CompressionPlan, describePlan, NO_CHANGE } from "./compression-plan.ts";
import type { Engine } from "./engine.ts";
import type { Calibration, CompressEnvironment } from "./environment.ts";
import { type FrameOutcome, outcomesOf, scoreFrames } from "./evaluate.ts";
import type { Evaluation, ModelEvaluation } from "./evaluation-file.ts";
import { fineTune } from "./fine-tune.ts";
import {
  fitHead,
  mapLabels,
  type SpecialistHead,
  sliceHead,
  type TrainingFeatures,
} from "./fit-head.ts";
import {
  type Built,
  builtSchema,
  type Chosen,
  chooseForAim,
  type FrontPoint,
  frontLimit,
  frontPointSchema,
  headSchema,
} from "./front.ts";
import { compareLatency } from "./graph-latency.ts";
import { openLessons } from "./lesson-pictures.ts";
import { loadNetwork, type Network } from "./network.ts";
import type { CachedPicture, Sample } from "./picture-cache.ts";
import { applyPlan, type InputSize, planOf } from "./pipeline.ts";
import { runPaths } from "./run.ts";
import { decodePictures, RunPictures } from "./run-pictures.ts";
import {
  type ExpectedDrop,
  expectedDrop,
  type FeatureScore,
  hitsOf,
  type Standing,
  scoreFeatures,
  standingOf,
} from "./score.ts";
import { searchPlans } from "./search.ts";
import type { SearchedPlan } from "./search-space.ts";
import { type RunSpec, STAGES, type StageName, type StageReport } from "./spec.ts";
import { validationBursts } from "./split.ts";
import type { TrainingPoint } from "./training-point.ts";
import { TuningFiles } from "./tuning-files.ts";

/** What the stages of a run need beside its spec. */
export interface StageContext {
  readonly spec: RunSpec;
  readonly runDir: string;
  readonly engine: Engine;
  readonly log: Logger;
  readonly onStage: (name: StageName, report: StageReport | null) => void;
  readonly onProgress: (stage: StageName, done: number, total: number) => void;
  readonly onTrained: (point: TrainingPoint) => void;
  /** Fires where training is to end with what it has. */
  readonly endTraining: AbortSignal;
  readonly signal: AbortSignal;
}

/** Activations of one border that stay in memory; two borders are held at a time. */
const BORDER_MEMORY_BYTES = 128 * 2 ** 20;
/** Plans for the aim that are built at most, and others along the front. */
const MAX_PLANS = 3;
/** Share of the training pictures that a search judges by. */
const UNSEEN_SHARE = 0.35;
/** Points that may be lost before training for each that may be lost after it. */
const RECOVERED = 3;
/** Share of the training pictures by which training sees when to stop. */
const VALIDATION_SHARE = 0.12;
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
    await stage("search", () => run.search());
    await stage("compress", () => run.compress());
    await stage("head-refit", () => run.refitHeads());
    await stage("fine-tune", () => run.fineTune());
    await stage("evaluate", () => run.evaluate());
  } finally {
    await run.close();
  }
  context.log.debug({ run: spec.id }, "all stages done");
}

/** How far an earlier life of the run came. */
async function finishedStages(path: string): Promise<StageReport[]> {
  const known = v.picklist(STAGES);
  const schema = v.array(
    v.object({ name: known, seconds: v.number(), runtimeSeconds: v.number() }),
  );
  return v.parse(schema, (await readJsonIfExists(path)) ?? []);
}

const compressFile = v.object({
  segments: v.number(),
  reports: builtSchema.entries.reports,
});

/** What a search leaves for the building: the plans worth building, the dense one left out. */
const plansFile = v.array(
  v.pick(builtSchema, ["plan", "predictedLatencyRatio", "searchedDropPoints"]),
);

const scoreFile = v.object({
  /** Null where a picture was never held back, which JSON has no other number for. */
  hits: v.array(v.nullable(v.number())),
  labels: v.array(v.number()),
});

const problemFile = v.object({ subject: v.string(), reason: v.string() });

class Run {
  readonly #context: StageContext;
  readonly #paths: ReturnType<typeof runPaths>;
  #network: Network | undefined;
  #pictures: RunPictures | undefined;

  constructor(context: StageContext, paths: ReturnType<typeof runPaths>) {
    this.#context = context;
    this.#paths = paths;
  }

  async decodePictures(): Promise<void> {
    const { spec, onProgress } = this.#context;
    await decodePictures(spec.pictures, this.#picturesOptions(), (done) =>
      onProgress("pictures", done, spec.pictures.length),
    );
  }

  /** Opens what every later stage reads. */
  async load(): Promise<void> {
    const { spec, engine } = this.#context;
    const { preprocessing, modelPath } = spec.generalist;
    await mkdir(this.#paths.front, { recursive: true });
    this.#pictures = await RunPictures.open(this.#picturesOptions());
    this.#network = await loadNetwork(await readFile(modelPath), preprocessing, engine);
  }

  async close(): Promise<void> {
    await this.#pictures?.close();
  }

  async denseFeatures(): Promise<void> {
    const { pictures, network } = this.#loaded();
    const samples = [...pictures.samples("heldOut"), ...pictures.trainingSamples()];
    const features = await this.#run(network.backbone, samples, null, "features");
    await writeFileAtomic(this.#work("features.f32"), new Uint8Array(features.buffer));
  }

  async fitDenseHead(): Promise<void> {
    const features = await this.#trainingFeatures();
    await this.#writeHead(0, await this.#fit(features));
    if (!this.#searches()) return;
    const { hits, labels } = await this.#score(features);
    await writeJsonAtomic(this.#denseScore, { hits, labels });
  }

  /** Lists the plans to build: the stated one, or those that a search tries. */
  async search(): Promise<void> {
    const { spec } = this.#context;
    const method = parseMethod(spec.options.method);
    const { network } = this.#loaded();
    const plans: v.InferOutput<typeof plansFile> = [];
    if (method.kind === "fixed" && !changesNothing(method)) {
      const { plan } = planOf(method, network.backbone);
      plans.push({ plan, predictedLatencyRatio: null, searchedDropPoints: null });
    } else if (method.kind === "auto") {
      for (const { plan, latencyRatio, dropPoints } of await this.#searchedPlans()) {
        plans.push({
          plan,
          predictedLatencyRatio: latencyRatio,
          searchedDropPoints: Number.isFinite(dropPoints) ? dropPoints : null,
        });
      }
    }
    await writeJsonAtomic(this.#work("plans.json"), plans);
  }

  /**
   * The plans nearest to the aim, and a few along the whole front, so that another aim finds
   * something to choose from later.
   */
  async #searchedPlans(): Promise<SearchedPlan[]> {
    const { spec, log, onProgress, signal } = this.#context;
    const { network, pictures } = this.#loaded();
    const { aim, searchSeconds, seed, latencyTablePath } = spec.options;
    const plain = pictures.samples("train");
    const unseen = this.#unseenBursts();
    const score = async (graph: Graph, size: InputSize): Promise<FeatureScore> =>
      this.#score(await this.#run(graph, plain, size, "search"), plain);
    const ofUnseen = (scored: FeatureScore): FeatureScore =>
      unseen.size === 0 ? scored : { ...scored, hits: this.#only(unseen, plain, scored) };
    const dense = await score(network.backbone, null);
    const judged = new WeakMap<Graph, Standing>([
      [network.backbone, { score: dense, points: 0, caution: 0 }],
    ]);
    const { parameters } = countParameters(network.graph);
    const head = this.#inputs() * pictures.classes.length + pictures.classes.length;
    const { front, refused, ...found } = await searchPlans({
      dense: network.backbone,
      size: spec.generalist.preprocessing,
      aim: this.#searchedAim(),
      environmentAt: (size) => Promise.resolve(this.#environment(size, () => undefined, unseen)),
      judge: async (graph, size, origin = { graph: network.backbone, fitted: true }) => {
        const other = await score(graph, size);
        const standing = judged.get(origin.graph)!;
        const own = standingOf(other, { standing, fitted: origin.fitted }, dense, ofUnseen);
        judged.set(graph, own);
        const { points, caution } = own;
        log.debug({ size, points, caution, loss: other.loss }, "a network judged");
        return { loss: other.loss, dropPoints: points + caution };
      },
      table: await LatencyTable.open(latencyTablePath, thisMachine(spec.options), log),
      parameters,
      restParameters: head,
      maxSeconds: searchSeconds,
      maxPlans: MAX_PLANS,
      seed,
      onProgress: (share) => onProgress("search", share, 1),
      signal,
    });
    log.debug({ refused }, "levers that the search could not use");
    const chosen = [...found.chosen];
    // Without what training is to bring back, in case it does not.
    const sure = chooseFromFront(
      front.map((point) => ({ point, cost: point.cost, drop: point.dropPoints })),
      frontLimit(aim, parameters),
    )?.point;
    if (sure && sure.plan !== NO_CHANGE && !chosen.includes(sure)) {
      chosen.splice(1, chosen.length >= MAX_PLANS ? 1 : 0, sure);
    }
    const others = front.filter((point) => point.plan !== NO_CHANGE && !chosen.includes(point));
    const step = Math.max(1, others.length / MAX_PLANS);
    const spread = others.filter((_, i) => Math.floor(i % step) === 0).slice(0, MAX_PLANS);
    return [...chosen, ...spread];
  }

  /**
   * Training bursts that a search fits nothing to and judges by: layers that are fitted to a
   * picture reproduce it better than the next one. Empty where classes have one burst each.
   */
  #unseenBursts(): Set<string> {
    const { seed } = this.#context.spec.options;
    return validationBursts(this.#trainPictures(), UNSEEN_SHARE, seed);
  }

  #trainPictures(): CachedPicture[] {
    return this.#loaded().pictures.pictures.filter(({ role }) => role === "train");
  }

  /** Hits of the samples of some bursts; NaN, which is not counted, for the others. */
  #only(bursts: ReadonlySet<string>, samples: readonly Sample[], { hits }: FeatureScore): number[] {
    return hits.map((hit, i) => (this.#isOf(bursts, samples[i]!) ? hit : Number.NaN));
  }

  #isOf(bursts: ReadonlySet<string>, { row }: Sample): boolean {
    return bursts.has(this.#loaded().pictures.pictures[row]!.burst);
  }

  /** Builds the network of every plan; point 0 is the dense one. */
  async compress(): Promise<void> {
    const { network } = this.#loaded();
    const plans = v.parse(plansFile, await readJsonIfExists(this.#work("plans.json")));
    const method = parseMethod(this.#context.spec.options.method);
    const left = method.kind === "fixed" ? planOf(method, network.backbone).refused : [];
    const dense: Built = {
      plan: NO_CHANGE,
      predictedLatencyRatio: 1,
      searchedDropPoints: 0,
      reports: [],
      refused: [],
    };
    await this.#writeBuilt(0, network.backbone, dense);
    const start = performance.now();
    const seconds = this.#searches()
      ? this.#context.spec.options.searchSeconds
      : Number.POSITIVE_INFINITY;
    for (const [at, planned] of plans.entries()) {
      if ((await this.#readBuilt(at + 1)) !== undefined) continue;
      // The likeliest come first, so what there is no time for is missed least.
      if (at > 0 && (performance.now() - start) / 1000 > seconds) break;
      const { graph, reports, refused } = await this.#build(planned.plan, at, plans.length);
      await this.#writeBuilt(at + 1, graph, {
        ...planned,
        reports: reports.map((report) => ({ ...report })),
        refused: [...left, ...refused].map((refusal) => ({ ...refusal })),
      });
      await rm(this.#work("compressed.json"), { force: true });
    }
  }

  /** Fits a head to what was built, and measures what there is to choose from. */
  async refitHeads(): Promise<void> {
    const { network } = this.#loaded();
    const plans = v.parse(plansFile, await readJsonIfExists(this.#work("plans.json")));
    const points = [await this.#point(0, network.backbone, await this.#readHead(0), null)];
    for (const at of plans.keys()) {
      if ((await this.#readBuilt(at + 1)) === undefined) break;
      const { graph, plan } = await this.#built(at + 1);
      const features = await this.#featuresOf(graph, plan.inputSize, "head-refit");
      const head = await this.#fit(features);
      await this.#writeHead(at + 1, head);
      const score = this.#searches() ? await this.#score(features) : null;
      points.push(await this.#point(at + 1, graph, head, score));
    }
    await writeJsonAtomic(this.#paths.frontFile, points);
  }

  /**
   * Trains the network that the aim chose, and adds what comes of it to what can be chosen. One
   * that cannot be trained stays as the solvers made it, and the result says why.
   */
  async fineTune(): Promise<void> {
    const { options } = this.#context.spec;
    if (options.fineTune === null) return;
    const points = await this.#readFront();
    const untrained = points.filter(({ trainedFrom }) => trainedFrom === null);
    const { point } = this.#chooseFrom(untrained, this.#searchedAim());
    const known = points.some(({ trainedFrom }) => trainedFrom === point.index);
    if (point.index === 0 || known) return;
    try {
      const trained = await this.#train(point, points.length, options.fineTune);
      await writeJsonAtomic(this.#paths.frontFile, [...points, trained]);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      const problem = { subject: "fine-tune", reason: error.message };
      await writeJsonAtomic(this.#work("fine-tune-problem.json"), problem);
    }
    await this.#tuningOf(point).remove();
  }

  #tuningOf({ index }: FrontPoint): TuningFiles {
    return new TuningFiles(this.#work(`fine-tune-${index}`));
  }

  /**
   * What a search looks for: where training follows, more may be lost before it, since it brings
   * most of that back.
   */
  #searchedAim(): Aim {
    const { aim, fineTune } = this.#context.spec.options;
    if (fineTune === null || !("aim" in aim)) return aim;
    return { ...aim, maxDropPoints: RECOVERED * aim.maxDropPoints };
  }

  /** @param index of the point to make. */
  async #train(
    point: FrontPoint,
    index: number,
    how: NonNullable<RunSpec["options"]["fineTune"]>,
  ): Promise<FrontPoint> {
    const { spec, onProgress, onTrained, endTraining } = this.#context;
    const { network, pictures } = this.#loaded();
    const { plan } = point;
    const tuning = this.#tuningOf(point);
    const { graph, ...built } = await this.#built(point.index);
    const keptBack = validationBursts(this.#trainPictures(), VALIDATION_SHARE, spec.options.seed);
    const shape = plan.inputSize ?? spec.generalist.preprocessing;
    const {
      pass,
      rounds,
      head: trained,
    } = await fineTune({
      ...how,
      dense: network.backbone,
      denseHead: await this.#readHead(0),
      plan,
      built: plan.int8 || plan.weightBits !== null ? null : graph,
      seed: spec.options.seed,
      pictureDims: [3, shape.height, shape.width],
      pictures: await openLessons(pictures, {
        keptBack,
        size: plan.inputSize,
        batchSize: network.batched ? spec.options.batchSize : 1,
        seed: spec.options.seed,
      }),
      batched: network.batched,
      fitHead: async (backbone) => {
        // A head that knew the pictures kept back would make them useless as judges.
        const own = pictures.trainingSamples().filter((sample) => !this.#isOf(keptBack, sample));
        return this.#fit(await this.#run(backbone, own, plan.inputSize, null), own);
      },
      environmentAt: (size) => Promise.resolve(this.#environment(size, () => undefined)),
      resume: await tuning.read(),
      onState: (state) => tuning.write(state),
      onPoint: (point) => {
        // At once, so that a line is whole where the process is killed next.
        appendFileSync(this.#paths.training, `${JSON.stringify(point)}\n`);
        onTrained(point);
      },
      onProgress: (share) => onProgress("fine-tune", share, 1),
      end: endTraining,
    });
    await this.#writeBuilt(index, pass.graph, {
      ...built,
      searchedDropPoints: null,
      reports: [...built.reports, ...pass.reports.map((report) => ({ ...report }))],
    });
    const features = await this.#featuresOf(pass.graph, plan.inputSize, null);
    const head: SpecialistHead =
      trained === null ? await this.#fit(features) : { ...trained, kind: "trained", l2: 0 };
    await this.#writeHead(index, head);
    const score = this.#searches() ? await this.#scoreKeptBack(features, head, keptBack) : null;
    const made = await this.#point(index, pass.graph, head, score);
    return { ...made, trainedFrom: point.index, training: rounds.map((round) => ({ ...round })) };
  }

  /** Pictures that training saw would only flatter it. */
  async #scoreKeptBack(
    features: Float32Array,
    head: SpecialistHead,
    keptBack: ReadonlySet<string>,
  ): Promise<FeatureScore> {
    const scored = await this.#score(features);
    if (keptBack.size === 0) return scored;
    const samples = this.#loaded().pictures.trainingSamples();
    const judged =
      head.kind === "trained"
        ? {
            ...scored,
            hits: hitsOf(Float32Array.from(await headLogits(head, features)), scored.labels),
          }
        : scored;
    return { ...scored, hits: this.#only(keptBack, samples, judged) };
  }

  /** Chooses for the aim, and judges the chosen on the held-out pictures. */
  async evaluate(): Promise<void> {
    const { spec } = this.#context;
    const { network, pictures } = this.#loaded();
    const heldOut = pictures.samples("heldOut");
    const { point, problem } = await this.#choose();
    const denseHead = await this.#readHead(0);
    const features = await this.#readFeatures();
    const held = features.subarray(0, heldOut.length * this.#inputs());
    const denseLogits = Float32Array.from(await headLogits(denseHead, held));
    const denseModel = withLinearHead(network.backbone, denseHead);
    const dense = await this.#write(this.#paths.dense, denseModel, denseHead, null);
    const { graph, ...built } = await this.#built(point.index);
    const head = await this.#readHead(point.index);
    const model = withLinearHead(graph, head);
    const candidate = await this.#write(this.#paths.candidate, model, head, built);
    const logits =
      point.index === 0
        ? denseLogits
        : await this.#run(readGraph(candidate.file), heldOut, point.plan.inputSize, "evaluate");
    const problems = [...spec.problems, ...pictures.problems];
    if (problem !== null) problems.push({ subject: "aim", reason: problem });
    const untrained = await readJsonIfExists(this.#work("fine-tune-problem.json"));
    if (untrained !== undefined) problems.push(v.parse(problemFile, untrained));
    const evaluation: Evaluation = {
      dense: evaluationOf(this.#outcomes(denseLogits, heldOut), pictures.classes, true, dense),
      candidate: evaluationOf(this.#outcomes(logits, heldOut), pictures.classes, true, candidate),
      incumbent: spec.incumbentDir === null ? null : await this.#incumbent(spec.incumbentDir),
      heldOut: {
        frames: heldOut.length,
        bursts: new Set(heldOut.map(({ row }) => pictures.pictures[row]!.burst)).size,
      },
      training: { pictures: pictures.samples("train").length, classes: [...pictures.classes] },
      generalistParameters: countParameters(network.graph).parameters,
      chosen: point,
      refused: built.refused,
      problems,
    };
    await writeJsonAtomic(this.#paths.evaluation, evaluation);
  }

  /**
   * The point for the aim. A trained one stands for what it was made of; with a limit on cost it
   * is taken whatever else there is, as training was for it.
   */
  async #choose(): Promise<Chosen> {
    const { aim } = this.#context.spec.options;
    const points = await this.#readFront();
    const trained = points.filter(({ trainedFrom }) => trainedFrom !== null);
    const replaced = new Set(trained.map(({ trainedFrom }) => trainedFrom));
    const { point } = this.#chooseFrom(
      points.filter(({ trainedFrom }) => trainedFrom === null),
      this.#searchedAim(),
    );
    const own = trained.find(({ trainedFrom }) => trainedFrom === point.index);
    if (own && !("aim" in aim)) return { point: own, problem: null };
    return this.#chooseFrom(
      points.filter(({ index }) => !replaced.has(index)),
      aim,
    );
  }

  #chooseFrom(points: readonly FrontPoint[], aim: Aim): Chosen {
    // A stated method is what the user wants, whatever it costs; the gate judges it.
    if (!this.#searches()) return { point: points.at(-1)!, problem: null };
    const { parameters } = countParameters(this.#loaded().network.graph);
    return chooseForAim(points, aim, parameters);
  }

  async #readFront(): Promise<FrontPoint[]> {
    return v.parse(v.array(frontPointSchema), await readJsonIfExists(this.#paths.frontFile));
  }

  /** @param score null where there is nothing to choose from. */
  async #point(
    index: number,
    graph: Graph,
    head: SpecialistHead,
    score: FeatureScore | null,
  ): Promise<FrontPoint> {
    const { plan, predictedLatencyRatio, searchedDropPoints } = await this.#built(index);
    const model = withLinearHead(graph, head);
    const { nonzero } = countParameters(model);
    const bytes = writeGraph(toSparseInitializers(model)).length;
    if (index === 0) {
      return {
        index,
        plan,
        nonzero,
        bytes,
        latencyRatio: 1,
        predictedLatencyRatio,
        expectedDropPoints: 0,
        dropStandardError: 0,
        trainedFrom: null,
        training: [],
      };
    }
    const drop = score === null ? null : await this.#dropOf(score);
    return {
      index,
      plan,
      latencyRatio: score === null ? null : await this.#latencyRatio(graph, plan.inputSize),
      predictedLatencyRatio,
      nonzero,
      bytes,
      // On pictures that it was fitted to it looks better than on those that the search kept back.
      expectedDropPoints: drop && Math.max(drop.points, searchedDropPoints ?? drop.points),
      dropStandardError: searchedDropPoints === null ? (drop?.standardError ?? null) : null,
      trainedFrom: null,
      training: [],
    };
  }

  /** Null where nothing could be held back. */
  async #dropOf(score: FeatureScore): Promise<ExpectedDrop | null> {
    const known = v.parse(scoreFile, await readJsonIfExists(this.#denseScore));
    const hits = known.hits.map((value) => value ?? Number.NaN);
    const drop = expectedDrop({ hits, labels: known.labels }, score);
    return Number.isFinite(drop.points) ? drop : null;
  }

  async #latencyRatio(graph: Graph, size: InputSize): Promise<number> {
    const { spec, engine, signal } = this.#context;
    const { height, width } = spec.generalist.preprocessing;
    const dense = { graph: this.#loaded().network.backbone, height, width };
    const other = { graph, ...(size ?? { height, width }) };
    const [before, after] = await compareLatency([dense, other], 1, engine, signal);
    return after! / before!;
  }

  #searches(): boolean {
    return parseMethod(this.#context.spec.options.method).kind === "auto";
  }

  async #build(plan: CompressionPlan, at: number, plans: number) {
    const { spec, onProgress } = this.#context;
    const { network } = this.#loaded();
    const resume = await this.#readProgress();
    let savedAt = performance.now();
    const onSegment = async (progress: Progress): Promise<void> => {
      if (performance.now() - savedAt < CHECKPOINT_MS) return;
      await this.#writeProgress(progress);
      savedAt = performance.now();
    };
    return applyPlan(network.backbone, plan, {
      environmentAt: (size) =>
        Promise.resolve(
          this.#environment(size, (done, total) =>
            onProgress("compress", at * total + done, plans * total),
          ),
        ),
      zeros: { blockSize: spec.options.blockSize, ...(resume ? { resume } : {}), onSegment },
    });
  }

  #environment(
    size: InputSize,
    onProgress: (done: number, total: number) => void,
    without?: ReadonlySet<string>,
  ): CompressEnvironment {
    const { spec, engine, signal } = this.#context;
    const { pictures } = this.#loaded();
    const samples = pictures.calibrationSamples(spec.options.calibrationPictures, without);
    return {
      engine,
      calibration: this.#source(samples, size),
      workDir: this.#paths.work,
      memoryBytes: BORDER_MEMORY_BYTES,
      damping: spec.options.damping,
      onProgress,
      signal,
    };
  }

  /** The incumbent on the same held-out pictures, through its own preprocessing. */
  async #incumbent(dir: string): Promise<ModelEvaluation> {
    const { spec, log, signal } = this.#context;
    const manifest = await readModelJson(join(dir, "model.json"), modelManifestSchema);
    const file = await readFile(join(dir, "model.onnx"));
    const { pictures } = this.#loaded();
    const heldOut = pictures.samples("heldOut");
    const { preprocessing, classes, inputName, outputName } = manifest;
    const same = JSON.stringify(preprocessing) === JSON.stringify(spec.generalist.preprocessing);
    const cached = pictures.source(heldOut, null, 1);
    const session = await openSession(file, { ...spec.options, log });
    const logits = new Float32Array(heldOut.length * classes.length);
    try {
      for (const [index, { row }] of heldOut.entries()) {
        signal.throwIfAborted();
        const dims = [1, 3, preprocessing.height, preprocessing.width];
        const data = same
          ? (await cached.read(index)).data
          : await this.#decodeAgain(row, preprocessing);
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
    const { path } = this.#loaded().pictures.pictures[row]!;
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
    const { classes } = this.#loaded().pictures;
    const indices = mapLabels(classes, named, labelMap);
    const labels = new Map<string, string>();
    classes.forEach((label, i) => {
      const name = generalist.classes[indices[i]!];
      if (name !== undefined) labels.set(name, label);
    });
    return (name) => labels.get(name) ?? name;
  }

  /** @param samples whose features they are, row by row. */
  #fit(
    features: Float32Array,
    samples: readonly Sample[] = this.#loaded().pictures.trainingSamples(),
  ): Promise<SpecialistHead> {
    const { spec, engine, signal } = this.#context;
    const { network, pictures } = this.#loaded();
    const { generalist, labelMap } = spec;
    const named = { classes: generalist.classes, aliases: generalist.classAliases };
    const classOf = mapLabels(pictures.classes, named, labelMap);
    const { W, b } = readHead(network.graph, network.head);
    const rows = sliceHead({ weights: W, bias: b }, classOf);
    const complete = classOf.every((c) => c >= 0);
    const prior = classOf.some((c) => c >= 0) ? { rows, complete } : null;
    const options = { seed: spec.options.seed, gemm: engine.gemm, signal };
    return fitHead(this.#labeled(features, samples), prior, options);
  }

  /** @param samples whose features they are, row by row. */
  #score(
    features: Float32Array,
    samples: readonly Sample[] = this.#loaded().pictures.trainingSamples(),
  ): Promise<FeatureScore> {
    const { spec, engine, signal } = this.#context;
    const options = { seed: spec.options.seed, gemm: engine.gemm, signal };
    return scoreFeatures(this.#labeled(features, samples), options);
  }

  #labeled(features: Float32Array, of: readonly Sample[]): TrainingFeatures {
    const { pictures } = this.#loaded();
    const samples = this.#frames(of);
    return {
      features,
      inputs: features.length / samples.length,
      labels: samples.map(({ label }) => pictures.classes.indexOf(label)),
      bursts: samples.map(({ burst }) => burst),
      classes: pictures.classes.length,
    };
  }

  async #trainingFeatures(): Promise<Float32Array> {
    const heldOut = this.#loaded().pictures.samples("heldOut").length;
    return (await this.#readFeatures()).subarray(heldOut * this.#inputs());
  }

  #featuresOf(graph: Graph, size: InputSize, stage: StageName | null): Promise<Float32Array> {
    return this.#run(graph, this.#loaded().pictures.trainingSamples(), size, stage);
  }

  /**
   * Runs a graph over samples and returns its one output, `samples × width`, row-major.
   *
   * @param stage whose progress it is; null where it is but a part of one.
   */
  async #run(
    graph: Graph,
    samples: readonly Sample[],
    size: InputSize,
    stage: StageName | null,
  ): Promise<Float32Array> {
    const { engine, onProgress, signal } = this.#context;
    const input = graph.inputs[0]!.name;
    const output = graph.outputs[0]!.name;
    const session = await engine.open(graph);
    const source = this.#source(samples, size);
    let result: Float32Array | undefined;
    let offset = 0;
    try {
      for (let batch = 0; batch < source.batches; batch++) {
        signal.throwIfAborted();
        const value = await source.read(batch);
        const data = (await session.run({ [input]: value }))[output]?.data;
        if (!(data instanceof Float32Array)) throw new TypeError(`"${output}" is no float32 value`);
        const width = data.length / value.dims[0]!;
        result ??= new Float32Array(samples.length * width);
        result.set(data, offset);
        offset += data.length;
        if (stage === null) continue;
        onProgress(stage, Math.min(samples.length, offset / width), samples.length);
      }
    } finally {
      await session.release();
    }
    return result ?? new Float32Array(0);
  }

  #source(samples: readonly Sample[], size: InputSize): Calibration {
    const { pictures, network } = this.#loaded();
    return pictures.source(
      samples,
      size,
      network.batched ? this.#context.spec.options.batchSize : 1,
    );
  }

  #frames(samples: readonly Sample[]): CachedPicture[] {
    return samples.map(({ row }) => this.#loaded().pictures.pictures[row]!);
  }

  #outcomes(logits: Float32Array, samples: readonly Sample[]): FrameOutcome[] {
    return outcomesOf(logits, this.#loaded().pictures.classes, this.#frames(samples));
  }

  async #write(
    dir: string,
    graph: Graph,
    head: SpecialistHead,
    built: Built | null,
  ): Promise<{ file: Uint8Array; parameters: number; nonzero: number; bytes: number }> {
    const { spec, log } = this.#context;
    const file = writeGraph(toSparseInitializers(graph));
    const { classes } = this.#loaded().pictures;
    const { preprocessing } = spec.generalist;
    const size = built?.plan.inputSize ?? null;
    const what = built === null ? "dense" : this.#describe(built.plan);
    const manifest: ModelManifest = {
      formatVersion: 1,
      sha256: sha256(file),
      name: `${spec.generalist.name} · ${classes.length} classes · ${what}`,
      createdAt: spec.createdAt,
      softwareVersion: spec.softwareVersion,
      origin: {
        generalist: spec.generalist.name,
        generalistSha256: spec.generalist.sha256,
        run: spec.id,
        incumbentSha256: await incumbentSha256(spec.incumbentDir),
      },
      classes: [...classes],
      inputName: graph.inputs[0]!.name,
      outputName: graph.outputs[0]!.name,
      preprocessing: size === null ? preprocessing : preprocessingAt(preprocessing, size),
      metrics: null,
      layers: [
        ...(built?.reports ?? []).map((report) => ({ ...report })),
        {
          name: "head",
          method: head.kind === "trained" ? head.kind : `${head.kind}, l2 ${head.l2}`,
          sparsity: 0,
          relativeLoss: null,
        },
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

  /** What was done to the network, for the name of the model. */
  #describe(plan: CompressionPlan): string {
    const method = parseMethod(this.#context.spec.options.method);
    return method.kind === "fixed" && !changesNothing(method)
      ? formatMethod(method)
      : describePlan(plan);
  }

  /** What was built for a point of the front. */
  async #built(index: number): Promise<Built & { graph: Graph }> {
    const built = await this.#readBuilt(index);
    if (!built) throw new RangeError(`network ${index} is missing from the run's folder`);
    const graph = readGraph(await readFile(join(this.#paths.front, `${index}.onnx`)));
    return { ...built, graph };
  }

  async #readBuilt(index: number): Promise<Built | undefined> {
    const state = await readJsonIfExists(join(this.#paths.front, `${index}.json`));
    return state === undefined ? undefined : v.parse(builtSchema, state);
  }

  /** The network first, then the file that says it is there. */
  async #writeBuilt(index: number, graph: Graph, built: Built): Promise<void> {
    await writeFileAtomic(join(this.#paths.front, `${index}.onnx`), writeGraph(graph));
    await writeJsonAtomic(join(this.#paths.front, `${index}.json`), built);
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

  async #writeHead(index: number, head: SpecialistHead): Promise<void> {
    const values = { ...head, weights: [...head.weights], bias: [...head.bias] };
    await writeJsonAtomic(join(this.#paths.front, `${index}.head.json`), values);
  }

  async #readHead(index: number): Promise<SpecialistHead> {
    const path = join(this.#paths.front, `${index}.head.json`);
    const head = v.parse(headSchema, await readJsonIfExists(path));
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

  /** Beside the networks, since it outlives the run's working files. */
  get #denseScore(): string {
    return join(this.#paths.front, "dense-score.json");
  }

  #work(name: string): string {
    return join(this.#paths.work, name);
  }

  #picturesOptions() {
    const { spec, signal } = this.#context;
    const { preprocessing } = spec.generalist;
    const { maxMegapixels } = spec.options;
    return { dir: this.#paths.work, preprocessing, maxMegapixels, signal };
  }

  #loaded(): { network: Network; pictures: RunPictures } {
    if (!this.#network || !this.#pictures) {
      throw new TypeError("the run's network is not loaded yet");
    }
    return { network: this.#network, pictures: this.#pictures };
  }
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
