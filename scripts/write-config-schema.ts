/** Writes config/station.schema.json anew from agent/config/schema.ts, laid out as Biome does. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { stationJsonSchema } from "../agent/config/json-schema.ts";

const root = join(import.meta.dirname, "..");
const path = join(root, "config", "station.schema.json");
writeFileSync(path, stationJsonSchema());
execFileSync(join(root, "node_modules", ".bin", "biome"), ["format", "--write", path]);
