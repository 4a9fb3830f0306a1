import type { Lever } from "../compress/budget.ts";
import type { Graph } from "../onnx/graph.ts";
import { type CompressEnvironment, firstBatches } from "./environment.ts";
import { compareOutputs, outputsOf } from "./output-difference.ts";
import type { SearchSpace } from "./search-space.ts";

/** Pictures that levers are weighed by; of twice as many, weights differ by about a tenth. */
const PICTURES = 16;

/** What {@link weighLevers} runs. */
export interface WeighOptions extends Pick<SearchSpace, "build"> {
  /** The network with every lever at rest. */
  readonly origin: Graph;
  /** Share of each lever's cost at which it is tried, in (0, 1): about what a plan will leave. */
  readonly share: number;
  readonly environment: CompressEnvironment;
}

/**
 * Factors on the losses of levers, after which they can be added. A table knows a layer's own relative error; what that does
 * to the network's output is another matter, which differs between the layers of one vision
 * transformer by a factor of a hundred. So each lever is moved by itself to the level whose cost is
 * nearest to `share`, and the relative squared error that this makes at the output, over the loss
 * in the table, is the factor on all of its losses.
 *
 * @returns one factor a lever, in their order, at least 0.
 */
export async function weighLevers(
  levers: readonly Lever[],
  { build, origin, share, environment }: WeighOptions,
): Promise<number[]> {
  const { engine, signal } = environment;
  const size = (await environment.calibration.read(0)).dims[0]!;
  const pictures = firstBatches(environment.calibration, Math.ceil(PICTURES / size));
  const wanted = await outputsOf(origin, pictures, engine, signal);
  const weights: number[] = [];
  for (const [at, lever] of levers.entries()) {
    const level = levelNear(lever, share);
    const { loss } = lever.levels[level]!;
    const choice = levers.map((_, other) => (other === at ? level : 0));
    // A level that loses nothing by the table is one that changes nothing.
    weights.push(
      loss > 0 ? (await errorOf(await build(choice), wanted, pictures, environment)) / loss : 1,
    );
  }
  return weights;
}

/** Levers whose losses are multiplied by a weight each, see {@link weighLevers}. */
export function withWeights(levers: readonly Lever[], weights: readonly number[]): Lever[] {
  return levers.map((lever, i) => ({
    ...lever,
    levels: lever.levels.map((level) => ({ ...level, loss: weights[i]! * level.loss })),
  }));
}

/** The level, other than the first, that leaves about a share of the first one's cost. */
function levelNear({ levels }: Lever, share: number): number {
  const wanted = share * levels[0]!.cost;
  let best = Math.min(1, levels.length - 1);
  for (let level = 2; level < levels.length; level++) {
    const distance = (of: number) => Math.abs(levels[of]!.cost - wanted);
    if (distance(level) < distance(best)) best = level;
  }
  return best;
}

/** Errors beyond this say no more than that all is lost. */
const ALL_LOST = 1e6;

async function errorOf(
  graph: Graph,
  wanted: Awaited<ReturnType<typeof outputsOf>>,
  pictures: CompressEnvironment["calibration"],
  { engine, signal }: CompressEnvironment,
): Promise<number> {
  const outputs = await outputsOf(graph, pictures, engine, signal);
  const { relativeError } = compareOutputs(wanted, outputs);
  return relativeError <= ALL_LOST ? relativeError : ALL_LOST;
}
