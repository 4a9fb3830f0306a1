import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Version of this software, from its package.json. */
export function softwareVersion(): string {
  const path = fileURLToPath(new URL("../../package.json", import.meta.url));
  const manifest = JSON.parse(readFileSync(path, "utf8")) as { version: string };
  return manifest.version;
}
