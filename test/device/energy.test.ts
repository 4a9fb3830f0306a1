import assert from "node:assert/strict";
import { test } from "node:test";
import { systemClock } from "../../agent/clock.ts";
import { EnergyMeter } from "../../agent/device/energy.ts";

function meter() {
  let nowMs = 5000;
  const clock = { ...systemClock, monotonicMs: () => nowMs };
  const energy = new EnergyMeter(clock);
  const read = (seconds: number, watts: number | null) => {
    nowMs += seconds * 1000;
    energy.add(watts);
  };
  return { energy, read };
}

test("energy: trapezoids over uneven intervals", () => {
  const { energy, read } = meter();
  assert.equal(energy.energyWh, null);
  read(0, 10);
  assert.equal(energy.energyWh, null);
  read(360, 10);
  read(180, 30);
  assert.equal(energy.energyWh, 1 + 1);
  assert.equal(energy.missedMs, 0);
});

test("energy: time without a reading, and long gaps, are counted and not guessed", () => {
  const { energy, read } = meter();
  read(0, 10);
  read(60, null);
  read(60, 10);
  read(360, 10);
  read(3600, 10);
  assert.equal(energy.energyWh, 1);
  assert.equal(energy.missedMs, 3_720_000);
});
