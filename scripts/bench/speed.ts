import { existsSync } from "node:fs";
import { basename, join } from "node:path";
import { type CompressionPlan, describePlan } from "../../agent/specialize/compression-plan.ts";
import { applyPlan } from "../../agent/specialize/pipeline.ts";
import { meanWithInterval } from "./interval.ts";
import { openSpecialist } from "./specialist.ts";
import { runSpecialize, speedupOf } from "./specialize-run.ts";

/** What to measure. */
export interface SpeedOptions {
  /** Models of the bench data; default EfficientNet-B0, MobileNetV2 and ViT-Tiny. */
  readonly models?: readonly string[];
  /** Seeds of the shots; default 5 of them. A search is made on the first. */
  readonly seeds?: readonly number[];
  /** Minutes that the search may take; default 5. */
  readonly searchMinutes?: number;
  /** Flags of the aim; default the least latency at one point. */
  readonly aim?: readonly string[];
  readonly labels?: string;
}

const ROOT = join(import.meta.dirname, "..", "..");
const BENCH = join(ROOT, "..", "shared", "bench");

/**
 * What a search reaches: `taco specialize` as a person starts it, for one aim, on the first seed's
 * 32 shots a class; and what the plan that it chose is worth when it is carried out anew on the
 * shots of the other seeds, which the search never saw. Accuracy is that of held-out pictures; speed
 * is measured here, by turns, between the dense and the compressed network.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchSpeed(options: SpeedOptions = {}): Promise<object> {
  const models = options.models ?? [
    "efficientnet_b0_imagenet1k",
    "mobilenetv2_1.0_imagenet1k",
    "vit_tiny_patch16_224_imagenet1k",
  ];
  const aim = options.aim ?? ["--aim", "latency", "--max-drop-points", "1"];
  const labels = join(BENCH, "images", options.labels ?? "monkeys-10");
  if (!existsSync(join(BENCH, "models")) || !existsSync(labels)) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const rows: object[] = [];
  const [first = 1, ...others] = options.seeds ?? [1, 2, 3, 4, 5];
  const flags = [...aim, "--search-minutes", `${options.searchMinutes ?? 5}`];
  for (const model of models) {
    const path = join(BENCH, "models", `${model}.onnx`);
    const { plan, ...searched } = await runSpecialize(path, labels, first, [
      ...flags,
      "--no-fine-tune",
    ]);
    const carriedOut: Awaited<ReturnType<typeof carryOut>>[] = [];
    for (const seed of others) carriedOut.push(await carryOut(model, labels, seed, plan));
    const all = [searched, ...carriedOut];
    rows.push({
      model,
      plan: describePlan(plan),
      differencePoints: meanWithInterval(all.map((run) => run.differencePoints)),
      speedupBatch1: meanWithInterval(all.map((run) => run.speedup.batch1)),
      speedupBatch8: meanWithInterval(all.map((run) => run.speedup.batch8)),
      searched,
      carriedOut,
    });
  }
  return { aim: flags.join(" "), rows };
}

/** Builds a plan on the shots of another seed. */
async function carryOut(model: string, labels: string, seed: number, plan: CompressionPlan) {
  const subject = { model, labels: basename(labels), seed };
  const own = await openSpecialist(subject);
  const size = plan.inputSize;
  const sized = size === null ? own : await openSpecialist({ ...subject, size: size.height });
  try {
    const { backbone: dense } = own.network;
    const before = await own.evaluate(dense);
    const { graph } = await applyPlan(dense, plan, {
      environmentAt: () => Promise.resolve(sized.environment()),
    });
    const after = await sized.evaluate(graph);
    const { height, width } = own.preprocessing;
    const graphs = [
      { graph: dense, height, width },
      { graph, ...(size ?? { height, width }) },
    ];
    return {
      seed,
      accuracy: { dense: before.accuracy, candidate: after.accuracy },
      differencePoints: 100 * (after.accuracy - before.accuracy),
      speedup: await speedupOf(graphs, own.engine),
    };
  } finally {
    await own.close();
    if (sized !== own) await sized.close();
  }
}
