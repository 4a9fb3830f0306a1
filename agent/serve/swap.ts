import { AgentError, type ErrorCode, messageOf } from "../errors.ts";
import type { Inference } from "./inference.ts";
import type { ModelRegistry } from "./registry.ts";

/** Steps of a swap by name, in their order; each is reported once it is done. */
export type SwapStep = "swap.loaded" | "swap.pointer-renamed" | "swap.switched";

/**
 * How a swap ended; where it was refused, the model of before goes on. INFERENCE_FAILED: its
 * process died, which says nothing about the model.
 */
export type SwapOutcome =
  | { kind: "switched" }
  | { kind: "refused"; code: ErrorCode; reason: string };

/** What {@link swapTo} works with. */
export interface SwapRequest {
  registry: ModelRegistry;
  inference: Inference;
  /** Model to serve from now on; it must be in the registry. */
  sha256: string;
  onStep?: (step: SwapStep, detail: Readonly<Record<string, unknown>>) => void;
}

/**
 * Swaps the served model in two phases: the candidate is loaded, warmed up and checked → `current`
 * is renamed → frames go to the candidate, between two of them. A crash at any moment leaves one
 * valid current model, and whoever starts next serves that one.
 */
export async function swapTo(request: SwapRequest): Promise<SwapOutcome> {
  const { registry, inference, sha256, onStep } = request;
  const validity = await registry.validateModel(sha256);
  if (!validity.valid) return { kind: "refused", code: "MODEL_INVALID", reason: validity.reason };
  const before = await registry.readCurrent();
  const loaded = await inference.load(registry.folder(sha256));
  if (loaded.kind === "refused") return loaded;
  onStep?.("swap.loaded", { sha256, mode: loaded.mode });
  try {
    await registry.setCurrent(sha256);
    onStep?.("swap.pointer-renamed", { sha256, before });
  } catch (error) {
    await inference.discardCandidate();
    const code = error instanceof AgentError ? error.code : "REGISTRY_INVALID";
    return { kind: "refused", code, reason: messageOf(error) };
  }
  if ((await inference.switchToCandidate()) === "switched") {
    onStep?.("swap.switched", { sha256, before });
    return { kind: "switched" };
  }
  // Pointer first: where the live model had made room, its restart reads it.
  try {
    if (before !== null) await registry.setCurrent(before);
  } finally {
    await inference.discardCandidate();
  }
  const reason = "its process died between loading and switching";
  return { kind: "refused", code: "INFERENCE_FAILED", reason };
}
