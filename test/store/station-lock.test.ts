import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { AgentError } from "../../agent/errors.ts";
import { lockStation } from "../../agent/store/station-lock.ts";

const HOLDER = `
const { lockStation } = await import(process.argv[1]);
lockStation(process.argv[2]);
console.log("held");
setInterval(() => {}, 1000);
`;

test("station lock: one process at a time, and a killed one leaves nothing behind", async () => {
  const dir = mkdtempSync(join(tmpdir(), "taco-lock-"));
  const path = join(dir, "station.lock");
  const module = new URL("../../agent/store/station-lock.ts", import.meta.url).href;
  const holder = spawn(
    process.execPath,
    ["--import", "tsx", "--input-type=module", "-e", HOLDER, module, path],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  try {
    await once(holder.stdout, "data");
    assert.throws(
      () => lockStation(path),
      (error) => error instanceof AgentError && error.code === "STATION_BUSY",
    );
    holder.kill("SIGKILL");
    await once(holder, "exit");
    lockStation(path).release();
    lockStation(path).release();
  } finally {
    holder.kill("SIGKILL");
    rmSync(dir, { recursive: true });
  }
});
