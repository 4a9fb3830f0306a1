import {
  augmentBatch,
  type DrawnView,
  drawMixing,
  drawView,
  FIELD_AUGMENTATION,
  mixRows,
} from "../data/augment.ts";
import type { TensorValue } from "../runtime/session.ts";
import { randomAt } from "../train/batches.ts";
import type { LessonPictures } from "./distill.ts";
import type { CachedPicture, Sample } from "./picture-cache.ts";
import type { InputSize } from "./pipeline.ts";
import type { RunPictures } from "./run-pictures.ts";

/** How {@link openLessons} divides and changes pictures. */
export interface LessonOptions {
  /** Training bursts that are not trained on. */
  readonly keptBack: ReadonlySet<string>;
  /** Size of the student's picture; the teacher sees the network's own. */
  readonly size: InputSize;
  /** Pictures that are judged at a time. */
  readonly batchSize: number;
  readonly seed: number;
}

/** Share of the steps whose pictures are mixed, and the α of their shares. */
const MIXED = { share: 0.3, alpha: 0.4 };
/** Weight of a label that the other classes share between them. */
const SMOOTHING = 0.05;

/**
 * Training pictures as lessons: random views of those that are trained on, the same for both
 * networks, some of them mixed, with smoothed labels; and those that are kept back as they are.
 */
export async function openLessons(
  pictures: RunPictures,
  { keptBack, size, batchSize, seed }: LessonOptions,
): Promise<LessonPictures> {
  const train = pictures.samples("train");
  const classes = pictures.classes.length;
  const of = ({ row }: Sample): CachedPicture => pictures.pictures[row]!;
  const classOf = (sample: Sample) => pictures.classes.indexOf(of(sample).label);
  const trained = train.filter((sample) => !keptBack.has(of(sample).burst));
  const judged = train.filter((sample) => keptBack.has(of(sample).burst));
  const { kept, network, read } = await pictures.forViews();
  const seen = async (
    levels: readonly Uint8Array[],
    views: readonly DrawnView[],
    at: InputSize,
  ): Promise<TensorValue> => {
    const shape = network(at);
    const data = await augmentBatch(levels, kept, shape, views);
    return { data, dims: [levels.length, 3, shape.height, shape.width] };
  };
  return {
    labels: trained.map(classOf),
    classes,
    read: async (batch, step, place) => {
      const { uniform } = randomAt(seed, step, place);
      const samples = batch.map((i) => trained[i]!);
      const levels = await Promise.all(samples.map(({ row }) => read(row)));
      const views = samples.map(() => drawView(FIELD_AUGMENTATION, uniform));
      const teacher = await seen(levels, views, null);
      const student = size === null ? teacher : await seen(levels, views, size);
      const targets = softTargets(samples.map(classOf), classes, SMOOTHING);
      if (uniform() < MIXED.share) {
        const mixing = drawMixing(samples.length, MIXED.alpha, uniform);
        const mixed = new Set([teacher.data, student.data, targets]);
        for (const values of mixed) mixRows(values as Float32Array, mixing);
      }
      return { teacher, student, targets };
    },
    validation: {
      batches: Math.ceil(judged.length / batchSize),
      read: async (batch) => {
        const teacher = await pictures.source(judged, null, batchSize).read(batch);
        const student =
          size === null ? teacher : await pictures.source(judged, size, batchSize).read(batch);
        const part = judged.slice(batch * batchSize, (batch + 1) * batchSize);
        return { teacher, student, targets: softTargets(part.map(classOf), classes, 0) };
      },
    },
  };
}

/** `labels × classes`, row-major: a share of `smoothing` is spread over all classes. */
function softTargets(labels: readonly number[], classes: number, smoothing: number): Float32Array {
  const targets = new Float32Array(labels.length * classes).fill(smoothing / classes);
  for (const [i, label] of labels.entries()) targets[i * classes + label]! += 1 - smoothing;
  return targets;
}
