import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import {
  COMMANDS,
  MESSAGES,
  messageBuilder,
  messageJsonSchemas,
} from "../../agent/fleet/messages.ts";

const SHA = "a".repeat(64);
const clock = { nowMs: () => Date.UTC(2026, 4, 1, 6, 30) };
const build = messageBuilder("creek-3", clock, () => "one");

test("messages: config/messages.schema.json is what the code says", () => {
  const path = join(import.meta.dirname, "..", "..", "config", "messages.schema.json");
  const written: unknown = JSON.parse(readFileSync(path, "utf8"));
  const made: unknown = JSON.parse(JSON.stringify(messageJsonSchemas()));
  assert.deepEqual(written, made, "run node --import tsx scripts/write-message-schemas.ts");
});

test("messages: the JSON Schema has every topic and every command, and allows no other field", () => {
  const { definitions } = messageJsonSchemas() as {
    definitions: Record<string, { additionalProperties: boolean; required?: string[] }>;
  };
  const commands = Object.keys(COMMANDS).map((op) => `cmd/${op}/+`);
  assert.deepEqual(Object.keys(definitions), [...Object.keys(MESSAGES), ...commands]);
  for (const [topic, schema] of Object.entries(definitions)) {
    assert.equal(schema.additionalProperties, false, topic);
    if (commands.includes(topic)) continue;
    assert.deepEqual(schema.required?.slice(0, 4), ["schemaVersion", "id", "at", "station"], topic);
  }
});

test("messages: every payload begins with version, id, time and station", () => {
  const message = build("e/rollback", {
    fromSha256: SHA,
    toSha256: null,
    cause: "probation",
    reason: "error rate 0.2 over 0.05",
  });
  assert.deepEqual(JSON.parse(message.payload), {
    schemaVersion: 1,
    id: "one",
    at: "2026-05-01T06:30:00.000Z",
    station: "creek-3",
    fromSha256: SHA,
    toSha256: null,
    cause: "probation",
    reason: "error rate 0.2 over 0.05",
  });
  assert.deepEqual(
    { ...message, payload: "" },
    { topic: "e/rollback", payload: "", qos: 1, retain: false, priority: 2 },
  );
});

test("messages: a command's state goes to the topic of its command", () => {
  const fields = { command: "7", op: "refresh", state: "successful", reason: null } as const;
  const message = build("cmd/+/+/state", fields, { op: "refresh", id: "7" });
  assert.equal(message.topic, "cmd/refresh/7/state");
  assert.equal(message.retain, true);
  assert.throws(() => build("cmd/+/+/state", fields), /expected parts op and id/);
});

test("messages: fields that do not fit are named", () => {
  const fields = { path: "a.jpg", pictureSha256: "no", sizeBytes: 1, reason: "half" };
  assert.throws(
    () => build("e/quarantine", fields),
    /message e\/quarantine, field pictureSha256: expected a SHA-256/,
  );
  assert.throws(
    () => build("e/quarantine", { ...fields, pictureSha256: null, sizeBytes: Number.NaN }),
    /field sizeBytes/,
  );
});
