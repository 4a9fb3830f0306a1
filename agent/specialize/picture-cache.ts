import { type FileHandle, open, rename, stat } from "node:fs/promises";
import { messageOf, systemCode } from "../errors.ts";
import { writeAt, writeJsonAtomic } from "../files.ts";
import type { Preprocessing } from "../model.ts";
import type { Calibration } from "./environment.ts";

/** A picture of the run that could be decoded, at its row of the cache. */
export interface CachedPicture {
  readonly path: string;
  readonly label: string;
  readonly burst: string;
  readonly role: "train" | "heldOut";
}

/** A picture as it is or mirrored left to right. */
export interface Sample {
  /** Position in the list of pictures. */
  readonly row: number;
  readonly flipped: boolean;
}

/**
 * The run's pictures, decoded once and kept on disk at the network's size as 8-bit values, since
 * every later stage reads them again: `rows × 3 × height × width`, channels first. The
 * preprocessing maps 256 levels to floats one to one, so nothing is lost against decoding anew.
 */
export class PictureCache {
  readonly rows: number;
  readonly #file: FileHandle;
  readonly #shape: Preprocessing;
  readonly #levels: readonly Float32Array[];

  private constructor(file: FileHandle, rows: number, shape: Preprocessing) {
    this.#file = file;
    this.rows = rows;
    this.#shape = shape;
    this.#levels = [0, 1, 2].map((channel) =>
      Float32Array.from({ length: 256 }, (_, level) =>
        Math.fround((level / 255 - shape.mean[channel]!) / shape.std[channel]!),
      ),
    );
  }

  /** Opens a cache that {@link fillPictureCache} finished. */
  static async open(path: string, preprocessing: Preprocessing): Promise<PictureCache> {
    const { size } = await stat(path);
    const rowBytes = 3 * preprocessing.height * preprocessing.width;
    return new PictureCache(await open(path, "r"), size / rowBytes, preprocessing);
  }

  /**
   * The network's input for some rows.
   *
   * @param flipped mirrors each picture left to right.
   * @returns `rows.length × 3 × height × width`, row-major.
   */
  async read(rows: readonly number[], flipped = false): Promise<Float32Array> {
    const { height, width } = this.#shape;
    const plane = height * width;
    const rowBytes = 3 * plane;
    const result = new Float32Array(rows.length * rowBytes);
    for (const [index, row] of rows.entries()) {
      const bytes = await this.readLevels(row);
      for (let channel = 0; channel < 3; channel++) {
        const levels = this.#levels[channel]!;
        for (let y = 0; y < height; y++) {
          const from = channel * plane + y * width;
          const to = index * rowBytes + from;
          for (let x = 0; x < width; x++) {
            result[to + (flipped ? width - 1 - x : x)] = levels[bytes[from + x]!]!;
          }
        }
      }
    }
    return result;
  }

  /**
   * A picture as it is kept, `3 × height × width`, channels first, RGB.
   *
   * @throws {RangeError} if there is no such row.
   */
  async readLevels(row: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(3 * this.#shape.height * this.#shape.width);
    const { bytesRead } = await this.#file.read(bytes, 0, bytes.length, row * bytes.length);
    if (bytesRead !== bytes.length) throw new RangeError(`row ${row} is beyond the picture cache`);
    return bytes;
  }

  /**
   * Pictures as a network's input, batch by batch.
   *
   * @param samples rows, each as it is or mirrored. @param batchSize pictures in a batch.
   */
  batches(samples: readonly Sample[], batchSize: number): Calibration {
    const { height, width } = this.#shape;
    return {
      batches: Math.ceil(samples.length / batchSize),
      read: async (batch) => {
        const part = samples.slice(batch * batchSize, (batch + 1) * batchSize);
        const data = new Float32Array(part.length * 3 * height * width);
        for (const [i, { row, flipped }] of part.entries()) {
          data.set(await this.read([row], flipped), i * 3 * height * width);
        }
        return { data, dims: [part.length, 3, height, width] };
      },
    };
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

/** Decodes one picture to the network's input, `3 × height × width`; rejects where it cannot. */
export type Decode = (path: string) => Promise<Float32Array>;

/**
 * Decodes every picture of a run into `path`, and the list of those that could be into
 * `path.json`. An unreadable picture is left out and named.
 *
 * @param onProgress called with the number done so far.
 */
export async function fillPictureCache(
  path: string,
  pictures: readonly CachedPicture[],
  preprocessing: Preprocessing,
  decode: Decode,
  onProgress: (done: number) => void,
  signal: AbortSignal,
): Promise<{ pictures: CachedPicture[]; problems: { subject: string; reason: string }[] }> {
  const kept: CachedPicture[] = [];
  const problems: { subject: string; reason: string }[] = [];
  const plane = preprocessing.height * preprocessing.width;
  const temporary = `${path}.new`;
  const file = await open(temporary, "w");
  try {
    for (let start = 0; start < pictures.length; start += DECODES_AT_ONCE) {
      signal.throwIfAborted();
      const group = pictures.slice(start, start + DECODES_AT_ONCE);
      const decoded = await Promise.allSettled(group.map((picture) => decode(picture.path)));
      for (const [index, outcome] of decoded.entries()) {
        const picture = group[index]!;
        if (outcome.status === "rejected") {
          rethrowIfOurs(outcome.reason);
          problems.push({ subject: picture.path, reason: messageOf(outcome.reason) });
          continue;
        }
        const levels = toLevels(outcome.value, preprocessing, plane);
        await writeAt(file, levels, kept.length * levels.length, temporary);
        kept.push(picture);
      }
      onProgress(Math.min(pictures.length, start + DECODES_AT_ONCE));
    }
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
  await writeJsonAtomic(`${path}.json`, { pictures: kept, problems });
  return { pictures: kept, problems };
}

/** Keeps libvips' threads busy while the last ones are written. */
const DECODES_AT_ONCE = 4;

/** A disk that is full or failing is the run's problem, not the picture's. */
function rethrowIfOurs(reason: unknown): void {
  const code = systemCode(reason);
  if (code === "ENOSPC" || code === "EIO" || code === "EMFILE") throw reason;
}

function toLevels(tensor: Float32Array, shape: Preprocessing, plane: number): Uint8Array {
  const levels = new Uint8Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    const std = shape.std[channel]!;
    const mean = shape.mean[channel]!;
    for (let i = channel * plane; i < (channel + 1) * plane; i++) {
      levels[i] = Math.round((tensor[i]! * std + mean) * 255);
    }
  }
  return levels;
}
