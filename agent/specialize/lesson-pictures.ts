import { randomAt } from "../train/batches.ts";
import type { LessonPictures, PairOfViews } from "./distill.ts";
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

/**
 * Training pictures as lessons: random views of those that are trained on, the same for both
 * networks, and those that are kept back as they are.
 */
export function openLessons(
  pictures: RunPictures,
  { keptBack, size, batchSize, seed }: LessonOptions,
): LessonPictures {
  const train = pictures.samples("train");
  const of = ({ row }: Sample): CachedPicture => pictures.pictures[row]!;
  const trained = train.filter((sample) => !keptBack.has(of(sample).burst));
  const judged = train.filter((sample) => keptBack.has(of(sample).burst));
  const classOf = (sample: Sample) => pictures.classes.indexOf(of(sample).label);
  const both = async (
    samples: readonly Sample[],
    batch: number,
    count: number,
  ): Promise<PairOfViews> => {
    const teacher = await pictures.source(samples, null, count).read(batch);
    const student =
      size === null ? teacher : await pictures.source(samples, size, count).read(batch);
    const part = samples.slice(batch * count, (batch + 1) * count);
    return { student, teacher, targets: hardTargets(part.map(classOf), pictures.classes.length) };
  };
  return {
    labels: trained.map(classOf),
    classes: pictures.classes.length,
    read: (batch, step, place) => {
      const random = randomAt(seed, step, place);
      const samples = batch.map((i) => ({ row: trained[i]!.row, flipped: random.uniform() < 0.5 }));
      return both(samples, 0, samples.length);
    },
    validation: {
      batches: Math.ceil(judged.length / batchSize),
      read: (batch) => both(judged, batch, batchSize),
    },
  };
}

/** All of the weight on one class, `labels × classes`. */
function hardTargets(labels: readonly number[], classes: number): Float32Array {
  const targets = new Float32Array(labels.length * classes);
  for (const [i, label] of labels.entries()) targets[i * classes + label] = 1;
  return targets;
}
