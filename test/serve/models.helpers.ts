import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import sharp from "sharp";
import { systemClock } from "../../agent/clock.ts";
import { systemCode } from "../../agent/errors.ts";
import { sha256 } from "../../agent/files.ts";
import { createLogger } from "../../agent/log.ts";
import type { KnownAnswers, ModelManifest } from "../../agent/model.ts";
import { makeKnownAnswers } from "../../agent/runtime/known-answers.ts";
import { openSession } from "../../agent/runtime/session.ts";
import { Inference, type InferenceOptions } from "../../agent/serve/inference.ts";
import { ModelRegistry, type ModelToPublish } from "../../agent/serve/registry.ts";
import { type TinyModel, tinyModel } from "../tiny-models.helpers.ts";

export const LOG = createLogger("silent");

/** A small model that answers every picture with class number `favorite`. */
export function favoring(favorite: number, more: Partial<TinyModel> = {}): TinyModel {
  return { classes: ["deer", "fox", "boar", "empty"], side: 32, favorite, ...more };
}

/** The manifest of a tiny model. */
export function manifestOf(
  model: TinyModel,
  onnx: Uint8Array,
  more: { createdAt?: string; incumbentSha256?: string | null } = {},
): ModelManifest {
  return {
    formatVersion: 1,
    sha256: sha256(onnx),
    name: "tiny",
    createdAt: more.createdAt ?? "2026-05-01T00:00:00.000Z",
    softwareVersion: "0.1.0",
    origin: {
      generalist: "tiny",
      generalistSha256: sha256("tiny"),
      run: null,
      incumbentSha256: more.incumbentSha256 ?? null,
    },
    classes: [...model.classes],
    inputName: "input",
    outputName: "logits",
    preprocessing: {
      height: model.side,
      width: model.side,
      mean: [0.5, 0.5, 0.5],
      std: [0.25, 0.25, 0.25],
      resize: { mode: "stretch" },
      kernel: "cubic",
      cropTop: 0,
      cropBottom: 0,
    },
    metrics: null,
    layers: [],
  };
}

/** A tiny model with its true known answers, ready to be published. */
export async function publishable(
  model: TinyModel,
  more: { createdAt?: string; incumbentSha256?: string | null } = {},
): Promise<ModelToPublish & { onnx: Uint8Array; knownAnswers: KnownAnswers }> {
  const onnx = tinyModel(model);
  const manifest = manifestOf(model, onnx, more);
  const options = { executionProviders: ["cpu"], intraOpThreads: 1, log: LOG };
  const session = await openSession(onnx, options);
  try {
    const knownAnswers = await makeKnownAnswers(session, manifest, [1, 2], 1e-3);
    return { onnx, manifest, knownAnswers };
  } finally {
    await session.release();
  }
}

/** A folder that is removed when the test ends. */
export async function temporaryFolder(context: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "taco-serve-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Writes JPEGs of a few plain colors. */
export async function writePictures(folder: string, count: number): Promise<string[]> {
  const paths = Array.from({ length: count }, (_, i) => join(folder, `picture-${i}.jpg`));
  for (const [i, path] of paths.entries()) {
    const background = { r: (i * 40) % 256, g: (i * 90) % 256, b: 120 };
    await sharp({ create: { width: 160, height: 120, channels: 3, background } })
      .jpeg()
      .toFile(path);
  }
  return paths;
}

/** A registry with the given models, the first of them current, and inference not yet started. */
export async function station(
  context: TestContext,
  models: readonly TinyModel[],
  options: Partial<InferenceOptions> = {},
) {
  const folder = await temporaryFolder(context);
  const registry = new ModelRegistry({ modelsDir: join(folder, "models") });
  const ids: string[] = [];
  for (const model of models) ids.push(await registry.publishModel(await publishable(model)));
  await registry.setCurrent(ids[0]!);
  const inference = new Inference({
    currentModelDir: async () => registry.folder((await registry.readCurrent())!),
    executionProviders: ["cpu"],
    intraOpThreads: 1,
    queueLength: 8,
    memoryLimitMb: 2000,
    heartbeatMs: 100,
    hangMs: 5000,
    maxMegapixels: 100,
    clock: systemClock,
    log: LOG,
    ...options,
  });
  context.after(() => inference.stop(0));
  const pictures = await writePictures(folder, 5);
  return { folder, registry, ids, inference, pictures };
}

/** Classifies `count` pictures as fast as there is room. */
export async function feed(inference: Inference, pictures: readonly string[], count: number) {
  const calls = [];
  for (let i = 0; i < count; i++) {
    await inference.room();
    calls.push(inference.classify({ path: pictures[i % pictures.length]! }));
  }
  return Promise.all(calls);
}

/** Whether a process exists. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    if (systemCode(error) === "ESRCH") return false;
    throw error;
  }
}
