import { Cron } from "croner";
import * as v from "valibot";
import { type Aim, MEASURES } from "../aim.ts";
import { METHOD_SYNTAX, parseMethod } from "../method.ts";

/** An integer key: whole number in [min, max]. */
function whole(min: number, max: number, description: string) {
  return v.pipe(
    v.number(),
    v.integer("expected a whole number"),
    v.minValue(min),
    v.maxValue(max),
    v.description(`${description} Range ${min}..${max}.`),
  );
}

/** A real-valued key in [min, max]. */
function real(min: number, max: number, description: string) {
  return v.pipe(
    v.number(),
    v.minValue(min),
    v.maxValue(max),
    v.description(`${description} Range ${min}..${max}.`),
  );
}

/** Any text but the empty one. */
function text(description: string) {
  return v.pipe(
    v.string(),
    v.regex(/\S/, "expected some text"),
    v.maxLength(4096),
    v.description(description),
  );
}

/** A name that becomes one level of an MQTT topic and of a path: no `/`, `+`, `#`, no spaces. */
function topicLevel(description: string) {
  return v.pipe(
    v.string(),
    v.regex(
      /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/,
      "expected 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first",
    ),
    v.description(description),
  );
}

function section<const S extends v.ObjectEntries>(entries: S, description: string) {
  return v.pipe(v.strictObject(entries), v.description(description));
}

const station = section(
  {
    id: topicLevel("Name of this station, unique in its fleet; part of every MQTT topic."),
    fleet: v.optional(
      topicLevel("Name of the fleet that this station belongs to; part of every MQTT topic."),
      "default",
    ),
    dir: text(
      "Folder with all state of the station (pictures, labels, models, database). Relative paths " +
        "start at the folder of the configuration file.",
    ),
  },
  "Who and where this station is.",
);

const intake = section(
  {
    scanIntervalSeconds: v.optional(
      whole(1, 86_400, "Seconds between two complete scans of inbox/ and labeled/."),
      60,
    ),
    settleMilliseconds: v.optional(
      whole(0, 600_000, "Milliseconds that a file must stay unchanged before it is read."),
      2000,
    ),
    burstGapSeconds: v.optional(
      whole(0, 86_400, "Frames of one folder closer than this many seconds are one burst."),
      60,
    ),
    maxMegapixels: v.optional(
      real(
        0.01,
        1000,
        "Largest picture that is decoded, in millions of pixels; larger is refused.",
      ),
      100,
    ),
    cropTop: v.optional(
      whole(0, 10_000, "Pixels cut off the top of every upright picture (information banner)."),
      0,
    ),
    cropBottom: v.optional(
      whole(0, 10_000, "Pixels cut off the bottom of every upright picture (information banner)."),
      0,
    ),
    maxQuarantineMb: v.optional(
      whole(0, 1_000_000, "Megabytes (10^6 bytes) that quarantine/ may hold; the oldest go first."),
      512,
    ),
  },
  "How pictures and labels come in.",
);

const inference = section(
  {
    executionProviders: v.optional(
      v.pipe(
        v.array(v.picklist(["tensorrt", "cuda", "webgpu", "cpu"])),
        v.minLength(1, "expected at least one execution provider"),
        v.check((list) => new Set(list).size === list.length, "expected each provider once"),
        v.description(
          "Execution providers of ONNX Runtime in the order in which they are tried: tensorrt, " +
            "cuda, webgpu, cpu. One that cannot be used is left out, with the reason reported.",
        ),
      ),
      ["cpu"],
    ),
    intraOpThreads: v.optional(
      whole(0, 256, "Threads inside one operator; 0 means one a processor."),
      0,
    ),
    queueLength: v.optional(
      whole(1, 1024, "Pictures decoded or waiting in the inference process at a time."),
      16,
    ),
    memoryLimitMb: v.optional(
      whole(
        128,
        1_000_000,
        "Resident megabytes (10^6 bytes) at which the inference process is replaced.",
      ),
      1500,
    ),
    heartbeatSeconds: v.optional(
      whole(1, 3600, "Seconds between two questions whether the inference process lives."),
      5,
    ),
    hangSeconds: v.optional(
      whole(2, 86_400, "Seconds without an answer after which the inference process is replaced."),
      60,
    ),
  },
  "The process that classifies pictures.",
);

function isMethod(text: string): boolean {
  try {
    parseMethod(text);
    return true;
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}

const limit = (description: string) => v.optional(v.nullable(real(1, 1e12, description)), null);

const specialize = v.pipe(
  v.strictObject({
    method: v.optional(
      v.pipe(
        v.string(),
        v.check(isMethod, `expected ${METHOD_SYNTAX}`),
        v.description(
          `What is done to the network: ${METHOD_SYNTAX}. "auto" searches for the aim; the others do ` +
            "the same to every layer: zeros anywhere (unstructured), N zeros in every M inputs (nm), " +
            "in blocks of four (block4), fewer channels and heads (structured), 8-bit integers (int8), " +
            "weights stored in 4 or 3 bits (int4, int3), a smaller picture in pixels (size).",
        ),
      ),
      "auto",
    ),
    aim: v.optional(
      v.pipe(
        v.picklist(MEASURES),
        v.description("What method auto makes as small as maxDropPoints allows."),
      ),
      "latency",
    ),
    maxDropPoints: v.optional(
      v.nullable(
        real(0, 100, "Points of expected accuracy that aim may cost; null: gate.maxDropPoints."),
      ),
      null,
    ),
    speedup: limit("Instead of aim: the best accuracy at this many times the dense speed."),
    nonzeroReduction: limit(
      "Instead of aim: the best accuracy at this many times fewer non-zero parameters.",
    ),
    maxBytes: limit("Instead of aim: the best accuracy in a file of at most this many bytes."),
    searchMinutes: v.optional(
      real(0.1, 1440, "Minutes that method auto may search before it builds what it found."),
      5,
    ),
    blockSize: v.optional(
      whole(1, 4096, "Columns pruned together before the others are corrected (SparseGPT)."),
      128,
    ),
    damping: v.optional(
      real(
        1e-8,
        1,
        "Share of the mean diagonal of the Hessian that is added to it, for a stable inverse.",
      ),
      0.01,
    ),
    minLabelsPerClass: v.optional(
      whole(2, 1_000_000, "Labeled pictures that a label needs to become a class."),
      8,
    ),
    shots: v.optional(whole(1, 1_000_000, "Training pictures of one class, at most."), 64),
    heldOutShare: v.optional(
      real(0.05, 0.9, "Share of the bursts held out for ever, to judge models on."),
      0.3,
    ),
    heldOutPerClass: v.optional(
      whole(1, 1_000_000, "Held-out pictures of one class used in a comparison, at most."),
      200,
    ),
    seed: v.optional(
      whole(0, 4_294_967_295, "Seed of all choices by chance; the same seed, the same model."),
      1,
    ),
    calibrationPictures: v.optional(
      whole(1, 1_000_000, "Training pictures whose activations the pruning is fitted to, at most."),
      512,
    ),
    batchSize: v.optional(whole(1, 256, "Pictures in one pass through the network."), 8),
    intraOpThreads: v.optional(
      whole(0, 256, "Threads of a run inside one operator; 0 means one a processor."),
      0,
    ),
  }),
  // The checks of two keys are only met when both are valid by themselves.
  v.forward(
    v.partialCheck(
      [["method"], ["blockSize"]],
      ({ method, blockSize }) => {
        if (!isMethod(method)) return true;
        const parsed = parseMethod(method);
        const pattern = parsed.kind === "fixed" ? parsed.pattern : null;
        return pattern?.kind !== "n:m" || blockSize % pattern.m === 0;
      },
      "expected a multiple of M of specialize.method, so that no group of M is cut in two",
    ),
    ["blockSize"],
  ),
  v.forward(
    v.partialCheck(
      [["speedup"], ["nonzeroReduction"], ["maxBytes"]],
      ({ speedup, nonzeroReduction, maxBytes }) =>
        [speedup, nonzeroReduction, maxBytes].filter((value) => value !== null).length <= 1,
      "expected one of speedup, nonzeroReduction and maxBytes; remove the others",
    ),
    ["speedup"],
  ),
  v.description("How a model is specialized and compressed."),
);

const fineTune = section(
  {
    enabled: v.optional(
      v.pipe(
        v.boolean(),
        v.description(
          "Whether a compressed network is trained by distillation before it is judged.",
        ),
      ),
      true,
    ),
    maxMinutes: v.optional(
      real(0.1, 1440, "Minutes that training may take; the learning rate is planned over them."),
      10,
    ),
    maxWattHours: v.optional(
      v.nullable(
        real(
          0,
          100_000,
          "Energy that a run may draw before its training is ended; null: no limit.",
        ),
      ),
      null,
    ),
    trainMemoryMb: v.optional(
      whole(64, 1_000_000, "Megabytes of activations and gradients; smaller batches fit in less."),
      400,
    ),
    lessonDiskMb: v.optional(
      whole(
        0,
        1_000_000,
        "Megabytes on disk, while training, for what the frozen layers and the dense network make " +
          "of training views, which then come again without being computed; 0: every view is new.",
      ),
      1024,
    ),
    schedule: v.optional(
      v.pipe(
        v.picklist(["one-shot", "gradual"]),
        v.description(
          '"one-shot" trains once behind all of the pruning; "gradual" prunes half of what remains, ' +
            "trains, and goes on to the next half.",
        ),
      ),
      "one-shot",
    ),
  },
  "How a compressed network is trained on the device, on training pictures alone.",
);

const gate = section(
  {
    maxDropPoints: v.optional(
      real(
        0,
        100,
        "Percentage points that the candidate may lose against the dense specialized model.",
      ),
      1,
    ),
    minMacroF1: v.optional(real(0, 1, "Smallest macro-F1 that is served at all."), 0),
    maxLatencyRatio: v.optional(
      real(0.1, 100, "Largest latency of the candidate over that of the dense specialized model."),
      1.2,
    ),
    confidence: v.optional(
      real(0.5, 0.999, "Confidence of the bootstrap interval that the verdict is taken on."),
      0.95,
    ),
    onThinEvidence: v.optional(
      v.pipe(
        v.picklist(["probation", "refuse"]),
        v.description(
          "What happens where too few bursts are held out to decide: serve the candidate on " +
            "probation, or refuse it.",
        ),
      ),
      "probation",
    ),
  },
  "What a candidate must show before it is served.",
);

const probation = section(
  {
    frames: v.optional(whole(1, 1_000_000, "Frames after which a new model may be kept."), 200),
    minutes: v.optional(real(0, 100_000, "Minutes after which a new model may be kept."), 60),
    maxErrorRate: v.optional(
      real(0, 1, "Share of frames that may fail before the model is rolled back."),
      0.05,
    ),
    maxLatencyRatio: v.optional(
      real(0.1, 100, "Largest median latency over that of the model before."),
      1.5,
    ),
    maxLabelShare: v.optional(
      real(0, 1, "Share of frames that one label may take before it counts as a collapse."),
      0.98,
    ),
  },
  "How a new model is watched after the swap.",
);

const QUIET_HOURS = /^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$/;

const schedule = v.pipe(
  v.strictObject({
    enabled: v.optional(
      v.pipe(v.boolean(), v.description("Whether runs start by themselves at all.")),
      true,
    ),
    cron: v.optional(
      v.pipe(
        v.string(),
        v.check(
          isCron,
          'expected a cron expression of five fields that names a real time, such as "0 2 * * *"',
        ),
        v.description(
          "When a run may start: minute, hour, day of month, month, day of week, in timeZone. " +
            "Occurrences missed while the station was off are made up for by one run.",
        ),
      ),
      "0 2 * * *",
    ),
    timeZone: v.optional(
      v.pipe(
        v.string(),
        v.check(isTimeZone, 'expected an IANA time zone, such as "Europe/Berlin"'),
        v.description("IANA time zone of cron and quietHours."),
      ),
      "UTC",
    ),
    minNewLabels: v.optional(
      whole(0, 1_000_000, "Labels that must have arrived since the last run."),
      50,
    ),
    minHoursBetweenRuns: v.optional(
      real(0, 8760, "Hours between the starts of two runs, at least."),
      20,
    ),
    quietHours: v.optional(
      v.pipe(
        v.array(
          v.pipe(
            v.string(),
            v.regex(QUIET_HOURS, 'expected "HH:MM-HH:MM", from 00:00 to 23:59, in quotes'),
            v.check(
              (range) => range.slice(0, 5) !== range.slice(6),
              "expected two different times (to switch runs off, set schedule.enabled to false)",
            ),
          ),
        ),
        v.maxLength(24),
        v.description(
          'Hours in which no run starts, "HH:MM-HH:MM" in timeZone; the end is outside, and a ' +
            'range may pass midnight ("22:00-05:30").',
        ),
      ),
      [],
    ),
    maxTempC: v.optional(
      real(0, 150, "Hottest sensor at which a run may start, in degrees Celsius."),
      85,
    ),
    maxPowerWatts: v.optional(
      v.nullable(
        real(0.1, 10_000, "Power draw at which a run may start, in watts; null asks for none."),
      ),
      null,
    ),
    minBatteryPercent: v.optional(
      real(0, 100, "Charge that a battery, where there is one, must have, in percent."),
      30,
    ),
    maxGpuLoadPercent: v.optional(
      real(0, 100, "GPU load at which a run may start, in percent."),
      90,
    ),
  }),
  v.description("When the station makes a new model by itself."),
);

const mqtt = v.pipe(
  v.strictObject({
    url: v.pipe(
      v.string(),
      v.check(
        isBrokerUrl,
        'expected mqtt://, mqtts://, ws:// or wss:// and a host, such as "mqtts://broker.example:8883"',
      ),
      v.check(
        (url) => !hasCredentials(url),
        "expected no user or password in the URL: use mqtt.username and mqtt.passwordFile",
      ),
      v.description("Address of the broker: mqtt://, mqtts://, ws:// or wss://."),
    ),
    protocolVersion: v.optional(
      v.pipe(
        v.picklist([4, 5]),
        v.description("Version of the protocol: 5, or 4 for brokers that speak MQTT 3.1.1 only."),
      ),
      5,
    ),
    username: v.exactOptional(text("User name at the broker.")),
    passwordFile: v.exactOptional(
      text(
        "File with the password at the broker; never the password itself. May begin with " +
          "$CREDENTIALS_DIRECTORY, which systemd sets for LoadCredential.",
      ),
    ),
    caFile: v.exactOptional(
      text("PEM file with the certificate authority of the broker, where it is a private one."),
    ),
    keepaliveSeconds: v.optional(
      whole(5, 65_535, "Seconds of silence after which the broker is asked whether it lives."),
      60,
    ),
    inFlight: v.optional(whole(1, 1000, "Messages sent and not yet confirmed, at most."), 16),
    outboxLimitMb: v.optional(
      real(
        0.1,
        100_000,
        "Megabytes (10^6 bytes) of messages kept while the broker is away; the least important " +
          "are dropped first, and counted.",
      ),
      64,
    ),
    measurementSeconds: v.optional(
      whole(5, 86_400, "Seconds between two messages with the station's measurements."),
      300,
    ),
    predictionEvents: v.optional(
      v.pipe(v.boolean(), v.description("Whether every prediction is sent as an event.")),
      true,
    ),
  }),
  v.forward(
    v.check(
      (broker) =>
        broker.protocolVersion !== 4 ||
        broker.passwordFile === undefined ||
        broker.username !== undefined,
      "expected a user name beside mqtt.passwordFile: MQTT 3.1.1 allows no password without one",
    ),
    ["username"],
  ),
  v.description("The broker of the fleet; null or absent for a station that reports to nobody."),
);

const store = section(
  {
    backupHours: v.optional(real(0.1, 8760, "Hours between two backups of the database."), 24),
    keepBackups: v.optional(whole(1, 100, "Backups of the database that are kept."), 2),
  },
  "The database of the station.",
);

const device = section(
  {
    sysfsRoot: v.optional(
      text("Folder under which sys/, proc/ and etc/ are read; other than / only for tests."),
      "/",
    ),
  },
  "The machine.",
);

const log = section(
  {
    level: v.optional(
      v.pipe(
        v.picklist(["trace", "debug", "info", "warn", "error", "fatal", "silent"]),
        v.description("Least important line that is written to standard error."),
      ),
      "info",
    ),
  },
  "What the agent writes to standard error (under systemd, to the journal).",
);

/**
 * The whole configuration of a station: every key with its unit, range and default. Unknown keys
 * are errors. Only `station.id` and `station.dir` have no default.
 */
export const stationConfigSchema = v.strictObject({
  station,
  generalist: v.optional(
    text(
      "Model that specialized ones are made from: a name of the catalog, the path of an .onnx " +
        "file (relative to the folder of the configuration file), or a URL.",
    ),
    "efficientnet_b0",
  ),
  // A section left empty in the file (`intake:`) is null to YAML; it means all defaults.
  intake: v.nullish(intake, {}),
  labelMap: v.nullish(
    v.pipe(
      v.record(
        v.pipe(v.string(), v.regex(/\S/, "expected a label")),
        v.pipe(v.string(), v.regex(/\S/, "expected the name of a class of the generalist")),
      ),
      v.description(
        "Labels that mean a class of the generalist, as label: class name; their head is cut " +
          "from the generalist's own.",
      ),
    ),
    {},
  ),
  inference: v.nullish(inference, {}),
  specialize: v.nullish(specialize, {}),
  fineTune: v.nullish(fineTune, {}),
  gate: v.nullish(gate, {}),
  probation: v.nullish(probation, {}),
  schedule: v.nullish(schedule, {}),
  mqtt: v.optional(v.nullable(mqtt), null),
  store: v.nullish(store, {}),
  device: v.nullish(device, {}),
  log: v.nullish(log, {}),
});

/** A validated configuration, every default filled in. `loadConfig` freezes it deeply. */
export type StationConfig = v.InferOutput<typeof stationConfigSchema>;

/** Parses, and comes round at least once in the four years that hold a February 29th. */
function isCron(expression: string): boolean {
  try {
    const cron = new Cron(expression, { mode: "5-part", timezone: "UTC", paused: true });
    return cron.nextRun(new Date("2024-01-01T00:00:00Z")) !== null;
  } catch (error) {
    // croner throws TypeError and RangeError for what it cannot read; the caller words the issue.
    if (error instanceof Error) return false;
    throw error;
  }
}

function isTimeZone(zone: string): boolean {
  try {
    new Intl.DateTimeFormat("en", { timeZone: zone });
    return true;
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}

function isBrokerUrl(url: string): boolean {
  if (!URL.canParse(url)) return false;
  const { protocol, hostname } = new URL(url);
  return /^(mqtts?|wss?):$/.test(protocol) && hostname !== "";
}

function hasCredentials(url: string): boolean {
  if (!URL.canParse(url)) return false;
  const { username, password } = new URL(url);
  return username !== "" || password !== "";
}

/** What a station's method `auto` is to reach. */
export function aimOf({ specialize, gate }: Pick<StationConfig, "specialize" | "gate">): Aim {
  const { aim, speedup, nonzeroReduction, maxBytes } = specialize;
  if (speedup !== null) return { speedup };
  if (nonzeroReduction !== null) return { nonzeroReduction };
  if (maxBytes !== null) return { maxBytes };
  return { aim, maxDropPoints: specialize.maxDropPoints ?? gate.maxDropPoints };
}

/** How a run trains its compressed network, as its spec states it; null: not at all. */
export function fineTuneOf({ fineTune }: Pick<StationConfig, "fineTune">) {
  const { enabled, maxMinutes, trainMemoryMb, lessonDiskMb, schedule } = fineTune;
  if (!enabled) return null;
  return {
    maxSeconds: 60 * maxMinutes,
    memoryBytes: 2 ** 20 * trainMemoryMb,
    lessonBytes: 2 ** 20 * lessonDiskMb,
    schedule,
  };
}
