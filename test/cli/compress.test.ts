import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { writeGraph } from "../../agent/onnx/graph.ts";
import type { CompressModelResult } from "../../agent/specialize/compress-model.ts";
import { pictureClassifier, writePictures } from "../specialize/picture-classifier.helpers.ts";

const MAIN = join(import.meta.dirname, "..", "..", "agent", "main.ts");
let dir: string;

before(async () => {
  dir = mkdtempSync(join(tmpdir(), "taco-compress-cli-"));
  writeFileSync(join(dir, "model.onnx"), writeGraph(pictureClassifier()));
  await writePictures(join(dir, "pictures"), 20);
});
after(() => rmSync(dir, { recursive: true }));

function taco(...flags: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const all = [
    ...["compress", join(dir, "model.onnx"), "--calibrate", join(dir, "pictures")],
    ...["--out", join(dir, "out.onnx"), "--threads", "1", ...flags],
  ];
  const env = { ...process.env, XDG_CACHE_HOME: dir };
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      ["--import", "tsx", MAIN, ...all],
      { env },
      (_, stdout, stderr) => resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });
}

test("taco compress: one JSON object on standard output, and the file that it names", async () => {
  const { code, stdout, stderr } = await taco("--method", "unstructured:0.5", "--json");
  assert.equal(code, 0, stderr);
  const result = JSON.parse(stdout) as CompressModelResult & { assumed: string[] };
  assert.equal(result.out, join(dir, "out.onnx"));
  assert.ok(existsSync(result.out));
  assert.equal(result.method, "unstructured:0.5");
  assert.ok(result.after.nonzero < result.before.nonzero);
  assert.ok(
    result.assumed.some((reason) => reason.includes("ImageNet")),
    "what no JSON states is said to be assumed",
  );
});

test("taco compress: a table for people, and a size as a flag", async () => {
  const { code, stdout, stderr } = await taco("--method", "none", "--input-size", "64");
  assert.equal(code, 0, stderr);
  assert.match(stdout, /non-zero/);
  assert.match(stdout, /same top answer/);
  assert.match(stdout, /64×64 pixels/);
});

test("taco compress: flags that contradict each other are named before anything is done", async () => {
  const cases: [string[], RegExp][] = [
    [["--method", "auto"], /CONFIG_INVALID.*--speedup/s],
    [["--method", "int8", "--speedup", "2"], /CONFIG_INVALID.*auto/s],
  ];
  const answers = await Promise.all(cases.map(([flags]) => taco(...flags)));
  cases.forEach(([flags, message], i) => {
    assert.equal(answers[i]!.code, 1, flags.join(" "));
    assert.match(answers[i]!.stderr, message);
    assert.equal(answers[i]!.stdout, "");
  });
});
