import { AgentError, messageOf } from "../errors.ts";
import { resolveGeneralist } from "../generalist/add.ts";
import { createLogger } from "../log.ts";
import { writeFirstModel } from "../specialize/first-model.ts";
import type { GeneralistAnswer, GeneralistRequest } from "./generalist.ts";

/**
 * Entry of the generalist child: fetches, converts and describes the station's generalist and,
 * where asked, makes the model folder that the station serves before its first run. A process of
 * its own, since the supervisor neither opens models nor holds them in memory.
 */
async function main(request: GeneralistRequest): Promise<GeneralistAnswer> {
  const log = createLogger("info");
  const { source, cacheDir, cropTop, cropBottom, firstModel } = request;
  const description = await resolveGeneralist({ source, dir: cacheDir, log });
  const preprocessing = { ...description.preprocessing, cropTop, cropBottom };
  if (firstModel !== null) {
    const generalist = { ...description, preprocessing };
    await writeFirstModel({ ...firstModel, generalist }, log);
  }
  return { kind: "ready", description };
}

process.once("disconnect", () => process.exit(1));
process.once("message", (request: GeneralistRequest) => {
  main(request)
    .catch((error: unknown): GeneralistAnswer => {
      const code = error instanceof AgentError ? error.code : "GENERALIST_UNAVAILABLE";
      return { kind: "failed", code, message: messageOf(error) };
    })
    .then((answer) => process.send?.(answer, () => process.exit(0)))
    .catch((error: unknown) => {
      process.stderr.write(`${messageOf(error)}\n`);
      process.exit(1);
    });
});
