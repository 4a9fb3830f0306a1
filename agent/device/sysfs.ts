import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../errors.ts";

/** Errors with which the kernel says "not here, or not now": none is a fault of the agent. */
const UNAVAILABLE = new Set([
  "ENOENT",
  "ENOTDIR",
  "ENODEV",
  "ENXIO",
  "ENODATA",
  "EAGAIN",
  "EINVAL",
  "EIO",
  "EACCES",
  "EPERM",
  "ETIMEDOUT",
  "EREMOTEIO",
  "EOPNOTSUPP",
  "ENOTSUP",
]);

/** Reads small kernel files under one root folder. */
export class Sysfs {
  readonly #root: string;

  /** @param root the folder that holds `sys/`, `proc/` and `etc/`; `/` on a real machine. */
  constructor(root: string) {
    this.#root = root;
  }

  /** The text of a file without white space and NULs at its end, or null where there is none. */
  async text(path: string): Promise<string | null> {
    const content = await orNull(() => readFile(join(this.#root, path), "utf8"));
    return content === null ? null : content.replace(/[\s\0]+$/, "");
  }

  /** The finite number in a file, or null. */
  async number(path: string): Promise<number | null> {
    const content = await this.text(path);
    if (content === null || content === "") return null;
    const value = Number(content);
    return Number.isFinite(value) ? value : null;
  }

  /** Sorted names in a folder that fit the pattern; none where the folder is missing. */
  async names(folder: string, pattern = /^/): Promise<string[]> {
    const found = (await orNull(() => readdir(join(this.#root, folder)))) ?? [];
    const order = new Intl.Collator("en", { numeric: true });
    return found.filter((name) => pattern.test(name)).sort(order.compare);
  }
}

async function orNull<T>(read: () => Promise<T>): Promise<T | null> {
  try {
    return await read();
  } catch (error) {
    if (!UNAVAILABLE.has(systemCode(error) ?? "")) throw error;
    return null;
  }
}
