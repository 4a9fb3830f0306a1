import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { RUN_MEMORY_SHARE, RUN_WEIGHT, RunCgroup } from "../../agent/device/cgroup.ts";
import { sysfsTree } from "./sysfs-tree.helpers.ts";

const SERVICE = "sys/fs/cgroup/taco.slice/taco-agent.slice/taco-agent.service";
const environment = { TACO_DELEGATED_CGROUP: "1" };

/** The kernel makes these files with the folders; here they lie ready. */
function delegatedTree() {
  return sysfsTree({
    "proc/self/cgroup": "0::/taco.slice/taco-agent.slice/taco-agent.service\n",
    [`${SERVICE}/cgroup.subtree_control`]: "",
    [`${SERVICE}/station/cgroup.procs`]: "",
    [`${SERVICE}/run/cgroup.procs`]: "",
    [`${SERVICE}/run/cpu.weight`]: "100",
    [`${SERVICE}/run/io.bfq.weight`]: "default 100",
    [`${SERVICE}/run/memory.high`]: "max",
  });
}

test("cgroup: a run gets the low weights, the station keeps its own group", async (t) => {
  const { root, remove } = delegatedTree();
  t.after(remove);
  const cgroup = new RunCgroup({ root, environment });
  assert.deepEqual(await cgroup.start(), []);
  assert.deepEqual(await cgroup.place(4711), []);
  const read = (path: string) => readFileSync(join(root, SERVICE, path), "utf8");
  assert.equal(read("station/cgroup.procs"), String(process.pid));
  assert.equal(read("run/cgroup.procs"), "4711");
  assert.match(read("run/cpu.weight"), new RegExp(`^${RUN_WEIGHT}`));
  assert.match(read("run/io.bfq.weight"), new RegExp(`^default ${RUN_WEIGHT}`));
  const high = Math.floor(os.totalmem() * RUN_MEMORY_SHARE);
  assert.equal(read("run/memory.high"), String(high));
});

test("cgroup: a kernel without a controller is reported and runs go on", async (t) => {
  const { root, remove } = sysfsTree({
    "proc/self/cgroup": "0::/taco-agent.service/station\n",
    "sys/fs/cgroup/taco-agent.service/run/cgroup.procs": "",
  });
  t.after(remove);
  const cgroup = new RunCgroup({ root, environment });
  const refused = await cgroup.start();
  assert.ok(refused.some((reason) => reason.includes("cpu.weight")));
  assert.deepEqual(await cgroup.place(4711), []);
});

test("cgroup: nothing is touched outside the unit or with the old kernel tree", async (t) => {
  const { root, remove } = sysfsTree({ "proc/self/cgroup": "4:memory:/a\n0::/\n" });
  t.after(remove);
  const outside = new RunCgroup({ root, environment: {} });
  assert.match((await outside.start()).join(), /not started by taco-agent\.service/);
  assert.deepEqual(await outside.place(1), []);
  const old = new RunCgroup({ root, environment });
  assert.match((await old.start()).join(), /no control groups of version 2/);
});
