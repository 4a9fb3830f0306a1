import { join } from "node:path";
import { readPicture } from "../data/picture.ts";
import { AgentError } from "../errors.ts";
import { createRandom } from "../math/random.ts";
import type { Preprocessing } from "../model.ts";
import type { Calibration } from "./environment.ts";
import { type CachedPicture, fillPictureCache, PictureCache } from "./picture-cache.ts";

/** Share of the pictures that is held back to judge by, and how many are enough for that. */
const HELD_BACK_SHARE = 0.2;
const MAX_HELD_BACK = 100;

/** Paths of pictures by what they are for; no picture serves both. */
export interface SplitPictures {
  readonly calibration: readonly string[];
  readonly heldBack: readonly string[];
}

/**
 * Draws the pictures to calibrate with and a fifth of all, at most 100, to judge by.
 *
 * @param most calibration pictures wanted.
 * @throws {AgentError} PICTURE_UNREADABLE where there are fewer than two.
 */
export function splitUnlabeled(
  paths: readonly string[],
  most: number,
  seed: number,
): SplitPictures {
  if (paths.length < 2) {
    throw new AgentError(
      "PICTURE_UNREADABLE",
      `expected at least two pictures, one to calibrate with and one to judge by, got ${paths.length}`,
    );
  }
  const drawn = createRandom(seed).shuffle([...paths]);
  const held = Math.min(MAX_HELD_BACK, Math.max(1, Math.floor(HELD_BACK_SHARE * paths.length)));
  return { heldBack: drawn.slice(0, held), calibration: drawn.slice(held, held + most) };
}

/** Pictures without labels, decoded at one size. */
export interface UnlabeledPictures {
  /** The calibration pictures; where they are fewer than wanted, mirror images come behind. */
  readonly calibration: Calibration;
  readonly calibrationCount: number;
  readonly heldBack: Calibration;
  readonly heldBackCount: number;
  /** Pictures that could not be read, each with the reason. */
  readonly problems: readonly { readonly subject: string; readonly reason: string }[];
  close(): Promise<void>;
}

/**
 * Decodes pictures into a file of `dir` and opens it.
 *
 * @param options.wanted calibration pictures, mirror images included.
 * @param options.onProgress called with the number decoded so far.
 * @throws {AgentError} PICTURE_UNREADABLE where none to calibrate with or to judge by is readable.
 */
export async function openUnlabeled(
  { calibration, heldBack }: SplitPictures,
  preprocessing: Preprocessing,
  options: {
    readonly dir: string;
    readonly wanted: number;
    readonly batchSize: number;
    readonly maxMegapixels: number;
    readonly onProgress: (done: number, total: number) => void;
    readonly signal: AbortSignal;
  },
): Promise<UnlabeledPictures> {
  const { height, width } = preprocessing;
  const { batchSize, maxMegapixels } = options;
  const picture = (role: CachedPicture["role"]) => (path: string) => {
    return { path, label: "", burst: path, role };
  };
  const all = [...heldBack.map(picture("heldOut")), ...calibration.map(picture("train"))];
  const file = join(options.dir, `pictures-${height}x${width}.u8`);
  const decoded = await fillPictureCache(
    file,
    all,
    preprocessing,
    async (path) => (await readPicture(path, preprocessing, { maxMegapixels })).tensor,
    (done) => options.onProgress(done, all.length),
    options.signal,
  );
  const rowsOf = (role: CachedPicture["role"]) =>
    decoded.pictures.flatMap((p, row) => (p.role === role ? [{ row, flipped: false }] : []));
  const train = rowsOf("train");
  const held = rowsOf("heldOut");
  if (train.length === 0 || held.length === 0) {
    const [first] = decoded.problems;
    throw new AgentError(
      "PICTURE_UNREADABLE",
      `expected at least one readable picture to calibrate with and one to judge by, got ${train.length} and ${held.length}` +
        (first ? `; the first that is not: ${first.reason}` : ""),
    );
  }
  const mirrored = train.map(({ row }) => ({ row, flipped: true }));
  const samples = [...train, ...mirrored].slice(0, Math.max(options.wanted, 1));
  const cache = await PictureCache.open(file, preprocessing);
  const read = (list: readonly { row: number; flipped: boolean }[]): Calibration => ({
    batches: Math.ceil(list.length / batchSize),
    read: async (batch) => {
      const part = list.slice(batch * batchSize, (batch + 1) * batchSize);
      const data = new Float32Array(part.length * 3 * height * width);
      for (const [i, { row, flipped }] of part.entries()) {
        data.set(await cache.read([row], flipped), i * 3 * height * width);
      }
      return { data, dims: [part.length, 3, height, width] };
    },
  });
  return {
    calibration: read(samples),
    calibrationCount: samples.length,
    heldBack: read(held),
    heldBackCount: held.length,
    problems: decoded.problems,
    close: () => cache.close(),
  };
}
