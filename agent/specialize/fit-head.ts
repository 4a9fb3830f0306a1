import { type ChosenL2, chooseL2 } from "../math/choose-l2.ts";
import type { Gemm } from "../math/gemm.ts";
import { fitSoftmaxHead } from "../math/softmax-head.ts";
import { type HeadWeights, headLogits } from "../math/standardized-space.ts";

/** Labeled features of the training pictures. */
export interface TrainingFeatures {
  /** `pictures × inputs`, row-major. */
  readonly features: Float32Array;
  readonly inputs: number;
  /** Class of each picture, as an index into the run's classes. */
  readonly labels: readonly number[];
  /** Burst of each picture: copies and frames of one burst never face each other in a fold. */
  readonly bursts: readonly string[];
  readonly classes: number;
}

/** A head, and how it was come by. */
export interface SpecialistHead extends HeadWeights {
  /**
   * `sliced`: the generalist's own rows; `adapted`: fitted with a pull toward them; `fitted`;
   * `trained`: along with the network below it.
   */
  readonly kind: "sliced" | "adapted" | "fitted" | "trained";
  /** Penalty of the fit; 0 where there was none. */
  readonly l2: number;
}

/**
 * For each label, the generalist's class of that name: by `labelMap` first, else by its own name
 * or an alias, letter case and underscores aside. −1 where there is none.
 *
 * @throws {RangeError} where `labelMap` names a class that the generalist does not have.
 */
export function mapLabels(
  labels: readonly string[],
  generalist: {
    readonly classes: readonly string[];
    readonly aliases: readonly (readonly string[])[];
  },
  labelMap: Readonly<Record<string, string>>,
): number[] {
  const index = new Map<string, number>();
  generalist.classes.forEach((name, c) => {
    for (const one of [name, ...(generalist.aliases[c] ?? []), ...name.split(",")]) {
      const key = normalize(one);
      if (!index.has(key)) index.set(key, c);
    }
  });
  return labels.map((label) => {
    const wanted = labelMap[label];
    const found = index.get(normalize(wanted ?? label));
    if (wanted !== undefined && found === undefined) {
      throw new RangeError(
        `labelMap: expected a class of the generalist for "${label}", got "${wanted}"`,
      );
    }
    return found ?? -1;
  });
}

function normalize(name: string): string {
  return name.trim().toLowerCase().replaceAll("_", " ");
}

/**
 * The rows of the generalist's head for some classes; rows of zeros for −1.
 *
 * @param head `generalist classes × inputs`, row-major.
 */
export function sliceHead(head: HeadWeights, classOf: readonly number[]): HeadWeights {
  const inputs = head.weights.length / head.bias.length;
  const weights = new Float32Array(classOf.length * inputs);
  const bias = new Float32Array(classOf.length);
  classOf.forEach((source, row) => {
    if (source < 0) return;
    weights.set(head.weights.subarray(source * inputs, (source + 1) * inputs), row * inputs);
    bias[row] = head.bias[source]!;
  });
  return { weights, bias };
}

/**
 * Makes the head of a specialist: candidates are the generalist's own rows where every label maps
 * onto one, a class-balanced softmax regression pulled toward those rows, and one pulled toward
 * zero. The one with the smallest class-balanced log likelihood loss on held-back training bursts
 * wins (for the plain rows, which were fitted to none of them, on all).
 *
 * @param prior the generalist's rows as by {@link sliceHead}; null where no label maps.
 * @param complete whether every label maps.
 */
export async function fitHead(
  data: TrainingFeatures,
  prior: { readonly rows: HeadWeights; readonly complete: boolean } | null,
  options: { readonly seed: number; readonly gemm: Gemm; readonly signal: AbortSignal },
): Promise<SpecialistHead> {
  const { gemm, signal, seed } = options;
  const base = {
    features: data.features,
    samples: data.labels.length,
    inputs: data.inputs,
    labels: data.labels,
    classes: data.classes,
  };
  const choose = (rows?: HeadWeights) =>
    chooseL2({ ...base, prior: rows }, { groups: data.bursts, seed, gemm, signal });
  const plain = await choose();
  const pulled = prior ? await choose(prior.rows) : null;
  const fitted = lossOf(plain);
  const adapted = pulled ? lossOf(pulled) : Number.POSITIVE_INFINITY;
  const sliced = prior?.complete
    ? await balancedLoss(prior.rows, data, gemm)
    : Number.POSITIVE_INFINITY;
  if (prior && sliced <= Math.min(fitted, adapted)) return { ...prior.rows, kind: "sliced", l2: 0 };
  const useRows = pulled !== null && adapted < fitted;
  const l2 = useRows ? pulled.l2 : plain.l2;
  const head = await fitSoftmaxHead(
    { ...base, prior: useRows ? prior?.rows : undefined },
    { l2, gemm, signal },
  );
  return { weights: head.weights, bias: head.bias, kind: useRows ? "adapted" : "fitted", l2 };
}

function lossOf(chosen: ChosenL2): number {
  const scores = chosen.scores.map(({ score }) => score);
  return scores.length > 0 ? Math.min(...scores) : Number.MAX_VALUE;
}

/** Mean over classes of the mean negative log likelihood of their pictures, in nats. */
async function balancedLoss(
  head: HeadWeights,
  data: TrainingFeatures,
  gemm: Gemm,
): Promise<number> {
  const logits = await headLogits(head, data.features, gemm);
  const sums = new Float64Array(data.classes);
  const counts = new Float64Array(data.classes);
  data.labels.forEach((label, i) => {
    const row = logits.subarray(i * data.classes, (i + 1) * data.classes);
    const largest = row.reduce((a, b) => Math.max(a, b));
    const total = row.reduce((sum, x) => sum + Math.exp(x - largest), 0);
    sums[label]! += Math.log(total) + largest - row[label]!;
    counts[label]! += 1;
  });
  const losses = [...sums].flatMap((sum, c) => (counts[c]! > 0 ? [sum / counts[c]!] : []));
  return losses.reduce((a, b) => a + b, 0) / losses.length;
}
