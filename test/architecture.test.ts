import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { test } from "node:test";

/**
 * Every folder of agent/ and what it may import. A name not in the list is a broken rule.
 * "." is the handful of files that lie directly in agent/ and that everyone may use.
 */
const MAY_IMPORT: Record<string, readonly string[]> = {
  math: [],
  onnx: [],
  compress: ["math"],
  train: ["math"],
  config: ["."],
  device: ["."],
  data: ["."],
  runtime: ["."],
  store: ["."],
  fleet: ["."],
  generalist: [".", "onnx", "data", "runtime"],
  specialize: [".", "math", "onnx", "compress", "train", "data", "runtime"],
  serve: [".", "data", "runtime"],
  schedule: ["."],
  station: ["*"],
  cli: ["*"],
};

/** Packages with native code or a network: the one folder that may import each. */
const OWNER: Record<string, string> = {
  "onnxruntime-node": "runtime",
  "better-sqlite3": "store",
  mqtt: "fleet",
  chokidar: "data",
  sharp: "data",
  systeminformation: "device",
};

const ROOT = join(import.meta.dirname, "..", "agent");
/** These build everything else, so they may import all, and only a command may start them. */
const WIRING = new Set(["main.ts", "agent.ts", "library.ts"]);

function sources(): string[] {
  return readdirSync(ROOT, { recursive: true, encoding: "utf8" }).filter((f) => f.endsWith(".ts"));
}

const IMPORT =
  /^\s*(?:import|export)\b[^"';]*?\bfrom\s*["']([^"']+)["']|\bimport\s*\(?\s*["']([^"']+)["']/gm;

/** Static, side-effect, re-export and dynamic imports alike; type imports count too. */
function imports(file: string): string[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  return [...text.matchAll(IMPORT)].map((m) => m[1] ?? m[2] ?? "");
}

function folderOf(file: string): string {
  return file.includes("/") ? (file.split("/")[0] ?? ".") : ".";
}

for (const file of sources().filter((f) => !WIRING.has(f))) {
  test(`agent/${file} imports only what its folder may`, () => {
    const from = folderOf(file);
    const allowed = from === "." ? ["."] : MAY_IMPORT[from];
    assert.ok(allowed, `agent/${from}/ is not in the table of test/architecture.test.ts`);
    for (const target of imports(file)) {
      if (target.startsWith(".")) {
        const path = relative(ROOT, join(dirname(join(ROOT, file)), target));
        const to = folderOf(path);
        const legal = to === from || allowed.includes("*") || allowed.includes(to);
        const wired = WIRING.has(path) && from !== "cli";
        assert.ok(legal && !wired, `${from}/ may not import ${to}/ (${target})`);
      } else {
        const owner = OWNER[target];
        assert.ok(owner === undefined || owner === from, `${target} belongs to ${owner}/`);
      }
    }
  });
}
