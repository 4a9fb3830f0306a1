import { join } from "node:path";
import type { HeadWeights } from "../math/standardized-space.ts";
import { formatPattern } from "../method.ts";
import { findBorders } from "../onnx/borders.ts";
import type { Objective } from "../onnx/gradient/objective.ts";
import type { Graph, Node } from "../onnx/graph.ts";
import { withLinearHead } from "../onnx/head.ts";
import { inferShapes } from "../onnx/infer-shapes.ts";
import { countParameters } from "../onnx/initializers.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { elementCount, toFloat32 } from "../onnx/tensor.ts";
import type { TrainingOptions } from "../train/state.ts";
import type { CompressionPlan } from "./compression-plan.ts";
import { type Distilled, type DistillOptions, distill, type LessonPictures } from "./distill.ts";
import type { PassResult } from "./environment.ts";
import {
  applyPlan,
  inFloat,
  type PlanOptions,
  patternOf,
  patternsOf,
  pruneNetwork,
  roundNetwork,
} from "./pipeline.ts";
import type { TrainingPoint } from "./training-point.ts";

/** What {@link fineTune} works with. */
export interface FineTuneOptions extends PlanOptions {
  /** Normalized dense network from the picture to its features. */
  readonly dense: Graph;
  /** Head of the dense specialist. */
  readonly denseHead: HeadWeights;
  readonly plan: CompressionPlan;
  /** What {@link applyPlan} made of the plan, where that is at hand and in float. */
  readonly built: Graph | null;
  readonly schedule: "one-shot" | "gradual";
  readonly maxSeconds: number;
  /** Bytes of activations and gradients. */
  readonly memoryBytes: number;
  /** Bytes of lessons on disk; 0: none are kept. */
  readonly lessonBytes: number;
  readonly seed: number;
  /** Shape of the student's picture, `[3, height, width]`. */
  readonly pictureDims: readonly number[];
  readonly pictures: LessonPictures;
  /** Whether the networks take several pictures at a time. */
  readonly batched: boolean;
  /** Fits a head to a network's features of the training pictures; the first round begins with it. */
  readonly fitHead: (backbone: Graph) => Promise<HeadWeights>;
  /** State of this very fine-tuning, to go on from. */
  readonly resume: FineTuneState | null;
  readonly onState: (state: FineTuneState) => Promise<void>;
  readonly onPoint: (point: TrainingPoint) => void;
  /** Share done, in [0, 1]. */
  readonly onProgress: (share: number) => void;
  readonly end: AbortSignal;
}

/** How far a fine-tuning has come. */
export interface FineTuneState {
  /** The rounds that are over; the next one is under way. */
  readonly done: readonly RoundReport[];
  /** What the round before made, from the picture to logits; null in the first. */
  readonly trained: Graph | null;
  /** What the round begins with, in the same form; null while it is not made yet. */
  readonly student: Graph | null;
  /** Content of the last checkpoint of the round's training; null: none yet. */
  readonly checkpoint: Uint8Array | null;
}

/** What a fine-tuning made. */
export interface FineTuned {
  /** From the picture to its features, rounded as the plan states. */
  readonly pass: PassResult;
  /**
   * What was trained along with the network; null where no step was taken. One fitted anew would
   * learn from features of pictures that the network has learned by heart.
   */
  readonly head: HeadWeights | null;
  readonly rounds: readonly RoundReport[];
}

/** How the training of one round went. */
type RoundReport = Pick<Distilled, "steps" | "seconds" | "validationLoss" | "ended">;

/** Share of the parameters that lie before the border at which training begins, at most. */
const FROZEN_SHARE = 0.03;
/** Memory that a picture adds to a training step, over all values of its forward pass: measured. */
const KEPT = 1.25;
/**
 * Pictures of one step. What limits training on the device is the number of pictures, and the
 * teacher's answers are little noise: of batches of 16, 8 and 4 in the same five minutes the
 * smallest was the best (vision transformer at a fifth of its parameters: 93.8, 94.3, 96.4 %; of 2
 * 95.1 %). A convolutional network was within its error: 97.9 % with 16, 97.5 % with 4.
 */
const BATCH = 4;
/** Times each training picture is seen, at most. */
const EPOCHS = 60;
/** Steps between two judgments: a judgment takes as long as some ten steps. */
const JUDGE_EVERY = 100;
/** Halvings by which the rounds may fall short: each costs a pass of pruning, and training time. */
const MORE_THAN_HALF = 0.4;

/** How networks are trained; rates are for weights of usual size, see `distill`. */
const TRAINING: Omit<TrainingOptions, "seed" | "limits"> = {
  optimizer: { kind: "adamw", beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.01 },
  schedule: { peak: 1e-4, warmUp: 0.05, floor: 0.02 },
  clipNorm: 5,
  averageDecay: 0.98,
  guard: { tolerance: 10, maxSetbacks: 4 },
  earlyStopping: { patience: 8, coolDown: 0.5, leastGain: 1e-4 },
};
const OBJECTIVE: Omit<Objective, "logitOffsets" | "features"> = {
  distillation: 1,
  temperature: 2,
  labels: 0.3,
};
/** Weight of each value that is held against the teacher's. */
const FEATURE_WEIGHT = 0.6;
/** Share of the parameters between two such values, at least. */
const FEATURE_SPACING = 1 / 8;

/**
 * Trains what a plan makes of a network, by distillation from the dense specialist. `gradual`
 * prunes half of what remains, trains, and goes on (TACO, Algorithm 1); `one-shot` trains once.
 * Integers and few bits come last, from the trained network.
 *
 * @throws {RangeError} where the network cannot be differentiated.
 */
export async function fineTune(options: FineTuneOptions): Promise<FineTuned> {
  const { plan, onState } = options;
  const environment = await options.environmentAt(plan.inputSize);
  const plans = roundsOf(inFloat(plan), options.schedule);
  let state = options.resume ?? { done: [], trained: null, student: null, checkpoint: null };
  while (state.done.length < plans.length) {
    const { done, trained, checkpoint } = state;
    let { student } = state;
    if (student === null) {
      student =
        trained === null
          ? await firstStudent(plans[0]!, plans.length, options)
          : await pruneFurther(trained, plans[done.length]!, options);
      await onState({ done, trained, student, checkpoint: null });
    }
    const begun = { done, trained, student };
    const before = (of: (round: RoundReport) => number) =>
      done.reduce((sum, round) => sum + of(round), 0);
    const [stepsBefore, secondsBefore] = [before(({ steps }) => steps), before((r) => r.seconds)];
    const { graph, ...report } = await distill({
      ...lessonsOf(student, options),
      lessonFile: {
        path: join(environment.workDir, "lessons.f32"),
        maxBytes: options.lessonBytes,
      },
      onPoint: (point) =>
        options.onPoint({
          ...point,
          step: stepsBefore + point.step,
          seconds: secondsBefore + point.seconds,
        }),
      training: trainingOf(options, plans.length),
      resume: checkpoint,
      onCheckpoint: (content) => onState({ ...begun, checkpoint: content }),
      onProgress: (share) => options.onProgress((done.length + share) / plans.length),
      engine: environment.engine,
      signal: environment.signal,
    });
    state = { done: [...done, report], trained: graph, student: null, checkpoint: null };
    await onState(state);
  }
  const trained = state.trained!;
  const pass = await roundNetwork(backboneOf(trained), plan, environment);
  const steps = state.done.reduce((sum, round) => sum + round.steps, 0);
  return { pass, head: steps > 0 ? weightsOf(trained) : null, rounds: state.done };
}

/** The plan's zeros in rounds, each of which leaves half of what the one before did. */
function roundsOf(plan: CompressionPlan, schedule: FineTuneOptions["schedule"]): CompressionPlan[] {
  const shares = Object.values(plan.sparsity).map(shareOfZeros);
  const most = Math.max(0, ...shares);
  if (schedule === "one-shot") return [plan];
  const rounds = Math.max(1, Math.ceil(-Math.log2(1 - most) - MORE_THAN_HALF));
  return Array.from({ length: rounds }, (_, i) => {
    if (i === rounds - 1) return plan;
    const sparsity = Object.entries(plan.sparsity).map(([name, text]) => {
      const zeros = 1 - (1 - shareOfZeros(text)) ** ((i + 1) / rounds);
      const pattern = { kind: "unstructured", sparsity: zeros } as const;
      // A pattern that is not free takes shape in the last round, from zeros that are.
      return [name, formatPattern(pattern)] as const;
    });
    return { ...plan, sparsity: Object.fromEntries(sparsity) };
  });
}

function shareOfZeros(text: string): number {
  const pattern = patternOf(text);
  return pattern.kind === "n:m" ? pattern.n / pattern.m : pattern.sparsity;
}

/** What the first round begins with. */
async function firstStudent(
  plan: CompressionPlan,
  rounds: number,
  options: FineTuneOptions,
): Promise<Graph> {
  const backbone =
    rounds === 1 && options.built !== null
      ? options.built
      : (await applyPlan(options.dense, plan, options)).graph;
  return withLinearHead(backbone, await options.fitHead(backbone));
}

/** More zeros in a trained network, of which the layers' outputs are to stay what they are. */
async function pruneFurther(
  trained: Graph,
  plan: CompressionPlan,
  options: FineTuneOptions,
): Promise<Graph> {
  const environment = await options.environmentAt(plan.inputSize);
  const { graph } = await pruneNetwork(backboneOf(trained), patternsOf(plan), environment);
  return withLinearHead(graph, weightsOf(trained));
}

/** The network below its linear head. */
function backboneOf(model: Graph): Graph {
  return extractSubgraph(model, [model.inputs[0]!.name], [headOf(model).inputs[0]!]);
}

function headOf(model: Graph): Node {
  const logits = model.outputs[0]!.name;
  const head = model.nodes.find(({ outputs }) => outputs.includes(logits));
  if (head?.opType === "Gemm") return head;
  throw new TypeError(`expected a Gemm as head behind "${logits}", got ${head?.opType ?? "none"}`);
}

/** Weights of the linear head. */
function weightsOf(model: Graph): HeadWeights {
  const [weights, bias] = headOf(model)
    .inputs.slice(1)
    .map((name) => toFloat32(model.initializers.get(name)!));
  return { weights: weights!, bias: bias! };
}

/** What a round's training works on. */
function lessonsOf(
  student: Graph,
  { dense, denseHead, pictureDims, memoryBytes, batched, ...rest }: FineTuneOptions,
): Omit<
  DistillOptions,
  | "lessonFile"
  | "training"
  | "resume"
  | "onCheckpoint"
  | "onPoint"
  | "onProgress"
  | "engine"
  | "signal"
> {
  const { pictures, end } = rest;
  const teacher = withLinearHead(dense, denseHead);
  const border = borderToTrainFrom(student);
  const features = comparedValues(student, teacher, border, pictureDims);
  const perPicture = bytesOfTraining(student, border, pictureDims);
  let microBatch = batched ? BATCH : 1;
  while (microBatch > 1 && microBatch * perPicture > memoryBytes) microBatch /= 2;
  return {
    student,
    teacher,
    features,
    border,
    pictures,
    objective: {
      ...OBJECTIVE,
      features: FEATURE_WEIGHT * features.length,
      logitOffsets: Array.from({ length: pictures.classes }, () => 0),
    },
    batchSize: BATCH,
    microBatch,
    judgeEvery: JUDGE_EVERY,
    end,
  };
}

/**
 * The last value before which few of the parameters lie. The first layers see the largest maps:
 * they take more than half of the time and memory of a step, and hold next to nothing to train.
 */
function borderToTrainFrom(network: Graph): string {
  const picture = network.inputs[0]!.name;
  const all = countParameters(network).nonzero;
  const before = (border: string): number =>
    countParameters(extractSubgraph(network, [picture], [border])).nonzero;
  let chosen = picture;
  for (const border of findBorders(network)) {
    if (before(border) > FROZEN_SHARE * all) break;
    chosen = border;
  }
  return chosen;
}

/**
 * What the student is held against, besides the answers: the features below the head, and values
 * that everything passes through on the way there, at even distances in parameters. What stands at
 * one place of both networks has one name; where channels were cut or pictures are smaller, it
 * cannot be compared one to one and is left out.
 */
export function comparedValues(
  student: Graph,
  teacher: Graph,
  border: string,
  pictureDims: readonly number[],
): { student: string; teacher: string }[] {
  const picture = student.inputs[0]!.name;
  const known = inferShapes(student, new Map([[picture, [1, ...pictureDims]]]));
  const wanted = shapesOf(teacher);
  const alike = (own: string, other: string): boolean =>
    known.get(own) !== undefined && known.get(own)!.dims.join() === wanted.get(other)?.dims.join();
  const before = (name: string): number =>
    countParameters(extractSubgraph(student, [picture], [name])).nonzero;
  const pairs: { student: string; teacher: string }[] = [];
  const [features, wantedFeatures] = [headOf(student).inputs[0]!, headOf(teacher).inputs[0]!];
  const borders = findBorders(student);
  const all = before(features);
  let last = border === picture ? 0 : before(border);
  for (const name of borders.slice(borders.indexOf(border) + 1)) {
    if (name === features || !alike(name, name)) continue;
    const own = before(name);
    if (Math.min(own - last, all - own) < FEATURE_SPACING * all) continue;
    pairs.push({ student: name, teacher: name });
    last = own;
  }
  if (alike(features, wantedFeatures)) pairs.push({ student: features, teacher: wantedFeatures });
  return pairs;
}

/** Shapes of a network's values for one picture of the size it states. */
function shapesOf(network: Graph) {
  const { name, dims } = network.inputs[0]!;
  return inferShapes(network, new Map([[name, [1, ...(dims ?? []).slice(1).map(Number)]]]));
}

/** About what a training step keeps of one picture. */
function bytesOfTraining(network: Graph, border: string, pictureDims: readonly number[]): number {
  const picture = network.inputs[0]!.name;
  const shapes = inferShapes(network, new Map([[picture, [1, ...pictureDims]]]));
  const trained =
    border === picture ? network : extractSubgraph(network, [border], [network.outputs[0]!.name]);
  const made = trained.nodes.flatMap(({ outputs }) => outputs);
  const values = made.reduce((sum, name) => {
    const dims = shapes.get(name)?.dims;
    return sum + (dims ? elementCount(dims) : 0);
  }, 0);
  return 4 * KEPT * values;
}

function trainingOf(
  { seed, maxSeconds, pictures }: FineTuneOptions,
  rounds: number,
): TrainingOptions {
  const steps = Math.max(1, Math.ceil((EPOCHS * pictures.labels.length) / BATCH));
  const limits = { steps, budgetMs: (1000 * maxSeconds) / rounds };
  return { ...TRAINING, seed, limits };
}
