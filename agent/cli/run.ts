import { Command } from "commander";
import { Agent } from "../agent.ts";
import { systemClock } from "../clock.ts";
import { loadConfig } from "../config/load.ts";
import { messageOf } from "../errors.ts";
import { createLogger } from "../log.ts";
import { softwareVersion } from "./version.ts";

/** `taco run`: the daemon. */
export function runCommand(): Command {
  return new Command("run")
    .description("run the station until it is told to stop")
    .requiredOption("--config <file>", "the station's configuration (YAML)")
    .action(async ({ config: path }: { config: string }) => {
      const config = loadConfig(path, process.env);
      const log = createLogger(config.log.level);
      const agent = new Agent({
        config,
        clock: systemClock,
        log,
        environment: process.env,
        softwareVersion: softwareVersion(),
      });
      // A station must outlive what nobody thought of; it is told, and the part that failed was
      // recorded by its own border.
      process.on("unhandledRejection", (reason) => {
        log.error({ reason: messageOf(reason) }, "a rejection was not handled");
      });
      const stopped = new Promise<void>((resolve) => {
        const stop = (signal: string) => {
          log.info({ signal }, "stopping");
          resolve();
        };
        process.once("SIGTERM", stop).once("SIGINT", stop);
      });
      try {
        await agent.start();
        await stopped;
      } finally {
        await agent.stop();
      }
      process.exit(0);
    });
}
