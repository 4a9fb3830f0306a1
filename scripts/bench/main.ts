import { cpus, totalmem } from "node:os";
import { Command } from "commander";
import { benchBaselines } from "./baselines.ts";
import { benchBreadth } from "./breadth.ts";
import { benchFineTune } from "./fine-tune.ts";
import { benchGradient } from "./gradient.ts";
import { benchInt8 } from "./int8.ts";
import { benchPass } from "./pass.ts";
import { benchServing } from "./serving.ts";
import { benchSpecialize } from "./specialize.ts";
import { benchSpeed } from "./speed.ts";
import { benchStation } from "./station.ts";
import { benchSwap } from "./swap.ts";

/** Every benchmark by name; each compares two things in one run, or says where time goes. */
const BENCHMARKS: Readonly<Record<string, () => Promise<object>>> = {
  serving: () => benchServing(),
  int8: () => benchInt8(),
  swap: () => benchSwap(),
  station: () => benchStation(),
  specialize: () => benchSpecialize(),
  speed: () => benchSpeed(),
  gradient: () => benchGradient(),
  "fine-tune": () => benchFineTune(),
  pass: () => benchPass(),
  baselines: () => benchBaselines(),
  breadth: () => benchBreadth(),
};

const program = new Command("bench")
  .description("prints one JSON object; run it on a quiet machine")
  .argument("[names...]", `benchmarks to run: ${Object.keys(BENCHMARKS).join(", ")}`)
  .action(async (names: string[]) => {
    const results: Record<string, object> = {};
    for (const [name, run] of Object.entries(BENCHMARKS)) {
      if (names.length > 0 && !names.includes(name)) continue;
      process.stderr.write(`${name} …\n`);
      results[name] = await run();
    }
    const machine = {
      node: process.version,
      cpu: cpus()[0]?.model ?? "unknown",
      cores: cpus().length,
      memoryBytes: totalmem(),
    };
    process.stdout.write(`${JSON.stringify({ machine, ...results }, null, 2)}\n`);
  });
await program.parseAsync();
