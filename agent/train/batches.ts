import { createRandom, type Random } from "../math/random.ts";

/**
 * The random numbers of one place of a training, say a step and a picture in it. Since they follow
 * from the place alone, a training that is taken up again needs no replay of what came before.
 *
 * @param seed any safe integer. @param place integers that name the place; order counts.
 */
export function randomAt(seed: number, ...place: readonly number[]): Random {
  checkSeed(seed);
  let low = mix(seed | 0);
  let high = mix(Math.floor(seed / 2 ** 32) ^ 0x9e3779b9);
  for (const at of place) {
    low = mix(low ^ mix(at | 0));
    high = mix(high ^ mix((at | 0) + 0x7f4a7c15) ^ low);
  }
  return createRandom((high >>> 11) * 2 ** 32 + (low >>> 0));
}

function checkSeed(seed: number): void {
  if (!Number.isSafeInteger(seed)) throw new RangeError(`seed: expected an integer, got ${seed}`);
}

/** The finalizer of MurmurHash3: every bit of the input moves about half of the output's. */
function mix(value: number): number {
  let z = value | 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return z ^ (z >>> 16);
}

/** Draws batches of samples, the same number of every class. */
export interface BatchSampler {
  /** Samples of a step, each a position in the labels; the same for the same seed and step. */
  readonly batch: (step: number) => number[];
}

/** Streams of {@link randomAt} that a sampler uses. */
const ORDER_OF_CLASSES = 1;
const ORDER_OF_SAMPLES = 2;

/**
 * A class-balanced sampler. Slots are filled in rounds; a round takes one sample of every class in
 * random order, and the samples of a class are taken through in random order before any is taken
 * again:
 *
 *     slot   0 1 2 | 3 4 5 | 6 7 8 …      batches of 4: [0 1 2 3] [4 5 6 7] …
 *     class  c a b | a c b | b a c …      the round's number counts the visits to each class
 *
 * With one label for all it goes through all samples epoch by epoch.
 *
 * @param labels class of each sample. @param batchSize a positive integer. @param seed any safe
 *   integer.
 * @throws {RangeError} without samples, or where a batch size or seed is no such integer.
 */
export function createSampler(
  labels: readonly number[],
  batchSize: number,
  seed: number,
): BatchSampler {
  if (labels.length === 0) throw new RangeError("expected at least one label, got none");
  if (!(Number.isInteger(batchSize) && batchSize > 0)) {
    throw new RangeError(`batchSize: expected a positive integer, got ${batchSize}`);
  }
  checkSeed(seed);
  const members = new Map<number, number[]>();
  for (const [sample, label] of labels.entries()) {
    const known = members.get(label);
    if (known === undefined) members.set(label, [sample]);
    else known.push(sample);
  }
  const classes = [...members.keys()].sort((a, b) => a - b);
  const orderOfRound = remembering((round) =>
    randomAt(seed, ORDER_OF_CLASSES, round).shuffle([...classes]),
  );
  const epochs = new Map(
    classes.map((label) => [
      label,
      remembering((epoch) =>
        randomAt(seed, ORDER_OF_SAMPLES, label, epoch).shuffle([...members.get(label)!]),
      ),
    ]),
  );
  const sampleAt = (slot: number): number => {
    const round = Math.floor(slot / classes.length);
    const label = orderOfRound(round)[slot % classes.length]!;
    const count = members.get(label)!.length;
    return epochs.get(label)!(Math.floor(round / count))[round % count]!;
  };
  return {
    batch: (step) => Array.from({ length: batchSize }, (_, j) => sampleAt(step * batchSize + j)),
  };
}

/** Keeps the last answer: slots ask for the same round and epoch one after the other. */
function remembering(make: (at: number) => number[]): (at: number) => number[] {
  let known = { at: -1, order: [] as number[] };
  return (at) => {
    if (known.at !== at) known = { at, order: make(at) };
    return known.order;
  };
}

/**
 * What is added to the logits while training, so that classes with few samples are not driven out
 * of the answers: τ·log π (Menon et al. 2021, arXiv:2007.07314, eq. 10). π is the share of a class
 * in what is trained on: with a class-balanced sampler that is uniform and nothing has to be added,
 * unless rare classes are to be favored beyond it.
 *
 * @param counts samples of each class; a class with none counts as if it had one.
 * @param tau strength; 1 is the paper's, 0 none.
 * @returns one offset a class, the largest 0 (a constant in all offsets changes no softmax).
 */
export function logitOffsets(counts: readonly number[], tau: number): Float32Array {
  const most = Math.max(1, ...counts);
  return Float32Array.from(counts, (count) => tau * Math.log(Math.max(1, count) / most));
}
