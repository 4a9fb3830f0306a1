import type { Graph } from "../../agent/onnx/graph.ts";
import { convnext } from "./convnext.ts";
import type { NetworkOptions } from "./draft.ts";
import { resnet } from "./resnet.ts";
import { visionTransformer } from "./vision-transformer.ts";

/** Networks of published sizes, and how many parameters they were published with. */
export const PUBLISHED_PARAMETERS = {
  "resnet-18": 11_689_512,
  "resnet-50": 25_557_032,
  "deit-tiny": 5_717_416,
  "deit-small": 22_050_664,
  "vit-base-16": 86_567_656,
  "convnext-tiny": 28_589_128,
} as const;

/** A network that {@link buildNetwork} can make. */
export type NetworkName = keyof typeof PUBLISHED_PARAMETERS;

/**
 * A network of a published shape, written as exporters write it, with seeded random weights:
 * for structure, sizes and speed, never for accuracy. Input `input`, output `logits`.
 */
export function buildNetwork(name: NetworkName, options: NetworkOptions = {}): Graph {
  switch (name) {
    case "resnet-18":
      return resnet(name, { ...options, kind: "basic", depths: [2, 2, 2, 2] });
    case "resnet-50":
      return resnet(name, { ...options, kind: "bottleneck", depths: [3, 4, 6, 3] });
    case "deit-tiny":
      return visionTransformer(name, { ...options, width: 192, depth: 12, heads: 3 });
    case "deit-small":
      return visionTransformer(name, { ...options, width: 384, depth: 12, heads: 6 });
    case "vit-base-16":
      return visionTransformer(name, { ...options, width: 768, depth: 12, heads: 12 });
    case "convnext-tiny":
      return convnext(name, { ...options, widths: [96, 192, 384, 768], depths: [3, 3, 9, 3] });
  }
}
