import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { systemCode } from "../../agent/errors.ts";

const ROOT = join(import.meta.dirname, "..", "..");
/** Below node_modules, so that the compiled files find the packages. */
const CACHE = join(ROOT, "node_modules", ".cache", "taco-flow");
const OLD_MS = 3_600_000;

/**
 * Compiles `agent/` as it is now, once for all test files: a process starts in a third of the
 * time that it takes from the sources, and these tests start hundreds.
 *
 * @returns path of the compiled `main.js`.
 */
export async function buildAgent(): Promise<string> {
  const build = join(CACHE, await fingerprint());
  const main = join(build, "dist", "main.js");
  if (await exists(main)) return main;
  await mkdir(CACHE, { recursive: true });
  await removeOld();
  const unfinished = await mkdtemp(join(CACHE, "unfinished-"));
  // It says that the files are modules, and which version this is.
  await symlink(join(ROOT, "package.json"), join(unfinished, "package.json"));
  const tsc = join(ROOT, "node_modules", "typescript", "bin", "tsc");
  const outDir = join(unfinished, "dist");
  try {
    const options = ["-p", "tsconfig.build.json", "--outDir", outDir];
    await promisify(execFile)(process.execPath, [tsc, ...options], { cwd: ROOT });
  } catch (error) {
    // Types that do not fit are the type check's to tell; the files are written all the same.
    if (!(await exists(join(outDir, "main.js")))) throw error;
  }
  try {
    await rename(unfinished, build);
  } catch (error) {
    // Another test file was faster.
    await rm(unfinished, { recursive: true, force: true });
    if (systemCode(error) !== "ENOTEMPTY" && systemCode(error) !== "EEXIST") throw error;
  }
  return main;
}

/** SHA-256 of what is compiled. */
async function fingerprint(): Promise<string> {
  const hash = createHash("sha256");
  const names = await readdir(join(ROOT, "agent"), { recursive: true });
  const sources = names.filter((name) => name.endsWith(".ts")).map((name) => join("agent", name));
  for (const name of [...sources.sort(), "package.json", "tsconfig.json", "tsconfig.build.json"]) {
    hash.update(`${name}\n`).update(await readFile(join(ROOT, name)));
  }
  return hash.digest("hex").slice(0, 16);
}

/** Builds of earlier versions; a recent one may be in use by another run of the tests. */
async function removeOld(): Promise<void> {
  for (const name of await readdir(CACHE)) {
    const path = join(CACHE, name);
    if (Date.now() - (await stat(path)).mtimeMs < OLD_MS) continue;
    await rm(path, { recursive: true, force: true });
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}
