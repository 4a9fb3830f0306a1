import { toJsonSchema } from "@valibot/to-json-schema";
import * as v from "valibot";
import { type Clock, isoTime } from "../clock.ts";

/** Version of every payload in this file; a change that an old reader cannot take raises it. */
const MESSAGE_SCHEMA_VERSION = 1;

/**
 * A message on its way to the broker, as the outbox keeps it. Built by {@link messageBuilder};
 * published by the pump.
 */
export interface OutboxMessage {
  /** Below the station's prefix, such as `e/prediction`. */
  readonly topic: string;
  /** JSON. */
  readonly payload: string;
  readonly qos: 0 | 1;
  readonly retain: boolean;
  /** What is dropped first where the outbox is full: 0 predictions and measurements, 2 last. */
  readonly priority: 0 | 1 | 2;
}

const text = v.pipe(v.string(), v.minLength(1));
const isoUtc = v.pipe(v.string(), v.isoTimestamp());
const sha = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, "expected a SHA-256 in lower-case hex"));
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const amount = v.pipe(v.number(), v.minValue(0));
const share = v.pipe(v.number(), v.minValue(0), v.maxValue(1));

/** The fields that every payload begins with. */
const envelope = {
  schemaVersion: v.literal(MESSAGE_SCHEMA_VERSION),
  /** Unique: the same id seen twice is the same message delivered twice. */
  id: text,
  /** When it was made, ISO 8601 in UTC. */
  at: isoUtc,
  /** Id of the station. */
  station: text,
};

const ranked = v.array(v.strictObject({ label: text, probability: share }));

/** What one model scored and weighs, as verdicts tell it. */
const score = v.strictObject({
  accuracy: share,
  macroF1: share,
  parameters: count,
  nonzero: count,
  bytes: count,
  latencyMsP50: v.nullable(amount),
});

const status = v.strictObject({
  ...envelope,
  state: v.picklist(["online", "offline"]),
  /** `stopped`, or `connection lost` where the broker tells it in the station's place. */
  reason: v.nullable(text),
  softwareVersion: text,
});

const twinModel = v.strictObject({
  ...envelope,
  /** SHA-256 of the model that serves; null while there is none. */
  modelSha256: v.nullable(sha),
  name: v.nullable(text),
  classes: v.array(text),
  /** Run that made it; null for a generalist. */
  run: v.nullable(text),
  /** True while the model may still be rolled back by itself. */
  onProbation: v.boolean(),
  softwareVersion: text,
});

const twinHardware = v.strictObject({
  ...envelope,
  /** Board or product name, as the system tells it. */
  board: v.nullable(text),
  cpu: v.nullable(text),
  cpuCores: v.nullable(count),
  memoryBytes: v.nullable(count),
  operatingSystem: v.nullable(text),
  kernel: v.nullable(text),
  nodeVersion: text,
  /** Execution provider in use and why not an earlier one of the config. */
  executionProvider: v.nullable(text),
  executionProviderReason: v.nullable(text),
});

const inferenceMeasurement = v.strictObject({
  ...envelope,
  /** Length of time that the figures cover. */
  windowSeconds: amount,
  frames: count,
  errors: count,
  runMsP50: v.nullable(amount),
  runMsP99: v.nullable(amount),
  decodeMsP50: v.nullable(amount),
  queueLength: count,
  /** Resident memory of the inference child. */
  memoryBytes: v.nullable(count),
  /** Starts of the inference child since the supervisor started, less the first. */
  restarts: count,
});

const deviceMeasurement = v.strictObject({
  ...envelope,
  tempC: v.nullable(v.number()),
  powerWatts: v.nullable(v.number()),
  batteryPercent: v.nullable(v.number()),
  cpuLoadPercent: v.nullable(amount),
  gpuLoadPercent: v.nullable(amount),
  memoryUsedBytes: v.nullable(count),
  memoryTotalBytes: v.nullable(count),
  diskFreeBytes: v.nullable(count),
});

const outboxMeasurement = v.strictObject({
  ...envelope,
  pending: count,
  pendingBytes: v.nullable(count),
  /** Dropped because the outbox was full, since the station was set up. */
  droppedFull: count,
  /** Dropped because the broker refused them for good, since the supervisor started. */
  droppedRefused: count,
  /** Delivered since the supervisor started. */
  delivered: count,
  /** Connections made since the supervisor started. */
  connects: count,
});

const prediction = v.strictObject({
  ...envelope,
  pictureSha256: sha,
  /** Where the picture lay below the inbox. */
  path: text,
  burst: v.nullable(text),
  /** As the camera wrote it, without zone; null where it wrote none. */
  capturedAt: v.nullable(text),
  label: text,
  probability: share,
  /** The five most probable classes, best first. */
  top: ranked,
  modelSha256: sha,
  runMs: amount,
  decodeMs: amount,
});

const quarantine = v.strictObject({
  ...envelope,
  path: text,
  pictureSha256: v.nullable(sha),
  sizeBytes: v.nullable(count),
  reason: text,
});

const labels = v.strictObject({
  ...envelope,
  source: v.picklist(["human", "file", "remote"]),
  /** New or changed labels by label. */
  added: v.record(text, count),
  /** All labels of the station by label, after this. */
  total: v.record(text, count),
});

const run = v.strictObject({
  ...envelope,
  run: text,
  state: v.picklist(["started", "resumed", "finished", "failed", "aborted", "skipped"]),
  reason: v.nullable(text),
  /** Length of the run so far. */
  seconds: v.nullable(amount),
});

const stage = v.strictObject({
  ...envelope,
  run: text,
  stage: text,
  state: v.picklist(["started", "progress", "finished", "failed"]),
  /** Share of the stage that is done. */
  done: v.nullable(share),
  seconds: v.nullable(amount),
  /** Estimate of what is left of the run. */
  secondsLeft: v.nullable(amount),
});

const verdict = v.strictObject({
  ...envelope,
  run: text,
  candidateSha256: sha,
  accepted: v.boolean(),
  /** Every reason in words. */
  reasons: v.array(text),
  heldOut: v.strictObject({ frames: count, bursts: count }),
  dense: v.nullable(score),
  incumbent: v.nullable(score),
  candidate: score,
});

const swap = v.strictObject({
  ...envelope,
  fromSha256: v.nullable(sha),
  toSha256: sha,
  /** `committed`: the probation is over and the model stays. */
  state: v.picklist(["swapped", "committed", "failed"]),
  reason: v.nullable(text),
  /** `in place`: pictures waited while it loaded, as memory was too short for two models. */
  mode: v.nullable(v.picklist(["beside", "in place"])),
});

const rollback = v.strictObject({
  ...envelope,
  fromSha256: sha,
  toSha256: v.nullable(sha),
  cause: v.picklist(["probation", "command", "person", "damaged"]),
  reason: text,
});

const problem = v.strictObject({
  ...envelope,
  /** One of the stable error codes, or null where none fits. */
  code: v.nullable(text),
  message: text,
});

const commandState = v.strictObject({
  ...envelope,
  /** Id of the command, as in its topic. */
  command: text,
  op: text,
  state: v.picklist(["executing", "successful", "failed"]),
  /** Why it failed, or what it did; null where there is nothing to say. */
  reason: v.nullable(text),
});

interface Delivery {
  readonly qos: 0 | 1;
  readonly retain: boolean;
  readonly priority: 0 | 1 | 2;
}

const KEPT: Delivery = { qos: 1, retain: true, priority: 2 };
const MEASUREMENT: Delivery = { qos: 0, retain: false, priority: 0 };
const LEAST: Delivery = { qos: 1, retain: false, priority: 0 };
const EVENT: Delivery = { qos: 1, retain: false, priority: 1 };
const MOST: Delivery = { qos: 1, retain: false, priority: 2 };

/** Every message that a station sends: its topic below the prefix, its payload, how it travels. */
export const MESSAGES = {
  status: { schema: status, ...KEPT },
  "twin/model": { schema: twinModel, ...KEPT },
  "twin/hardware": { schema: twinHardware, ...KEPT },
  "m/inference": { schema: inferenceMeasurement, ...MEASUREMENT },
  "m/device": { schema: deviceMeasurement, ...MEASUREMENT },
  "m/outbox": { schema: outboxMeasurement, ...MEASUREMENT },
  "e/prediction": { schema: prediction, ...LEAST },
  "e/quarantine": { schema: quarantine, ...EVENT },
  "e/labels": { schema: labels, ...EVENT },
  "e/run": { schema: run, ...EVENT },
  "e/stage": { schema: stage, ...LEAST },
  "e/verdict": { schema: verdict, ...MOST },
  "e/swap": { schema: swap, ...MOST },
  "e/rollback": { schema: rollback, ...MOST },
  "e/problem": { schema: problem, ...MOST },
  "cmd/+/+/state": { schema: commandState, ...KEPT },
} as const;

/** A topic of {@link MESSAGES}. */
type MessageTopic = keyof typeof MESSAGES;

type Payload<T extends MessageTopic> = v.InferOutput<(typeof MESSAGES)[T]["schema"]>;

/** The fields of a payload that its sender fills in: all but the envelope. */
export type MessageFields<T extends MessageTopic> = Omit<Payload<T>, keyof typeof envelope>;

/** Makes one message; see {@link messageBuilder}. */
export type BuildMessage = <T extends MessageTopic>(
  topic: T,
  fields: MessageFields<T>,
  parts?: Readonly<Record<"op" | "id", string>>,
) => OutboxMessage;

/**
 * Makes the function that builds every message of a station.
 *
 * It throws a {TypeError} that names the field where the fields do not fit the schema, and
 * where `cmd/+/+/state` comes without the `parts` that fill its two levels.
 *
 * @param newId a new unique id at every call, such as a UUID.
 */
export function messageBuilder(
  station: string,
  clock: Pick<Clock, "nowMs">,
  newId: () => string,
): BuildMessage {
  return (topic, fields, parts) => {
    const { schema, qos, retain, priority } = MESSAGES[topic];
    const at = isoTime(clock.nowMs());
    const head = { schemaVersion: MESSAGE_SCHEMA_VERSION, id: newId(), at, station };
    const payload = { ...head, ...fields };
    const issue = v.safeParse(schema as v.GenericSchema, payload).issues?.[0];
    if (issue !== undefined) {
      const field = v.getDotPath(issue) ?? "payload";
      throw new TypeError(`message ${topic}, field ${field}: ${issue.message}`);
    }
    return {
      topic: fillLevels(topic, parts),
      payload: JSON.stringify(payload),
      qos,
      retain,
      priority,
    };
  };
}

function fillLevels(topic: MessageTopic, parts: Parameters<BuildMessage>[2]): string {
  if (topic !== "cmd/+/+/state") return topic;
  if (parts === undefined) throw new TypeError(`message ${topic}: expected parts op and id`);
  return `cmd/${parts.op}/${parts.id}/state`;
}

const commandHead = {
  schemaVersion: v.optional(v.literal(MESSAGE_SCHEMA_VERSION)),
  /** The command is not begun after this moment. */
  expiresAt: v.optional(isoUtc),
};

/** Every operation that the fleet may ask for, with the payload of `cmd/<op>/<id>`. */
export const COMMANDS = {
  specialize: v.strictObject({
    ...commandHead,
    /** Start although the schedule would wait (too few labels, too soon); heat still stops it. */
    force: v.optional(v.boolean(), false),
  }),
  rollback: v.strictObject({
    ...commandHead,
    /** Model to go back to; the one before the current where it is left out. */
    toSha256: v.optional(sha),
  }),
  refresh: v.strictObject({ ...commandHead }),
} as const;

/** An operation of {@link COMMANDS}. */
export type CommandOp = keyof typeof COMMANDS;

/** Payload of a command after its defaults are filled in. */
export type CommandPayload<O extends CommandOp> = v.InferOutput<(typeof COMMANDS)[O]>;

/** Where a command stands; the last two are final. */
export type CommandState = v.InferOutput<typeof commandState>["state"];

/** The JSON Schema (draft 07) of every payload, by topic, as in `config/messages.schema.json`. */
export function messageJsonSchemas(): Record<string, unknown> {
  const definitions: Record<string, unknown> = {};
  for (const [topic, { schema, qos, retain, priority }] of Object.entries(MESSAGES)) {
    const { $schema: _, ...body } = toJsonSchema(schema, { target: "draft-07" });
    definitions[topic] = {
      title: topic,
      description: `QoS ${qos}, ${retain ? "retained" : "not retained"}, priority ${priority}.`,
      ...body,
    };
  }
  for (const [op, schema] of Object.entries(COMMANDS)) {
    const { $schema: _, ...body } = toJsonSchema(schema, {
      target: "draft-07",
      typeMode: "input",
    });
    definitions[`cmd/${op}/+`] = { title: `cmd/${op}/<id>`, ...body };
  }
  return {
    $schema: "http://json-schema.org/draft-07/schema#",
    title: "Messages between a station and its fleet",
    description:
      "Each definition is the payload of the topic of its name below taco/<fleet>/<station>/.",
    definitions,
  };
}
