import { join } from "node:path";
import type { Clock } from "../clock.ts";
import { AgentError } from "../errors.ts";
import type { Logger } from "../log.ts";
import {
  knownAnswersSchema,
  type ModelManifest,
  modelManifestSchema,
  readModelJson,
} from "../model.ts";
import { runClassifier } from "../runtime/classifier.ts";
import { checkKnownAnswers, seededPicture } from "../runtime/known-answers.ts";
import { type ModelSession, openSession } from "../runtime/session.ts";
import type { ChildSettings, OpenedModel } from "./protocol.ts";

/** Runs before a model is called warm: the first ones allocate, and choose kernels on a GPU. */
const WARM_UP_RUNS = 2;

/** A model folder's manifest and its open session. */
export interface ServedModel {
  manifest: ModelManifest;
  session: ModelSession;
  opened: OpenedModel;
}

/**
 * Opens a model folder, warms it up and checks its known answers.
 *
 * @throws {AgentError} MODEL_INVALID or MODEL_CHECK_FAILED; nothing is left open then.
 */
export async function openServedModel(
  folder: string,
  settings: ChildSettings,
  parts: { log: Logger; clock: Clock },
): Promise<ServedModel> {
  const startMs = parts.clock.monotonicMs();
  const manifest = await readModelJson(join(folder, "model.json"), modelManifestSchema);
  const known = await readModelJson(join(folder, "check.json"), knownAnswersSchema);
  const { executionProviders, intraOpThreads } = settings;
  const session = await openSession(join(folder, "model.onnx"), {
    executionProviders,
    intraOpThreads,
    log: parts.log,
  });
  // The known answers are a warm-up of their own, so they come first: shapes are checked there.
  const outcome = await checkKnownAnswers(session, manifest, known);
  if (!outcome.ok) {
    await session.release();
    throw new AgentError("MODEL_CHECK_FAILED", `${manifest.sha256}: ${outcome.reason}`);
  }
  const picture = seededPicture(0, manifest.preprocessing);
  for (let run = 0; run < WARM_UP_RUNS; run++) await runClassifier(session, manifest, picture);
  const opened = {
    sha256: manifest.sha256,
    provider: session.provider,
    fallbacks: [...session.fallbacks],
    loadMs: parts.clock.monotonicMs() - startMs,
    worstDifference: outcome.worst,
  };
  return { manifest, session, opened };
}
