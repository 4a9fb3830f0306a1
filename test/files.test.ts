import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { AgentError } from "../agent/errors.ts";
import {
  diskError,
  readJsonIfExists,
  replaceSymlink,
  sha256,
  sha256File,
  writeFileAtomic,
} from "../agent/files.ts";

const WRITER = `
const { writeFileAtomic } = await import(process.argv[1]);
for (let i = 0; ; i++) {
  await writeFileAtomic(process.argv[2], String(i % 10).repeat(200000));
  if (i === 3) console.log("going");
}
`;

async function inFolder(work: (dir: string) => Promise<void>): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), "taco-files-"));
  try {
    await work(dir);
  } finally {
    await rm(dir, { recursive: true });
  }
}

test("files: a writer killed at any moment leaves a whole file", () =>
  inFolder(async (dir) => {
    const path = join(dir, "state");
    const module = new URL("../agent/files.ts", import.meta.url).href;
    for (let round = 0; round < 4; round++) {
      const writer = spawn(
        process.execPath,
        ["--import", "tsx", "--input-type=module", "-e", WRITER, module, path],
        { stdio: ["ignore", "pipe", "inherit"] },
      );
      await once(writer.stdout, "data");
      writer.kill("SIGKILL");
      await once(writer, "exit");
      const text = readFileSync(path, "utf8");
      assert.equal(text, text.charAt(0).repeat(200000), `round ${round}`);
    }
  }));

test("files: a pointer is replaced in one step and leaves nothing beside it", () =>
  inFolder(async (dir) => {
    const link = join(dir, "current");
    await replaceSymlink("a", link);
    await replaceSymlink("b", link);
    assert.equal(readlinkSync(link), "b");
    assert.deepEqual(readdirSync(dir), ["current"]);
  }));

test("files: a missing file is undefined, a broken one an error; hashes agree", () =>
  inFolder(async (dir) => {
    const path = join(dir, "x.json");
    assert.equal(await readJsonIfExists(path), undefined);
    await writeFileAtomic(path, "{");
    await assert.rejects(readJsonIfExists(path), SyntaxError);
    assert.equal(await sha256File(path), sha256("{"));
  }));

test("files: no space is told as such, with what to do", () => {
  const full = Object.assign(new Error("no space"), { code: "ENOSPC" });
  const told = diskError(full, "/data/x");
  assert.ok(told instanceof AgentError && told.code === "DISK_FULL", String(told));
  assert.match(told.message, /\/data\/x: free some space/);
  const other = new Error("else");
  assert.equal(diskError(other, "/data/x"), other);
});
