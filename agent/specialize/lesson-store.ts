import { ActivationStore } from "./activation-store.ts";
import type { Lesson } from "./training-step.ts";

/** Fewer views than this are not repeated: a training would see too few of each picture. */
const FEWEST_VIEWS = 768;

/**
 * Keeps lessons on disk, so that the frozen layers and the teacher see each of their pictures once.
 * As many steps of lessons as fit are drawn; then they come again, from the first on.
 */
export class LessonStore {
  readonly #store: ActivationStore;
  readonly #dims: readonly (readonly number[])[];
  readonly #parts: number;
  readonly #steps: number;
  readonly #known = new Set<number>();

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
    return Number.isFinite(this.#steps) ? step % this.#steps : step;
  }

  /** A lesson that was kept; undefined where it is to be made. */
  async read(step: number, place: number): Promise<Lesson | undefined> {
    const key = step * this.#parts + place;
    if (!this.#known.has(key)) return undefined;
    const data = await this.#store.read(key);
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

  /** Keeps a lesson, once. @throws {AgentError} DISK_FULL. */
  async write(step: number, place: number, lesson: Lesson): Promise<void> {
    if (!Number.isFinite(this.#steps)) return;
    const key = step * this.#parts + place;
    const values = valuesOf(lesson);
    const data = new Float32Array(values.reduce((sum, value) => sum + value.data.length, 0));
    let at = 0;
    for (const value of values) {
      data.set(value.data as Float32Array, at);
      at += value.data.length;
    }
    await this.#store.write(key, data);
    this.#known.add(key);
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
