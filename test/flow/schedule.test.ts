import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import { eventually, TestStation } from "./station.helpers.ts";

test("station: a due run waits while the machine is hot, says so, and starts once it cooled", async (t) => {
  const machine = await mkdtemp(join(tmpdir(), "taco-sysfs-"));
  t.after(() => rm(machine, { recursive: true, force: true }));
  const zone = join(machine, "sys", "class", "thermal", "thermal_zone0");
  await mkdir(zone, { recursive: true });
  await writeFile(join(zone, "type"), "cpu-thermal\n");
  const heat = (tempC: number) => writeFile(join(zone, "temp"), `${tempC * 1000}\n`);
  await heat(91);

  const station = await TestStation.make({
    schedule: { enabled: true, cron: "* * * * *", minNewLabels: 30, minHoursBetweenRuns: 0 },
    device: { sysfsRoot: machine },
  });
  t.after(() => station.remove());
  await station.label(12);
  await station.start();
  await station.labeled(36);
  await station.stop();
  // As if it had been off for an hour, with its runs due all the while.
  const database = new Database(join(station.dir, "taco.db"));
  const past = JSON.stringify({ lastScheduledMs: Date.now() - 3_600_000, clockAnchorMs: null });
  database.prepare("UPDATE station_state SET value = ? WHERE key = 'schedule'").run(past);
  database.close();

  await station.start();
  const reasons = async () => {
    const asked = await station.taco("status", "--config", station.configPath, "--json");
    const { schedule } = JSON.parse(asked.stdout) as { schedule: { reasons?: string[] } };
    return schedule.reasons ?? [];
  };
  const tooHot = "Too hot: 91 °C, at most 85 °C (schedule.maxTempC).";
  await eventually("heat is the only reason", async () => {
    const given = await reasons();
    return given.length === 1 && given[0] === tooHot;
  });
  const shown = await station.taco("status", "--config", station.configPath);
  assert.ok(shown.stdout.includes(tooHot), shown.stdout);
  assert.deepEqual(
    station.ask((r) => r.listRuns()),
    [],
  );

  await heat(48);
  await eventually("the run", () => station.ask((r) => r.listRuns()[0]?.state === "finished"));
  const [run] = station.ask((r) => r.listRuns());
  assert.equal(run?.kind, "scheduled");
  assert.equal(run.verdict?.accepted, true);
});
