import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ERROR_CODES } from "../agent/errors.ts";
import { COMMANDS, MESSAGES } from "../agent/fleet/messages.ts";

const ROOT = join(import.meta.dirname, "..");
const README = readFileSync(join(ROOT, "README.md"), "utf8");

/** The rows of the table below a heading, as lists of cells. */
function tableOf(heading: string): string[][] {
  const section = README.split(`\n## ${heading}\n`)[1]?.split("\n## ")[0] ?? "";
  const rows = section.split("\n").filter((line) => line.startsWith("|"));
  return rows.slice(2).map((row) =>
    row
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

/** The names in backticks of some cells. */
function named(cells: readonly (string | undefined)[]): string[] {
  return cells.flatMap((cell) => [...(cell ?? "").matchAll(/`([^`]+)`/g)].map((m) => m[1]!));
}

test("readme: lists every error code with its meaning, and no other", () => {
  const listed = tableOf("Errors").map(([code, meaning]) => [code?.replaceAll("`", ""), meaning]);
  assert.deepEqual(listed, Object.entries(ERROR_CODES));
});

test("readme: lists every MQTT topic and command, and no other", () => {
  const topics = named(tableOf("MQTT").map(([topic]) => topic));
  assert.deepEqual(
    topics.filter((t) => t !== "cmd/<op>/<id>").sort(),
    Object.keys(MESSAGES).sort(),
  );
  for (const op of Object.keys(COMMANDS)) assert.ok(README.includes(`\`${op}\``), `command ${op}`);
});

test("readme: justifies every dependency, and names none that is not there", () => {
  const manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
    dependencies: Record<string, string>;
  };
  const listed = named(tableOf("Dependencies").map(([name]) => name));
  assert.deepEqual(listed.sort(), Object.keys(manifest.dependencies).sort());
});

test("readme: its map names every folder of agent/, and only those there are", () => {
  const folders = readdirSync(join(ROOT, "agent"), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => `agent/${name}/`);
  const mapped = named(tableOf("Where to look").map(([name]) => name));
  assert.deepEqual(mapped.filter((name) => /^agent\/\w+\/$/.test(name)).sort(), folders.sort());
});
