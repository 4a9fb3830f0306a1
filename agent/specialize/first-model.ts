import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { sha256, writeFileAtomic, writeJsonAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import type { ModelManifest, Preprocessing } from "../model.ts";
import { writeGraph } from "../onnx/graph.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { makeKnownAnswers } from "../runtime/known-answers.ts";
import { openSession } from "../runtime/session.ts";
import { createEngine } from "./engine.ts";
import { loadNetwork } from "./network.ts";
import { ANSWER_SEEDS, ANSWER_TOLERANCE } from "./stages.ts";

/** What a station serves before its first run: the generalist as it is. */
export interface FirstModelRequest {
  readonly generalist: {
    readonly name: string;
    readonly sha256: string;
    readonly modelPath: string;
    readonly classes: readonly string[];
    readonly preprocessing: Preprocessing;
  };
  /** Folder to write `model.onnx`, `model.json` and `check.json` into; emptied first. */
  readonly outDir: string;
  readonly createdAt: string;
  readonly softwareVersion: string;
  readonly executionProviders: readonly string[];
  readonly intraOpThreads: number;
}

/**
 * Makes a model folder of a generalist with all its own classes: its graph normalized and cut at
 * the logits, with known answers.
 *
 * @throws {AgentError} MODEL_INVALID where it is no classifier that this code understands.
 */
export async function writeFirstModel(request: FirstModelRequest, log: Logger): Promise<void> {
  const { generalist, outDir } = request;
  const engine = await createEngine({ ...request, log });
  try {
    const { preprocessing, modelPath } = generalist;
    const network = await loadNetwork(await readFile(modelPath), preprocessing, engine);
    const { graph, head } = network;
    const inputName = network.inputName;
    // A trailing softmax goes: models of this agent give logits.
    const logits =
      head.cut === null ? graph : extractSubgraph(graph, [inputName], [head.logitsName]);
    const file = writeGraph(logits);
    const manifest: ModelManifest = {
      formatVersion: 1,
      sha256: sha256(file),
      name: `${generalist.name} · generalist`,
      createdAt: request.createdAt,
      softwareVersion: request.softwareVersion,
      origin: {
        generalist: generalist.name,
        generalistSha256: generalist.sha256,
        run: null,
        incumbentSha256: null,
      },
      classes: [...generalist.classes],
      inputName,
      outputName: logits.outputs[0]!.name,
      preprocessing,
      metrics: null,
      layers: [],
    };
    const session = await openSession(file, { ...request, log });
    try {
      const answers = await makeKnownAnswers(session, manifest, ANSWER_SEEDS, ANSWER_TOLERANCE);
      await rm(outDir, { recursive: true, force: true });
      await mkdir(outDir, { recursive: true });
      await writeJsonAtomic(join(outDir, "check.json"), answers);
    } finally {
      await session.release();
    }
    await writeFileAtomic(join(outDir, "model.onnx"), file);
    await writeJsonAtomic(join(outDir, "model.json"), manifest);
  } finally {
    await engine.close();
  }
}
