import { readFile, rm } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { InferenceSession } from "onnxruntime-node";
import { createLogger } from "../../agent/log.ts";
import { findSwishes } from "../../agent/onnx/activations.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { findChannelGroups } from "../../agent/onnx/channel-groups.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { keepUnits } from "../../agent/onnx/keep-units.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { swapForIntegers } from "../../agent/specialize/activation-swap.ts";
import { measureShapes } from "../../agent/specialize/border.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { compareLatency } from "../../agent/specialize/graph-latency.ts";
import { loadNetwork } from "../../agent/specialize/network.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { widthOf } from "../../agent/specialize/pipeline.ts";
import { quantizeNetwork } from "../../agent/specialize/quantize-network.ts";
import { simplifyNetwork } from "../../agent/specialize/simplify-network.ts";
import { buildNetwork } from "../networks/build-network.ts";
import { meanWithInterval } from "./interval.ts";
import { benchDataPresent, openSpecialist, type Specialist } from "./specialist.ts";

/** What to measure. */
export interface Int8Options {
  /** Models of the bench data; default EfficientNet-B0, MobileNetV2 and ViT-Tiny. */
  readonly models?: readonly string[];
  /** Seeds of the shots; default 5 of them. */
  readonly seeds?: readonly number[];
}

const MODELS = [
  "efficientnet_b0_imagenet1k",
  "mobilenetv2_1.0_imagenet1k",
  "vit_tiny_patch16_224_imagenet1k",
];
const CALIBRATION_PICTURES = 160;
const SIDE = 224;

/**
 * What 8-bit integers cost in accuracy and bring in speed, against the float network: a head is
 * fitted on each one's features of the same 32 shots a class and judged on the same held-out
 * pictures. Networks with swish are also measured with what integers compute faster in its place:
 * `swapped` hard-swish and, as far as the error allows, ReLU; `relu` ReLU everywhere. Then the speed of the
 * ResNet-50 shape with random weights.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchInt8(options: Int8Options = {}): Promise<object> {
  if (!benchDataPresent()) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const { models = MODELS, seeds = [1, 2, 3, 4, 5] } = options;
  const rows: object[] = [];
  for (const model of models) rows.push(await benchModel(model, seeds));
  return { rows, shapes: [await benchShape()] };
}

/** One form of a network, by what was done to it. */
type Forms = Readonly<Record<string, Graph>>;

async function benchModel(model: string, seeds: readonly number[]): Promise<object> {
  const runs: Awaited<ReturnType<typeof judge>>[] = [];
  let speed: object = {};
  for (const [at, seed] of seeds.entries()) {
    process.stderr.write(`  ${model}, seed ${seed} …\n`);
    const specialist = await openSpecialist({
      model,
      labels: "monkeys-10",
      shots: 32,
      seed,
      calibrationPictures: CALIBRATION_PICTURES,
    });
    try {
      const forms = await makeForms(specialist.network.backbone, specialist.environment());
      runs.push(await judge(specialist, forms));
      if (at === 0) speed = await speedOf(forms, specialist.engine);
    } finally {
      await specialist.close();
    }
  }
  const names = Object.keys(runs[0]?.accuracy ?? {}).filter((name) => name !== "float");
  const differencePoints = names.map((name) => {
    const differences = runs.map(({ accuracy }) => 100 * (accuracy[name]! - accuracy["float"]!));
    return [name, meanWithInterval(differences)] as const;
  });
  return { model, differencePoints: Object.fromEntries(differencePoints), speed, runs };
}

async function makeForms(dense: Graph, environment: CompressEnvironment): Promise<Forms> {
  const forms: Record<string, Graph> = { float: dense };
  forms["int8"] = (await quantizeNetwork(dense, environment)).graph;
  if (findSwishes(dense).length === 0) return forms;
  const swapped = (await swapForIntegers(dense, environment)).graph;
  forms["swapped"] = swapped;
  forms["swapped+int8"] = (await quantizeNetwork(swapped, environment)).graph;
  const cheaper = { activations: "relu", gates: "keep" } as const;
  const relu = await simplifyNetwork(dense, { ...environment, ...cheaper });
  forms["relu"] = relu.graph;
  forms["relu+int8"] = (await quantizeNetwork(relu.graph, environment)).graph;
  return forms;
}

async function judge(specialist: Specialist, forms: Forms) {
  const { engine, calibration } = specialist;
  const { signal } = specialist.environment();
  const few = { batches: 8, read: (batch: number) => calibration.read(batch) };
  const wanted = await outputsOf(forms["float"]!, few, engine, signal);
  const accuracy: Record<string, number> = {};
  const relativeError: Record<string, number> = {};
  for (const [name, graph] of Object.entries(forms)) {
    accuracy[name] = (await specialist.evaluate(graph)).accuracy;
    const outputs = await outputsOf(graph, few, engine, signal);
    relativeError[name] = compareOutputs(wanted, outputs).relativeError;
  }
  return { accuracy, relativeError };
}

/** Times of all forms by turns, and how far the integer ones are from what arithmetic allows. */
async function speedOf(forms: Forms, engine: Engine): Promise<object> {
  const names = Object.keys(forms);
  const rates = await bestRates(engine);
  const products = new Map<string, number>();
  for (const name of names) {
    products.set(name, await countProducts(forms[floatOf(name)]!, engine));
  }
  const byBatch: Record<string, object> = {};
  for (const batch of [1, 8]) {
    const timed = names.map((name) => ({ graph: forms[name]!, height: SIDE, width: SIDE }));
    const times = await compareLatency(timed, batch, engine, new AbortController().signal);
    byBatch[`batch${batch}`] = Object.fromEntries(
      names.map((name, i) => {
        const integer = name.endsWith("int8");
        const limitMs = (1e3 * batch * products.get(name)!) / (integer ? rates.int8 : rates.float);
        const milliseconds = times[i]!;
        const speedup = times[0]! / milliseconds;
        return [name, { milliseconds, speedup, overLimit: milliseconds / limitMs }] as const;
      }),
    );
  }
  const nodes: Record<string, object> = {};
  for (const name of names) nodes[name] = await nodesOf(forms[name]!);
  return {
    ...byBatch,
    multiplications: Object.fromEntries(products),
    bestPerSecond: rates,
    nodes,
  };
}

/** The form that an integer one was made of. */
function floatOf(name: string): string {
  return name.replace(/\+?int8$/, "") || "float";
}

/** Multiplications of all layers for one picture. */
async function countProducts(graph: Graph, engine: Engine): Promise<number> {
  const layers = findPrunableLayers(graph);
  const names = layers.map(({ outputName }) => outputName);
  const shapes = await measureShapes(graph, names, engine, onePicture());
  return layers.reduce((sum, { outputName, inFeaturesPerGroup }) => {
    const outputs = shapes.get(outputName)!.reduce((product, dim) => product * dim, 1);
    return sum + outputs * inFeaturesPerGroup;
  }, 0);
}

function onePicture(batches = 1, pictures = 1): Calibration {
  const count = pictures * 3 * SIDE * SIDE;
  return {
    batches,
    read: (batch) => {
      const data = Float32Array.from({ length: count }, (_, i) => Math.sin(i * (1 + batch / 9)));
      return Promise.resolve({ data, dims: [pictures, 3, SIDE, SIDE] });
    },
  };
}

/** Multiplications a second of a square product that fits the caches, in float and in int8. */
async function bestRates(engine: Engine): Promise<{ float: number; int8: number }> {
  const side = 1024;
  const weights = Float32Array.from({ length: side * side }, (_, i) => Math.sin(i));
  const pixels = buildModel({
    inputs: [floatValue("x", ["N", side, 16, 16])],
    outputs: [floatValue("y", ["N", side, 16, 16])],
    nodes: [
      node("Conv", ["x", "w"], ["y0"]),
      node("Conv", ["y0", "w"], ["y1"]),
      node("Conv", ["y1", "w"], ["y"]),
    ],
    initializers: {
      w: floatTensor(
        [side, side, 1, 1],
        weights.map((w) => w / side),
      ),
    },
  });
  const { graph: integers } = await quantizeNetwork(pixels, {
    engine,
    calibration: {
      batches: 1,
      read: () => {
        const data = Float32Array.from({ length: side * 256 }, (_, i) => Math.cos(i));
        return Promise.resolve({ data, dims: [1, side, 16, 16] });
      },
    },
    workDir: tmpdir(),
    memoryBytes: 0,
    damping: 0.01,
    onProgress: () => undefined,
    signal: new AbortController().signal,
    largestError: Number.POSITIVE_INFINITY,
  });
  const data = Float32Array.from({ length: side * 256 }, (_, i) => Math.cos(i));
  const feeds = { x: { data, dims: [1, side, 16, 16] } };
  const rate = async (graph: Graph): Promise<number> => {
    const session = await engine.open(graph);
    let best = Number.POSITIVE_INFINITY;
    for (let round = 0; round < 12; round++) {
      const start = performance.now();
      await session.run(feeds);
      best = Math.min(best, performance.now() - start);
    }
    await session.release();
    return (3 * 256 * side * side) / (best / 1e3);
  };
  return { float: await rate(pixels), int8: await rate(integers) };
}

/** Nodes of the model as ONNX Runtime optimizes it, by operator. */
async function nodesOf(graph: Graph): Promise<Record<string, number>> {
  const path = join(tmpdir(), `taco-bench-optimized-${process.pid}.onnx`);
  try {
    const session = await InferenceSession.create(writeGraph(graph), {
      optimizedModelFilePath: path,
      logSeverityLevel: 3,
      intraOpNumThreads: availableParallelism(),
    });
    await session.release();
    const counts: Record<string, number> = {};
    for (const { opType } of readGraph(await readFile(path)).nodes) {
      counts[opType] = (counts[opType] ?? 0) + 1;
    }
    return counts;
  } finally {
    await rm(path, { force: true });
  }
}

/**
 * The ResNet-50 shape: speed alone, as its weights are random. `narrowed` has half of the channels
 * of every group, the residual streams included, which leaves a third of the parameters.
 */
async function benchShape(): Promise<object> {
  const log = createLogger("error");
  const engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 0, log });
  try {
    const bytes = writeGraph(buildNetwork("resnet-50"));
    const { backbone } = await loadNetwork(bytes, { height: SIDE, width: SIDE }, engine);
    const narrowed = halfOfAllUnits(backbone);
    const forms = {
      float: backbone,
      int8: await shapeInIntegers(backbone, engine),
      narrowed,
      "narrowed+int8": await shapeInIntegers(narrowed, engine),
    };
    const share = countParameters(narrowed).parameters / countParameters(backbone).parameters;
    return {
      shape: "resnet-50",
      parametersOfNarrowed: share,
      speed: await speedOf(forms, engine),
    };
  } finally {
    await engine.close();
  }
}

/** Any units: it is the shape that is timed. */
function halfOfAllUnits(graph: Graph): Graph {
  return findChannelGroups(graph).groups.reduce((narrower, group) => {
    const half = Array.from({ length: widthOf(group.units / 2, group.units) }, (_, unit) => unit);
    return keepUnits(narrower, group, half);
  }, graph);
}

async function shapeInIntegers(graph: Graph, engine: Engine): Promise<Graph> {
  const quantized = await quantizeNetwork(graph, {
    engine,
    calibration: onePicture(4, 2),
    workDir: tmpdir(),
    memoryBytes: 2 ** 27,
    damping: 0.01,
    onProgress: () => undefined,
    signal: new AbortController().signal,
    largestError: Number.POSITIVE_INFINITY,
  });
  return quantized.graph;
}
