import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Decision,
  decide,
  type ScheduleRules,
  type ScheduleState,
} from "../../agent/schedule/policy.ts";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const at = (iso: string) => Date.parse(`2026-05-${iso}:00Z`);

const RULES: ScheduleRules = {
  enabled: true,
  cron: "0 2 * * *",
  timeZone: "UTC",
  minNewLabels: 50,
  minHoursBetweenRuns: 20,
  quietHours: [],
  maxTempC: 85,
  maxPowerWatts: 15,
  minBatteryPercent: 30,
  maxGpuLoadPercent: 90,
};

/** A station at 02:00:30 with everything there for a run. */
const READY: ScheduleState = {
  nowMs: at("10T02:00") + 30_000,
  lastRunStartedMs: at("09T02:00"),
  lastScheduledMs: at("09T02:00"),
  clockAnchorMs: null,
  newLabels: 60,
  classesReady: 4,
  sensors: {
    hottestC: 50,
    throttling: [],
    powerWatts: 7,
    overCurrentAlarm: false,
    gpuLoadPercent: 10,
    battery: { percent: 90 },
  },
  runningRun: null,
  probationRunning: null,
  diskFreeBytes: 10e9,
  diskNeededBytes: 1e9,
};

const NO_SENSORS: ScheduleState["sensors"] = {
  hottestC: null,
  throttling: [],
  powerWatts: null,
  overCurrentAlarm: null,
  gpuLoadPercent: null,
  battery: null,
};

function onState(change: Partial<ScheduleState>, rules: Partial<ScheduleRules> = {}): Decision {
  return decide({ ...RULES, ...rules }, { ...READY, ...change });
}

function reasonsOf(decision: Decision): string {
  assert.equal(decision.action, "wait");
  return decision.action === "wait" ? decision.reasons.join("\n") : "";
}

test("schedule: runs when the cron is due and nothing is in the way", () => {
  const decision = onState({});
  assert.deepEqual(decision, {
    action: "run",
    lastScheduledMs: READY.nowMs,
    clockAnchorMs: null,
  });
  assert.equal(onState({ sensors: NO_SENSORS, diskFreeBytes: null }).action, "run");
  assert.equal(onState({ lastRunStartedMs: null }).action, "run");
});

test("schedule: says each reason why not now, and all of them at once", () => {
  const sensors = { ...READY.sensors };
  const cases: [Partial<ScheduleState>, RegExp, Partial<ScheduleRules>?][] = [
    [{}, /switched off/, { enabled: false }],
    [{ runningRun: "r7" }, /Run r7 is under way/],
    [{ probationRunning: "ab".repeat(32) }, /Model abababababab is still on probation/],
    [{ newLabels: 49 }, /49 new labels since the last run, 50 needed/],
    [{ classesReady: 1 }, /1 labels have enough pictures/],
    [{ lastScheduledMs: READY.nowMs }, /next time of "0 2 \* \* \*" \(UTC\) is 2026-05-11T02:00/],
    [{ lastRunStartedMs: at("09T12:00") }, /20 h apart .* not before 2026-05-10T08:00/],
    [{}, /Quiet hours 01:00-03:00 \(UTC\): it is 02:00/, { quietHours: ["01:00-03:00"] }],
    [{ sensors: { ...sensors, hottestC: 85.26 } }, /Too hot: 85\.3 °C, at most 85/],
    [{ sensors: { ...sensors, throttling: ["tj"] } }, /throttles for heat \(tj\)/],
    [{ sensors: { ...sensors, powerWatts: 16 } }, /16 W drawn, at most 15/],
    [{ sensors: { ...sensors, overCurrentAlarm: true } }, /over-current/],
    [{ sensors: { ...sensors, battery: { percent: 20 } } }, /Battery at 20 %, at least 30/],
    [{ sensors: { ...sensors, gpuLoadPercent: 95 } }, /GPU load 95 %, at most 90/],
    [{ diskFreeBytes: 5e8 }, /500 MB free .* 1000 MB needed/],
  ];
  const all: Partial<ScheduleState> = {};
  for (const [change, expected, rules] of cases) {
    const decision = onState(change, rules);
    assert.match(reasonsOf(decision), expected);
    assert.equal(decision.action === "wait" && decision.reasons.length, 1);
    Object.assign(all, change);
  }
  const together = onState(all, { enabled: false, quietHours: ["01:00-03:00"] });
  assert.equal(together.action === "wait" && together.reasons.length, 10);
});

test("schedule: a run missed while the station was off is made up for once", () => {
  const late = onState({ nowMs: at("20T14:00") });
  assert.equal(late.action, "run");
  const after = onState({
    nowMs: at("20T14:01"),
    lastRunStartedMs: at("20T14:00"),
    lastScheduledMs: late.lastScheduledMs,
  });
  assert.match(reasonsOf(after), /2026-05-21T02:00/);
});

test("schedule: a new station waits for the next time of the cron", () => {
  const first = onState({ nowMs: at("10T14:00"), lastScheduledMs: null, lastRunStartedMs: null });
  assert.match(reasonsOf(first), /2026-05-11T02:00/);
  const { lastScheduledMs } = first;
  const next = onState({ nowMs: at("11T02:00"), lastScheduledMs, lastRunStartedMs: null });
  assert.equal(next.action, "run");
});

test("schedule: heat postpones an occurrence, too few labels let it pass", () => {
  const hot = onState({ sensors: { ...READY.sensors, hottestC: 99 } });
  assert.equal(onState({ nowMs: at("10T03:00"), ...memory(hot) }).action, "run");

  const poor = onState({ newLabels: 3 });
  const later = onState({ nowMs: at("10T14:00"), ...memory(poor) });
  assert.match(reasonsOf(later), /2026-05-11T02:00/);
  assert.equal(onState({ nowMs: at("11T02:00"), ...memory(later) }).action, "run");
});

function memory({ lastScheduledMs, clockAnchorMs }: Decision) {
  return { lastScheduledMs, clockAnchorMs };
}

test("schedule: quiet hours pass midnight and follow the time zone and its summer time", () => {
  const rules = { quietHours: ["22:00-05:30"], timeZone: "Europe/Berlin", cron: "* * * * *" };
  const isQuiet = (iso: string) => {
    const nowMs = Date.parse(iso);
    const state = { nowMs, lastScheduledMs: nowMs - DAY, lastRunStartedMs: null };
    return onState(state, rules).action === "wait";
  };
  assert.equal(isQuiet("2026-01-10T20:59:00Z"), false);
  assert.equal(isQuiet("2026-01-10T21:00:00Z"), true);
  assert.equal(isQuiet("2026-01-11T04:29:59Z"), true);
  assert.equal(isQuiet("2026-01-11T04:30:00Z"), false);
  assert.equal(isQuiet("2026-07-10T20:00:00Z"), true);
  assert.equal(isQuiet("2026-07-11T03:30:00Z"), false);
});

test("schedule: the next check is behind cron, distance and quiet hours", () => {
  const nextOf = (decision: Decision) => decision.action === "wait" && decision.nextCheckAt;
  assert.equal(nextOf(onState({ newLabels: 1 })), "2026-05-11T02:00:00.000Z");
  assert.equal(nextOf(onState({ lastRunStartedMs: at("09T12:00") })), "2026-05-10T08:00:00.000Z");
  const quietHours = ["01:00-03:00", "03:00-04:15", "23:00-01:30"];
  assert.equal(nextOf(onState({}, { quietHours })), "2026-05-10T04:15:00.000Z");
  assert.equal(nextOf(onState({ runningRun: "r1" })), null);
  assert.equal(nextOf(onState({}, { enabled: false })), null);
  assert.equal(nextOf(onState({}, { quietHours: ["00:00-12:00", "12:00-00:00"] })), null);
});

test("schedule: a clock gone backwards costs one distance between runs, never for ever", () => {
  let nowMs = at("01T10:00");
  let state: Partial<ScheduleState> = {
    lastRunStartedMs: at("20T02:00"),
    lastScheduledMs: at("20T02:00"),
  };
  const startMs = nowMs;
  let decision = onState({ ...state, nowMs });
  assert.match(reasonsOf(decision), /gone backwards/);
  while (decision.action === "wait") {
    nowMs += HOUR;
    assert.ok(nowMs < startMs + 3 * DAY, reasonsOf(decision));
    state = { ...state, ...memory(decision) };
    decision = onState({ ...state, nowMs });
  }
  assert.ok(nowMs >= startMs + 20 * HOUR);
});

test("schedule: once the clock is right again, the real distance counts", () => {
  const lastRunStartedMs = at("10T01:00");
  const wrong = onState({ nowMs: Date.parse("1970-01-02T00:00:00Z"), lastRunStartedMs });
  assert.notEqual(wrong.clockAnchorMs, null);
  const right = onState({ lastRunStartedMs, ...memory(wrong) });
  assert.match(reasonsOf(right), /2026-05-10T21:00/);
  assert.equal(right.clockAnchorMs, null);
});

test("schedule: what is no number never starts a run and never throws", () => {
  for (const broken of [Number.NaN, Infinity, -Infinity, 1e300]) {
    assert.match(reasonsOf(onState({ nowMs: broken })), /clock cannot be read/);
    assert.equal(onState({ lastRunStartedMs: broken }).action, "wait");
    assert.equal(onState({ lastScheduledMs: broken }).action, "wait");
  }
  const { sensors } = READY;
  const nan = Number.NaN;
  for (const change of [
    { newLabels: nan },
    { classesReady: nan },
    { diskFreeBytes: nan },
    { sensors: { ...sensors, hottestC: nan } },
    { sensors: { ...sensors, powerWatts: nan } },
    { sensors: { ...sensors, gpuLoadPercent: nan } },
    { sensors: { ...sensors, battery: { percent: nan } } },
  ]) {
    assert.equal(onState(change).action, "wait");
  }
  assert.equal(onState({ clockAnchorMs: nan }).action, "run");
});

/** mulberry32: a seeded source of numbers in [0, 1). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** Rules and a state by chance, most of them near what lets a run start. */
function anyCase(random: () => number): { rules: ScheduleRules; state: ScheduleState } {
  const pick = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)]!;
  const nowMs = at("10T00:00") + Math.floor(random() * 365 * DAY);
  const rules: ScheduleRules = {
    ...RULES,
    cron: pick(["0 2 * * *", "*/5 * * * *", "30 1 * * 0", "* * * * *"]),
    timeZone: pick(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
    quietHours: pick([[], [], ["22:00-05:30"], ["08:00-12:00", "11:00-13:30"]]),
    minHoursBetweenRuns: pick([0, 1, 20]),
  };
  const state: ScheduleState = {
    ...READY,
    nowMs,
    lastRunStartedMs: pick([null, nowMs - random() * 3 * DAY, nowMs + random() * DAY]),
    lastScheduledMs: pick([null, nowMs - random() * 9 * DAY]),
    newLabels: Math.floor(random() * 200),
    classesReady: pick([1, 2, 9]),
    sensors: {
      ...READY.sensors,
      hottestC: 40 + random() * 50,
      battery: { percent: random() * 200 },
    },
  };
  return { rules, state };
}

test("schedule: properties hold on 1000 seeded cases", () => {
  const random = seeded(1);
  let runs = 0;
  for (let i = 0; i < 1000; i += 1) {
    const { rules, state } = anyCase(random);
    const decision = decide(rules, state);
    assert.deepEqual(decide(rules, state), decision, "the same case, the same decision");
    if (decision.action === "wait") {
      assert.ok(decision.reasons.length > 0);
      const { nextCheckAt } = decision;
      assert.ok(nextCheckAt === null || Date.parse(nextCheckAt) > state.nowMs);
      continue;
    }
    runs += 1;
    assert.ok(state.newLabels >= rules.minNewLabels && state.classesReady >= 2);
    const elapsed = state.nowMs - (state.lastRunStartedMs ?? -Infinity);
    if (elapsed >= 0) assert.ok(elapsed >= rules.minHoursBetweenRuns * HOUR);
    const clock = new Date(state.nowMs).toLocaleTimeString("en-GB", { timeZone: rules.timeZone });
    if (rules.quietHours.length === 1) assert.ok(clock >= "05:30" && clock < "22:00", clock);
    if (rules.quietHours.length === 2) assert.ok(clock < "08:00" || clock >= "13:30", clock);
    // More labels, a cooler machine, a fuller battery, more room: still a run.
    const richer: ScheduleState = {
      ...state,
      newLabels: state.newLabels + 1,
      diskFreeBytes: 1e12,
      sensors: { ...state.sensors, hottestC: 20, battery: { percent: 100 } },
    };
    assert.equal(decide(rules, richer).action, "run");
  }
  assert.ok(runs > 25, `only ${runs} of 1000 cases let a run start`);
});

test("schedule: a simulated month keeps the distance and starts at its hour", () => {
  let lastRunStartedMs: number | null = null;
  let state: ReturnType<typeof memory> = { lastScheduledMs: null, clockAnchorMs: null };
  const starts: number[] = [];
  for (let nowMs = at("01T00:00"); nowMs < at("31T00:00"); nowMs += 10 * 60_000) {
    const decision = onState({ ...state, nowMs, lastRunStartedMs });
    state = memory(decision);
    if (decision.action === "wait") continue;
    starts.push(nowMs);
    lastRunStartedMs = nowMs;
  }
  assert.equal(starts.length, 30);
  for (const start of starts) assert.equal(new Date(start).getUTCHours(), 2);
});
