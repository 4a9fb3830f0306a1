import { ActivationStore } from "./activation-store.ts";
import type { Lesson } from "./training-step.ts";

/** Fewer views than this are not repeated: a training would see too few of each picture. */
const FEWEST_VIEWS = 768;
/**
 * Times a lesson is given. Given without end, views are learned by heart: MobileNetV2 at a fifth of
 * its parameters took 3662 steps in five minutes with each lesson 14 times, and 2500 with new ones
 * alone, but the loss on pictures kept back was 0.082 and 0.058.
 */
const TIMES_GIVEN = 3;

/**
 * Keeps lessons on disk, so that the frozen layers and the teacher see each of their pictures once.
 * As many steps of lessons as fit are drawn; then they come again, from the first on, and at last
 * new ones take their places.
 */
export class LessonStore {
  readonly #store: ActivationStore;
  readonly #dims: readonly (readonly number[])[];
  readonly #parts: number;
  readonly #steps: number;
  /** Which lesson lies in each place of the file. */
  readonly #kept = new Map<number, number>();

  /**
   * @param path of the file. @param maxBytes of the file; with too little for a useful number of
   *   views nothing is kept, and every step sees new ones.
   * @param dims shapes of a lesson's values, in the order of `valuesOf`, pictures first.
   * @param parts lessons of one step.
   */
  constructor(path: string, maxBytes: number, dims: readonly (readonly number[])[], parts: number) {
    this.#store = new ActivationStore(path, 0);
    this.#dims = dims;
    this.#parts = parts;
    const floats = dims.reduce((sum, shape) => sum + sizeOf(shape), 0);
    const steps = Math.floor(maxBytes / (4 * floats * parts));
    const views = steps * parts * dims[0]![0]!;
    this.#steps = views < FEWEST_VIEWS ? Number.POSITIVE_INFINITY : steps;
  }

  /** The step whose lessons a step has: itself, or an earlier one. */
  lessonsOf(step: number): number {
    if (!Number.isFinite(this.#steps)) return step;
    const renewals = Math.floor(step / (TIMES_GIVEN * this.#steps));
    return renewals * this.#steps + (step % this.#steps);
  }

  /** A lesson that was kept; undefined where it is to be made. */
  async read(step: number, place: number): Promise<Lesson | undefined> {
    const lesson = this.#lessonAt(step, place);
    const slot = this.#slotOf(lesson);
    if (this.#kept.get(slot) !== lesson) return undefined;
    const data = await this.#store.read(slot);
    let at = 0;
    const [border, targets, teacherLogits, ...teacherFeatures] = this.#dims.map((dims) => {
      const from = at;
      at += sizeOf(dims);
      return { data: data.subarray(from, at), dims };
    });
    return {
      border: border!,
      targets: targets!,
      teacherLogits: teacherLogits!,
      teacherFeatures,
    };
  }

  /** Keeps a lesson, in the place of an earlier one. @throws {AgentError} DISK_FULL. */
  async write(step: number, place: number, lesson: Lesson): Promise<void> {
    if (!Number.isFinite(this.#steps)) return;
    const values = valuesOf(lesson);
    const data = new Float32Array(values.reduce((sum, value) => sum + value.data.length, 0));
    let at = 0;
    for (const value of values) {
      data.set(value.data as Float32Array, at);
      at += value.data.length;
    }
    const number = this.#lessonAt(step, place);
    const slot = this.#slotOf(number);
    // Not to be read while it is half one lesson, half the other.
    this.#kept.delete(slot);
    await this.#store.write(slot, data);
    this.#kept.set(slot, number);
  }

  #lessonAt(step: number, place: number): number {
    return step * this.#parts + place;
  }

  #slotOf(lesson: number): number {
    return lesson % (this.#steps * this.#parts);
  }

  /** Removes the file. */
  dispose(): Promise<void> {
    return this.#store.dispose();
  }
}

/** All values of a lesson, in the order in which they are kept. */
function valuesOf({ border, targets, teacherLogits, teacherFeatures }: Lesson) {
  return [border, targets, teacherLogits, ...teacherFeatures];
}

function sizeOf(dims: readonly number[]): number {
  return dims.reduce((product, size) => product * size, 1);
}
