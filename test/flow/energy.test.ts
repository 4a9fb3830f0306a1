import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { putCommand } from "../../agent/station/control.ts";
import { eventually, TestStation } from "./station.helpers.ts";

test("station: a run that has used up its energy ends its training, and goes on", async (t) => {
  const station = await TestStation.make({ fineTune: { enabled: true, maxWattHours: 0 } });
  t.after(() => station.remove());
  await station.label(8);
  await station.start();
  await station.labeled(24);
  await putCommand(join(station.dir, "control"), "specialize", "once", { force: true });
  await eventually("the run ends", () => station.ask((r) => r.listRuns()[0]?.state === "finished"));
  const [run = ""] = await readdir(join(station.dir, "runs"));
  const front = JSON.parse(
    await readFile(join(station.dir, "runs", run, "front.json"), "utf8"),
  ) as { training: { steps: number; ended: string | null }[] }[];
  const [round] = front.at(-1)!.training;
  assert.match(round!.ended!, /energy is used up/);
  assert.equal(round!.steps, 0);
});
