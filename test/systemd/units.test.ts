import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { RUN_MEMORY_SHARE, RUN_WEIGHT } from "../../agent/device/cgroup.ts";

const FOLDER = join(import.meta.dirname, "..", "..", "systemd");
const read = (unit: string) => readFileSync(join(FOLDER, unit), "utf8");

const ANALYZE = "/usr/bin/systemd-analyze";

/** systemd rates and checks unit files without being booted; --offline came with version 250. */
function analyze(...args: string[]) {
  return spawnSync(ANALYZE, args, { encoding: "utf8" });
}

const version = Number(/^systemd (\d+)/.exec(analyze("--version").stdout ?? "")?.[1] ?? 0);
const skip = version >= 250 ? false : "needs systemd-analyze of systemd 250 or later";

test("systemd: the service's exposure is 2.0 at most", { skip }, () => {
  const path = join(FOLDER, "taco-agent.service");
  const { stdout, stderr } = analyze("security", "--no-pager", "--offline=true", path);
  const exposure = /Overall exposure level for taco-agent\.service: ([\d.]+)/.exec(stdout)?.[1];
  assert.ok(exposure !== undefined, stdout + stderr);
  assert.ok(Number(exposure) <= 2, `exposure ${exposure}`);
});

test("systemd: the units have no mistakes", { skip }, () => {
  const units = readdirSync(FOLDER).map((unit) => join(FOLDER, unit));
  const { stdout, stderr } = analyze("verify", "--no-pager", "--man=no", ...units);
  // The state of the machine (other units, a missing user) is not the units' fault.
  const ours = (stdout + stderr).split("\n").filter((line) => line.includes("taco-"));
  assert.deepEqual(ours, []);
});

test("systemd: the program and the slice hold a run to the same figures", () => {
  const slice = read("taco-specialize.slice");
  assert.match(slice, new RegExp(`^CPUWeight=${RUN_WEIGHT}$`, "m"));
  assert.match(slice, new RegExp(`^IOWeight=${RUN_WEIGHT}$`, "m"));
  assert.match(slice, new RegExp(`^MemoryHigh=${100 * RUN_MEMORY_SHARE}%$`, "m"));
  assert.match(read("taco-agent.service"), /^Delegate=cpu io memory$/m);
  assert.match(read("taco-agent.service"), /^Environment=TACO_DELEGATED_CGROUP=1$/m);
});

test("systemd: V8 may write machine code, and nothing newer than systemd 249 is used", () => {
  const unit = read("taco-agent.service");
  assert.match(unit, /^MemoryDenyWriteExecute=no$/m);
  for (const newer of [
    "LoadCredentialEncrypted",
    "CPUWeight=idle",
    "RestartSteps",
    "DelegateSubgroup",
  ]) {
    assert.ok(!unit.includes(`${newer}`), newer);
  }
});
