import assert from "node:assert/strict";
import { test } from "node:test";
import type { Clock } from "../../agent/clock.ts";
import { createLogger } from "../../agent/log.ts";
import { ScheduleLoop } from "../../agent/schedule/loop.ts";
import type { Decision, ScheduleState } from "../../agent/schedule/policy.ts";

const START = Date.parse("2026-05-10T01:00:00Z");
const MINUTE = 60_000;

/** Time passes only in `sleep`, and as fast as the loop can decide, until `untilMs`. */
function fastClock(untilMs: number): Clock & { isOver: Promise<void> } {
  let nowMs = START;
  let end: () => void;
  const isOver = new Promise<void>((resolve) => {
    end = resolve;
  });
  return {
    isOver,
    nowMs: () => nowMs,
    monotonicMs: () => nowMs,
    sleep: async (ms, signal) => {
      nowMs += ms;
      if (nowMs < untilMs) return await new Promise((resolve) => setImmediate(resolve));
      end();
      return await new Promise((_, reject) => {
        signal?.addEventListener("abort", () => reject(signal.reason));
      });
    },
  };
}

function station(clock: Clock) {
  const rules = {
    enabled: true,
    cron: "0 2 * * *",
    timeZone: "UTC",
    minNewLabels: 1,
    minHoursBetweenRuns: 20,
    quietHours: [],
    maxTempC: 85,
    maxPowerWatts: null,
    minBatteryPercent: 30,
    maxGpuLoadPercent: 90,
  };
  const state: Omit<ScheduleState, "nowMs"> = {
    lastRunStartedMs: null,
    lastScheduledMs: null,
    clockAnchorMs: null,
    newLabels: 9,
    classesReady: 2,
    sensors: {
      hottestC: null,
      throttling: [],
      powerWatts: null,
      overCurrentAlarm: null,
      gpuLoadPercent: null,
      battery: null,
    },
    runningRun: null,
    probationRunning: null,
    diskFreeBytes: null,
    diskNeededBytes: 0,
  };
  const decisions: Decision[] = [];
  const runs: number[] = [];
  const onDecision = (decision: Decision) => {
    decisions.push(decision);
    const { lastScheduledMs, clockAnchorMs } = decision;
    Object.assign(state, { lastScheduledMs, clockAnchorMs });
  };
  const onRun = () => {
    runs.push(clock.nowMs());
    state.lastRunStartedMs = clock.nowMs();
    return Promise.resolve();
  };
  const readState = () => Promise.resolve({ ...state });
  const log = createLogger("silent");
  const options = { rules, clock, log, intervalMs: MINUTE, readState, onDecision, onRun };
  return { options, decisions, runs };
}

test("schedule loop: decides at once and at its interval, and starts each run once", async () => {
  const clock = fastClock(START + 50 * 60 * MINUTE);
  const { options, decisions, runs } = station(clock);
  const loop = new ScheduleLoop(options);
  loop.start();
  loop.start();
  await clock.isOver;
  await loop.stop();
  assert.equal(decisions.length, 50 * 60);
  assert.deepEqual(
    runs.map((ms) => new Date(ms).toISOString()),
    ["2026-05-10T02:00:00.000Z", "2026-05-11T02:00:00.000Z", "2026-05-12T02:00:00.000Z"],
  );
});

test("schedule loop: goes on after an error of the state or of a run", async () => {
  const clock = fastClock(START + 120 * MINUTE);
  const { options, runs } = station(clock);
  let asked = 0;
  let failures = 0;
  const loop = new ScheduleLoop({
    ...options,
    readState: () => {
      asked += 1;
      return asked % 2 === 1 ? Promise.reject(new Error("disk full")) : options.readState();
    },
    onRun: () => {
      failures += 1;
      return failures === 1 ? Promise.reject(new Error("cannot fork")) : options.onRun();
    },
  });
  loop.start();
  await clock.isOver;
  await loop.stop();
  assert.equal(asked, 120);
  assert.equal(failures, 1);
  assert.equal(runs.length, 0);
});

test("schedule loop: starts anew after a stop", async () => {
  const clock = fastClock(START + 2 * MINUTE);
  const { options, decisions } = station(clock);
  const loop = new ScheduleLoop(options);
  for (const expected of [2, 3]) {
    loop.start();
    await clock.isOver;
    await new Promise((resolve) => setImmediate(resolve));
    await loop.stop();
    assert.equal(decisions.length, expected);
  }
});
