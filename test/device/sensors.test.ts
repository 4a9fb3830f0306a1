import assert from "node:assert/strict";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { systemClock } from "../../agent/clock.ts";
import { readHardware } from "../../agent/device/hardware.ts";
import { SensorReader } from "../../agent/device/sensors.ts";
import { createLogger } from "../../agent/log.ts";
import { LAPTOP, ORIN, sysfsTree, XAVIER } from "./sysfs-tree.helpers.ts";

function station(t: TestContext, files: Readonly<Record<string, string>>) {
  const tree = sysfsTree(files);
  t.after(tree.remove);
  const lines: string[] = [];
  const log = createLogger("debug", { write: (line: string) => void lines.push(line) }, {});
  const reader = new SensorReader({ root: tree.root, stationDir: tree.root, log });
  return { ...tree, lines, reader };
}

test("sensors: a Jetson Orin's zones, rails, alarm and GPU load", async (t) => {
  const sensors = await station(t, ORIN).reader.read();
  assert.deepEqual(sensors.temperatures, [
    { name: "cpu-thermal", tempC: 51.25, passiveC: 99, criticalC: 104.5 },
    { name: "gpu-thermal", tempC: 53.5, passiveC: 53, criticalC: null },
  ]);
  assert.equal(sensors.hottestC, 53.5);
  assert.deepEqual(sensors.tripC, { passive: 53, critical: 104.5 });
  assert.deepEqual(sensors.throttling, ["gpu-thermal"]);
  assert.equal(sensors.powerWatts, 7);
  assert.equal(sensors.powerFrom, "VDD_IN");
  assert.deepEqual(sensors.rails, [
    { name: "VDD_IN", watts: 7 },
    { name: "VDD_CPU_GPU_CV", watts: 2 },
  ]);
  assert.equal(sensors.overCurrentAlarm, true);
  assert.equal(sensors.gpuLoadPercent, 62.5);
  assert.equal(sensors.memoryFreeBytes, 4_000_000 * 1024);
  assert.ok((sensors.diskFreeBytes ?? 0) > 0);
  assert.deepEqual(Object.keys(sensors.unavailable), ["battery"]);
});

test("sensors: a Jetson Xavier's iio rails", async (t) => {
  const sensors = await station(t, XAVIER).reader.read();
  assert.equal(sensors.powerWatts, 5.21);
  assert.equal(sensors.powerFrom, "POM_5V_IN");
  assert.equal(sensors.overCurrentAlarm, null);
  assert.equal(sensors.gpuLoadPercent, 100);
});

test("sensors: without a rail for the whole board, the sum of all", async (t) => {
  const hwmon = "sys/bus/i2c/devices/1-0041/hwmon/hwmon4";
  const sensors = await station(t, {
    [`${hwmon}/in1_label`]: "VDD_GPU_SOC\n",
    [`${hwmon}/in1_input`]: "20000\n",
    [`${hwmon}/curr1_input`]: "100\n",
    [`${hwmon}/in2_label`]: "VDD_CPU_CV\n",
    [`${hwmon}/in2_input`]: "20000\n",
    [`${hwmon}/curr2_input`]: "50\n",
  }).reader.read();
  assert.equal(sensors.powerWatts, 3);
  assert.equal(sensors.powerFrom, "sum of VDD_GPU_SOC, VDD_CPU_CV");
});

test("sensors: a laptop's batteries as one, without that of the mouse", async (t) => {
  const sensors = await station(t, LAPTOP).reader.read();
  assert.deepEqual(sensors.battery, { percent: 50, charging: true });
  assert.equal(sensors.hottestC, 62);
  assert.deepEqual(sensors.tripC, { passive: null, critical: null });
  assert.equal(sensors.gpuLoadPercent, 12);
  assert.equal(sensors.powerWatts, null);
});

test("sensors: an empty machine is all null, each reason logged once", async (t) => {
  const { reader, lines } = station(t, {});
  const sensors = await reader.read();
  assert.deepEqual(sensors.temperatures, []);
  for (const key of ["hottestC", "powerWatts", "gpuLoadPercent", "battery"] as const) {
    assert.equal(sensors[key], null);
  }
  const missing = Object.keys(sensors.unavailable);
  assert.deepEqual(missing, [
    "temperatures",
    "powerWatts",
    "gpuLoadPercent",
    "battery",
    "memoryFreeBytes",
  ]);
  await reader.read();
  assert.equal(lines.length, missing.length);
});

test("sensors: nodes that appear late are found at the next reading", async (t) => {
  const { reader, write } = station(t, {});
  assert.equal((await reader.read()).powerWatts, null);
  for (const [path, text] of Object.entries(ORIN)) write(path, text);
  const sensors = await reader.read();
  assert.equal(sensors.powerWatts, 7);
  assert.equal(sensors.unavailable["powerWatts"], undefined);
});

test("sensors: a sensor that fails has a reason and leaves the others alone", async (t) => {
  const tree = sysfsTree(ORIN);
  t.after(tree.remove);
  tree.write("sys/class/power_supply/BAT0/type/not-a-file", "");
  const log = createLogger("silent");
  const stationDir = join(tmpdir(), "taco-no-such-folder");
  const sensors = await new SensorReader({ root: tree.root, stationDir, log }).read();
  assert.match(sensors.unavailable["diskFreeBytes"] ?? "", /ENOENT/);
  assert.match(sensors.unavailable["battery"] ?? "", /EISDIR/);
  assert.equal(sensors.powerWatts, 7);
});

test("sensors: the machine that runs this test can be read", async () => {
  const log = createLogger("silent");
  const sensors = await new SensorReader({ root: "/", stationDir: tmpdir(), log }).read();
  assert.ok((sensors.memoryFreeBytes ?? 0) > 0);
  assert.ok((sensors.diskFreeBytes ?? 0) > 0);
});

test("hardware: model and release of a Jetson, and what runs on it", async (t) => {
  const { root } = station(t, ORIN);
  const clock = { ...systemClock, nowMs: () => Date.UTC(2026, 4, 1) };
  const hardware = await readHardware({ root, clock });
  assert.equal(hardware.model, "NVIDIA Jetson Orin Nano Developer Kit");
  assert.equal(hardware.jetsonRelease, "R36 (release), REVISION: 4.3, GCID: 38968081");
  assert.equal(hardware.os, "Ubuntu 22.04.5 LTS");
  assert.equal(hardware.readAt, "2026-05-01T00:00:00.000Z");
  assert.equal(hardware.nodeVersion, process.version);
  assert.ok(hardware.cpuModel.length > 0 && hardware.memoryBytes > 0);
});

test("hardware: a PC has a model and no Jetson release, an empty machine neither", async (t) => {
  const pc = await readHardware({ root: station(t, LAPTOP).root, clock: systemClock });
  assert.equal(pc.model, "ThinkPad T14");
  assert.equal(pc.jetsonRelease, null);
  const empty = await readHardware({ root: station(t, {}).root, clock: systemClock });
  assert.equal(empty.model, null);
});
