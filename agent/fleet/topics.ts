/** Longest fleet or station id in characters; keeps every topic far below MQTT's 65,535 bytes. */
const MAX_ID_LENGTH = 64;

/** Longest operation name or command id in characters. */
const MAX_COMMAND_PART_LENGTH = 128;

/** What a command's topic says. */
export interface CommandTopic {
  /** Operation, such as `specialize`. */
  readonly op: string;
  /** Identity of this one command, chosen by the fleet. */
  readonly id: string;
}

/**
 * Checks a fleet or station id for use as one level of a topic: 1 to 64 characters, none of
 * `/ + #`, no white space or control character, no `$` at its start (MQTT 5.0, section 4.7).
 *
 * @throws {RangeError} naming the id and what is wrong with it.
 */
function assertTopicId(kind: "fleet" | "station", id: string): void {
  const problem = problemOfLevel(id, MAX_ID_LENGTH);
  if (problem !== undefined) {
    throw new RangeError(`${kind} id: expected ${problem}, got ${JSON.stringify(id)}`);
  }
}

/** What a level of a topic must be and `level` is not; undefined where all is well. */
function problemOfLevel(level: string, maxLength: number): string | undefined {
  if (level.length === 0 || level.length > maxLength) return `1 to ${maxLength} characters`;
  if (/[/+#]/.test(level)) return "none of the characters / + #";
  if (/[\s\p{Cc}\p{Cs}]/u.test(level)) return "no white space and no control character";
  if (level.startsWith("$")) return "no $ at the start";
  return undefined;
}

/**
 * `taco/<fleet>/<station>`: what every topic of a station begins with.
 *
 * @throws {RangeError} if an id cannot be a level of a topic.
 */
export function stationPrefix(fleet: string, station: string): string {
  assertTopicId("fleet", fleet);
  assertTopicId("station", station);
  return `taco/${fleet}/${station}`;
}

/**
 * The MQTT client id of a station: the same at every start, so that the broker resumes the
 * session, and different for every station. It holds no `/ + #`, which mosquitto refuses in
 * access rules with `%c`.
 */
export function stationClientId(fleet: string, station: string): string {
  const encode = (id: string): string => id.replaceAll("%", "%25").replaceAll(":", "%3A");
  return `taco:${encode(fleet)}:${encode(station)}`;
}

/** The filter that matches every command of a station and none of the commands' states. */
export function commandFilter(prefix: string): string {
  return `${prefix}/cmd/+/+`;
}

/** Where the state of a command is told, below the station's prefix. */
export function commandStateTopic(op: string, id: string): string {
  return `cmd/${op}/${id}/state`;
}

/**
 * Reads `cmd/<op>/<id>`, below the station's prefix.
 *
 * @returns undefined where the topic is no command's, or its parts cannot be recorded.
 */
export function parseCommandTopic(topic: string): CommandTopic | undefined {
  const [root, op, id, ...rest] = topic.split("/");
  if (root !== "cmd" || op === undefined || id === undefined || rest.length > 0) return undefined;
  if (problemOfLevel(op, MAX_COMMAND_PART_LENGTH) !== undefined) return undefined;
  if (problemOfLevel(id, MAX_COMMAND_PART_LENGTH) !== undefined) return undefined;
  return { op, id };
}
