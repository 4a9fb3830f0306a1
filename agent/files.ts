import { createHash } from "node:crypto";
import { closeSync, createReadStream, fstatSync, openSync, readSync } from "node:fs";
import {
  access,
  type FileHandle,
  mkdir,
  open,
  readFile,
  rename,
  rm,
  symlink,
} from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { AgentError, systemCode } from "./errors.ts";

/**
 * Writes a whole file so that a reader, or a power cut, sees the old content or the new, never a
 * part: temporary file in the same folder → fsync → rename → fsync of the folder (rename(2)).
 *
 * @throws {AgentError} DISK_FULL where there is no room; the temporary file is removed.
 */
export async function writeFileAtomic(path: string, content: string | Uint8Array): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.new`);
  try {
    const file = await open(temporary, "w");
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw diskError(error, path);
  }
  await syncFolder(dirname(path));
}

/** Whether something lies at a path. @throws the system's error where that cannot be told. */
export async function fileExists(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

/**
 * Reads parts of files in the folder of another file, as a model's weights lie beside it.
 *
 * @returns reads `length` bytes at `offset`, fewer where the file ends; null: to the end.
 */
export function readerBeside(
  path: string,
): (location: string, offset: number, length: number | null) => Uint8Array {
  return (location, offset, length) => {
    const file = openSync(join(dirname(path), location), "r");
    try {
      const rest = Math.max(0, fstatSync(file).size - offset);
      const bytes = new Uint8Array(Math.min(length ?? rest, rest));
      let done = 0;
      while (done < bytes.length) {
        const count = readSync(file, bytes, done, bytes.length - done, offset + done);
        if (count === 0) return bytes.subarray(0, done);
        done += count;
      }
      return bytes;
    } finally {
      closeSync(file);
    }
  };
}

/** {@link writeFileAtomic} of a value as indented JSON. */
export async function writeJsonAtomic(path: string, value: unknown): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`);
}

/** The parsed JSON of a file, or undefined where the file does not exist. */
export async function readJsonIfExists(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** Points the symbolic link `path` at `target` in one step: new link beside it → rename → fsync. */
export async function replaceSymlink(target: string, path: string): Promise<void> {
  const temporary = `${path}.${process.pid}.new`;
  await rm(temporary, { force: true });
  await symlink(target, temporary);
  await rename(temporary, path);
  await syncFolder(dirname(path));
}

/** Moves a folder or file into its final place and makes the move durable. */
export async function publishByRename(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  await rename(from, to);
  await syncFolder(dirname(to));
}

/** Makes the names in a folder durable (fsync of a directory, fsync(2)). */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Writes all of `bytes` at an offset, however many calls that takes.
 *
 * @param path of the file, for the message.
 * @throws {AgentError} DISK_FULL where there is no room.
 */
export async function writeAt(
  file: FileHandle,
  bytes: Uint8Array,
  offset: number,
  path: string,
): Promise<void> {
  try {
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
      done += bytesWritten;
    }
  } catch (error) {
    throw diskError(error, path);
  }
}

/** SHA-256 of a file's content, lower-case hexadecimal, read as a stream. */
export async function sha256File(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

/** SHA-256 of bytes or UTF-8 text, lower-case hexadecimal. */
export function sha256(content: string | Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

/** Turns "no space" into a DISK_FULL error that names the path; every other error stays. */
export function diskError(error: unknown, path: string): unknown {
  const code = systemCode(error);
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  return new AgentError(
    "DISK_FULL",
    `no room on the disk to write ${path}: free some space, or lower the limits of the config`,
    { cause: error },
  );
}
