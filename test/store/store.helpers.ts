import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import Database from "better-sqlite3";
import { type Clock, systemClock } from "../../agent/clock.ts";
import { sha256 } from "../../agent/files.ts";
import { createLogger, type Logger } from "../../agent/log.ts";
import type { ModelManifest } from "../../agent/model.ts";
import { type OpenOutcome, openStore } from "../../agent/store/open.ts";
import type { OutboxMessage } from "../../agent/store/outbox.ts";
import type { FoundPicture } from "../../agent/store/pictures.ts";
import type { Prediction } from "../../agent/store/predictions.ts";
import type { Store } from "../../agent/store/store.ts";

/** A clock that stands where it was put; sleeping is not used by the store. */
export interface TestClock extends Clock {
  now: number;
}

export function testClock(iso = "2026-05-01T06:30:00.000Z"): TestClock {
  return {
    now: Date.parse(iso),
    nowMs() {
      return this.now;
    },
    monotonicMs: () => performance.now(),
    sleep: systemClock.sleep,
  };
}

/** A folder that is removed when the test ends. */
export async function testFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "taco-store-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A station's database in a folder of its own, and how to open it again. */
export interface TestStation {
  folder: string;
  path: string;
  backupDir: string;
  clock: TestClock;
  logLines: string[];
  open(options?: Partial<Parameters<typeof openStore>[0]>): Promise<{
    store: Store;
    outcome: OpenOutcome;
  }>;
}

export async function testStation(t: TestContext): Promise<TestStation> {
  const folder = await testFolder(t);
  const logLines: string[] = [];
  const log: Logger = createLogger("debug", { write: (line) => void logLines.push(line) }, {});
  const clock = testClock();
  const path = join(folder, "taco.db");
  const backupDir = join(folder, "backups");
  return {
    folder,
    path,
    backupDir,
    clock,
    logLines,
    async open(options = {}) {
      const opened = await openStore({
        path,
        backupDir,
        keepBackups: 2,
        softwareVersion: "0.1.0",
        clock,
        log,
        ...options,
      });
      t.after(() => opened.store.close());
      return opened;
    },
  };
}

export function picture(name: string, values: Partial<FoundPicture> = {}): FoundPicture {
  return {
    sha256: sha256(name),
    path: `inbox/${name}.jpg`,
    source: "inbox",
    sizeBytes: 1000 + name.length,
    mtimeMs: 1_777_000_000_000,
    widthPx: 2048,
    heightPx: 1536,
    capturedAt: "2026-04-30T05:10:00",
    captureTimeSource: "exif",
    burstId: null,
    ...values,
  };
}

export const MODEL_SHA256 = sha256("model");

export function prediction(mediaId: number, values: Partial<Prediction> = {}): Prediction {
  return {
    mediaId,
    label: "red fox",
    probability: 0.91,
    top5: [{ label: "red fox", probability: 0.91 }],
    modelSha256: MODEL_SHA256,
    runMs: 41.25,
    decodeMs: 18.5,
    queuedMs: 3,
    ...values,
  };
}

export function message(id: string, values: Partial<OutboxMessage> = {}): OutboxMessage {
  return {
    topic: "e/prediction",
    payload: JSON.stringify({ id }),
    qos: 1,
    retain: false,
    priority: 0,
    ...values,
  };
}

export function manifest(sha: string, values: Partial<ModelManifest> = {}): ModelManifest {
  return {
    formatVersion: 1,
    sha256: sha,
    name: "efficientnet_b0 · 2 classes · 50 % sparse",
    createdAt: "2026-05-01T03:00:00.000Z",
    softwareVersion: "0.1.0",
    origin: {
      generalist: "efficientnet_b0",
      generalistSha256: sha256("generalist"),
      run: "run-1",
      incumbentSha256: null,
    },
    classes: ["empty", "red fox"],
    inputName: "input",
    outputName: "logits",
    preprocessing: {
      height: 224,
      width: 224,
      mean: [0.485, 0.456, 0.406],
      std: [0.229, 0.224, 0.225],
      resize: { mode: "shortSide", size: 256 },
      kernel: "cubic",
      cropTop: 0,
      cropBottom: 0,
    },
    metrics: {
      accuracy: 0.953,
      macroF1: 0.948,
      recall: { empty: 0.97, "red fox": 0.93 },
      calibrationError: 0.03,
      burstAccuracy: 0.98,
      parameters: 4_000_000,
      nonzero: 2_100_000,
      bytes: 16_300_000,
      latencyMsP50: null,
    },
    layers: [],
    ...values,
  };
}

/** What a person sees who opens the file in the sqlite3 shell. */
export function asked(path: string, sql: string): Record<string, unknown>[] {
  const database = new Database(path, { readonly: true });
  try {
    return database.prepare<[], Record<string, unknown>>(sql).all();
  } finally {
    database.close();
  }
}
