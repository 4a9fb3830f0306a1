import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import * as v from "valibot";
import { stationJsonSchema } from "../../agent/config/json-schema.ts";
import { loadConfig, readSecret } from "../../agent/config/load.ts";
import { stationConfigSchema } from "../../agent/config/schema.ts";
import { AgentError } from "../../agent/errors.ts";

const CONFIG = join(import.meta.dirname, "..", "..", "config");
const folder = mkdtempSync(join(tmpdir(), "taco-config-"));
after(() => rmSync(folder, { recursive: true, force: true }));

const STATION = "station: { id: s1, dir: state }\n";

function write(text: string): string {
  const path = join(folder, "station.yaml");
  writeFileSync(path, text);
  return path;
}

function load(text: string, environment: NodeJS.ProcessEnv = {}) {
  return loadConfig(write(text), environment);
}

function refusal(text: string): AgentError {
  try {
    load(text);
  } catch (error) {
    assert.ok(error instanceof AgentError, `expected an AgentError, got ${error}`);
    return error;
  }
  assert.fail(`expected a refusal of:\n${text}`);
}

test("config: the example parses and shows every default", () => {
  const example = loadConfig(join(CONFIG, "station.example.yaml"), {});
  const { station } = example;
  assert.deepEqual(example, v.parse(stationConfigSchema, { station }));
  for (const [name, section] of Object.entries(example)) {
    const text = readFileSync(join(CONFIG, "station.example.yaml"), "utf8");
    assert.match(text, new RegExp(`^${name}:`, "m"));
    if (typeof section !== "object" || section === null) continue;
    for (const key of Object.keys(section)) assert.match(text, new RegExp(`^ {2}${key}:`, "m"));
  }
});

test("config: the example's broker parses once its comment signs are gone", () => {
  const text = readFileSync(join(CONFIG, "station.example.yaml"), "utf8");
  const [head, rest] = text.split("mqtt: null\n");
  assert.ok(head !== undefined && rest !== undefined);
  const broker = rest.slice(0, rest.indexOf("\n\n")).replaceAll(/^# /gm, "");
  const { mqtt } = load(head + broker, { CREDENTIALS_DIRECTORY: "/run/credentials/x" });
  assert.deepEqual(Object.keys(mqtt ?? {}).sort(), Object.keys(brokerEntries()).sort());
  assert.equal(mqtt?.passwordFile, "/run/credentials/x/mqtt-password");
});

function brokerEntries(): object {
  return stationConfigSchema.entries.mqtt.wrapped.wrapped.entries;
}

test("config: station.schema.json is the schema of the code", () => {
  const onDisk: unknown = JSON.parse(readFileSync(join(CONFIG, "station.schema.json"), "utf8"));
  assert.deepEqual(
    onDisk,
    JSON.parse(stationJsonSchema()),
    "write it anew: node --import tsx scripts/write-config-schema.ts",
  );
});

test("config: every key of the JSON Schema has a description", () => {
  const missing: string[] = [];
  const visit = (node: unknown, path: string): void => {
    if (typeof node !== "object" || node === null) return;
    if ("anyOf" in node && Array.isArray(node.anyOf)) visit(node.anyOf[0], path);
    if (path !== "" && !("anyOf" in node) && !("description" in node)) missing.push(path);
    if (!("properties" in node) || typeof node.properties !== "object") return;
    for (const [key, value] of Object.entries(node.properties ?? {}))
      visit(value, `${path}.${key}`);
  };
  visit(JSON.parse(stationJsonSchema()), "");
  assert.deepEqual(missing, []);
});

test("config: paths start at the folder of the file, names and URLs stay", () => {
  assert.equal(load(STATION).station.dir, join(folder, "state"));
  assert.equal(load(STATION).generalist, "efficientnet_b0");
  const file = load(`${STATION}generalist: models/m.onnx\n`).generalist;
  assert.equal(file, join(folder, "models", "m.onnx"));
  const url = "https://models.example/m.onnx";
  assert.equal(load(`${STATION}generalist: ${url}\n`).generalist, url);
});

test("config: a section left empty means its defaults, and all is frozen", () => {
  const config = load(`${STATION}schedule:\nintake:\n  cropTop: 3\n`);
  assert.equal(config.schedule.minNewLabels, 50);
  assert.equal(config.intake.cropTop, 3);
  assert.throws(() => config.schedule.quietHours.push("01:00-02:00"), TypeError);
  assert.throws(() => {
    config.intake.cropTop = 4;
  }, TypeError);
});

test("config: lists all problems at once with key, line and column", () => {
  const error = refusal(
    "station: { id: 'a/b', dir: d }\nspecialize:\n  damping: 1.5\n  seed: one\n  batchSize: 1.5\n",
  );
  assert.equal(error.code, "CONFIG_INVALID");
  const lines = error.message.split("\n").slice(1);
  assert.deepEqual(lines, [
    "  station.id (line 1, column 12): expected 1 to 64 letters, digits, '.', '_' or '-', a letter " +
      'or digit first, got "a/b"',
    "  specialize.damping (line 3, column 3): expected at most 1, got 1.5",
    '  specialize.seed (line 4, column 3): expected a number, got "one"',
    "  specialize.batchSize (line 5, column 3): expected a whole number, got 1.5",
  ]);
});

test("config: an unknown key is refused with the nearest known one", () => {
  const cases: [string, RegExp][] = [
    ["schedule:\n  minNewLabel: 3\n", /schedule\.minNewLabel \(line 3.*"schedule\.minNewLabels"/],
    ["shedule: {}\n", /shedule \(line 2, column 1\): unknown key; did you mean "schedule"/],
    ["cron: '* * * * *'\n", /cron .*unknown key here; did you mean "schedule\.cron"/],
    ["mqtt: { url: 'mqtt://b', pasword: x }\n", /mqtt\.pasword .*"mqtt\.passwordFile"/],
  ];
  for (const [text, expected] of cases) assert.match(refusal(STATION + text).message, expected);
});

test("config: names what is missing", () => {
  assert.match(refusal("").message, /station: is missing/);
  assert.match(refusal("station: { id: a }\n").message, /station\.dir \(line 1.*is missing/);
  assert.match(refusal("- a\n- b\n").message, /the file: expected a section of keys, got a list/);
  const lists = refusal(`${STATION}schedule: []\nstore: { keepBackups: 0 }\n`).message.split("\n");
  assert.match(lists[1] ?? "", /schedule: expected a section of keys, got a list/);
  assert.match(lists[2] ?? "", /store\.keepBackups .*at least 1/);
});

test("config: refuses what no single key shows", () => {
  const cases: [string, RegExp][] = [
    ["schedule: { cron: '0 2 * *' }", /schedule\.cron .*five fields/],
    ["schedule: { cron: '0 2 30 2 *' }", /schedule\.cron .*names a real time/],
    ["schedule: { cron: '0 0 2 * * *' }", /schedule\.cron .*five fields/],
    ["schedule: { timeZone: Mars/Olympus }", /schedule\.timeZone .*IANA/],
    ["schedule: { quietHours: ['8-10'] }", /schedule\.quietHours\.0 .*HH:MM-HH:MM/],
    ["schedule: { quietHours: ['08:00-08:00'] }", /two different times/],
    ["specialize: { method: 'nm:4:4' }", /specialize\.method .*got "nm:4:4"/],
    ["specialize: { method: half }", /specialize\.method .*nm:2:4.*got "half"/],
    ["specialize: { method: 'nm:2:4', blockSize: 30 }", /specialize\.blockSize .*multiple of M/],
    ["specialize: { speedup: 2, maxBytes: 9 }", /specialize\.speedup .*expected one of/],
    ["inference: { executionProviders: [cpu, cpu] }", /executionProviders .*once/],
    ["inference: { executionProviders: [rocm] }", /executionProviders\.0 .*"tensorrt" or "cuda"/],
    ["mqtt: { url: 'http://b' }", /mqtt\.url .*mqtt:\/\//],
    ["mqtt: { url: 'mqtt://u:secret@b' }", /mqtt\.url .*passwordFile/],
    ["mqtt: { url: 'mqtt://b', protocolVersion: 4, passwordFile: p }", /mqtt\.username/],
    ["gate: { maxDropPoints: .inf }", /gate\.maxDropPoints .*at most 100/],
    ["gate: { maxDropPoints: .nan }", /gate\.maxDropPoints .*a number/],
  ];
  for (const [text, expected] of cases) {
    const error = refusal(`${STATION}${text}\n`);
    assert.equal(error.code, "CONFIG_INVALID");
    assert.match(error.message, expected);
  }
  assert.equal(load(`${STATION}specialize: { method: 'nm:2:4' }\n`).specialize.method, "nm:2:4");
});

test("config: a file that is missing or no YAML is unreadable, with line and column", () => {
  assert.throws(() => loadConfig(join(folder, "none.yaml"), {}), { code: "CONFIG_UNREADABLE" });
  const error = refusal("station:\n  id: a\n  id: b\n");
  assert.equal(error.code, "CONFIG_UNREADABLE");
  assert.match(error.message, /unique.*line 3, column 3/);
  assert.equal(refusal("a: [1, 2\n").code, "CONFIG_UNREADABLE");
});

test("config: secrets are files, and systemd's folder is only needed when they are read", () => {
  const text = `${STATION}mqtt: { url: 'mqtt://b', passwordFile: $CREDENTIALS_DIRECTORY/pw }\n`;
  const byHand = load(text).mqtt?.passwordFile;
  assert.ok(byHand !== undefined);
  assert.throws(() => readSecret(byHand), { code: "CONFIG_UNREADABLE", message: /LoadCredential/ });

  const inService = load(text, { CREDENTIALS_DIRECTORY: folder }).mqtt?.passwordFile;
  assert.equal(inService, join(folder, "pw"));
  writeFileSync(inService, "geheim\n");
  chmodSync(inService, 0o400);
  assert.equal(readSecret(inService), "geheim");
  rmSync(inService);
  writeFileSync(inService, "\n");
  assert.throws(() => readSecret(inService), { code: "CONFIG_INVALID" });
});
