import assert from "node:assert/strict";
import { test } from "node:test";
import {
  commandFilter,
  commandStateTopic,
  parseCommandTopic,
  stationClientId,
  stationPrefix,
} from "../../agent/fleet/topics.ts";

test("topics: a station's prefix is its fleet and its id", () => {
  const prefix = stationPrefix("reserve", "creek-3");
  assert.equal(prefix, "taco/reserve/creek-3");
  assert.equal(commandFilter(prefix), "taco/reserve/creek-3/cmd/+/+");
  assert.equal(commandStateTopic("specialize", "17"), "cmd/specialize/17/state");
});

test("topics: refuse ids that would change the tree or that no broker takes", () => {
  for (const id of [
    "",
    "a/b",
    "a+",
    "#",
    "a b",
    "tab\t",
    "nul\0",
    "$SYS",
    "\ud800",
    "x".repeat(65),
  ]) {
    assert.throws(() => stationPrefix("default", id), /station id: expected .*, got/, id);
    assert.throws(() => stationPrefix(id, "creek-3"), RangeError, id);
  }
  assert.doesNotThrow(() => stationPrefix("Wildnis-Süd", "x".repeat(64)));
});

test("topics: client ids of different stations differ", () => {
  const pairs = [
    ["a", "b:c"],
    ["a:b", "c"],
    ["a%3Ab", "c"],
    ["a", "b%3Ac"],
  ] as const;
  const ids = new Set(pairs.map(([fleet, station]) => stationClientId(fleet, station)));
  assert.equal(ids.size, pairs.length);
  for (const id of ids) assert.doesNotMatch(id, /[/+#]/);
});

test("topics: a command's topic is read, anything else is not", () => {
  assert.deepEqual(parseCommandTopic("cmd/rollback/7f-2"), { op: "rollback", id: "7f-2" });
  for (const topic of [
    "cmd/rollback/7/state",
    "cmd/rollback",
    "cmd//7",
    "cmd/rollback/",
    "status",
    "e/run/7",
    `cmd/rollback/${"x".repeat(129)}`,
    "cmd/roll back/7",
  ]) {
    assert.equal(parseCommandTopic(topic), undefined, topic);
  }
});
