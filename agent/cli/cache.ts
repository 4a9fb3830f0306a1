import { homedir } from "node:os";
import { join } from "node:path";

/** What one-off commands keep between them (XDG Base Directory Specification, `XDG_CACHE_HOME`). */
export function cacheDir(environment: NodeJS.ProcessEnv = process.env): string {
  return join(environment["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "taco-agent");
}
