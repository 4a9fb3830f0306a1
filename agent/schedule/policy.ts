import { Cron } from "croner";
import { isoTime } from "../clock.ts";

/** When runs may start; the `schedule` section of the configuration. */
export interface ScheduleRules {
  enabled: boolean;
  /** Five fields, in `timeZone`. */
  cron: string;
  /** IANA time zone of `cron` and `quietHours`. */
  timeZone: string;
  minNewLabels: number;
  minHoursBetweenRuns: number;
  /** `HH:MM-HH:MM`, the end outside; may pass midnight. */
  quietHours: readonly string[];
  maxTempC: number;
  maxPowerWatts: number | null;
  minBatteryPercent: number;
  maxGpuLoadPercent: number;
}

/** What the machine's sensors say; null where it has no such sensor, which then stops nothing. */
interface ScheduleSensors {
  hottestC: number | null;
  /** Zones at or above their own throttling point. */
  throttling: readonly string[];
  powerWatts: number | null;
  overCurrentAlarm: boolean | null;
  gpuLoadPercent: number | null;
  battery: { percent: number } | null;
}

/** What a decision is taken on, besides the rules. */
export interface ScheduleState {
  /** Wall clock; may have jumped in either direction since the last decision. */
  nowMs: number;
  /** Start of the last run, by command or by itself; null where there was none. */
  lastRunStartedMs: number | null;
  /**
   * Time up to which the cron's occurrences are dealt with, as the last {@link Decision} returned
   * it; null on a new station, whose first run then waits for the next occurrence.
   */
  lastScheduledMs: number | null;
  /** `clockAnchorMs` of the last {@link Decision}; null at first. */
  clockAnchorMs: number | null;
  /** Labels that came since the last run. */
  newLabels: number;
  /** Labels with enough pictures to become a class. */
  classesReady: number;
  sensors: ScheduleSensors;
  /** Id of the run under way. */
  runningRun: string | null;
  /** SHA-256 of the model on probation. */
  probationRunning: string | null;
  diskFreeBytes: number | null;
  /** Room that a run needs for its checkpoints and its model. */
  diskNeededBytes: number;
}

/** What to do now, and what the next decision must know; keep both times in the database. */
export type Decision = {
  lastScheduledMs: number | null;
  clockAnchorMs: number | null;
} & (
  | { action: "run" }
  | {
      action: "wait";
      /** Every reason why not now, as sentences for people. */
      reasons: string[];
      /**
       * Earliest time at which the reasons of time (cron, distance, quiet hours) can be gone; null
       * where only labels, sensors or what is under way are in the way.
       */
      nextCheckAt: string | null;
    }
);

const HOUR_MS = 3_600_000;

/**
 * Whether a run starts now. Pure: the same rules and state, the same decision.
 *
 * - An occurrence of the cron stays due until a run serves it, so that heat or a quiet hour only
 *   postpone it; any number of missed ones (the station was off) makes one run. An occurrence that
 *   finds too little to learn from, or runs switched off, is over: the run waits for the next one rather than starting in
 *   the middle of the day when the last label comes.
 * - A clock behind the last run's start has gone backwards, so the time since then is unknown. The
 *   distance between runs is then measured from the moment this was first seen
 *   (`clockAnchorMs`), once; when the clock is past that start again, the real times count again.
 * - A reading that is no number stops a run like one out of bounds: it is a fault, not a missing
 *   sensor.
 *
 * @throws {TypeError | RangeError} if the cron expression or the time zone cannot be read; the
 *   configuration refuses both.
 */
export function decide(rules: ScheduleRules, state: ScheduleState): Decision {
  const { nowMs } = state;
  if (!isTime(nowMs)) {
    const reasons = [`The clock cannot be read (${nowMs}).`];
    const { lastScheduledMs, clockAnchorMs } = state;
    return { lastScheduledMs, clockAnchorMs, action: "wait", reasons, nextCheckAt: null };
  }
  const clock = clockOf(state);
  const blocked = standing(rules, state);
  const poor = learning(rules, state);
  const timing = timed(rules, state, clock);
  const reasons = [
    ...blocked,
    ...poor,
    ...timing.reasons,
    ...conditions(rules, state.sensors),
    ...disk(state),
  ];
  const { clockAnchorMs } = clock;
  if (reasons.length === 0) return { lastScheduledMs: nowMs, clockAnchorMs, action: "run" };
  const isOver = timing.isDue && (poor.length > 0 || !rules.enabled);
  const lastScheduledMs = isOver ? nowMs : clock.lastScheduledMs;
  return {
    lastScheduledMs,
    clockAnchorMs,
    action: "wait",
    reasons,
    nextCheckAt: nextCheck(rules, state, { ...clock, lastScheduledMs }),
  };
}

/** The state's times with those of the future set right. */
interface ScheduleClock {
  clockAnchorMs: number | null;
  lastRunMs: number | null;
  lastScheduledMs: number;
}

function clockOf(state: ScheduleState): ScheduleClock {
  const { nowMs, lastRunStartedMs, lastScheduledMs } = state;
  const isAhead = (ms: number | null) => ms !== null && !(isTime(ms) && ms <= nowMs);
  if (!isAhead(lastRunStartedMs) && !isAhead(lastScheduledMs)) {
    const scheduledMs = lastScheduledMs ?? nowMs;
    return { clockAnchorMs: null, lastRunMs: lastRunStartedMs, lastScheduledMs: scheduledMs };
  }
  const seen = state.clockAnchorMs;
  const anchorMs = seen !== null && !isAhead(seen) ? seen : nowMs;
  return {
    clockAnchorMs: anchorMs,
    lastRunMs: isAhead(lastRunStartedMs) ? anchorMs : lastRunStartedMs,
    lastScheduledMs: isAhead(lastScheduledMs) ? anchorMs : (lastScheduledMs ?? nowMs),
  };
}

/** Years 1970 to 9999: what a clock can show and ISO 8601 writes in four digits. */
function isTime(ms: number): boolean {
  return ms >= 0 && ms <= 253_402_300_799_999;
}

function standing(rules: ScheduleRules, state: ScheduleState): string[] {
  const reasons: string[] = [];
  if (!rules.enabled) reasons.push("Automatic runs are switched off (schedule.enabled is false).");
  if (state.runningRun !== null) reasons.push(`Run ${state.runningRun} is under way.`);
  if (state.probationRunning !== null) {
    reasons.push(`Model ${state.probationRunning.slice(0, 12)} is still on probation.`);
  }
  return reasons;
}

function learning(rules: ScheduleRules, { newLabels, classesReady }: ScheduleState): string[] {
  const reasons: string[] = [];
  if (!(newLabels >= rules.minNewLabels)) {
    reasons.push(
      `${newLabels} new labels since the last run, ${rules.minNewLabels} needed ` +
        "(schedule.minNewLabels).",
    );
  }
  if (!(classesReady >= 2)) {
    reasons.push(
      `${classesReady} labels have enough pictures to become a class, 2 needed ` +
        "(specialize.minLabelsPerClass).",
    );
  }
  return reasons;
}

function timed(rules: ScheduleRules, { nowMs }: ScheduleState, clock: ScheduleClock) {
  const reasons: string[] = [];
  const dueMs = occurrenceAfter(rules, clock.lastScheduledMs);
  const isDue = dueMs !== null && dueMs <= nowMs;
  if (!isDue) {
    const at = dueMs === null ? "never" : isoTime(dueMs);
    reasons.push(`The next time of "${rules.cron}" (${rules.timeZone}) is ${at}.`);
  }
  const apartMs = apartUntil(rules, clock);
  if (apartMs !== null && nowMs < apartMs) {
    const since =
      clock.clockAnchorMs === clock.lastRunMs
        ? "The clock has gone backwards, so the time since the last run is not known"
        : `The last run started ${isoTime(clock.lastRunMs ?? nowMs)}`;
    reasons.push(
      `${since}; runs are ${rules.minHoursBetweenRuns} h apart (schedule.minHoursBetweenRuns), ` +
        `so not before ${isoTime(apartMs)}.`,
    );
  }
  const quiet = quietRange(rules, nowMs);
  if (quiet !== null) {
    reasons.push(`Quiet hours ${quiet} (${rules.timeZone}): it is ${localTime(rules, nowMs)}.`);
  }
  return { isDue, reasons };
}

function conditions(rules: ScheduleRules, sensors: ScheduleSensors): string[] {
  const { hottestC, throttling, powerWatts, overCurrentAlarm, gpuLoadPercent, battery } = sensors;
  const reasons: string[] = [];
  // Negated comparisons, so that NaN counts as out of bounds.
  if (hottestC !== null && !(hottestC <= rules.maxTempC)) {
    reasons.push(
      `Too hot: ${shown(hottestC)} °C, at most ${rules.maxTempC} °C (schedule.maxTempC).`,
    );
  }
  if (throttling.length > 0) {
    reasons.push(`The machine throttles for heat (${throttling.join(", ")}).`);
  }
  const { maxPowerWatts } = rules;
  if (maxPowerWatts !== null && powerWatts !== null && !(powerWatts <= maxPowerWatts)) {
    reasons.push(
      `${shown(powerWatts)} W drawn, at most ${maxPowerWatts} W (schedule.maxPowerWatts).`,
    );
  }
  if (overCurrentAlarm === true) reasons.push("The over-current alarm of a supply rail is on.");
  if (battery !== null && !(battery.percent >= rules.minBatteryPercent)) {
    reasons.push(
      `Battery at ${shown(battery.percent)} %, at least ${rules.minBatteryPercent} % needed ` +
        "(schedule.minBatteryPercent).",
    );
  }
  if (gpuLoadPercent !== null && !(gpuLoadPercent <= rules.maxGpuLoadPercent)) {
    reasons.push(
      `GPU load ${shown(gpuLoadPercent)} %, at most ${rules.maxGpuLoadPercent} % ` +
        "(schedule.maxGpuLoadPercent).",
    );
  }
  return reasons;
}

const shown = (reading: number) => Number(reading.toFixed(1));

function disk({ diskFreeBytes, diskNeededBytes }: ScheduleState): string[] {
  if (diskFreeBytes === null || diskFreeBytes >= diskNeededBytes) return [];
  const megabytes = (bytes: number) => `${Math.floor(bytes / 1e6)} MB`;
  return [
    `${megabytes(diskFreeBytes)} free on the disk of the station, ${megabytes(diskNeededBytes)} ` +
      "needed for a run.",
  ];
}

/** The first occurrence of the cron after a time, or null where it has none any more. */
function occurrenceAfter(rules: ScheduleRules, ms: number): number | null {
  const cron = new Cron(rules.cron, { mode: "5-part", timezone: rules.timeZone, paused: true });
  return cron.nextRun(new Date(ms))?.getTime() ?? null;
}

function apartUntil(rules: ScheduleRules, { lastRunMs }: ScheduleClock): number | null {
  return lastRunMs === null ? null : lastRunMs + rules.minHoursBetweenRuns * HOUR_MS;
}

/** The latest of the times at which each reason of time ends, moved out of the quiet hours. */
function nextCheck(rules: ScheduleRules, state: ScheduleState, clock: ScheduleClock) {
  const { nowMs } = state;
  const occurrenceMs = occurrenceAfter(rules, clock.lastScheduledMs);
  if (!rules.enabled || occurrenceMs === null) return null;
  let ms = Math.max(nowMs, occurrenceMs, apartUntil(rules, clock) ?? nowMs);
  // Each step leaves one range for good, but ranges may touch and pass midnight.
  for (let step = 0; step <= 2 * rules.quietHours.length; step += 1) {
    const range = quietRange(rules, ms);
    if (range === null) return ms > nowMs ? isoTime(ms) : null;
    ms = endOf(rules, range, ms);
  }
  return null;
}

/** The quiet range that holds a time, or null. */
function quietRange(rules: ScheduleRules, ms: number): string | null {
  if (rules.quietHours.length === 0) return null;
  const now = localTime(rules, ms);
  const holds = (range: string) => {
    const [start = "", end = ""] = range.split("-");
    return start <= end ? start <= now && now < end : start <= now || now < end;
  };
  return rules.quietHours.find(holds) ?? null;
}

/** Where a range that holds `ms` ends, on a day without a change of the clocks. */
function endOf(rules: ScheduleRules, range: string, ms: number): number {
  const minutes = (time: string) => Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5));
  const left = minutes(range.slice(6)) - minutes(localTime(rules, ms));
  const wholeMinute = Math.floor(ms / 60_000) * 60_000;
  return wholeMinute + ((left + 1440) % 1440) * 60_000;
}

/** `HH:MM` in the rules' time zone; compares as text. */
function localTime({ timeZone }: ScheduleRules, ms: number): string {
  const format = new Intl.DateTimeFormat("en-GB", {
    timeZone,
    hour: "2-digit",
    minute: "2-digit",
    hourCycle: "h23",
  });
  return format.format(ms);
}
