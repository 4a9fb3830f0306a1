import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { writeJsonAtomic } from "../agent/files.ts";
import { messageJsonSchemas } from "../agent/fleet/messages.ts";

/** Writes `config/messages.schema.json` from the schemas that the agent itself uses. */
const root = join(import.meta.dirname, "..");
const path = join(root, "config", "messages.schema.json");
await writeJsonAtomic(path, messageJsonSchemas());
execFileSync("npx", ["biome", "format", "--write", path], { cwd: root, stdio: "inherit" });
