import { join } from "node:path";
import * as v from "valibot";
import { keptPreprocessing } from "../data/augment.ts";
import { readPicture } from "../data/picture.ts";
import { readJsonIfExists } from "../files.ts";
import { type Preprocessing, preprocessingAt } from "../model.ts";
import type { Calibration } from "./environment.ts";
import {
  type CachedPicture,
  fillPictureCache,
  PictureCache,
  type Sample,
} from "./picture-cache.ts";
import type { InputSize } from "./pipeline.ts";
import type { Role } from "./split.ts";

/** Where a run's pictures are kept, and by which rules they are read. */
export interface RunPicturesOptions {
  /** Folder of the caches. */
  readonly dir: string;
  /** At the network's own size. */
  readonly preprocessing: Preprocessing;
  readonly maxMegapixels: number;
  readonly signal: AbortSignal;
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

/** The cache at the network's own size. */
const BASE = "pictures.u8";

/**
 * Decodes the pictures of a run for {@link RunPictures.open}; those that cannot be read are left
 * out and named.
 */
export async function decodePictures(
  pictures: readonly CachedPicture[],
  options: RunPicturesOptions,
  onProgress: (done: number) => void,
): Promise<void> {
  const { dir, preprocessing, maxMegapixels, signal } = options;
  await fillPictureCache(
    join(dir, BASE),
    pictures,
    preprocessing,
    async (path) => (await readPicture(path, preprocessing, { maxMegapixels })).tensor,
    onProgress,
    signal,
  );
}

/** Training pictures as `augmentBatch` takes them. */
export interface PicturesForViews {
  /** By which they were decoded. */
  readonly kept: Preprocessing;
  /** By which a network of some size wants its input. */
  readonly network: (size: InputSize) => Preprocessing;
  /** One picture of the training side, `3 × kept.height × kept.width`, RGB bytes. */
  readonly read: (row: number) => Promise<Uint8Array>;
}

/** The pictures of a run, decoded at every size that is asked for. Close them at the end. */
export class RunPictures {
  readonly pictures: readonly CachedPicture[];
  readonly problems: readonly { readonly subject: string; readonly reason: string }[];
  readonly classes: readonly string[];
  readonly #options: RunPicturesOptions;
  readonly #caches = new Map<string, Promise<PictureCache>>();

  private constructor(listed: v.InferOutput<typeof listedPictures>, options: RunPicturesOptions) {
    this.pictures = listed.pictures;
    this.problems = listed.problems;
    this.classes = [...new Set(listed.pictures.map(({ label }) => label))].sort();
    this.#options = options;
  }

  /** Opens what {@link decodePictures} left in `options.dir`. */
  static async open(options: RunPicturesOptions): Promise<RunPictures> {
    const list = await readJsonIfExists(join(options.dir, `${BASE}.json`));
    return new RunPictures(v.parse(listedPictures, list), options);
  }

  /** Pictures of one side of the split, as they are. */
  samples(role: Role): Sample[] {
    return this.pictures.flatMap((picture, row) =>
      picture.role === role ? [{ row, flipped: false }] : [],
    );
  }

  /** Each training picture and its mirror image: an animal walks either way. */
  trainingSamples(): Sample[] {
    return this.samples("train").flatMap(({ row }) => [
      { row, flipped: false },
      { row, flipped: true },
    ]);
  }

  /**
   * At most `limit` training samples: class by class in turn, so that it takes as many of each, and
   * mirror images only after all pictures, which tell more.
   *
   * @param without bursts to leave out, for others to be judged by.
   */
  calibrationSamples(limit: number, without: ReadonlySet<string> = new Set()): Sample[] {
    const all = this.trainingSamples()
      .filter(({ row }) => !without.has(this.pictures[row]!.burst))
      .sort((a, b) => Number(a.flipped) - Number(b.flipped));
    const queues = this.classes.map((label) =>
      all.filter(({ row }) => this.pictures[row]!.label === label),
    );
    const longest = Math.max(...queues.map((queue) => queue.length));
    const inTurn = Array.from({ length: longest }, (_, turn) =>
      queues.flatMap((queue) => queue.slice(turn, turn + 1)),
    ).flat();
    return inTurn.slice(0, limit);
  }

  /**
   * Samples as a network's input, batch by batch. At another size than the network's own, the
   * pictures of one side of the split are decoded again the first time, since a picture that is
   * scaled twice is not what the station would see.
   *
   * @param samples at another size, of one side of the split only.
   * @param batchSize pictures in a batch.
   */
  source(samples: readonly Sample[], size: InputSize, batchSize: number): Calibration {
    let opened: Promise<Calibration> | undefined;
    return {
      batches: Math.ceil(samples.length / batchSize),
      read: async (batch) => {
        opened ??= this.#batches(samples, size, batchSize);
        return (await opened).read(batch);
      },
    };
  }

  /**
   * The training pictures a little larger than the network's input, to take views of; decoded the
   * first time.
   */
  async forViews(): Promise<PicturesForViews> {
    const { dir, preprocessing } = this.#options;
    const kept = keptPreprocessing(preprocessing);
    const rows = this.samples("train").map(({ row }) => row);
    const at = new Map(rows.map((row, i) => [row, i]));
    const side = rows.map((row) => this.pictures[row]!);
    const cache = await this.#open(join(dir, "pictures-views.u8"), kept, side);
    return {
      kept,
      network: (size) => (size === null ? preprocessing : preprocessingAt(preprocessing, size)),
      read: (row) => cache.readLevels(at.get(row)!),
    };
  }

  async close(): Promise<void> {
    for (const cache of this.#caches.values()) await (await cache).close();
    this.#caches.clear();
  }

  async #batches(
    samples: readonly Sample[],
    size: InputSize,
    batchSize: number,
  ): Promise<Calibration> {
    const { dir, preprocessing } = this.#options;
    const shape = size === null ? preprocessing : preprocessingAt(preprocessing, size);
    if (shape.height === preprocessing.height && shape.width === preprocessing.width) {
      return (await this.#open(join(dir, BASE), shape)).batches(samples, batchSize);
    }
    const { role } = this.pictures[samples[0]?.row ?? 0]!;
    const rows = this.samples(role).map(({ row }) => row);
    const at = new Map(rows.map((row, i) => [row, i]));
    const moved = samples.map(({ row, flipped }) => {
      const place = at.get(row);
      if (place === undefined) throw new RangeError(`expected samples of "${role}" alone`);
      return { row: place, flipped };
    });
    const path = join(dir, `pictures-${shape.height}x${shape.width}-${role}.u8`);
    const side = rows.map((row) => this.pictures[row]!);
    return (await this.#open(path, shape, side)).batches(moved, batchSize);
  }

  #open(
    path: string,
    shape: Preprocessing,
    missing: readonly CachedPicture[] | null = null,
  ): Promise<PictureCache> {
    const known = this.#caches.get(path);
    if (known) return known;
    const opened =
      missing === null ? PictureCache.open(path, shape) : this.#fill(path, shape, missing);
    this.#caches.set(path, opened);
    return opened;
  }

  async #fill(
    path: string,
    shape: Preprocessing,
    pictures: readonly CachedPicture[],
  ): Promise<PictureCache> {
    const { maxMegapixels, signal } = this.#options;
    const done = await readJsonIfExists(`${path}.json`);
    if (done === undefined) {
      const { problems } = await fillPictureCache(
        path,
        pictures,
        shape,
        async (file) => (await readPicture(file, shape, { maxMegapixels })).tensor,
        () => undefined,
        signal,
      );
      const [problem] = problems;
      if (problem) {
        throw new RangeError(
          `${problem.subject} was readable when the run began and no longer is: ${problem.reason}`,
        );
      }
    }
    return PictureCache.open(path, shape);
  }
}
