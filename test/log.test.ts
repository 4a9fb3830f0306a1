import assert from "node:assert/strict";
import { test } from "node:test";
import { createLogger } from "../agent/log.ts";

test("log: lines carry their syslog priority under systemd only", () => {
  const lines: string[] = [];
  const stream = { write: (line: string) => void lines.push(line) };
  const underSystemd = createLogger("info", stream, { JOURNAL_STREAM: "8:1" });
  underSystemd.error("a");
  underSystemd.info("b");
  underSystemd.debug("not written");
  createLogger("info", stream, {}).warn("c");
  assert.deepEqual(
    lines.map((line) => line.slice(0, 3)),
    ["<3>", "<6>", '{"l'],
  );
  assert.equal((JSON.parse(lines[2]!) as { level: string }).level, "warn");
});
