import { findSwishes, replaceSwish, type SwishReplacement } from "../onnx/activations.ts";
import { findGates, foldGate, type Gate } from "../onnx/gates.ts";
import type { Graph } from "../onnx/graph.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import { withOnlyOutputs } from "../onnx/subgraph.ts";
import { swapForIntegers } from "./activation-swap.ts";
import { floats, pictureBorder, sweep } from "./border.ts";
import type { CompressEnvironment, LayerReport, PassResult, Refusal } from "./environment.ts";
import { fitWhole } from "./refit-network.ts";

/** What {@link simplifyNetwork} puts in the place of dearer functions. */
export interface Simplification {
  /** What a swish becomes; see {@link swapForIntegers} for the last. */
  readonly activations: "keep" | SwishReplacement | "for-integers";
  /** Whether squeeze-excite gates become the mean of what they are on the pictures. */
  readonly gates: "keep" | "fold";
}

/** Whether a network has anything that a simplification would change. */
export function simplifies(graph: Graph, { activations, gates }: Simplification): boolean {
  const swishes = activations !== "keep" && findSwishes(graph).length > 0;
  return swishes || (gates === "fold" && findGates(graph).length > 0);
}

/**
 * Puts cheaper functions in the place of a network's swishes and squeeze-excite gates, and fits
 * every layer, from the picture on, to what the dense network has at its place: linear layers alone
 * make up for nearly all of it, though nothing is trained. A specialist needs less of both than the
 * generalist, whose gates tell apart what a station never meets.
 *
 * A ReLU costs nothing behind a convolution, in float or in integers; a swish is two more passes
 * over the values, and a gate some six small nodes that nothing runs beside.
 *
 * @param dense normalized network from the picture to its features or logits; one with nothing to
 *   replace comes back as it is.
 */
export async function simplifyNetwork(
  dense: Graph,
  options: CompressEnvironment & Simplification,
): Promise<PassResult> {
  if (!simplifies(dense, options)) return nothing(dense);
  const { activations } = options;
  const refused: Refusal[] = [];
  let changed = dense;
  if (options.gates === "fold") {
    for (const { gate, means } of await measureGates(dense, options)) {
      if (means) changed = foldGate(changed, gate, means);
      else refused.push({ name: gate.output, reason: "its factors are not one a channel" });
    }
  }
  if (activations === "for-integers") {
    const folded = changed === dense ? nothing(dense) : await fitted(dense, changed, options);
    const swapped = await swapForIntegers(folded.graph, options);
    const reports = [...folded.reports, ...swapped.reports];
    return { graph: swapped.graph, reports, refused: [...refused, ...swapped.refused] };
  }
  if (activations !== "keep") {
    // Those inside of gates went with them.
    const sites = findSwishes(changed).map(({ output }) => output);
    changed = replaceSwish(changed, activations, sites);
  }
  return { ...(await fitted(dense, changed, options)), refused };
}

function nothing(graph: Graph): PassResult {
  return { graph, reports: [], refused: [] };
}

async function fitted(
  dense: Graph,
  changed: Graph,
  options: CompressEnvironment & Simplification,
): Promise<PassResult> {
  const { graph, losses } = await fitWhole(dense, changed, options);
  return { ...nothing(graph), reports: reportsOf(dense, graph, losses, options) };
}

function reportsOf(
  dense: Graph,
  graph: Graph,
  losses: ReadonlyMap<string, number>,
  { activations, gates }: Simplification,
): LayerReport[] {
  const left = new Set(findPrunableLayers(graph).map(({ name }) => name));
  const why = [
    activations === "keep" || activations === "for-integers" ? "" : `swish → ${activations}`,
    gates === "keep" ? "" : "gates → constants",
  ].filter((part) => part !== "");
  return findPrunableLayers(dense).flatMap(({ name }): LayerReport[] => {
    if (!left.has(name)) {
      return [{ name, method: "folded with its gate", sparsity: 1, relativeLoss: null }];
    }
    const relativeLoss = losses.get(name);
    const method = `fitted behind ${why.join(", ")}`;
    return relativeLoss === undefined ? [] : [{ name, method, sparsity: 0, relativeLoss }];
  });
}

/** Mean of every gate's factors over the pictures; null where they are not one a channel. */
async function measureGates(
  dense: Graph,
  environment: CompressEnvironment,
): Promise<{ gate: Gate; means: Float32Array | null }[]> {
  const gates = findGates(dense);
  if (gates.length === 0) return [];
  const sums = gates.map((): { factors: Float64Array; pictures: number } | null => null);
  const factors = withOnlyOutputs(dense, [...new Set(gates.map(({ factor }) => factor))]);
  await sweep(factors, pictureBorder(dense), environment, (_, outputs) => {
    gates.forEach(({ factor }, g) => {
      const { data, dims } = floats(outputs, factor);
      const [count = 0, channels = 0, ...rest] = dims;
      if (dims.length !== 4 || rest.some((side) => side !== 1)) return;
      const sum = sums[g] ?? { factors: new Float64Array(channels), pictures: 0 };
      sums[g] = sum;
      for (let i = 0; i < data.length; i++) sum.factors[i % channels]! += data[i]!;
      sum.pictures += count;
    });
  });
  return gates.map((gate, g) => {
    const sum = sums[g];
    if (!sum) return { gate, means: null };
    return { gate, means: Float32Array.from(sum.factors, (value) => value / sum.pictures) };
  });
}
