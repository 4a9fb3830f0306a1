import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import * as os from "node:os";
import { test } from "node:test";
import { lowerPriority } from "../../agent/device/priority.ts";

const IONICE = "/usr/bin/ionice";

test("priority: every thread of a child gets nice 19 and the idle IO class", async (t) => {
  const child = spawn(process.execPath, ["-e", "console.log(1); setTimeout(() => {}, 60_000)"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.after(() => child.kill("SIGKILL"));
  await once(child.stdout, "data");
  const pid = child.pid ?? assert.fail("the child did not start");
  const refused = await lowerPriority(pid);
  assert.equal(os.getPriority(pid), 19);
  if (existsSync(IONICE) && !refused.join().includes("ionice")) {
    assert.match(execFileSync(IONICE, ["-p", String(pid)], { encoding: "utf8" }), /^idle/);
  }
  if (!refused.join().includes("oom")) {
    assert.equal(readFileSync(`/proc/${pid}/oom_score_adj`, "utf8").trim(), "900");
  }
});

test("priority: a process that is gone is reported, not thrown", async () => {
  const child = spawn(process.execPath, ["-e", "0"]);
  await once(child, "exit");
  const refused = await lowerPriority(child.pid ?? assert.fail("the child did not start"));
  assert.ok(refused.length >= 2, refused.join("; "));
});
