import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { systemClock } from "../../agent/clock.ts";
import { sha256 } from "../../agent/files.ts";
import { createLogger } from "../../agent/log.ts";
import type { ModelManifest } from "../../agent/model.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { makeKnownAnswers } from "../../agent/runtime/known-answers.ts";
import { openSession } from "../../agent/runtime/session.ts";
import { Inference } from "../../agent/serve/inference.ts";
import { ModelRegistry } from "../../agent/serve/registry.ts";

const BENCH = join(import.meta.dirname, "..", "..", "..", "shared", "bench");
const MODEL = join(BENCH, "models", "efficientnet_b0_imagenet1k.onnx");
const PICTURES = join(BENCH, "images", "camera-trap", "images");
const SIDE = 224;
const LOG = createLogger("error");

/** How sessions are opened here, in the child and in the bare loop alike. */
export const SESSION = { executionProviders: ["cpu"], intraOpThreads: 0, log: LOG } as const;

/** A registry with two models of the same network, pictures, and inference not yet started. */
export interface ServingSubject {
  /** What was measured, for the report. */
  name: string;
  registry: ModelRegistry;
  /** Two models that differ in their bytes alone; the first is current. */
  sha256s: readonly [string, string];
  pictures: readonly string[];
  inference: Inference;
  /** Stops inference and removes the folder. */
  close(): Promise<void>;
}

/**
 * EfficientNet-B0 and camera-trap frames of the bench data, or a built network of about the same
 * work and drawn pictures where they are absent.
 */
export async function openServingSubject(pictureCount: number): Promise<ServingSubject> {
  const folder = await mkdtemp(join(tmpdir(), "taco-bench-"));
  const real = existsSync(MODEL) && existsSync(PICTURES);
  const network = real ? await readFile(MODEL) : builtNetwork();
  const registry = new ModelRegistry({ modelsDir: join(folder, "models") });
  const first = await publish(registry, network);
  // The same network under another name: other bytes, equal work.
  const graph = readGraph(network);
  const second = await publish(registry, writeGraph({ ...graph, name: `${graph.name} again` }));
  await registry.setCurrent(first);
  const pictures = real
    ? (await readdir(PICTURES, { recursive: true }))
        .filter((name) => name.endsWith(".jpg"))
        .sort()
        .slice(0, pictureCount)
        .map((name) => join(PICTURES, name))
    : await drawPictures(folder, pictureCount);
  const inference = new Inference({
    currentModelDir: async () => registry.folder((await registry.readCurrent()) ?? first),
    ...SESSION,
    queueLength: 16,
    memoryLimitMb: 1500,
    heartbeatMs: 5000,
    hangMs: 60_000,
    maxMegapixels: 100,
    clock: systemClock,
  });
  return {
    name: real ? "efficientnet_b0, camera-trap frames of 640×640" : "built network, drawn frames",
    registry,
    sha256s: [first, second],
    pictures,
    inference,
    close: async () => {
      await inference.stop();
      await rm(folder, { recursive: true });
    },
  };
}

async function publish(registry: ModelRegistry, onnx: Uint8Array): Promise<string> {
  const session = await openSession(onnx, SESSION);
  try {
    const [output] = session.outputs;
    const count = Number(output?.dims[1]);
    const manifest: ModelManifest = {
      formatVersion: 1,
      sha256: sha256(onnx),
      name: "bench",
      createdAt: new Date(0).toISOString(),
      softwareVersion: "bench",
      origin: {
        generalist: "bench",
        generalistSha256: sha256("bench"),
        run: null,
        incumbentSha256: null,
      },
      classes: Array.from({ length: count }, (_, i) => `class ${i}`),
      inputName: "input",
      outputName: output?.name ?? "logits",
      preprocessing: {
        height: SIDE,
        width: SIDE,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        resize: { mode: "shortSide", size: 256 },
        kernel: "cubic",
        cropTop: 0,
        cropBottom: 0,
      },
      metrics: null,
      layers: [],
    };
    const knownAnswers = await makeKnownAnswers(session, manifest, [1, 2], 1e-3);
    return await registry.publishModel({ onnx, manifest, knownAnswers });
  } finally {
    await session.release();
  }
}

/** Convolutions of 64 channels at 56², about 0.4 GMAC as EfficientNet-B0 has. */
function builtNetwork(): Uint8Array {
  const kernel = (outputs: number, inputs: number, side: number) =>
    floatTensor(
      [outputs, inputs, side, side],
      Array.from({ length: outputs * inputs * side * side }, (_, i) => (((i * 7) % 11) - 5) / 500),
    );
  const nodes = [node("Conv", ["input", "stem"], ["x0"], { strides: [4, 4] })];
  const initializers: Record<string, ReturnType<typeof kernel>> = { stem: kernel(64, 3, 4) };
  for (let i = 0; i < 4; i++) {
    initializers[`kernel${i}`] = kernel(64, 64, 3);
    nodes.push(node("Conv", [`x${i}`, `kernel${i}`], [`x${i + 1}`], { pads: [1, 1, 1, 1] }));
  }
  nodes.push(node("GlobalAveragePool", ["x4"], ["pooled"]));
  nodes.push(node("Flatten", ["pooled"], ["logits"], { axis: 1 }));
  return writeGraph(
    buildModel({
      inputs: [floatValue("input", ["N", 3, SIDE, SIDE])],
      outputs: [floatValue("logits", ["N", 64])],
      nodes,
      initializers,
    }),
  );
}

async function drawPictures(folder: string, count: number): Promise<string[]> {
  const paths: string[] = [];
  for (let i = 0; i < count; i++) {
    const path = join(folder, `picture-${i}.jpg`);
    const noise = { type: "gaussian", mean: 80 + i, sigma: 30 } as const;
    const image = { width: 640, height: 640, channels: 3, background: "gray", noise } as const;
    await sharp({ create: image }).jpeg().toFile(path);
    paths.push(path);
  }
  return paths;
}

/** The value below which a share of the samples lies; NaN where there are none. */
export function percentile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}
