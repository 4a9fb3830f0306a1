import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { systemClock } from "../clock.ts";
import { loadConfig } from "../config/load.ts";
import { AgentError } from "../errors.ts";
import { putCommand } from "../station/control.ts";
import { openStoreReadOnly } from "../store/open.ts";
import { lockStation } from "../store/station-lock.ts";

const POLL_MS = 500;

/**
 * Has the running agent of a station carry out a command, as the fleet would, and waits for its
 * end. Prints how it ended.
 *
 * @throws {AgentError} STATION_BUSY where no agent runs, COMMAND_INVALID where the command failed.
 */
export async function askStation(configPath: string, op: string, payload: unknown): Promise<void> {
  const { station } = loadConfig(configPath, process.env);
  if (!isRunning(station.dir)) {
    throw new AgentError(
      "STATION_BUSY",
      `no agent runs on ${station.dir}: start it with 'taco run --config ${configPath}' first`,
    );
  }
  const id = randomUUID();
  await putCommand(join(station.dir, "control"), op, id, payload);
  for (;;) {
    await systemClock.sleep(POLL_MS);
    const command = readCommand(station.dir, id);
    if (command?.state === "successful") {
      process.stdout.write(`${command.reason ?? "done"}\n`);
      return;
    }
    if (command?.state === "failed") {
      throw new AgentError("COMMAND_INVALID", command.reason ?? "the command failed");
    }
    if (!isRunning(station.dir)) {
      throw new AgentError("STATION_BUSY", "the agent was stopped before it had finished");
    }
  }
}

/** Whether some process holds the station. */
export function isRunning(stationDir: string): boolean {
  try {
    lockStation(join(stationDir, "station.lock")).release();
    return false;
  } catch (error) {
    if (error instanceof AgentError && error.code === "STATION_BUSY") return true;
    throw error;
  }
}

function readCommand(stationDir: string, id: string) {
  const store = openStoreReadOnly(join(stationDir, "taco.db"));
  try {
    return store.reports.findCommand(id);
  } finally {
    store.close();
  }
}
