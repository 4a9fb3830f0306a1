import { join } from "node:path";
import { Command } from "commander";
import { systemClock } from "../clock.ts";
import { loadConfig } from "../config/load.ts";
import { AgentError } from "../errors.ts";
import { createLogger } from "../log.ts";
import { ModelRegistry } from "../serve/registry.ts";
import { openStore } from "../store/open.ts";
import { lockStation } from "../store/station-lock.ts";
import { askStation, isRunning } from "./control.ts";
import { print } from "./history.ts";
import { softwareVersion } from "./version.ts";

/** `taco rollback`: back to the model before, through the running agent or without it. */
export function rollbackCommand(): Command {
  return new Command("rollback")
    .description("go back to the model before the current one")
    .requiredOption("--config <file>", "the station's configuration")
    .option("--to <sha256>", "go back to this model instead")
    .action(async ({ config, to }: { config: string; to?: string }) => {
      const { station } = loadConfig(config, process.env);
      const payload = to === undefined ? {} : { toSha256: to };
      if (isRunning(station.dir)) await askStation(config, "rollback", payload);
      else print(`${await rollbackStopped(config, to)} serves at the next start`);
    });
}

/** Turns the pointer back and records it, while no agent runs. */
async function rollbackStopped(configPath: string, wanted: string | undefined): Promise<string> {
  const { station, store: rules } = loadConfig(configPath, process.env);
  const lock = lockStation(join(station.dir, "station.lock"));
  try {
    const registry = new ModelRegistry({ modelsDir: join(station.dir, "models") });
    const { store } = await openStore({
      path: join(station.dir, "taco.db"),
      backupDir: join(station.dir, "backups"),
      keepBackups: rules.keepBackups,
      softwareVersion: softwareVersion(),
      clock: systemClock,
      log: createLogger("warn"),
    });
    try {
      const from = await registry.readCurrent();
      const to = wanted ?? (await registry.rollbackTarget());
      if (from === null || to === null || from === to) {
        throw new AgentError("REGISTRY_INVALID", "there is no earlier model to go back to");
      }
      const validity = await registry.validateModel(to);
      if (!validity.valid) {
        throw new AgentError("REGISTRY_INVALID", `${to} cannot serve: ${validity.reason}`);
      }
      const reason = "asked for by a person while the agent was stopped";
      const entry = { fromSha256: from, toSha256: to, kind: "rollback", runId: null } as const;
      const swap = store.swaps.beginSwap({ ...entry, reason });
      await registry.setCurrent(to);
      const open = store.swaps.currentProbation();
      if (open) store.swaps.decideSwap(open.id, "rolled_back", reason);
      store.swaps.markSwitched(swap, false);
      store.events.recordEvent({ kind: "rollback", text: `back from ${from} to ${to}: ${reason}` });
      return to;
    } finally {
      await store.close();
    }
  } finally {
    lock.release();
  }
}
