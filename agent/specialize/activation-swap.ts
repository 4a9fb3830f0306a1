import { findSwishes, replaceSwish, type SwishReplacement } from "../onnx/activations.ts";
import type { Graph } from "../onnx/graph.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import { withRanges } from "../onnx/qdq-ranges.ts";
import { unevenStep } from "./activation-encodings.ts";
import { floats, measureShapes, pictureBorder, sweep } from "./border.ts";
import { type CompressEnvironment, firstBatches, type PassResult } from "./environment.ts";
import { compareLatency } from "./graph-latency.ts";
import { integerForm } from "./integer-form.ts";
import { compareOutputs, outputsOf } from "./output-difference.ts";
import { fitWhole } from "./refit-network.ts";

/** What takes the place of each swish, by the value that it makes. */
type Replacements = ReadonlyMap<string, SwishReplacement>;

/** How {@link swapForIntegers} works. */
export interface IntegerSwapOptions extends CompressEnvironment {
  /** ‖ŷ − y‖² / ‖y‖² of the outputs on calibration pictures that the swap may cost. Default 0.05. */
  readonly largestError?: number;
  /**
   * Calibration pictures, mirror images included, below which swishes stay: layers that are fitted
   * to few know them by heart, and no others. Default 64.
   */
  readonly leastPictures?: number;
}

const LARGEST_ERROR = 0.05;
const LEAST_PICTURES = 64;
/** Share of the allowed error that is planned with: what is expected is not exact. */
const CAUTION = 0.7;
/** What a swap has to bring, measured, for the minutes of a fit to be spent on it. */
const LEAST_GAIN = 1.04;
const TRIAL_BATCHES = 4;

/**
 * Puts functions that integers compute fast in the place of a network's swishes: hard-swishes, a
 * cut and a product, and where the error allows it ReLUs, which are free. All layers are fitted to
 * the change, as `simplifyNetwork` does: first with hard-swishes alone, whose measured error tells
 * how much those of ReLUs will weigh; then with ReLUs at the sites where they save most values for
 * the error expected. Swishes of squeeze-excite gates, of a single value a channel, stay.
 *
 * @returns the network itself where it has no swish, nothing is gained on this device or too much
 *   is lost; and where the pictures are too few, which is told as a refusal.
 */
export async function swapForIntegers(
  dense: Graph,
  options: IntegerSwapOptions,
): Promise<PassResult> {
  const unchanged = { graph: dense, reports: [], refused: [] };
  const { engine, signal } = options;
  const { largestError = LARGEST_ERROR, leastPictures = LEAST_PICTURES } = options;
  if (findSwishes(dense).length === 0) return unchanged;
  const pictures = await countPictures(options.calibration);
  if (pictures < leastPictures) {
    const reason = `${pictures} pictures are too few to fit cheaper functions to: ${leastPictures}`;
    return { ...unchanged, refused: [{ name: "swish", reason }] };
  }
  const sites = await judgeSites(dense, options);
  const hard: Replacements = new Map(sites.map(({ output }) => [output, "hard-swish"]));
  if (sites.length === 0 || !(await gains(dense, replaceAll(dense, hard), options))) {
    return unchanged;
  }
  const calibration = firstBatches(options.calibration, TRIAL_BATCHES);
  const wanted = await outputsOf(dense, calibration, engine, signal);
  const fit = async (replacements: Replacements) => {
    const result = await fitReplacements(dense, replacements, options);
    const outputs = await outputsOf(result.graph, calibration, engine, signal);
    return { result, error: compareOutputs(wanted, outputs).relativeError };
  };
  const first = await fit(hard);
  if (!(first.error <= largestError)) return unchanged;
  const mixed = withRelus(sites, first.error, CAUTION * largestError);
  if (!(await gains(replaceAll(dense, hard), replaceAll(dense, mixed), options))) {
    return first.result;
  }
  const second = await fit(mixed);
  return second.error <= largestError ? second.result : first.result;
}

/** Batches are of one size but for the last. */
async function countPictures(calibration: CompressEnvironment["calibration"]): Promise<number> {
  const { batches } = calibration;
  if (batches === 0) return 0;
  const [first, last] = [await calibration.read(0), await calibration.read(batches - 1)];
  return first.dims[0]! * (batches - 1) + last.dims[0]!;
}

/** A swish over more than one position, and what other functions lose there. */
interface JudgedSite {
  readonly output: string;
  /** Values for one picture. */
  readonly size: number;
  /** Share of the variance of what it makes that a multiple of the other function leaves open. */
  readonly unexplained: Readonly<Record<SwishReplacement, number>>;
}

async function judgeSites(dense: Graph, options: CompressEnvironment): Promise<JudgedSite[]> {
  const found = findSwishes(dense).filter(({ kind }) => kind === "swish");
  if (found.length === 0) return [];
  const inputs = found.map(({ input }) => input);
  const shapes = await measureShapes(dense, inputs, options.engine, options.calibration);
  const product = (dims: readonly number[]) => dims.reduce((all, dim) => all * dim, 1);
  const sites = found.filter(({ input }) => product(shapes.get(input)!.slice(2)) > 1);
  const sizes = sites.map(({ input }) => product(shapes.get(input)!));
  const { graph, outputs } = withRanges(
    dense,
    sites.map(({ input }) => input),
    sizes.map((size) => unevenStep(size / SAMPLES)),
  );
  const fits = sites.map(() => ({ relu: new Moments(), "hard-swish": new Moments() }));
  const calibration = firstBatches(options.calibration, TRIAL_BATCHES);
  await sweep(graph, pictureBorder(dense), { ...options, calibration }, (_, results) => {
    for (const [i, { samplesName }] of outputs.entries()) {
      for (const x of floats(results, samplesName).data) {
        const swish = x / (1 + Math.exp(-x));
        fits[i]!.relu.add(swish, Math.max(0, x));
        fits[i]!["hard-swish"].add(swish, (x * Math.min(6, Math.max(0, x + 3))) / 6);
      }
    }
  });
  return sites.map(({ output }, i) => ({
    output,
    size: sizes[i]!,
    unexplained: {
      relu: fits[i]!.relu.unexplained(),
      "hard-swish": fits[i]!["hard-swish"].unexplained(),
    },
  }));
}

/** Elements of one site that are looked at in each picture. */
const SAMPLES = 1024;

/** Second moments of two functions of the same values. */
class Moments {
  #count = 0;
  #y = 0;
  #x = 0;
  #yy = 0;
  #xx = 0;
  #xy = 0;

  add(y: number, x: number): void {
    this.#count++;
    this.#y += y;
    this.#x += x;
    this.#yy += y * y;
    this.#xx += x * x;
    this.#xy += x * y;
  }

  /** Share of the variance of y that a·x + b leaves open, in [0, 1]. */
  unexplained(): number {
    const n = Math.max(1, this.#count);
    const yy = this.#yy - this.#y ** 2 / n;
    const xx = this.#xx - this.#x ** 2 / n;
    const xy = this.#xy - (this.#x * this.#y) / n;
    if (!(yy > 0)) return 0;
    return xx > 0 ? Math.min(1, Math.max(0, 1 - xy ** 2 / (xx * yy))) : 1;
  }
}

/** ReLUs where they save most for what they lose, as long as no more error is expected. */
function withRelus(
  sites: readonly JudgedSite[],
  hardError: number,
  largestError: number,
): Replacements {
  const all = sites.reduce((sum, { unexplained }) => sum + unexplained["hard-swish"], 0);
  const perUnexplained = hardError / Math.max(all, 1e-12);
  const costOf = ({ unexplained }: JudgedSite) =>
    perUnexplained * Math.max(0, unexplained.relu - unexplained["hard-swish"]);
  const worth = (site: JudgedSite) => site.size / Math.max(costOf(site), 1e-12);
  let expected = hardError;
  const entries = [...sites]
    .sort((a, b) => worth(b) - worth(a))
    .map((site): [string, SwishReplacement] => {
      if (expected + costOf(site) > largestError) return [site.output, "hard-swish"];
      expected += costOf(site);
      return [site.output, "relu"];
    });
  return new Map(entries);
}

function replaceAll(graph: Graph, replacements: Replacements): Graph {
  let result = graph;
  for (const kind of ["hard-swish", "relu"] as const) {
    const sites = [...replacements].filter(([, own]) => own === kind).map(([name]) => name);
    if (sites.length > 0) result = replaceSwish(result, kind, sites);
  }
  return result;
}

/** Whether one network is faster than another on integers, with one picture on this device. */
async function gains(
  slow: Graph,
  fast: Graph,
  { engine, calibration, signal }: CompressEnvironment,
): Promise<boolean> {
  const [, , height = 0, width = 0] = (await calibration.read(0)).dims;
  const timed = [slow, fast].map((graph) => ({ graph: integerForm(graph), height, width }));
  const [before = 0, after = 0] = await compareLatency(timed, 1, engine, signal);
  return before > LEAST_GAIN * after;
}

async function fitReplacements(
  dense: Graph,
  replacements: Replacements,
  options: CompressEnvironment,
): Promise<PassResult> {
  const { graph, losses } = await fitWhole(dense, replaceAll(dense, replacements), options);
  const kinds = [...new Set(replacements.values())].join(" and ");
  const reports = findPrunableLayers(graph).flatMap(({ name }) => {
    const relativeLoss = losses.get(name);
    const method = `fitted behind swish → ${kinds}`;
    return relativeLoss === undefined ? [] : [{ name, method, sparsity: 0, relativeLoss }];
  });
  return { graph, reports, refused: [] };
}
