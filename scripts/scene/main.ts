import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { messageOf } from "../../agent/errors.ts";
import { writeFileAtomic } from "../../agent/files.ts";
import { drawBurst, frameName } from "./burst.ts";
import { planBursts } from "./plan.ts";
import { LABELS, type Species } from "./species.ts";
import { createStation } from "./station.ts";

/** The command line's options, as commander reads them. */
interface Options {
  out: string;
  seed: number;
  bursts: number;
  station: string;
  labeled: boolean;
  species: Species[];
  atLeast: number;
  firstDay: string;
}

function integer(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new InvalidArgumentError("expected a whole number, 0 or more");
  }
  return value;
}

function speciesList(text: string): Species[] {
  return text.split(",").map((name) => {
    const known = LABELS.find((label) => label === name.trim());
    if (!known) throw new InvalidArgumentError(`expected some of ${LABELS.join(", ")}`);
    return known;
  });
}

async function main(): Promise<void> {
  const command = new Command()
    .name("scene")
    .description("Draws camera-trap bursts into a folder; every frame says that it is drawn.")
    .requiredOption("--out <folder>", "where the frames go; made if missing")
    .option("--seed <n>", "the same seed draws the same bytes", integer, 1)
    .option("--bursts <n>", "how many bursts of 3 to 5 frames", integer, 20)
    .option("--station <name>", "name in the banner; another name is another place", "HV0406")
    .option("--labeled", "a folder for each species instead of one for all", false)
    .option("--species <list>", "comma-separated", speciesList, [...LABELS])
    .option("--at-least <n>", "bursts that every species has at least", integer, 0)
    .option("--first-day <date>", "YYYY-MM-DD", "2026-05-01");
  const options = command.parse().opts<Options>();
  const { seed, bursts, species, atLeast, firstDay } = options;
  const plan = planBursts({ seed, bursts, species, atLeast, firstDay });
  const station = await createStation({ seed, name: options.station });
  const startedMs = performance.now();
  let frames = 0;
  for (const burst of plan) {
    const folder = options.labeled ? join(options.out, burst.species) : options.out;
    await mkdir(folder, { recursive: true });
    for (const frame of await drawBurst({ station, ...burst })) {
      await writeFileAtomic(join(folder, frameName(station, frame)), frame.jpeg);
      frames++;
    }
  }
  const seconds = (performance.now() - startedMs) / 1000;
  process.stdout.write(
    `${frames} frames of ${plan.length} bursts in ${options.out}, ${(frames / seconds).toFixed(1)} frames/s\n`,
  );
}

main().catch((error: unknown) => {
  process.stderr.write(`scene: ${messageOf(error)}\n`);
  process.exitCode = 1;
});
