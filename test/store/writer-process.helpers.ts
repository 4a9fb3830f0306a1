import { fork } from "node:child_process";
import { join } from "node:path";
import { systemClock } from "../../agent/clock.ts";
import { createLogger } from "../../agent/log.ts";
import { openStore } from "../../agent/store/open.ts";
import { message, picture, prediction } from "./store.helpers.ts";

/**
 * Starts a process that records pictures with their predictions as fast as it can and names each
 * on standard output once it is written; kills it after `acknowledged` of them.
 *
 * @returns names of the pictures it said were written.
 */
export async function writeUntilKilled(
  folder: string,
  round: number,
  acknowledged: number,
): Promise<string[]> {
  const child = fork(import.meta.filename, [folder, String(round)], {
    execArgv: ["--import", "tsx"],
    stdio: ["ignore", "pipe", "inherit", "ipc"],
  });
  let output = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    output += chunk.toString();
    if (output.split("\n").length > acknowledged) child.kill("SIGKILL");
  });
  await new Promise((resolve) => child.once("close", resolve));
  return output.split("\n").slice(0, -1);
}

async function write(folder: string, round: string): Promise<void> {
  const { store } = await openStore({
    path: join(folder, "taco.db"),
    backupDir: join(folder, "backups"),
    keepBackups: 2,
    softwareVersion: "0.1.0",
    clock: systemClock,
    log: createLogger("fatal"),
  });
  for (let n = 0; n < 100_000; n++) {
    const name = `${round}-${n}`;
    const { mediaId } = store.pictures.recordPicture(picture(name));
    store.predictions.recordPrediction(prediction(mediaId), [message(name)]);
    process.stdout.write(`${name}\n`);
    // Lets the pipe drain, so that the parent reads at the writer's pace.
    if (n % 8 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

if (process.argv[1] === import.meta.filename) {
  await write(process.argv[2] ?? "", process.argv[3] ?? "");
}
