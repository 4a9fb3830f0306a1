import type { Objective } from "../onnx/gradient/objective.ts";
import type { Graph } from "../onnx/graph.ts";
import { withExtraOutputs } from "../onnx/subgraph.ts";
import { floatTensor } from "../onnx/tensor.ts";
import type { TensorValue } from "../runtime/session.ts";
import { type BatchSampler, createSampler } from "../train/batches.ts";
import { keepCheckpoint, resumeTraining } from "../train/checkpoint.ts";
import { keptPlaces, pickKept, putKept } from "../train/kept-weights.ts";
import { trainingProgress } from "../train/learning-rate.ts";
import { sumOfSquares, type TrainedParameter } from "../train/optimizer.ts";
import {
  judgedWeights,
  startTraining,
  type Training,
  type TrainingOptions,
} from "../train/state.ts";
import { gatherGradients, judgeWeights, progressOf, takeStep } from "../train/steps.ts";
import { type Engine, type EngineSession, runInParts } from "./engine.ts";
import { indexOfLargest } from "./evaluate.ts";
import { LessonStore } from "./lesson-store.ts";
import type { TrainingPoint } from "./training-point.ts";
import {
  type Lesson,
  openTrainingStep,
  type Parameter,
  type TrainingStep,
} from "./training-step.ts";

/** Pictures as the two networks see them, each at its own size. */
export interface PairOfViews {
  /** `[N, 3, height, width]`. */
  readonly student: TensorValue;
  /** The same views, `[N, 3, height, width]`. */
  readonly teacher: TensorValue;
  /** Soft labels, `N × classes`, row-major. */
  readonly targets: Float32Array;
}

/** What a student is taught by and judged with. */
export interface LessonPictures {
  /** Class of each picture that is trained on. */
  readonly labels: readonly number[];
  readonly classes: number;
  /** Views of some pictures, changed at random; the same for the same step and place in it. */
  read(pictures: readonly number[], step: number, place: number): Promise<PairOfViews>;
  /** Pictures that are not trained on, as they are. */
  readonly validation: {
    readonly batches: number;
    read(batch: number): Promise<PairOfViews>;
  };
}

/** How {@link distill} works. */
export interface DistillOptions {
  /** From the picture to logits `[N, classes]`, normalized; its zeros in weights stay zero. */
  readonly student: Graph;
  /** From the picture to logits `[N, classes]`. */
  readonly teacher: Graph;
  /** Values of both networks, of one shape, that are to become alike. */
  readonly features: readonly { readonly student: string; readonly teacher: string }[];
  /** See {@link openTrainingStep}. */
  readonly border: string;
  readonly pictures: LessonPictures;
  readonly objective: Objective;
  readonly training: TrainingOptions;
  /** Pictures of one optimizer step, a multiple of `microBatch`. */
  readonly batchSize: number;
  /** Pictures of one run of the network: as many as memory allows. */
  readonly microBatch: number;
  /** Where lessons may be kept, and how many bytes of them; see {@link LessonStore}. */
  readonly lessonFile: { readonly path: string; readonly maxBytes: number };
  /** Steps between two judgments by the validation pictures. */
  readonly judgeEvery: number;
  readonly engine: Engine;
  /** Content of a checkpoint of this very training, to go on from. */
  readonly resume: Uint8Array | null;
  readonly onCheckpoint: (content: Uint8Array) => Promise<void>;
  /** Checkpoints are handed out at judgments, at most this often; default two minutes. */
  readonly checkpointMs?: number;
  readonly onPoint: (point: TrainingPoint) => void;
  /** Share done, in [0, 1]. */
  readonly onProgress: (share: number) => void;
  /** Fires where training is to end with what it has. */
  readonly end: AbortSignal;
  readonly signal: AbortSignal;
}

/** What a training came to. */
export interface Distilled {
  /** The student with the weights that were judged best; its own where training gave up. */
  readonly graph: Graph;
  readonly steps: number;
  readonly seconds: number;
  /** Cross entropy on the validation pictures at the best, and before where this life saw that. */
  readonly validationLoss: { readonly before: number | null; readonly after: number } | null;
  /** Why training ended before its limits; null where it did not. */
  readonly ended: string | null;
}

/**
 * Trains a compressed network to answer as the dense one does, on the few labeled pictures and
 * random views of them (Hinton et al. 2015; TACO, sec. 3: with so little data distillation is what
 * keeps the student from learning them by heart). The weights that judge best on pictures that are
 * not trained on win. Those of the beginning do not take part: the solvers have seen these pictures.
 *
 * @throws {RangeError} where the network cannot be differentiated behind the border.
 */
export async function distill(options: DistillOptions): Promise<Distilled> {
  const { student, teacher, features, engine, lessonFile } = options;
  const step = await openTrainingStep({
    network: student,
    border: options.border,
    pictureDims: await viewDims(options),
    features: features.map((pair) => pair.student),
    objective: options.objective,
    engine,
  });
  const parts = options.batchSize / options.microBatch;
  const store = new LessonStore(lessonFile.path, lessonFile.maxBytes, step.lessonDims, parts);
  let teaching: EngineSession | undefined;
  try {
    const wanted = features.map((pair) => pair.teacher);
    teaching = await engine.open(withExtraOutputs(teacher, wanted));
    return await new Distillation(options, step, teaching, store).run();
  } finally {
    await step.release();
    await teaching?.release();
    await store.dispose();
  }
}

/** Shape of one micro-batch of the student's pictures. */
async function viewDims({ pictures, microBatch }: DistillOptions): Promise<number[]> {
  const { student } = await pictures.read([0], 0, 0);
  return [microBatch, ...student.dims.slice(1)];
}

/** A checkpoint is five times the size of the network, and a memory card wears out. */
const CHECKPOINT_MS = 120_000;
const NO_GAIN = "nothing was gained any more";

class Distillation {
  readonly #options: DistillOptions;
  readonly #step: TrainingStep;
  readonly #teacher: EngineSession;
  readonly #store: LessonStore;
  readonly #sampler: BatchSampler;
  readonly #training: Training;
  /** Of each parameter, the places of the weights that are trained; null: all. */
  readonly #places: readonly (Uint32Array | null)[];
  /** What the network computes with: the trained weights among the pruned ones. */
  readonly #weights: readonly Float32Array[];
  readonly #startMs: number;
  #savedMs = performance.now();
  #losses: number[] = [];
  #before: number | null = null;
  #ended: string | null = null;

  constructor(
    options: DistillOptions,
    step: TrainingStep,
    teacher: EngineSession,
    store: LessonStore,
  ) {
    const { pictures, batchSize, training } = options;
    this.#options = options;
    this.#step = step;
    this.#teacher = teacher;
    this.#store = store;
    this.#sampler = createSampler(pictures.labels, batchSize, training.seed);
    // Biases and scales that are zero were not pruned.
    this.#places = step.parameters.map(({ dims, initial }) =>
      dims.length >= 2 ? keptPlaces(initial) : null,
    );
    this.#weights = step.parameters.map(({ initial }) => initial.slice());
    const parameters = step.parameters.map((parameter, i) =>
      trainedParameter(parameter, pickKept(parameter.initial, this.#places[i]!)),
    );
    this.#training =
      options.resume === null
        ? startTraining(parameters, options.training)
        : resumeTraining(options.resume, parameters, options.training);
    this.#startMs = performance.now() - this.#training.counters.elapsedMs;
  }

  async run(): Promise<Distilled> {
    const { pictures, judgeEvery, end, signal } = this.#options;
    if (pictures.validation.batches > 0 && this.#training.counters.step === 0) {
      this.#before = (await this.#validate()).loss;
    }
    let rate = 0;
    while (this.#ended === null && progressOf(this.#training, this.#elapsedMs) < 1) {
      signal.throwIfAborted();
      if (end.aborted) {
        this.#ended = "the run's energy is used up";
        break;
      }
      const { step } = this.#training.counters;
      await this.#gather(this.#store.lessonsOf(step));
      const outcome = takeStep(this.#training, this.#elapsedMs);
      if (outcome.kind === "diverged") this.#ended = `training diverged: ${outcome.reason}`;
      if (outcome.kind === "stepped") {
        this.#losses.push(outcome.loss);
        rate = outcome.rate;
      }
      if ((step + 1) % judgeEvery === 0) await this.#judge(rate);
      this.#options.onProgress(Math.min(1, progressOf(this.#training, this.#elapsedMs)));
    }
    const { counters, options } = this.#training;
    const isEarly = trainingProgress(counters.step, this.#elapsedMs, options.limits) < 1;
    if (isEarly && counters.coolingFrom !== null) this.#ended ??= NO_GAIN;
    if (this.#losses.length > 0) await this.#judge(rate);
    return this.#result();
  }

  get #elapsedMs(): number {
    return performance.now() - this.#startMs;
  }

  /** Gradients of the lessons of a step, micro-batch by micro-batch. */
  async #gather(step: number): Promise<void> {
    const { batchSize, microBatch } = this.#options;
    const parts = batchSize / microBatch;
    for (const [i, weights] of this.#weights.entries()) {
      putKept(this.#training.weights[i]!, this.#places[i]!, weights);
    }
    let next = this.#open(step, 0);
    for (let place = 0; place < parts; place++) {
      const opened = await next;
      // Read and decoded by other threads while this one waits for the network.
      if (place + 1 < parts) next = this.#open(step, place + 1);
      // Failing meanwhile it would end the process; it is thrown where it is waited for.
      next.catch(() => undefined);
      const lesson = "border" in opened ? opened : await this.#make(opened, step, place);
      const { loss, gradients } = await this.#step.run(this.#weights, lesson);
      const kept = gradients.map((gradient, i) => pickKept(gradient, this.#places[i]!));
      gatherGradients(this.#training, loss, kept, microBatch);
    }
  }

  /** A lesson that was kept, or the views to make one of. */
  async #open(step: number, place: number): Promise<Lesson | PairOfViews> {
    const { pictures, microBatch } = this.#options;
    const kept = await this.#store.read(step, place);
    if (kept) return kept;
    const batch = this.#sampler.batch(step).slice(place * microBatch, (place + 1) * microBatch);
    return pictures.read(batch, step, place);
  }

  async #make(views: PairOfViews, step: number, place: number): Promise<Lesson> {
    const border = await this.#step.freeze(views.student);
    const lesson = { border, ...(await this.#taught(views)) };
    await this.#store.write(step, place, lesson);
    return lesson;
  }

  /** What the teacher and the labels say. */
  async #taught({ student, teacher, targets }: PairOfViews): Promise<Omit<Lesson, "border">> {
    const { teacher: graph, features, pictures } = this.#options;
    const names = [graph.outputs[0]!.name, ...features.map((pair) => pair.teacher)];
    const answers = await runInParts(this.#teacher, graph.inputs[0]!.name, teacher, names);
    const [teacherLogits, ...teacherFeatures] = answers;
    return {
      targets: { data: targets, dims: [student.dims[0]!, pictures.classes] },
      teacherLogits: teacherLogits!,
      teacherFeatures,
    };
  }

  /**
   * Judges the weights as they are now: cross entropy with targets that are half the labels, half
   * the teacher's answers. Keeps a checkpoint afterwards.
   */
  async #judge(rate: number): Promise<void> {
    const { step, elapsedMs } = this.#training.counters;
    const { validation } = this.#options.pictures;
    const judged = validation.batches > 0 ? await this.#validate() : null;
    if (judged !== null) {
      const outcome = judgeWeights(this.#training, -judged.loss);
      if (outcome.kind === "diverged") this.#ended = `training diverged: ${outcome.reason}`;
      if (outcome.kind === "stop") this.#ended = NO_GAIN;
    }
    if (this.#losses.length > 0) {
      this.#options.onPoint({
        step,
        seconds: elapsedMs / 1000,
        learningRate: rate,
        loss: this.#losses.reduce((sum, loss) => sum + loss, 0) / this.#losses.length,
        validationLoss: judged?.loss ?? null,
        validationAccuracy: judged?.accuracy ?? null,
      });
      this.#losses = [];
    }
    const { onCheckpoint, checkpointMs = CHECKPOINT_MS } = this.#options;
    // At every judgment, so that what a setback returns to does not depend on the clock.
    const content = keepCheckpoint(this.#training);
    if (performance.now() - this.#savedMs < checkpointMs) return;
    await onCheckpoint(content);
    this.#savedMs = performance.now();
  }

  async #validate(): Promise<{ loss: number; accuracy: number }> {
    const { student, engine, pictures } = this.#options;
    const { batches } = pictures.validation;
    const session = await engine.open(this.#withWeights(judgedWeights(this.#training)));
    let loss = 0;
    let right = 0;
    let count = 0;
    try {
      for (let batch = 0; batch < batches; batch++) {
        const views = await pictures.validation.read(batch);
        const answers = await session.run({ [student.inputs[0]!.name]: views.student });
        const logits = answers[student.outputs[0]!.name]!.data as Float32Array;
        const lesson = await this.#taught(views);
        const wanted = lesson.teacherLogits.data as Float32Array;
        for (let at = 0; at < logits.length; at += pictures.classes) {
          const row = (values: Float32Array) => values.subarray(at, at + pictures.classes);
          const own = logProbabilities(row(logits));
          const teacher = logProbabilities(row(wanted)).map(Math.exp);
          const target = row(views.targets);
          loss -= own.reduce((sum, value, c) => sum + (value * (target[c]! + teacher[c]!)) / 2, 0);
          right += indexOfLargest(own) === indexOfLargest(target) ? 1 : 0;
          count++;
        }
      }
    } finally {
      await session.release();
    }
    return { loss: loss / count, accuracy: right / count };
  }

  #withWeights(weights: readonly Float32Array[]): Graph {
    const { student } = this.#options;
    const initializers = new Map(student.initializers);
    this.#step.parameters.forEach(({ name, dims, initial }, i) => {
      const whole = putKept(weights[i]!, this.#places[i]!, new Float32Array(initial.length));
      initializers.set(name, floatTensor(dims, whole));
    });
    return { ...student, initializers };
  }

  #result(): Distilled {
    const { best, counters } = this.#training;
    return {
      graph: this.#withWeights(best?.weights ?? judgedWeights(this.#training)),
      steps: counters.step,
      seconds: counters.elapsedMs / 1000,
      validationLoss: best && { before: this.#before, after: -best.score },
      ended: this.#ended,
    };
  }
}

/** Typical size of the weights of a layer, for which learning rates are stated. */
const USUAL_SIZE = 0.05;
/** Smallest factor of the learning rate of a parameter, where all of its values are near zero. */
const LEAST_FACTOR = 0.1;

/**
 * Matrices train at a rate in proportion to their weights' size: where batch norms are folded in,
 * that differs from layer to layer by orders of magnitude, and Adam's steps do not.
 */
function trainedParameter({ name, dims }: Parameter, initial: Float32Array): TrainedParameter {
  const isMatrix = dims.length >= 2;
  const size = Math.sqrt(sumOfSquares(initial) / Math.max(1, initial.length));
  const rateFactor = isMatrix ? Math.max(LEAST_FACTOR, size / USUAL_SIZE) : 1;
  return { name, initial, decays: isMatrix, rateFactor };
}

function logProbabilities(logits: Float32Array): Float64Array {
  const largest = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest;
  return Float64Array.from(logits, (x) => x - total);
}
