import { MultiBar, Presets } from "cli-progress";
import Table from "cli-table3";

/** Where the demo's output goes: standard output, or a memory stream in a test. */
export type Screen = NodeJS.WritableStream & { isTTY?: boolean; columns?: number };

/** The figures of one model, as `taco specialize --json` prints them. */
export interface ModelFigures {
  /** Share of held-out frames, in [0, 1]. */
  accuracy: number;
  /** In [0, 1]. */
  macroF1: number;
  parameters: number;
  nonzero: number;
  bytes: number;
  latencyMsP50: number;
}

/** A line that shows how far something is. */
export interface ProgressLine {
  /** `done` in the unit of `total`; a larger `total` than before may be passed. */
  update(done: number, note?: string, total?: number): void;
  /** Ends the line; the last state stays on the screen. */
  stop(): void;
}

/** Prints a section's title with a rule below it, and a blank line before. */
export function printTitle(screen: Screen, title: string): void {
  const rule = "─".repeat([...title].length);
  screen.write(screen.isTTY ? `\n\x1b[1m${title}\x1b[0m\n${rule}\n` : `\n${title}\n${rule}\n`);
}

/**
 * Starts a progress line with the time left. On a terminal it is redrawn in place; elsewhere (a
 * file, a CI log) one plain line is written at each quarter, so that the log stays readable.
 *
 * @param total at least 1.
 */
export function startProgress(screen: Screen, name: string, total: number): ProgressLine {
  if (!(total >= 1)) throw new RangeError(`total: expected at least 1, got ${total}`);
  return screen.isTTY ? drawnProgress(screen, name, total) : plainProgress(screen, name, total);
}

function drawnProgress(screen: Screen, name: string, total: number): ProgressLine {
  const bars = new MultiBar(
    {
      stream: screen,
      format: `${name.padEnd(22)} {bar} {percentage} % {value}/{total}  {left}  {note}`,
      barsize: 24,
      hideCursor: true,
      // The demo prints nothing while a line is up, and a killed demo must give its cursor back.
      gracefulExit: true,
      fps: 8,
    },
    Presets.shades_classic,
  );
  const bar = bars.create(total, 0, { note: "", left: "" });
  const startedMs = performance.now();
  return {
    update(done, note, newTotal) {
      if (newTotal !== undefined) bar.setTotal(newTotal);
      const left = timeLeft(done, bar.getTotal(), (performance.now() - startedMs) / 1000);
      bar.update(done, note === undefined ? { left } : { left, note });
    },
    stop: () => bars.stop(),
  };
}

/** `12 s left` by the speed so far; at the end how long it took. */
function timeLeft(done: number, total: number, elapsed: number): string {
  if (done >= total) return `in ${seconds(elapsed)}`;
  return done > 0 ? `${seconds((elapsed * (total - done)) / done)} left` : "";
}

function plainProgress(screen: Screen, name: string, firstTotal: number): ProgressLine {
  const startedMs = performance.now();
  let total = firstTotal;
  let quarter = 0;
  let ended = false;
  const print = (done: number, note: string) => {
    const elapsed = (performance.now() - startedMs) / 1000;
    const left = done < total ? timeLeft(done, total, elapsed) : "";
    const tail = [left, note].filter((part) => part !== "").map((part) => `, ${part}`);
    screen.write(`${name}: ${done}/${total} after ${seconds(elapsed)}${tail.join("")}\n`);
  };
  return {
    update(done, note = "", newTotal = total) {
      total = newTotal;
      const now = Math.floor((4 * done) / total);
      if (now <= quarter || ended) return;
      quarter = now;
      print(done, note);
    },
    stop() {
      ended = true;
    },
  };
}

/** A specialize run on the screen: its stages as they end, and how far it is. */
export interface RunView {
  /** @param share of the run, in [0, 1]. */
  update(stage: string, share: number, secondsLeft: number | null, note: string): void;
  stageEnded(stage: string, seconds: number): void;
  stop(): void;
}

/** Starts the view of a run: a bar on a terminal; elsewhere a line now and then. */
export function startRunView(screen: Screen): RunView {
  const ended = (stage: string, time: number) =>
    `  ${stage.padEnd(12)}${seconds(time).padStart(7)}\n`;
  const left = (time: number | null) => (time === null ? "" : `${seconds(time)} left`);
  if (!screen.isTTY) {
    let shownMs = performance.now();
    return {
      update(stage, share, secondsLeft, note) {
        if (performance.now() - shownMs < PLAIN_UPDATE_MS) return;
        shownMs = performance.now();
        const parts = [`${Math.round(100 * share)} % of the run`, left(secondsLeft), note];
        screen.write(`  ${stage} … ${parts.filter((part) => part !== "").join(", ")}\n`);
      },
      stageEnded: (stage, time) => void screen.write(ended(stage, time)),
      stop: () => undefined,
    };
  }
  const bars = new MultiBar(
    {
      stream: screen,
      format: "  {stage} {bar} {percentage} %  {left}  {note}",
      barsize: 24,
      hideCursor: true,
      gracefulExit: true,
      clearOnComplete: true,
      fps: 8,
    },
    Presets.shades_classic,
  );
  const bar = bars.create(100, 0, { stage: "beginning".padEnd(12), left: "", note: "" });
  return {
    update(stage, share, secondsLeft, note) {
      const shown = { stage: stage.padEnd(12), left: left(secondsLeft), note };
      bar.update(Math.round(100 * share), shown);
    },
    stageEnded: (stage, time) => bars.log(ended(stage, time)),
    stop() {
      // Lines since the last drawing would be lost.
      bars.update();
      bars.stop();
    },
  };
}

/** Lines of a run off a terminal, while a stage goes on. */
const PLAIN_UPDATE_MS = 10_000;

/**
 * Prints the table of before and after. The ratio of a size or a time is dense over compressed
 * ("how many times smaller"); of accuracy and macro-F1 it is compressed over dense in per cent.
 *
 * @param before the model that served until then, shown beside them where there is one.
 */
export function printComparison(
  screen: Screen,
  dense: ModelFigures,
  compressed: ModelFigures,
  before?: ModelFigures,
): void {
  const head = ["held-out bursts", "dense", "compressed", "ratio"];
  const rows: string[][] = [
    share("accuracy", dense.accuracy, compressed.accuracy),
    share("macro-F1", dense.macroF1, compressed.macroF1),
    times("non-zero parameters", dense.nonzero, compressed.nonzero, count),
    times("bytes", dense.bytes, compressed.bytes, count),
    times("median latency", dense.latencyMsP50, compressed.latencyMsP50, milliseconds),
  ];
  if (before) {
    const { accuracy, macroF1, nonzero, bytes, latencyMsP50 } = before;
    head.splice(1, 0, "served before");
    const column = [
      percent(accuracy),
      percent(macroF1),
      count(nonzero),
      count(bytes),
      milliseconds(latencyMsP50),
    ];
    for (const [i, text] of column.entries()) rows[i]!.splice(1, 0, text);
  }
  printTable(screen, head, rows);
}

/** Prints what the broker saw, one row a kind. */
export function printMessages(
  screen: Screen,
  messages: readonly { kind: string; count: number }[],
): void {
  if (messages.length === 0) {
    screen.write("no message was seen\n");
    return;
  }
  printTable(
    screen,
    ["message", "count"],
    messages.map(({ kind, count: times }) => [kind, count(times)]),
  );
}

/**
 * Prints rows under a head; the first columns are text, the others are right-aligned figures.
 *
 * @param texts how many columns are text.
 */
export function printTable(
  screen: Screen,
  head: readonly string[],
  rows: readonly (readonly string[])[],
  texts = 1,
): void {
  const table = new Table({
    head: [...head],
    colAligns: head.map((_, column) => (column < texts ? "left" : "right")),
    style: { head: screen.isTTY ? ["bold"] : [], border: [], compact: true },
  });
  table.push(...rows.map((row) => [...row]));
  screen.write(`${table.toString()}\n`);
}

/** Bytes for people, in binary units: `5.2 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  const value = bytes / 2 ** (10 * power);
  return `${power === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[power]}`;
}

function share(name: string, dense: number, compressed: number): [string, string, string, string] {
  const ratio = dense > 0 ? percent(compressed / dense) : "–";
  return [name, percent(dense), percent(compressed), ratio];
}

function times(
  name: string,
  dense: number,
  compressed: number,
  format: (value: number) => string,
): [string, string, string, string] {
  const ratio = compressed > 0 ? `${(dense / compressed).toFixed(2)}×` : "–";
  return [name, format(dense), format(compressed), ratio];
}

/** `98.3 %`. */
export const percent = (value: number) => `${(100 * value).toFixed(1)} %`;
/** `1,234`. */
export const count = (value: number) => value.toLocaleString("en-US");
const milliseconds = (value: number) => `${value.toFixed(1)} ms`;
/** `3.1 s`, `42 s`, `2 min`. */
export const seconds = (value: number) =>
  value < 90 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : `${Math.round(value / 60)} min`;
