import { existsSync } from "node:fs";
import { join } from "node:path";
import { meanWithInterval } from "./interval.ts";
import { runSpecialize } from "./specialize-run.ts";

/** What to measure. */
export interface FineTuneOptions {
  /** Models of the bench data; default EfficientNet-B0, MobileNetV2 and ViT-Tiny. */
  readonly models?: readonly string[];
  /** Seeds of the shots; default 5 of them. */
  readonly seeds?: readonly number[];
  /** Flags of what is asked for; default fewer parameters by 5, 10 and 20, and latency. */
  readonly aims?: readonly (readonly string[])[];
  /** Minutes of search and of training. */
  readonly searchMinutes?: number;
  readonly minutes?: number;
  readonly labels?: string;
}

const BENCH = join(import.meta.dirname, "..", "..", "..", "shared", "bench");
const AIMS = [
  ["--nonzero-reduction", "5"],
  ["--nonzero-reduction", "10"],
  ["--nonzero-reduction", "20"],
  ["--aim", "latency", "--max-drop-points", "1"],
];

/**
 * What training by distillation brings back: whole runs of `taco specialize`, each aim with and
 * without training, on the same pictures. Accuracy is that of held-out pictures, in points against
 * the dense specialist of the same run.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchFineTune(options: FineTuneOptions = {}): Promise<object> {
  const {
    models = [
      "efficientnet_b0_imagenet1k",
      "mobilenetv2_1.0_imagenet1k",
      "vit_tiny_patch16_224_imagenet1k",
    ],
    seeds = [1, 2, 3, 4, 5],
    aims = AIMS,
    searchMinutes = 3,
    minutes = 8,
  } = options;
  const labels = join(BENCH, "images", options.labels ?? "monkeys-10");
  if (!existsSync(join(BENCH, "models")) || !existsSync(labels)) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const rows: object[] = [];
  for (const model of models) {
    const path = join(BENCH, "models", `${model}.onnx`);
    for (const aim of aims) {
      const flags = [...aim, "--search-minutes", `${searchMinutes}`];
      const variants = {
        trained: [...flags, "--minutes", `${minutes}`],
        untrained: [...flags, "--no-fine-tune"],
      };
      for (const [variant, all] of Object.entries(variants)) {
        const runs: Awaited<ReturnType<typeof runSpecialize>>[] = [];
        for (const seed of seeds) runs.push(await runSpecialize(path, labels, seed, all));
        rows.push({
          model,
          aim: aim.join(" "),
          variant,
          differencePoints: meanWithInterval(runs.map((run) => run.differencePoints)),
          nonzeroReduction: meanWithInterval(runs.map((run) => run.nonzeroReduction)),
          speedupBatch1: meanWithInterval(runs.map((run) => run.speedup.batch1)),
          runs,
        });
      }
    }
  }
  return { searchMinutes, minutes, rows };
}
