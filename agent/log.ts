import { type DestinationStream, destination, type LevelWithSilent, type Logger, pino } from "pino";

export type { Logger } from "pino";

/** Syslog priority (RFC 5424, section 6.2.1) of each pino level. */
const PRIORITY: Readonly<Record<string, number>> = {
  fatal: 2,
  error: 3,
  warn: 4,
  info: 6,
  debug: 7,
  trace: 7,
};

/**
 * A logger that writes one JSON object a line to standard error, so that standard output stays
 * free for results. Under systemd (`JOURNAL_STREAM` set) each line carries its priority as
 * `<N>`, which journald strips and files (sd-daemon(3)), so that `journalctl -p err` works.
 *
 * @param stream where lines go instead of standard error, for tests.
 */
export function createLogger(
  level: LevelWithSilent,
  stream?: DestinationStream,
  environment: NodeJS.ProcessEnv = process.env,
): Logger {
  const sink = stream ?? destination({ fd: 2, sync: true });
  const target = environment["JOURNAL_STREAM"] === undefined ? sink : withPriority(sink);
  const formatters = { level: (label: string) => ({ level: label }) };
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime, formatters }, target);
}

function withPriority(sink: DestinationStream): DestinationStream {
  return {
    write(line: string): void {
      const level = /"level":"(\w+)"/.exec(line)?.[1] ?? "info";
      sink.write(`<${PRIORITY[level] ?? 6}>${line}`);
    },
  };
}
