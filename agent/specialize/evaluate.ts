/** One held-out frame as a model answered it. */
export interface FrameOutcome {
  readonly burst: string;
  readonly truth: string;
  readonly predicted: string;
  /** Probability of the predicted class, in [0, 1]. */
  readonly confidence: number;
  /** Probability of every class of the model, in its order. */
  readonly probabilities: Float32Array;
}

/** What a model scored on held-out frames. Field meanings as in `modelMetricsSchema`. */
export interface Scores {
  readonly accuracy: number;
  readonly macroF1: number;
  readonly recall: Record<string, number>;
  readonly calibrationError: number;
  readonly burstAccuracy: number;
}

const CALIBRATION_BINS = 15;

/**
 * Scores a model on held-out frames. The classes averaged are those that occur among the truths:
 * a class that was never held out says nothing of the model (as WILDS computes macro F1).
 *
 * @param classes class names in the order of each frame's `probabilities`.
 * @throws {RangeError} without frames.
 */
export function scoreFrames(frames: readonly FrameOutcome[], classes: readonly string[]): Scores {
  if (frames.length === 0) throw new RangeError("no held-out frames: nothing can be scored");
  const truths = [...new Set(frames.map((f) => f.truth))].sort();
  const recall: Record<string, number> = {};
  let f1Sum = 0;
  for (const label of truths) {
    const actual = frames.filter((f) => f.truth === label);
    const claimed = frames.filter((f) => f.predicted === label).length;
    const hits = actual.filter((f) => f.predicted === label).length;
    recall[label] = hits / actual.length;
    f1Sum += (2 * hits) / (actual.length + claimed);
  }
  return {
    accuracy: frames.filter((f) => f.predicted === f.truth).length / frames.length,
    macroF1: f1Sum / truths.length,
    recall,
    calibrationError: calibrationError(frames),
    burstAccuracy: burstAccuracy(frames, classes),
  };
}

/** Expected calibration error: Σ_bins share · |accuracy − mean confidence| (Guo et al. 2017, eq. 3). */
function calibrationError(frames: readonly FrameOutcome[]): number {
  const bins = Array.from({ length: CALIBRATION_BINS }, () => ({ count: 0, hits: 0, sum: 0 }));
  for (const frame of frames) {
    if (!Number.isFinite(frame.confidence)) continue;
    const index = Math.min(CALIBRATION_BINS - 1, Math.floor(frame.confidence * CALIBRATION_BINS));
    const bin = bins[Math.max(0, index)]!;
    bin.count += 1;
    bin.hits += frame.predicted === frame.truth ? 1 : 0;
    bin.sum += frame.confidence;
  }
  return bins.reduce((error, bin) => error + Math.abs(bin.hits - bin.sum), 0) / frames.length;
}

function burstAccuracy(frames: readonly FrameOutcome[], classes: readonly string[]): number {
  const bursts = new Map<string, { truth: string; sum: Float64Array }>();
  for (const frame of frames) {
    const key = `${frame.truth}\0${frame.burst}`;
    const burst = bursts.get(key) ?? { truth: frame.truth, sum: new Float64Array(classes.length) };
    for (let c = 0; c < classes.length; c++) burst.sum[c]! += frame.probabilities[c]!;
    bursts.set(key, burst);
  }
  let right = 0;
  for (const { truth, sum } of bursts.values()) {
    if (classes[indexOfLargest(sum)] === truth) right += 1;
  }
  return right / bursts.size;
}

/**
 * Turns logits into outcomes.
 *
 * @param logits `frames × classes`, row-major.
 * @param nameOf the label that a class stands for, where the model speaks other names than the
 *   station's labels.
 */
export function outcomesOf(
  logits: Float32Array,
  classes: readonly string[],
  frames: readonly { readonly label: string; readonly burst: string }[],
  nameOf: (className: string) => string = (name) => name,
): FrameOutcome[] {
  const width = classes.length;
  if (logits.length !== frames.length * width) {
    throw new RangeError(
      `logits hold ${logits.length} values, expected ${frames.length} frames × ${width} classes`,
    );
  }
  return frames.map((frame, row) => {
    const probabilities = softmax(logits.subarray(row * width, (row + 1) * width));
    const best = indexOfLargest(probabilities);
    const confidence = probabilities[best]!;
    return {
      burst: frame.burst,
      truth: frame.label,
      // No class at all, so that NaN is never right by luck.
      predicted: Number.isNaN(confidence) ? "" : nameOf(classes[best]!),
      confidence,
      probabilities,
    };
  });
}

/** exp(x − max) / Σ exp(x − max); a NaN among the logits makes every probability NaN. */
export function softmax(logits: Float32Array): Float32Array {
  const largest = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const result = logits.map((x) => Math.exp(x - largest));
  const sum = result.reduce((a, b) => a + b, 0);
  return result.map((x) => x / sum);
}

/** Position of the largest value; the first of equal ones. */
export function indexOfLargest(values: Float32Array | Float64Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}
