import { findSwishes, replaceSwish, type SwishReplacement } from "../onnx/activations.ts";
import type { Graph } from "../onnx/graph.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import type { CompressEnvironment, PassResult } from "./environment.ts";
import { refitNetwork } from "./refit-network.ts";

/** How {@link swapActivations} works. */
export interface SwapOptions extends CompressEnvironment {
  readonly replacement: SwishReplacement;
  /** Which swishes, by the value they make; all by default. */
  readonly sites?: readonly string[];
}

/**
 * Puts a cheaper function in the place of a network's swishes and fits every layer, from the
 * picture on, to what the dense network has at its place: linear layers alone make up for nearly
 * all of it, though nothing is trained. Integer kernels cut at zero for free (a swish costs them
 * two more passes over the values), and float ones in the convolution itself.
 *
 * @param dense normalized network from the picture to its features or logits; one without swish
 *   comes back as it is.
 */
export async function swapActivations(dense: Graph, options: SwapOptions): Promise<PassResult> {
  const sites = options.sites ?? findSwishes(dense).map(({ output }) => output);
  if (sites.length === 0) return { graph: dense, reports: [], refused: [] };
  const { graph, losses } = await refitNetwork(
    dense,
    replaceSwish(dense, options.replacement, sites),
    {
      ...options,
      places: new Map(),
      include: () => true,
      stream: true,
      correct: false,
    },
  );
  const reports = findPrunableLayers(graph).flatMap(({ name }) => {
    const relativeLoss = losses.get(name);
    const method = `fitted behind swish → ${options.replacement}`;
    return relativeLoss === undefined ? [] : [{ name, method, sparsity: 0, relativeLoss }];
  });
  return { graph, reports, refused: [] };
}
