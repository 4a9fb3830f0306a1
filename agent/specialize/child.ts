import { readFile } from "node:fs/promises";
import * as v from "valibot";
import { AgentError, messageOf } from "../errors.ts";
import { createLogger } from "../log.ts";
import { createEngine } from "./engine.ts";
import { type ChildMessage, type EndTraining, runPaths } from "./run.ts";
import { runSpecSchema } from "./spec.ts";
import { runStages } from "./stages.ts";

/**
 * Entry of the specialize child: does the stages of the run whose folder it is given, tells its
 * parent how it goes, and writes nothing outside that folder. It may be killed at any moment.
 */
async function main(runDir: string): Promise<void> {
  process.once("disconnect", () => process.exit(1));
  const log = createLogger("warn");
  const endTraining = new AbortController();
  process.on("message", (message: EndTraining) => {
    if (message.type === "end-training") endTraining.abort();
  });
  const spec = v.parse(runSpecSchema, JSON.parse(await readFile(runPaths(runDir).spec, "utf8")));
  const engine = await createEngine({ ...spec.options, log });
  try {
    await runStages({
      spec,
      runDir,
      engine,
      log,
      onStage: (stage, report) =>
        tell(report ? { type: "stage-finished", stage, report } : { type: "stage-started", stage }),
      onProgress: (stage, done, total) => tell({ type: "progress", stage, done, total }),
      onTrained: (point) => tell({ type: "trained", stage: "fine-tune", point }),
      endTraining: endTraining.signal,
      // A run is stopped by killing this process.
      signal: new AbortController().signal,
    });
  } finally {
    await engine.close();
  }
  // maxRSS is in kilobytes (getrusage(2)).
  tell({ type: "finished", peakMemoryBytes: process.resourceUsage().maxRSS * 1024 });
}

function tell(message: ChildMessage): void {
  process.send?.(message);
}

try {
  await main(process.argv[2] ?? "");
  process.disconnect();
} catch (error) {
  const code = error instanceof AgentError ? error.code : "RUN_FAILED";
  process.send?.({ type: "failed", code, message: messageOf(error) } satisfies ChildMessage, () => {
    process.exit(1);
  });
}
