#!/usr/bin/env node
import { Command } from "commander";
import { compressCommand } from "./cli/compress.ts";
import { dbCommand } from "./cli/db.ts";
import { generalistCommand } from "./cli/generalist.ts";
import { modelsCommand, runsCommand } from "./cli/history.ts";
import { rollbackCommand } from "./cli/rollback.ts";
import { runCommand } from "./cli/run.ts";
import { specializeCommand } from "./cli/specialize.ts";
import { statusCommand } from "./cli/status.ts";
import { softwareVersion } from "./cli/version.ts";
import { AgentError, messageOf } from "./errors.ts";

const program = new Command("taco")
  .description("re-specializes and compresses a camera-trap station's model on the device")
  .version(softwareVersion());
const commands = [
  runCommand(),
  specializeCommand(),
  compressCommand(),
  generalistCommand(),
  statusCommand(),
  runsCommand(),
  modelsCommand(),
  rollbackCommand(),
  dbCommand(),
];
for (const command of commands) program.addCommand(command);

try {
  await program.parseAsync();
} catch (error) {
  const code = error instanceof AgentError ? `${error.code}: ` : "";
  process.stderr.write(`taco: ${code}${messageOf(error)}\n`);
  if (!(error instanceof AgentError) && error instanceof Error) {
    process.stderr.write(`${error.stack ?? ""}\n`);
  }
  process.exitCode = 1;
}
