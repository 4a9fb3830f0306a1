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
/** The same for the pictures that a search judges by, of what is left then. */
const TRIAL_SHARE = 0.25;
const MAX_TRIAL = 64;

/** What a picture is for; no picture serves two. */
export type PictureUse = "calibration" | "trial" | "heldBack";

/** Paths of pictures by use. */
export type SplitPictures = Readonly<Record<PictureUse, readonly string[]>>;

/**
 * Draws the pictures to calibrate with, those that a search tries networks on, and a fifth of
 * all, at most 100, to judge the result by.
 *
 * @param options.most calibration pictures wanted.
 * @param options.search whether there will be a search; without one there are no trial pictures.
 * @throws {AgentError} PICTURE_UNREADABLE where there are too few.
 */
export function splitUnlabeled(
  paths: readonly string[],
  options: { readonly most: number; readonly search: boolean; readonly seed: number },
): SplitPictures {
  const { most, search, seed } = options;
  const least = search ? 3 : 2;
  if (paths.length < least) {
    throw new AgentError(
      "PICTURE_UNREADABLE",
      `expected at least ${least} pictures to calibrate with and to judge by, got ${paths.length}`,
    );
  }
  const drawn = createRandom(seed).shuffle([...paths]);
  const share = (of: number, part: number, limit: number) =>
    Math.min(limit, Math.max(1, Math.floor(part * of)));
  const held = share(drawn.length, HELD_BACK_SHARE, MAX_HELD_BACK);
  const trial = search ? share(drawn.length - held, TRIAL_SHARE, MAX_TRIAL) : 0;
  return {
    heldBack: drawn.slice(0, held),
    trial: drawn.slice(held, held + trial),
    calibration: drawn.slice(held + trial, held + trial + most),
  };
}

/** Pictures without labels, decoded at one size. */
export interface UnlabeledPictures {
  /** In batches; behind the calibration pictures come mirror images where they are fewer than wanted. */
  readonly of: Readonly<Record<PictureUse, Calibration>>;
  readonly count: Readonly<Record<PictureUse, number>>;
  /** Pictures that could not be read, each with the reason. */
  readonly problems: readonly { readonly subject: string; readonly reason: string }[];
  close(): Promise<void>;
}

/** How pictures are decoded and handed out. */
export interface UnlabeledOptions {
  /** Folder of the file that holds them. */
  readonly dir: string;
  /** Calibration pictures, mirror images included. */
  readonly wanted: number;
  readonly batchSize: number;
  readonly maxMegapixels: number;
  /** Called with the number decoded so far. */
  readonly onProgress: (done: number, total: number) => void;
  readonly signal: AbortSignal;
}

/**
 * Decodes pictures into a file of `dir` and opens it.
 *
 * @throws {AgentError} PICTURE_UNREADABLE where none of a use is readable.
 */
export async function openUnlabeled(
  split: SplitPictures,
  preprocessing: Preprocessing,
  options: UnlabeledOptions,
): Promise<UnlabeledPictures> {
  const { height, width } = preprocessing;
  const { batchSize, maxMegapixels } = options;
  const uses = ["heldBack", "trial", "calibration"] as const;
  const all = uses.flatMap((use) =>
    split[use].map((path): CachedPicture => ({ path, label: use, burst: path, role: "train" })),
  );
  const file = join(options.dir, `pictures-${height}x${width}.u8`);
  const { pictures, problems } = await fillPictureCache(
    file,
    all,
    preprocessing,
    async (path) => (await readPicture(path, preprocessing, { maxMegapixels })).tensor,
    (done) => options.onProgress(done, all.length),
    options.signal,
  );
  const rows = (use: PictureUse, flipped: boolean) =>
    pictures.flatMap(({ label }, row) => (label === use ? [{ row, flipped }] : []));
  for (const use of uses) {
    if (split[use].length === 0 || rows(use, false).length > 0) continue;
    throw new AgentError(
      "PICTURE_UNREADABLE",
      `expected readable pictures, got none of ${split[use].length} to use as ${use}; the first: ${problems[0]?.reason}`,
    );
  }
  const calibration = [...rows("calibration", false), ...rows("calibration", true)];
  const samples = {
    calibration: calibration.slice(0, options.wanted),
    trial: rows("trial", false),
    heldBack: rows("heldBack", false),
  };
  const cache = await PictureCache.open(file, preprocessing);
  const { trial, heldBack } = samples;
  return {
    of: {
      calibration: cache.batches(samples.calibration, batchSize),
      trial: cache.batches(trial, batchSize),
      heldBack: cache.batches(heldBack, batchSize),
    },
    count: {
      calibration: samples.calibration.length,
      trial: trial.length,
      heldBack: heldBack.length,
    },
    problems,
    close: () => cache.close(),
  };
}
