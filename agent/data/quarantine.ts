import { constants } from "node:fs";
import { copyFile, link, lstat, mkdir, open, readdir, rename, rm, unlink } from "node:fs/promises";
import { basename, extname, join } from "node:path";
import { type Clock, isoTime } from "../clock.ts";
import { messageOf, systemCode } from "../errors.ts";
import { diskError, sha256File, syncFolder } from "../files.ts";

/** Where a file went, or why it stays where it is. */
export type QuarantineResult =
  | {
      moved: true;
      /** Where the file lies now. */
      path: string;
      /** JSON beside it: `reason`, `originalPath`, `sha256`, `sizeBytes`, `quarantinedAt`. */
      reasonPath: string;
      /** Names of older files deleted to keep the folder below its limit. */
      dropped: string[];
    }
  | { moved: false; why: string };

export interface QuarantineOptions {
  folder: string;
  /** Size of all files in the folder above which the oldest are deleted; the newest stays. */
  maxMb: number;
  clock: Clock;
}

interface Entry {
  name: string;
  sizeBytes: number;
  /** Time of its reason file. */
  atMs: number;
}

const REASON = ".reason.json";

/**
 * The folder of files that cannot be used, each with its reason beside it. Nothing in it is ever
 * overwritten: a name that is taken gets the start of the content's hash. The reason is written
 * before the file is moved, so that no file lies there unexplained after a power cut.
 */
export class Quarantine {
  readonly #options: QuarantineOptions;
  /** What lies in the folder, oldest first; read once, not again for each of many bad files. */
  #entries: Entry[] | undefined;
  /** One file after the other, so that two of one name do not meet. */
  #queue: Promise<unknown> = Promise.resolve();

  constructor(options: QuarantineOptions) {
    this.#options = options;
  }

  /**
   * Moves a file into the folder. A file that is gone, or that may not be moved (a read-only
   * card), is a result with `moved: false`, not an error.
   *
   * @throws {AgentError} DISK_FULL where the folder's disk has no room for the reason.
   */
  async put(path: string, reason: string): Promise<QuarantineResult> {
    const result = this.#queue.then(() => this.#put(path, reason));
    this.#queue = result.catch(() => undefined);
    return await result;
  }

  async #put(path: string, reason: string): Promise<QuarantineResult> {
    const { folder, clock } = this.#options;
    await mkdir(folder, { recursive: true });
    this.#entries ??= await listEntries(folder);
    let facts: { sha256: string; sizeBytes: number };
    try {
      facts = { sha256: await sha256File(path), sizeBytes: (await lstat(path)).size };
    } catch (error) {
      return { moved: false, why: messageOf(error) };
    }
    const quarantinedAt = isoTime(clock.nowMs());
    const text = JSON.stringify({ reason, originalPath: path, ...facts, quarantinedAt }, null, 2);
    const name = await reserve(folder, basename(path), facts.sha256, `${text}\n`);
    const reasonPath = join(folder, name + REASON);
    try {
      await moveWithoutOverwriting(path, join(folder, name));
    } catch (error) {
      await rm(reasonPath, { force: true });
      return { moved: false, why: messageOf(error) };
    }
    await syncFolder(folder);
    this.#entries.push({ name, sizeBytes: facts.sizeBytes, atMs: clock.nowMs() });
    return { moved: true, path: join(folder, name), reasonPath, dropped: await this.#trim() };
  }

  /** Deletes the oldest until the rest fits; the newest always stays. */
  async #trim(): Promise<string[]> {
    const { folder, maxMb } = this.#options;
    const entries = this.#entries ?? [];
    let total = entries.reduce((sum, entry) => sum + entry.sizeBytes, 0);
    const dropped: string[] = [];
    while (entries.length > 1 && total > maxMb * 1e6) {
      const oldest = entries.shift();
      if (!oldest) break;
      await rm(join(folder, oldest.name), { force: true });
      await rm(join(folder, oldest.name + REASON), { force: true });
      total -= oldest.sizeBytes;
      dropped.push(oldest.name);
    }
    return dropped;
  }
}

/** What lies in the folder, oldest first; a reason whose file never came counts too. */
async function listEntries(folder: string): Promise<Entry[]> {
  const names = new Set(await readdir(folder));
  const entries: Entry[] = [];
  for (const name of names) {
    if (name.endsWith(REASON) && names.has(name.slice(0, -REASON.length))) continue;
    const file = await lstat(join(folder, name));
    const explained = names.has(name + REASON) ? await lstat(join(folder, name + REASON)) : file;
    entries.push({ name, sizeBytes: file.size, atMs: explained.mtimeMs });
  }
  return entries.sort((a, b) => a.atMs - b.atMs || (a.name < b.name ? -1 : 1));
}

/** Writes the reason under the first free name, which keeps that name for the file. */
async function reserve(
  folder: string,
  name: string,
  sha256: string,
  text: string,
): Promise<string> {
  const ending = extname(name);
  const stem = name.slice(0, name.length - ending.length);
  for (let attempt = 0; ; attempt++) {
    const suffix = ["", `-${sha256.slice(0, 8)}`][attempt] ?? `-${sha256.slice(0, 8)}-${attempt}`;
    const candidate = `${shorten(stem, ending.length + suffix.length)}${suffix}${ending}`;
    if (await exists(join(folder, candidate))) continue;
    const reasonPath = join(folder, candidate + REASON);
    try {
      const file = await open(reasonPath, "wx");
      try {
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      return candidate;
    } catch (error) {
      if (systemCode(error) === "EEXIST") continue;
      await rm(reasonPath, { force: true });
      throw diskError(error, reasonPath);
    }
  }
}

/** Cuts a name so that it and the reason beside it stay within the 255 bytes of a file system. */
function shorten(stem: string, taken: number): string {
  const characters = [...stem];
  while (Buffer.byteLength(characters.join("")) > 255 - taken - REASON.length) characters.pop();
  return characters.join("");
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

/**
 * Hard link and unlink, as rename(2) replaces what is there; a plain rename where the file
 * system has no hard links (FAT), a copy where the target is another file system.
 */
async function moveWithoutOverwriting(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    const code = systemCode(error);
    if (code === "EXDEV") return await copyAndRemove(from, to);
    if (code !== "EPERM" && code !== "ENOTSUP" && code !== "ENOSYS" && code !== "EMLINK")
      throw error;
    if (await exists(to)) throw error;
    return await rename(from, to);
  }
  await removeOrUndo(from, to);
}

async function copyAndRemove(from: string, to: string): Promise<void> {
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL);
    const file = await open(to, "r");
    try {
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (systemCode(error) !== "EEXIST") await rm(to, { force: true });
    throw diskError(error, to);
  }
  await removeOrUndo(from, to);
}

/** A file that may not be removed from where it lies is not kept twice. */
async function removeOrUndo(from: string, to: string): Promise<void> {
  try {
    await unlink(from);
  } catch (error) {
    await rm(to, { force: true });
    throw error;
  }
}
