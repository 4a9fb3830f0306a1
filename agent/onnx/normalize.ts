import { constantsToInitializers } from "./constant-nodes.ts";
import { removeDeadCode } from "./dead-code.ts";
import type { Graph } from "./graph.ts";
import { removeIdentities } from "./identity.ts";

/**
 * Brings an exporter's graph into the form that the functions of this folder look for: weights
 * are initializers, no Identity stands between them and their reader, nothing is unused.
 */
export function normalizeGraph(graph: Graph): Graph {
  return removeDeadCode(removeIdentities(constantsToInitializers(graph)));
}
