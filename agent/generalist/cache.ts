import { mkdtemp, readdir, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { sha256, syncFolder, writeFileAtomic, writeJsonAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import type { Preprocessing } from "../model.ts";
import { type GeneralistDescription, readGeneralist } from "./description.ts";
import { inspectClassifier } from "./inspect.ts";
import { readSidecar, resizeWords, sidecarPathOf } from "./sidecar.ts";

/** A generalist in the cache. */
export interface AddedGeneralist {
  readonly name: string;
  readonly modelPath: string;
  readonly sidecarPath: string;
  readonly description: GeneralistDescription;
}

/** A model and what is known about it, ready to be written into the cache. */
export interface GeneralistImport {
  readonly name: string;
  readonly model: Uint8Array;
  readonly labels: readonly string[];
  readonly preprocessing: Preprocessing;
  readonly licence: unknown;
  readonly source: unknown;
}

/** Names that are safe as a folder everywhere, and never a hidden one. */
const SAFE_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

/** Folder of unfinished downloads in the cache. */
export const DOWNLOADS = "downloads";

/** Work in progress, by the process that does it: `.tmp-<pid>-<random>`. */
const TEMPORARY = /^\.tmp-(\d+)-/;

/** A folder for work in progress, on the same disk as the cache. The caller removes it. */
export function temporaryFolder(dir: string): Promise<string> {
  return mkdtemp(join(dir, `.tmp-${process.pid}-`));
}

/** Removes what processes that were killed left half done. */
export async function removeAbandoned(dir: string): Promise<void> {
  for (const name of await readdir(dir)) {
    const pid = Number(TEMPORARY.exec(name)?.[1] ?? Number.NaN);
    if (Number.isNaN(pid) || isAlive(pid)) continue;
    await rm(join(dir, name), { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // Any other error means that it lives, but belongs to somebody else.
    return systemCode(error) !== "ESRCH";
  }
}

/** Names of the generalists in the cache folder, damaged ones included. */
export async function cachedNames(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { withFileTypes: true }).catch((error: unknown) => {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  });
  const folders = entries.filter((entry) => entry.isDirectory() && entry.name !== DOWNLOADS);
  return folders.map(({ name }) => name).filter((name) => SAFE_NAME.test(name));
}

/** The cached generalist of a name; undefined where there is none or it is damaged (logged). */
export async function readCached(
  dir: string,
  name: string,
  log: Logger,
): Promise<AddedGeneralist | undefined> {
  if (!SAFE_NAME.test(name)) return undefined;
  const modelPath = join(dir, name, "model.onnx");
  const exists = await stat(modelPath).then(
    () => true,
    () => false,
  );
  if (!exists) return undefined;
  try {
    const description = await readGeneralist(modelPath);
    return { name, modelPath, sidecarPath: sidecarPathOf(modelPath), description };
  } catch (error) {
    log.error({ err: messageOf(error), name }, "cached generalist is damaged, made anew");
    return undefined;
  }
}

/** The cached generalist that was fetched from an address. */
export async function findCachedByUrl(
  dir: string,
  url: string,
  log: Logger,
): Promise<AddedGeneralist | undefined> {
  for (const name of await cachedNames(dir)) {
    const sidecar = await readSidecar(join(dir, name, "model.json"));
    const source = sidecar?.source;
    if (typeof source !== "object" || source === null || !("url" in source)) continue;
    if (source.url === url) return readCached(dir, name, log);
  }
  return undefined;
}

/**
 * Writes a generalist into its folder of the cache, in place of one of the same name. It is read
 * back before it is published: what lies in the cache has been understood once.
 *
 * @throws {AgentError} GENERALIST_UNAVAILABLE for a name that is no safe folder name;
 *   MODEL_INVALID; DISK_FULL.
 */
export async function writeToCache(dir: string, what: GeneralistImport): Promise<AddedGeneralist> {
  const { name, model, labels, preprocessing } = what;
  if (!SAFE_NAME.test(name) || name === DOWNLOADS) {
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `expected a name of letters, digits, ".", "_" and "-", got "${name}": pass another by --name`,
    );
  }
  const facts = inspectClassifier(model);
  const folder = await temporaryFolder(dir);
  try {
    await writeFileAtomic(join(folder, "model.onnx"), model);
    await writeFileAtomic(join(folder, "labels.txt"), `${labels.join("\n")}\n`);
    await writeJsonAtomic(join(folder, "model.json"), {
      name,
      file: "model.onnx",
      input: {
        name: facts.inputName,
        shape: ["N", 3, preprocessing.height, preprocessing.width],
        layout: "NCHW",
        dtype: "float32",
      },
      output: { name: facts.outputName },
      classifier_input: facts.head.featuresName,
      classes: labels.length,
      labels: "labels.txt",
      preprocessing: {
        color: "RGB",
        mean: preprocessing.mean,
        std: preprocessing.std,
        formula: "(rgb/255 - mean) / std, per channel",
        ...resizeWords(preprocessing),
      },
      ...(what.licence === undefined ? {} : { licence: what.licence }),
      source: what.source,
      bytes: model.length,
      sha256: sha256(model),
    });
    await readGeneralist(join(folder, "model.onnx"));
    await replaceFolder(folder, join(dir, name));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  const modelPath = join(dir, name, "model.onnx");
  const description = await readGeneralist(modelPath);
  return { name, modelPath, sidecarPath: sidecarPathOf(modelPath), description };
}

/** Moves a folder to its place; one that is there is moved out first and removed afterwards. */
async function replaceFolder(from: string, to: string): Promise<void> {
  try {
    await rename(from, to);
  } catch (error) {
    const code = systemCode(error);
    if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
    const old = await temporaryFolder(dirname(to));
    await rename(to, join(old, "generalist"));
    await rename(from, to);
    await rm(old, { recursive: true, force: true });
  }
  await syncFolder(dirname(to));
}
