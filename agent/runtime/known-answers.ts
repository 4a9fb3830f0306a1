import { messageOf } from "../errors.ts";
import type { KnownAnswers } from "../model.ts";
import { type ClassifierShape, checkClassifier, runClassifier } from "./classifier.ts";
import type { ModelSession } from "./session.ts";

/** Cells a side of the smooth part: blobs of about an eighth of the picture, as animals are. */
const GRID = 8;
/** Share of white noise in the picture; the rest is the smooth part. */
const NOISE = 0.25;
/** Normalized pictures lie in about ±2.5 (ImageNet mean and deviation). */
const RANGE = 2.5;

/**
 * An input that anyone can make again from its seed: smooth colored blobs under white noise.
 * Only additions, products and integer operations, so every machine makes the same bits.
 *
 * @param seed any integer; its low 32 bits are used.
 * @returns `3 × height × width`, channels first, in (−2.5, 2.5).
 */
export function seededPicture(
  seed: number,
  size: { readonly height: number; readonly width: number },
): Float32Array {
  const { height, width } = size;
  const random = mulberry32(seed);
  const picture = new Float32Array(3 * height * width);
  const grid = new Float64Array((GRID + 1) * (GRID + 1));
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < grid.length; i++) grid[i] = random() * 2 - 1;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const smooth = bilinear(grid, (y * GRID) / height, (x * GRID) / width);
        const value = (1 - NOISE) * smooth + NOISE * (random() * 2 - 1);
        picture[(channel * height + y) * width + x] = RANGE * value;
      }
    }
  }
  return picture;
}

/** Value of a `(GRID + 1)²` grid between its points, `y` and `x` in [0, GRID). */
function bilinear(grid: Float64Array, y: number, x: number): number {
  const row = Math.floor(y);
  const column = Math.floor(x);
  const dy = y - row;
  const dx = x - column;
  const at = row * (GRID + 1) + column;
  const upper = grid[at]! * (1 - dx) + grid[at + 1]! * dx;
  const lower = grid[at + GRID + 1]! * (1 - dx) + grid[at + GRID + 2]! * dx;
  return upper * (1 - dy) + lower * dy;
}

/** Uniform numbers in [0, 1) (Tommy Ettinger's mulberry32, public domain). */
function mulberry32(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * Asks a model for its answers to seeded pictures, to be kept beside it as `check.json`.
 *
 * @param tolerance see {@link KnownAnswers}; wide enough for the providers it may be served on.
 * @throws {AgentError} MODEL_INVALID if the graph does not fit the manifest; INFERENCE_FAILED if
 *   it answers with NaN or infinity.
 */
export async function makeKnownAnswers(
  session: ModelSession,
  shape: ClassifierShape,
  seeds: readonly number[],
  tolerance: number,
): Promise<KnownAnswers> {
  checkClassifier(session, shape);
  const logits: number[][] = [];
  for (const seed of seeds) {
    const row = await runClassifier(session, shape, seededPicture(seed, shape.preprocessing));
    logits.push([...row]);
  }
  return { formatVersion: 1, seeds: [...seeds], logits, tolerance };
}

/** Outcome of {@link checkKnownAnswers}; `worst` is the largest relative difference met. */
export type KnownAnswersOutcome = { ok: true; worst: number } | { ok: false; reason: string };

/**
 * Holds a session against its manifest and its known answers. A model that fails here must not
 * be served: its file, its shape or the machine's arithmetic is not what it was made with.
 */
export async function checkKnownAnswers(
  session: ModelSession,
  shape: ClassifierShape,
  known: KnownAnswers,
): Promise<KnownAnswersOutcome> {
  try {
    checkClassifier(session, shape);
    if (known.logits.length !== known.seeds.length) {
      const got = `${known.seeds.length} seeds and ${known.logits.length} rows`;
      return { ok: false, reason: `check.json: expected one row of logits a seed, got ${got}` };
    }
    let worst = 0;
    for (const [i, seed] of known.seeds.entries()) {
      const expected = known.logits[i]!;
      if (expected.length !== shape.classes.length) {
        const got = `${expected.length} logits for ${shape.classes.length} classes`;
        return { ok: false, reason: `check.json: row ${i} has ${got}` };
      }
      const row = await runClassifier(session, shape, seededPicture(seed, shape.preprocessing));
      worst = Math.max(worst, relativeDifference(row, expected));
    }
    // Written so that NaN fails as well.
    if (worst <= known.tolerance) return { ok: true, worst };
    const got = `${worst.toExponential(2)}, allowed is ${known.tolerance}`;
    return { ok: false, reason: `known answers differ by ${got}` };
  } catch (error) {
    return { ok: false, reason: messageOf(error) };
  }
}

/** Largest |difference| over the largest |expected| of the row. */
function relativeDifference(row: Float32Array, expected: readonly number[]): number {
  let difference = 0;
  let largest = Number.MIN_VALUE;
  for (let i = 0; i < row.length; i++) {
    difference = Math.max(difference, Math.abs(row[i]! - expected[i]!));
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return difference / largest;
}
