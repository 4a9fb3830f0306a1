import { foldBatchNorms } from "./batch-norm.ts";
import { constantsToInitializers } from "./constant-nodes.ts";
import { removeDeadCode } from "./dead-code.ts";
import { canonicalizeGelus } from "./gelu.ts";
import type { Graph } from "./graph.ts";
import { removeIdentities } from "./identity.ts";
import { recognizeLayerNorms } from "./layer-norm.ts";
import { raiseOpset } from "./opset.ts";
import { unshareVectors } from "./shared-initializers.ts";
import { mergeTransposes } from "./transpose-pairs.ts";

/**
 * Brings an exporter's graph into the form that the functions of this folder look for: weights
 * are initializers, no Identity stands between them and their reader, the operator set is 17 or
 * later where that is safe, batch norms are folded, layer norms and GELUs are in one form,
 * Transposes that cancel out are gone, and nothing is unused. The function that the network computes stays the same.
 */
export function normalizeGraph(graph: Graph): Graph {
  const plain = removeIdentities(constantsToInitializers(graph));
  const raised = removeDeadCode(removeIdentities(mergeTransposes(raiseOpset(plain))));
  const folded = foldBatchNorms(unshareVectors(raised));
  return removeDeadCode(canonicalizeGelus(recognizeLayerNorms(folded)));
}
