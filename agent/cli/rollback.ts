import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { Command } from "commander";
import { loadConfig } from "../config/load.ts";
import { putCommand } from "../station/control.ts";
import { askStation, isRunning } from "./control.ts";
import { print } from "./history.ts";

/** `taco rollback`: back to the model before, now or at the next start of the agent. */
export function rollbackCommand(): Command {
  return new Command("rollback")
    .description("go back to the model before the current one")
    .requiredOption("--config <file>", "the station's configuration")
    .option("--to <sha256>", "go back to this model instead")
    .action(async ({ config, to }: { config: string; to?: string }) => {
      const { station } = loadConfig(config, process.env);
      const payload = to === undefined ? {} : { toSha256: to };
      if (isRunning(station.dir)) {
        await askStation(config, "rollback", payload);
        return;
      }
      await putCommand(join(station.dir, "control"), "rollback", randomUUID(), payload);
      print("no agent runs: it will go back when it starts");
    });
}
