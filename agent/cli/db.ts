import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { Command } from "commander";
import { loadConfig } from "../config/load.ts";
import { AgentError } from "../errors.ts";

/** `taco db`: the sqlite3 shell on the station's database, for reading. */
export function dbCommand(): Command {
  return new Command("db")
    .description("open the station's database read-only in the sqlite3 shell")
    .requiredOption("--config <file>", "the station's configuration")
    .argument("[sql...]", "statements to run instead of a prompt")
    .action((sql: string[], { config }: { config: string }) => {
      const { station } = loadConfig(config, process.env);
      const path = join(station.dir, "taco.db");
      const result = spawnSync("sqlite3", ["-readonly", "-box", path, ...sql], {
        stdio: "inherit",
      });
      if (result.error) {
        throw new AgentError(
          "STORE_FAILED",
          `the sqlite3 shell cannot be started: install it ('apt install sqlite3'); the database is ${path}`,
          { cause: result.error },
        );
      }
      process.exitCode = result.status ?? 1;
    });
}
