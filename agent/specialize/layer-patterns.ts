import type { Pattern } from "../compress/pattern.ts";
import type { Graph } from "../onnx/graph.ts";
import type { PrunableLayer } from "../onnx/prunable-layers.ts";

/**
 * What to do to a layer's weights: zeros of a pattern; nothing but what rounds them (`mask`: the
 * zeros they have stay); or nothing at all, and why.
 */
export type LayerPattern =
  | Pattern
  | { readonly kind: "mask" }
  | { readonly kind: "dense"; readonly reason: string };

/**
 * Fewest inputs that one output of a layer must see to be worth pruning: such layers, depthwise
 * ones and stems hold a percent or two of the weights, and the network depends on every one.
 */
const MIN_INPUTS = 32;

/** The same pattern for every layer that is worth pruning (see {@link reasonToLeave}). */
export function uniformPattern(
  graph: Graph,
  pattern: Pattern,
): (layer: PrunableLayer) => LayerPattern {
  return (layer) => {
    const reason = reasonToLeave(graph, layer);
    return reason === null ? pattern : { kind: "dense", reason };
  };
}

/** Why a layer is better left dense where nobody asks for it by name; null where it is not. */
export function reasonToLeave(graph: Graph, layer: PrunableLayer): string | null {
  if (layer.inputName === graph.inputs[0]!.name) return "it reads the picture";
  return reasonNotToTry(layer);
}

/**
 * Why a layer is left dense even where each is measured by itself: there, one that reads the
 * picture has its turn, since the patches of a vision transformer are an eighth of the weights of a
 * network that has a fifth left. Null where there is no reason.
 */
export function reasonNotToTry(layer: PrunableLayer): string | null {
  if (layer.sharedWith.length > 0) return `its weights serve ${layer.sharedWith.join(", ")} too`;
  const area = layer.kernel.reduce((product, size) => product * size, 1);
  if (layer.groups > 1 && layer.inFeaturesPerGroup === area) return "it is depthwise";
  if (layer.inFeaturesPerGroup < MIN_INPUTS) {
    return `${layer.inFeaturesPerGroup} inputs an output are too few to take some away`;
  }
  return null;
}
