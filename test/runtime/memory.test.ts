import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { availableMemoryBytes } from "../../agent/runtime/memory.ts";

test("memory: the smaller of the machine's and the cgroup's room counts", async () => {
  const root = await mkdtemp(join(tmpdir(), "taco-memory-"));
  try {
    await mkdir(join(root, "proc", "self"), { recursive: true });
    await writeFile(join(root, "proc", "meminfo"), "MemFree: 1 kB\nMemAvailable:    2000 kB\n");
    assert.equal(await availableMemoryBytes(root), 2_048_000);
    const group = join(root, "sys", "fs", "cgroup", "taco.service");
    await mkdir(group, { recursive: true });
    await writeFile(join(root, "proc", "self", "cgroup"), "0::/taco.service\n");
    await writeFile(join(group, "memory.max"), "max\n");
    await writeFile(join(group, "memory.current"), "400000\n");
    assert.equal(await availableMemoryBytes(root), 2_048_000);
    await writeFile(join(group, "memory.max"), "1000000\n");
    assert.equal(await availableMemoryBytes(root), 600_000);
  } finally {
    await rm(root, { recursive: true });
  }
});
