import { isFrozen, type TrainedParameter } from "./optimizer.ts";
import {
  type BestWeights,
  ownCopy,
  startTraining,
  type Training,
  type TrainingCounters,
  type TrainingOptions,
} from "./state.ts";

/**
 * The content of a checkpoint, all numbers little-endian, as every machine that this runs on has
 * them in memory:
 *
 *     "taco-trn" | version u32 | length of the header u32 | header, JSON, padded to 4 bytes |
 *     for each parameter that is not frozen: weights, first moment, second moment, average |
 *     the best weights of those parameters, where there are any
 */
const MAGIC = "taco-trn";
const VERSION = 2;
const PREAMBLE_BYTES = 16;

interface Header {
  readonly options: string;
  /** Name and values of each parameter that is not frozen. */
  readonly parameters: readonly (readonly [name: string, size: number])[];
  readonly counters: TrainingCounters;
  readonly best: { readonly score: number; readonly step: number } | null;
}

/**
 * Keeps the state of a training, for a later {@link resumeTraining} and as what a setback returns
 * to. To be called between two steps, at steps that follow from the step count alone, or a resumed
 * training will not take the same setbacks; best after a judgement, which shows that the state is
 * good.
 *
 * @returns the whole state; also held by the training, so not to be changed.
 * @throws {RangeError} where gradients are gathered that no step has used.
 */
export function keepCheckpoint(training: Training): Uint8Array {
  if (training.gathered !== null) {
    throw new RangeError("expected a checkpoint between two steps, got gathered gradients");
  }
  const { parameters, options, counters, best } = training;
  const header: Header = {
    options: JSON.stringify(options),
    parameters: trained(parameters).map(({ name, initial }) => [name, initial.length]),
    counters,
    best: best && { score: best.score, step: best.step },
  };
  const arrays = [...stateArrays(training), ...trainedArrays(parameters, best?.weights ?? [])];
  training.checkpoint = encode(header, arrays);
  return training.checkpoint;
}

/**
 * The training that {@link keepCheckpoint} saw. Steps taken from here on give the very same bits
 * as those of the first training.
 *
 * @param checkpoint held by the training from now on, so not to be changed.
 * @param parameters and `options` as they were given to {@link startTraining}.
 * @throws {RangeError} naming what does not fit, where it is of another training, or damaged.
 */
export function resumeTraining(
  checkpoint: Uint8Array,
  parameters: readonly TrainedParameter[],
  options: TrainingOptions,
): Training {
  const { header, start } = decodeHeader(checkpoint);
  const training = startTraining(parameters, options);
  checkHeader(header, parameters, options);
  const best: BestWeights | null = header.best && {
    ...header.best,
    weights: parameters.map(ownCopy),
  };
  const arrays = [...stateArrays(training), ...trainedArrays(parameters, best?.weights ?? [])];
  const expected = start + arrays.reduce((sum, { byteLength }) => sum + byteLength, 0);
  if (checkpoint.length !== expected) {
    throw new RangeError(
      `checkpoint: expected ${expected} bytes, got ${checkpoint.length}: it is cut short or damaged`,
    );
  }
  readArrays(checkpoint, start, arrays);
  training.counters = header.counters;
  training.best = best;
  training.checkpoint = checkpoint;
  return training;
}

/** Puts weights, moments and averages back to the last checkpoint, or to the beginning. */
export function returnToCheckpoint(training: Training): void {
  const { checkpoint, parameters } = training;
  let updates = 0;
  if (checkpoint !== null) {
    const { header, start } = decodeHeader(checkpoint);
    readArrays(checkpoint, start, stateArrays(training));
    updates = header.counters.updates;
  } else {
    for (const [i, { initial }] of parameters.entries()) {
      if (isFrozen(parameters[i]!)) continue;
      training.weights[i]!.set(initial);
      training.averages?.[i]?.set(initial);
      training.moments[i]!.first.fill(0);
      training.moments[i]!.second.fill(0);
    }
  }
  training.counters = { ...training.counters, updates };
}

function trained(parameters: readonly TrainedParameter[]): TrainedParameter[] {
  return parameters.filter((parameter) => !isFrozen(parameter));
}

function trainedArrays(
  parameters: readonly TrainedParameter[],
  arrays: readonly Float32Array[],
): Float32Array[] {
  return arrays.filter((_, i) => !isFrozen(parameters[i]!));
}

/** All arrays that steps change, in the order of the file. */
function stateArrays({ parameters, weights, moments, averages }: Training): Float32Array[] {
  return parameters.flatMap((parameter, i) => {
    if (isFrozen(parameter)) return [];
    const average = averages === null ? [] : [averages[i]!];
    return [weights[i]!, moments[i]!.first, moments[i]!.second, ...average];
  });
}

function encode(header: Header, arrays: readonly Float32Array[]): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const start = PREAMBLE_BYTES + 4 * Math.ceil(text.length / 4);
  const size = arrays.reduce((sum, { byteLength }) => sum + byteLength, start);
  const bytes = new Uint8Array(size);
  bytes.set(new TextEncoder().encode(MAGIC));
  const view = new DataView(bytes.buffer);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, text.length, true);
  bytes.set(text, PREAMBLE_BYTES);
  let at = start;
  for (const array of arrays) {
    bytes.set(bytesOf(array), at);
    at += array.byteLength;
  }
  return bytes;
}

function decodeHeader(bytes: Uint8Array): { header: Header; start: number } {
  const magic = new TextDecoder().decode(bytes.subarray(0, MAGIC.length));
  if (bytes.length < PREAMBLE_BYTES || magic !== MAGIC) {
    throw new RangeError(
      `checkpoint: expected the content of a training, got ${bytes.length} bytes`,
    );
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = view.getUint32(8, true);
  if (version !== VERSION) {
    throw new RangeError(
      `checkpoint: expected version ${VERSION}, got ${version}: start the training anew`,
    );
  }
  const length = view.getUint32(12, true);
  const text = bytes.subarray(PREAMBLE_BYTES, PREAMBLE_BYTES + length);
  if (text.length < length) {
    throw new RangeError(`checkpoint: expected a header of ${length} bytes, got ${text.length}`);
  }
  const header = JSON.parse(new TextDecoder().decode(text)) as Header;
  return { header, start: PREAMBLE_BYTES + 4 * Math.ceil(length / 4) };
}

function readArrays(bytes: Uint8Array, start: number, arrays: readonly Float32Array[]): void {
  let at = start;
  for (const array of arrays) {
    bytesOf(array).set(bytes.subarray(at, at + array.byteLength));
    at += array.byteLength;
  }
}

function bytesOf(array: Float32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function checkHeader(
  header: Header,
  parameters: readonly TrainedParameter[],
  options: TrainingOptions,
): void {
  const now = JSON.stringify(options);
  if (header.options !== now) {
    throw new RangeError(`checkpoint: expected the options ${header.options}, got ${now}`);
  }
  const given = trained(parameters);
  for (let i = 0; i < Math.max(given.length, header.parameters.length); i++) {
    const [name, size] = header.parameters[i] ?? ["none", 0];
    const found = { name: given[i]?.name ?? "none", size: given[i]?.initial.length ?? 0 };
    if (found.name !== name || found.size !== size) {
      throw new RangeError(
        `checkpoint: expected parameter ${i} to be "${name}" of ${size} values, ` +
          `got "${found.name}" of ${found.size}: resume with the network that it was made of`,
      );
    }
  }
}
