import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { AgentError, type ErrorCode } from "../errors.ts";
import type { GeneralistDescription } from "../generalist/description.ts";
import type { FirstModelRequest } from "../specialize/first-model.ts";

/** What the generalist child is asked. */
export interface GeneralistRequest {
  /** `generalist` of the configuration: a name, a path or a URL. */
  readonly source: string;
  readonly cacheDir: string;
  /** Pixels of the camera's banner, cut off every picture. */
  readonly cropTop: number;
  readonly cropBottom: number;
  /** Set where the model folder of a station without a model is to be made. */
  readonly firstModel: Omit<FirstModelRequest, "generalist"> | null;
}

/** What it answers. */
export type GeneralistAnswer =
  | { readonly kind: "ready"; readonly description: GeneralistDescription }
  | { readonly kind: "failed"; readonly code: ErrorCode; readonly message: string };

/**
 * Fetches (once) and describes the station's generalist in a process of its own.
 *
 * @throws {AgentError} with the code of what failed: no network, a wrong digest, no classifier.
 */
export function prepareGeneralist(
  request: GeneralistRequest,
  signal: AbortSignal,
): Promise<GeneralistDescription> {
  signal.throwIfAborted();
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  const script = fileURLToPath(new URL(`./generalist-child.${extension}`, import.meta.url));
  const child = fork(script, [], {
    serialization: "advanced",
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  return new Promise((resolve, reject) => {
    const stop = () => child.kill("SIGKILL");
    signal.addEventListener("abort", stop, { once: true });
    child.once("message", (answer: GeneralistAnswer) => {
      if (answer.kind === "ready") resolve(answer.description);
      else reject(new AgentError(answer.code, answer.message));
    });
    child.once("error", reject);
    child.once("exit", (code, killedBy) => {
      signal.removeEventListener("abort", stop);
      const how = killedBy ?? `exit code ${code}`;
      reject(new AgentError("GENERALIST_UNAVAILABLE", `the generalist child ended with ${how}`));
    });
    child.send(request);
  });
}
