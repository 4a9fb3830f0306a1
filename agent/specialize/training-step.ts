import { toBlockedLayout } from "../onnx/blocked-layout.ts";
import { buildGradientGraph } from "../onnx/gradient/gradient-graph.ts";
import { type Objective, withObjective } from "../onnx/gradient/objective.ts";
import { findTrainable } from "../onnx/gradient/trainable.ts";
import type { Graph } from "../onnx/graph.ts";
import { inferShapes } from "../onnx/infer-shapes.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { toFloat32 } from "../onnx/tensor.ts";
import type { TensorValue } from "../runtime/session.ts";
import { findBlockSize } from "./block-size.ts";
import { type Engine, type EngineSession, runInParts } from "./engine.ts";

/** What {@link openTrainingStep} differentiates. */
export interface TrainingStepOptions {
  /** From the picture to logits `[N, classes]`, normalized. */
  readonly network: Graph;
  /**
   * The value at which training begins: what lies before it is frozen, and runs as a network of
   * constants, which ONNX Runtime optimizes. The network's input where everything is trained.
   */
  readonly border: string;
  /** Shape of one batch of pictures, `[N, 3, height, width]`. */
  readonly pictureDims: readonly number[];
  /** Values of the network that are held against the teacher's. */
  readonly features: readonly string[];
  readonly objective: Objective;
  readonly engine: Engine;
}

/** What the student is taught with one batch. */
export interface Lesson {
  /** What the frozen layers make of the pictures; see {@link TrainingStep.freeze}. */
  readonly border: TensorValue;
  /** Soft labels, `[N, classes]`, rows adding up to 1. */
  readonly targets: TensorValue;
  readonly teacherLogits: TensorValue;
  /** The teacher's values of `features`, in their order. */
  readonly teacherFeatures: readonly TensorValue[];
}

/** A parameter that is trained. */
export interface Parameter {
  readonly name: string;
  readonly dims: readonly number[];
  /** The network's own values; never changed. */
  readonly initial: Float32Array;
}

/** Loss and gradients of a network, over and over. Release it at the end. */
export interface TrainingStep {
  /** In the order of the network. */
  readonly parameters: readonly Parameter[];
  /** Shapes of a lesson's border, targets, teacher's logits and features. */
  readonly lessonDims: readonly (readonly number[])[];
  /**
   * Runs the frozen layers.
   *
   * @param pictures `[N, 3, height, width]`. @returns the value at the border, `[N, …]`.
   */
  freeze(pictures: TensorValue): Promise<TensorValue>;
  /**
   * @param weights one array a parameter, in their order.
   * @returns the loss and the gradient of each parameter, in their order; the caller's own.
   */
  run(
    weights: readonly Float32Array[],
    lesson: Lesson,
  ): Promise<{ loss: number; gradients: Float32Array[] }>;
  release(): Promise<void>;
}

/**
 * Opens the sessions that a training step runs: the frozen part of the network, and the rest with
 * its objective and gradients.
 *
 * @throws {RangeError} where an operator behind the border has no gradient, or its shapes cannot
 *   be told.
 */
export async function openTrainingStep(options: TrainingStepOptions): Promise<TrainingStep> {
  const { network, border, pictureDims, features, objective, engine } = options;
  const picture = network.inputs[0]!.name;
  const output = network.outputs[0]!.name;
  const shapes = inferShapes(network, new Map([[picture, pictureDims]]));
  const dimsOf = (name: string): readonly number[] => {
    const known = shapes.get(name);
    if (known === undefined) throw new RangeError(`the shape of "${name}" is not known`);
    return known.dims;
  };
  const trained = border === picture ? network : extractSubgraph(network, [border], [output]);
  const names = findTrainable(trained);
  const blockSize = await findBlockSize(engine);
  const borderDims = new Map([[border, dimsOf(border)]]);
  const laidOut =
    blockSize === null ? trained : toBlockedLayout(trained, borderDims, features, blockSize);
  const taught = withObjective(laidOut, dimsOf(output), features, objective);
  const inputDims = new Map<string, readonly number[]>([
    [border, dimsOf(border)],
    [taught.targets, dimsOf(output)],
    [taught.teacherLogits, dimsOf(output)],
  ]);
  features.forEach((name, i) => {
    inputDims.set(taught.teacherFeatures[i]!, dimsOf(name));
  });
  const read = new Set(taught.graph.inputs.map(({ name }) => name));
  const { graph, gradients } = buildGradientGraph(
    { ...taught.graph, outputs: [] },
    { inputDims, loss: taught.loss, of: names },
  );
  const prefix =
    border === picture ? null : await engine.open(extractSubgraph(network, [picture], [border]));
  let session: EngineSession;
  try {
    session = await engine.open(graph, { planMemory: false });
  } catch (error) {
    await prefix?.release();
    throw error;
  }
  const parameters = names.map((name): Parameter => {
    const tensor = trained.initializers.get(name)!;
    return { name, dims: tensor.dims, initial: toFloat32(tensor) };
  });
  return {
    parameters,
    lessonDims: [
      dimsOf(border),
      dimsOf(output),
      dimsOf(output),
      ...features.map((name) => dimsOf(name)),
    ],
    freeze: async (pictures) => {
      if (prefix === null) return pictures;
      const [value] = await runInParts(prefix, picture, pictures, [border]);
      return value!;
    },
    run: async (weights, lesson) => {
      const feeds: Record<string, TensorValue> = { [border]: lesson.border };
      const feed = (name: string, value: TensorValue): void => {
        if (read.has(name)) feeds[name] = value;
      };
      feed(taught.targets, lesson.targets);
      feed(taught.teacherLogits, lesson.teacherLogits);
      taught.teacherFeatures.forEach((name, i) => {
        feed(name, lesson.teacherFeatures[i]!);
      });
      parameters.forEach(({ name, dims }, i) => {
        feeds[name] = { data: weights[i]!, dims };
      });
      const results = await session.run(feeds);
      const given = new Set<Float32Array>();
      return {
        loss: Number(results[taught.loss]!.data[0]),
        gradients: names.map((name) => {
          const data = results[gradients.get(name)!]!.data as Float32Array;
          // Two summands have one gradient, but the caller adds to each.
          if (given.has(data)) return data.slice();
          given.add(data);
          return data;
        }),
      };
    },
    release: async () => {
      await session.release();
      await prefix?.release();
    },
  };
}
