import { readFile } from "node:fs/promises";
import { freemem } from "node:os";
import { systemCode } from "../errors.ts";

/**
 * Bytes this process may still take without swapping: the kernel's MemAvailable
 * (proc_meminfo(5)), or what its cgroup leaves (cgroup v2 `memory.max`) where that is less.
 *
 * @param root folder that stands for `/`, for tests.
 */
export async function availableMemoryBytes(root = "/"): Promise<number> {
  const meminfo = await readIfExists(`${root}/proc/meminfo`);
  const kib = /^MemAvailable:\s+(\d+) kB/m.exec(meminfo ?? "")?.[1];
  const machine = kib === undefined ? freemem() : Number(kib) * 1024;
  return Math.min(machine, await cgroupRoomBytes(root));
}

/** Room below `memory.max` of this process's own cgroup; Infinity where there is no limit. */
async function cgroupRoomBytes(root: string): Promise<number> {
  const own = await readIfExists(`${root}/proc/self/cgroup`);
  const path = /^0::(.+)$/m.exec(own ?? "")?.[1];
  if (path === undefined) return Number.POSITIVE_INFINITY;
  const folder = `${root}/sys/fs/cgroup${path}`;
  const max = Number(await readIfExists(`${folder}/memory.max`));
  const current = Number(await readIfExists(`${folder}/memory.current`));
  if (!Number.isFinite(max) || !Number.isFinite(current)) return Number.POSITIVE_INFINITY;
  return Math.max(0, max - current);
}

async function readIfExists(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}
