import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { findBorders } from "../../agent/onnx/borders.ts";
import { type Graph, writeGraph } from "../../agent/onnx/graph.ts";
import { withLinearHead } from "../../agent/onnx/head.ts";
import { inferShapes } from "../../agent/onnx/infer-shapes.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { extractSubgraph } from "../../agent/onnx/subgraph.ts";
import { elementCount } from "../../agent/onnx/tensor.ts";
import { createEngine } from "../../agent/specialize/engine.ts";
import { loadNetwork } from "../../agent/specialize/network.ts";
import { openTrainingStep } from "../../agent/specialize/training-step.ts";
import { buildNetwork } from "../networks/build-network.ts";
import { measureApart } from "./measure-apart.ts";

/** One training step to measure. */
interface GradientJob {
  /** A model of the bench data, or a shape that `buildNetwork` knows. */
  readonly network: string;
  readonly pictures: number;
  /** Share of the layers' multiplications that lie before the border at which training begins. */
  readonly frozenWork: number;
}

/** What the targets speak of, the same in smaller batches, and larger shapes. */
const JOBS: readonly GradientJob[] = [
  { network: "efficientnet_b0_imagenet1k", pictures: 8, frozenWork: 0 },
  { network: "efficientnet_b0_imagenet1k", pictures: 8, frozenWork: 0.5 },
  { network: "efficientnet_b0_imagenet1k", pictures: 4, frozenWork: 0 },
  { network: "efficientnet_b0_imagenet1k", pictures: 4, frozenWork: 0.5 },
  { network: "resnet-50", pictures: 4, frozenWork: 0 },
  { network: "vit-base-16", pictures: 2, frozenWork: 0 },
];
const BENCH = join(import.meta.dirname, "..", "..", "..", "shared", "bench");
const SIDE = 224;
const CLASSES = 10;
const ROUNDS = 7;

/** How long one step took against the plain forward pass, and the memory of its process. */
interface GradientFigures extends GradientJob {
  readonly trainedParameters: number;
  /** Medians, by turns: constant weights and no gradient, then the step with its frozen part. */
  readonly forwardMs: number;
  readonly stepMs: number;
  readonly ratio: number;
  /** Of the forward pass, two a multiplication of a layer. A backward pass needs twice as many. */
  readonly forwardGflop: number;
  /** Step over three forward passes (one for what is frozen): what arithmetic alone would take. */
  readonly overBound: number;
  readonly peakMemoryMiB: number;
}

/**
 * Time of a training step over that of a plain forward pass of the same pictures, each case in a
 * process of its own. One alone: `node --import tsx scripts/bench/gradient.ts <network> <pictures>
 * <frozen share of the work>`.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchGradient(jobs: readonly GradientJob[] = JOBS): Promise<object> {
  if (!existsSync(join(BENCH, "models"))) {
    return { skipped: "../shared/bench is not beside this checkout" };
  }
  const rows: GradientFigures[] = [];
  for (const job of jobs) {
    process.stderr.write(
      `  ${job.network}, ${job.pictures} pictures, ${job.frozenWork} frozen …\n`,
    );
    const args = [job.network, `${job.pictures}`, `${job.frozenWork}`];
    rows.push(await measureApart<GradientFigures>(import.meta.filename, args));
  }
  return { rows };
}

async function measure(job: GradientJob): Promise<GradientFigures> {
  const log = createLogger("error");
  const engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 0, log });
  const path = join(BENCH, "models", `${job.network}.onnx`);
  const bytes = existsSync(path)
    ? await readFile(path)
    : writeGraph(buildNetwork(job.network as Parameters<typeof buildNetwork>[0]));
  const loaded = await loadNetwork(bytes, { height: SIDE, width: SIDE }, engine);
  const pictureDims = [job.pictures, 3, SIDE, SIDE];
  const weightCount = CLASSES * featuresOf(loaded.backbone, pictureDims);
  const network = withLinearHead(loaded.backbone, {
    weights: new Float32Array(weightCount).fill(0.01),
    bias: new Float32Array(CLASSES),
  });
  const picture = network.inputs[0]!.name;
  const work = (graph: Graph) => multiplicationsOf(network, graph, pictureDims);
  const border = [picture, ...findBorders(network)].findLast(
    (name) =>
      name === picture ||
      work(extractSubgraph(network, [picture], [name])) <= job.frozenWork * work(network),
  )!;
  const step = await openTrainingStep({
    ...{ network, border, pictureDims, features: [], engine },
    objective: {
      ...{ distillation: 1, temperature: 2, features: 0, labels: 1 },
      logitOffsets: new Array<number>(CLASSES).fill(0),
    },
  });
  const forward = await engine.open(network);
  const random = createRandom(1);
  const noise = (dims: readonly number[]) => {
    const data = Float32Array.from({ length: elementCount(dims) }, () => random.normal());
    return { data, dims };
  };
  const pictures = noise(pictureDims);
  const lesson = {
    targets: noise([job.pictures, CLASSES]),
    teacherLogits: noise([job.pictures, CLASSES]),
    teacherFeatures: [],
  };
  const weights = step.parameters.map(({ initial }) => initial);
  const times: { forward: number[]; step: number[] } = { forward: [], step: [] };
  for (let round = 0; round <= ROUNDS; round++) {
    const start = performance.now();
    await forward.run({ [picture]: pictures });
    const middle = performance.now();
    await step.run(weights, { ...lesson, border: await step.freeze(pictures) });
    const end = performance.now();
    // The first of each also sets up its memory.
    if (round === 0) continue;
    times.forward.push(middle - start);
    times.step.push(end - middle);
  }
  await Promise.all([forward.release(), step.release(), engine.close()]);
  const [forwardMs, stepMs] = [median(times.forward), median(times.step)];
  const frozen =
    border === picture ? 0 : work(extractSubgraph(network, [picture], [border])) / work(network);
  return {
    ...job,
    frozenWork: frozen,
    trainedParameters: step.parameters.reduce((sum, { initial }) => sum + initial.length, 0),
    forwardMs,
    stepMs,
    ratio: stepMs / forwardMs,
    forwardGflop: (2 * work(network)) / 1e9,
    overBound: stepMs / (forwardMs * (frozen + 3 * (1 - frozen))),
    peakMemoryMiB: process.resourceUsage().maxRSS / 1024,
  };
}

/** Features of a network. */
function featuresOf(backbone: Graph, pictureDims: readonly number[]): number {
  const shapes = inferShapes(backbone, new Map([[backbone.inputs[0]!.name, pictureDims]]));
  return shapes.get(backbone.outputs[0]!.name)!.dims[1]!;
}

/** Multiplications of the layers of a part of a network, for all pictures. */
function multiplicationsOf(whole: Graph, part: Graph, pictureDims: readonly number[]): number {
  const shapes = inferShapes(whole, new Map([[whole.inputs[0]!.name, pictureDims]]));
  return findPrunableLayers(part).reduce((sum, { outputName, inFeaturesPerGroup }) => {
    return sum + elementCount(shapes.get(outputName)!.dims) * inFeaturesPerGroup;
  }, 0);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

if (import.meta.filename === process.argv[1]) {
  const [network = "efficientnet_b0_imagenet1k", pictures = "8", frozenWork = "0"] =
    process.argv.slice(2);
  const job = { network, pictures: Number(pictures), frozenWork: Number(frozenWork) };
  const figures = await measure(job);
  if (process.send) process.send(figures, () => process.disconnect());
  else process.stdout.write(`${JSON.stringify(figures, null, 2)}\n`);
}
