import {
  ActivationHistogram,
  type ActivationRange,
  activationRanges,
  gateRange,
} from "../compress/activation-range.ts";
import type { Graph, Node } from "../onnx/graph.ts";
import type { ActivationEncoding } from "../onnx/qdq.ts";
import { isLinear } from "../onnx/qdq-nodes.ts";
import { type EncodingTrial, withRanges, withTrials } from "../onnx/qdq-ranges.ts";
import { activationsOf, consumersOf, indexGraph } from "../onnx/query.ts";
import { toFloat32 } from "../onnx/tensor.ts";
import type { TensorValue } from "../runtime/session.ts";
import { floats, measureShapes } from "./border.ts";
import type { CompressEnvironment } from "./environment.ts";

/** How activations are stored: with a zero point, or signed and symmetric about zero. */
export type EncodingType = ActivationEncoding["type"];

/** Elements of one value that are looked at in each picture, where it has so many. */
const SAMPLES = 4096;
/** Weights of trial layers in one session. */
const PACKED_BYTES = 192 * 2 ** 20;
/** Pictures on which the ways to store a value are compared. */
const TRIAL_PICTURES = 8;

/**
 * The best range for every value: histograms over the calibration pictures give min-max,
 * percentiles and the range of least squared error, and the one is taken that moves the output of
 * the layer that reads the value least. All runs are of one picture, so that memory does not
 * depend on the batches.
 *
 * @param names values of the graph; constants among them get the range that they fill.
 * @param gates by value that a HardSigmoid reads, where its range has to begin: see `gateOffsets`.
 * @throws {RangeError} if a value is not finite.
 */
export async function encodeActivations(
  graph: Graph,
  names: readonly string[],
  type: EncodingType,
  gates: ReadonlyMap<string, number>,
  options: CompressEnvironment,
): Promise<Map<string, ActivationEncoding>> {
  const changing = activationsOf(graph);
  const measured = names.filter((name) => changing.has(name));
  const histograms = await collectHistograms(graph, measured, options);
  for (const name of names) {
    const constant = graph.initializers.get(name);
    if (!constant) continue;
    const histogram = new ActivationHistogram();
    histogram.add(toFloat32(constant));
    histograms.set(name, histogram);
  }
  const candidates = new Map(
    [...histograms].map(([name, h]) => {
      const offset = gates.get(name);
      const ranges = offset === undefined ? chooseFrom(h, type) : [gateRange(h, offset)];
      return [name, ranges] as const;
    }),
  );
  const best = await bestOf(graph, candidates, type, options);
  return new Map(
    [...candidates].map(([name, list]) => [name, encodingOf(list[best.get(name) ?? 0]!, type)]),
  );
}

/** The range of least error first, then min-max and the best percentile. */
function chooseFrom(histogram: ActivationHistogram, type: EncodingType): Grid[] {
  const ranges = activationRanges(histogram, type === "uint8" ? "u8" : "s8");
  const kinds = new Set<string>();
  return ranges.filter(({ method }) => {
    const kind = method.split(" ")[0]!;
    const isNew = !kinds.has(kind);
    kinds.add(kind);
    return isNew;
  });
}

/** Integers and what they stand for. */
type Grid = Pick<ActivationRange, "scale" | "zeroPoint">;

function encodingOf({ scale, zeroPoint }: Grid, type: EncodingType): ActivationEncoding {
  return { type, scale, zeroPoint };
}

async function collectHistograms(
  graph: Graph,
  names: readonly string[],
  options: CompressEnvironment,
): Promise<Map<string, ActivationHistogram>> {
  const shapes = await measureShapes(graph, names, options.engine, options.calibration);
  const steps = names.map((name) => {
    const size = shapes.get(name)!.reduce((product, dim) => product * dim, 1);
    return unevenStep(size / SAMPLES);
  });
  const { graph: tapped, outputs } = withRanges(graph, names, steps);
  const histograms = new Map(names.map((name) => [name, new ActivationHistogram()]));
  await overPictures(tapped, Number.POSITIVE_INFINITY, options, (results) => {
    for (const [i, { minName, maxName, samplesName }] of outputs.entries()) {
      const extremes = [minName, maxName].map((name) => floats(results, name).data[0]!);
      if (!extremes.every(Number.isFinite)) {
        throw new RangeError(`"${names[i]}": expected finite values, got ${extremes.join(" to ")}`);
      }
      const histogram = histograms.get(names[i]!)!;
      histogram.add(Float32Array.from(extremes));
      histogram.add(floats(results, samplesName).data);
    }
  });
  return histograms;
}

/** At most `wanted`, and no multiple of 2, 3, 5 or 7, so that samples fall on all columns. */
export function unevenStep(wanted: number): number {
  let step = Math.max(1, Math.floor(wanted));
  while ([2, 3, 5, 7].some((factor) => step % factor === 0)) step--;
  return step;
}

/** Which of each value's candidates serves the layer that reads it best; others are left out. */
async function bestOf(
  graph: Graph,
  candidates: ReadonlyMap<string, readonly Grid[]>,
  type: EncodingType,
  options: CompressEnvironment,
): Promise<Map<string, number>> {
  const index = indexGraph(graph);
  const trials: EncodingTrial[] = [];
  for (const [value, list] of candidates) {
    const readers = graph.initializers.has(value) ? [] : consumersOf(graph, index, value);
    const reader = readers.find((node: Node) => isLinear(graph, node));
    if (!reader || list.length < 2) continue;
    trials.push({ value, reader, encodings: list.map((range) => encodingOf(range, type)) });
  }
  const best = new Map<string, number>();
  for (const some of trialsAtOnce(graph, trials)) {
    const { graph: tapped, outputs } = withTrials(graph, some);
    const errors = outputs.map((names) => new Float64Array(names.length));
    await overPictures(tapped, TRIAL_PICTURES, options, (results) => {
      for (const [i, names] of outputs.entries()) {
        names.forEach((name, k) => {
          errors[i]![k]! += floats(results, name).data[0]!;
        });
      }
    });
    for (const [i, { value }] of some.entries()) {
      best.set(value, errors[i]!.indexOf(Math.min(...errors[i]!)));
    }
  }
  return best;
}

/** Trials that share a session: the runtime packs a copy of the weights for every reader. */
function trialsAtOnce(graph: Graph, trials: readonly EncodingTrial[]): EncodingTrial[][] {
  const groups: EncodingTrial[][] = [];
  let room = 0;
  for (const trial of trials) {
    const weights = graph.initializers.get(trial.reader.inputs[1]!)!;
    const bytes = weights.data.byteLength * trial.encodings.length;
    if (bytes > room) {
      groups.push([]);
      room = PACKED_BYTES;
    }
    groups.at(-1)!.push(trial);
    room -= bytes;
  }
  return groups;
}

/** Runs a graph over single pictures, taken evenly from all batches where not all are wanted. */
async function overPictures(
  graph: Graph,
  wanted: number,
  options: CompressEnvironment,
  each: (results: Record<string, TensorValue>) => void,
): Promise<void> {
  const { calibration, signal } = options;
  const input = graph.inputs[0]!.name;
  const session = await options.engine.open(graph);
  try {
    const every = Math.max(1, Math.floor(calibration.batches / wanted));
    for (let batch = 0, seen = 0; batch < calibration.batches && seen < wanted; batch += every) {
      const { data, dims } = await calibration.read(batch);
      const size = data.length / dims[0]!;
      const most = Math.min(dims[0]!, Math.ceil((wanted * every) / calibration.batches));
      for (let i = 0; i < most && seen < wanted; i++, seen++) {
        signal.throwIfAborted();
        const one = data.subarray(i * size, (i + 1) * size);
        each(
          await session.run({ [input]: { data: one, dims: [1, ...dims.slice(1)] } as TensorValue }),
        );
      }
    }
  } finally {
    await session.release();
  }
}
