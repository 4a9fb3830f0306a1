import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { Command } from "commander";
import { integer } from "../agent/cli/arguments.ts";
import { generalistCache } from "../agent/cli/specialize.ts";
import { AgentError, messageOf } from "../agent/errors.ts";
import { DEFAULT_GENERALIST } from "../agent/generalist/catalog.ts";
import { DemoRefused, runDemo } from "./demo/journey.ts";

/** The command line's options, as commander reads them. */
interface Flags {
  images?: string;
  mqtt?: string;
  dir: string;
  seed: number;
  method: string;
}

const ROOT = join(import.meta.dirname, "..");
const abort = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => abort.abort());

async function main(): Promise<void> {
  const flags = new Command()
    .name("scripts/demo.sh")
    .description(
      "Shows a station at work, from a bare generalist to a compressed model that serves.",
    )
    .option(
      "--images <folder>",
      "your own pictures: a folder of class folders; default: drawn ones",
    )
    .option("--mqtt <url>", "your broker; default: one inside the demo")
    .option(
      "--dir <folder>",
      "folder of the station; emptied where an earlier demo made it",
      "demo-station",
    )
    .option("--seed <n>", "seed of the drawn pictures and of the run", integer(0), 3)
    .option("--method <method>", "what is done to the network", "unstructured:0.5")
    .parse()
    .opts<Flags>();
  const built = join(ROOT, "dist", "main.js");
  const fromRoot = process.cwd() === ROOT;
  await runDemo({
    dir: resolve(flags.dir),
    imagesDir: flags.images === undefined ? null : resolve(flags.images),
    mqttUrl: flags.mqtt ?? null,
    seed: flags.seed,
    method: flags.method,
    generalist: DEFAULT_GENERALIST,
    cacheDir: generalistCache(),
    taco: existsSync(built)
      ? [process.execPath, built]
      : [process.execPath, "--import", "tsx", join(ROOT, "agent", "main.ts")],
    shownTaco: fromRoot ? "npx taco" : `node ${built}`,
    framesPerSecond: 4,
    screen: process.stdout,
    signal: abort.signal,
  });
}

try {
  await main();
} catch (error) {
  if (abort.signal.aborted) {
    process.stderr.write("\ndemo: interrupted; everything was stopped\n");
    process.exitCode = 130;
  } else {
    const code = error instanceof AgentError ? `${error.code}: ` : "";
    process.stderr.write(`\ndemo: ${code}${messageOf(error)}\n`);
    const expected = error instanceof AgentError || error instanceof DemoRefused;
    if (!expected && error instanceof Error) process.stderr.write(`${error.stack ?? ""}\n`);
    process.exitCode = 1;
  }
}
