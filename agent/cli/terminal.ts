import { SingleBar } from "cli-progress";
import Table from "cli-table3";
import type { RunOutlook } from "../specialize/progress.ts";

/** Shows how far a run is, on standard error; a bar on a terminal, lines elsewhere. */
export interface ProgressView {
  update(outlook: RunOutlook): void;
  stop(): void;
}

/** @param stream where the progress goes: standard output is for results. */
export function progressView(stream: NodeJS.WriteStream): ProgressView {
  return stream.isTTY ? progressBar(stream) : progressLines(stream);
}

function progressBar(stream: NodeJS.WriteStream): ProgressView {
  const format = "{stage} [{bar}] {percentage} %  {left}";
  const bar = new SingleBar({ format, stream, hideCursor: true, barsize: 30 });
  bar.start(100, 0, { stage: "", left: "" });
  return {
    update: ({ stage, share, secondsLeft }) =>
      bar.update(Math.round(100 * share), { stage: stage.padEnd(11), left: timeLeft(secondsLeft) }),
    stop: () => bar.stop(),
  };
}

function progressLines(stream: NodeJS.WriteStream): ProgressView {
  let last = "";
  return {
    update: ({ stage, share, secondsLeft }) => {
      const tenth = `${stage} ${Math.floor(10 * share)}`;
      if (tenth === last) return;
      last = tenth;
      stream.write(`${stage}: ${Math.round(100 * share)} % of the run, ${timeLeft(secondsLeft)}\n`);
    },
    stop: () => undefined,
  };
}

/** `2 min 5 s left`, or nothing while there is no estimate. */
function timeLeft(seconds: number | null): string {
  return seconds === null ? "" : `${duration(seconds)} left`;
}

/** `2 min 5 s`. */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A table for people; wide cells wrap at the terminal's width. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const result = new Table({ head: [...head], style: { head: [], border: [] } });
  for (const row of rows) result.push([...row]);
  return result.toString();
}

/** `98.3 %`. */
export function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** `1.2 M`, `345 k`. */
export function count(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  return value >= 1e3 ? `${(value / 1e3).toFixed(0)} k` : String(value);
}

/** `16.0 MB`. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
