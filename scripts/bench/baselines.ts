import type { Graph } from "../../agent/onnx/graph.ts";
import { compressNetwork } from "../../agent/specialize/compress-network.ts";
import { uniformPattern } from "../../agent/specialize/layer-patterns.ts";
import { type Interval, meanWithInterval } from "./interval.ts";
import { benchDataPresent, openSpecialist, type Specialist } from "./specialist.ts";

/** What to measure; what is left out is what the table of README is made of. */
export interface BaselineOptions {
  readonly models?: readonly string[];
  readonly seeds?: readonly number[];
  readonly sparsities?: readonly number[];
}

const METHODS = ["task-aware", "generic", "wanda", "magnitude"] as const;
type Method = (typeof METHODS)[number];

/**
 * One-shot pruning, the same share of every layer, head fitted anew for all: our solver on task
 * pictures and on as many ImageNet ones (the paper's control), Wanda and magnitude. Accuracies on
 * the same held-out pictures, and differences to the dense network paired by seed.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchBaselines(options: BaselineOptions = {}): Promise<object> {
  if (!benchDataPresent()) return { skipped: "../shared/bench is not beside this checkout" };
  const {
    models = [
      "efficientnet_b0_imagenet1k",
      "mobilenetv2_1.0_imagenet1k",
      "vit_tiny_patch16_224_imagenet1k",
    ],
    seeds = [1, 2, 3, 4, 5],
    sparsities = [0.5, 0.6, 0.7, 0.8],
  } = options;
  const rows: object[] = [];
  for (const model of models) {
    const accuracy = new Map<string, number[]>();
    const dense: number[] = [];
    for (const seed of seeds) {
      const specialist = await openSpecialist({ model, labels: "monkeys-10", seed });
      try {
        dense.push((await specialist.evaluate(specialist.network.backbone)).accuracy);
        for (const sparsity of sparsities) {
          for (const method of METHODS) {
            const graph = await pruned(specialist, method, sparsity);
            const key = `${method} ${sparsity}`;
            const judged = await specialist.evaluate(graph);
            accuracy.set(key, [...(accuracy.get(key) ?? []), judged.accuracy]);
          }
        }
      } finally {
        await specialist.close();
      }
    }
    const differences: Record<string, Interval> = {};
    for (const [key, values] of accuracy) {
      differences[key] = meanWithInterval(values.map((value, i) => 100 * (value - dense[i]!)));
    }
    rows.push({ model, dense: meanWithInterval(dense), differencePoints: differences });
  }
  return { seeds, rows };
}

async function pruned(specialist: Specialist, method: Method, sparsity: number): Promise<Graph> {
  const { backbone } = specialist.network;
  const generic =
    method === "generic" ? { calibration: await specialist.genericCalibration() } : {};
  const { graph } = await compressNetwork(backbone, {
    ...specialist.environment(generic),
    patternOf: uniformPattern(backbone, { kind: "unstructured", sparsity }),
    method: method === "wanda" || method === "magnitude" ? method : "obs",
  });
  return graph;
}
