import assert from "node:assert/strict";
import {
  mkdir,
  readdir,
  readFile,
  readlink,
  rm,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { sha256 } from "../../agent/files.ts";
import { ModelRegistry } from "../../agent/serve/registry.ts";
import { favoring, publishable, temporaryFolder } from "./models.helpers.ts";

const DAY = (day: number) => `2026-05-0${day}T00:00:00.000Z`;

/** A registry holding three models a day apart: a, then b made beside a, then c made beside a. */
async function registryOfThree(t: TestContext) {
  const modelsDir = join(await temporaryFolder(t), "models");
  const registry = new ModelRegistry({ modelsDir });
  const a = await registry.publishModel(await publishable(favoring(0), { createdAt: DAY(1) }));
  const beside = (day: number) => ({ createdAt: DAY(day), incumbentSha256: a });
  const b = await registry.publishModel(await publishable(favoring(1), beside(2)));
  const c = await registry.publishModel(await publishable(favoring(2), beside(3)));
  return { modelsDir, registry, a, b, c };
}

async function flipBit(path: string): Promise<void> {
  const bytes = await readFile(path);
  const middle = bytes.length >> 1;
  bytes[middle] = bytes[middle]! ^ 1;
  await writeFile(path, bytes);
}

describe("registry: publishing", () => {
  test("puts all files in place under the model's SHA-256, once", async (t) => {
    const modelsDir = join(await temporaryFolder(t), "models");
    const registry = new ModelRegistry({ modelsDir });
    const model = await publishable(favoring(0));
    const file = join(await temporaryFolder(t), "made.onnx");
    await writeFile(file, model.onnx);
    const id = await registry.publishModel({ ...model, onnx: file });
    assert.equal(id, sha256(model.onnx));
    assert.equal(await registry.publishModel(model), id);
    assert.deepEqual(await readdir(modelsDir), [id]);
    assert.deepEqual((await readdir(registry.folder(id))).sort(), [
      "check.json",
      "model.json",
      "model.onnx",
    ]);
    assert.equal((await registry.validateModel(id)).valid, true);
    assert.equal(await registry.readCurrent(), null);
  });

  test("refuses a file that is not what its manifest says, and leaves nothing", async (t) => {
    const modelsDir = join(await temporaryFolder(t), "models");
    const registry = new ModelRegistry({ modelsDir });
    const model = await publishable(favoring(0));
    const onnx = model.onnx.subarray(0, model.onnx.length - 7);
    await assert.rejects(registry.publishModel({ ...model, onnx }), { code: "MODEL_INVALID" });
    assert.deepEqual(await readdir(modelsDir), []);
  });

  test("refuses where the disk has too little room, saying how much", async (t) => {
    const modelsDir = join(await temporaryFolder(t), "models");
    const registry = new ModelRegistry({ modelsDir, minFreeBytes: Number.MAX_SAFE_INTEGER });
    await assert.rejects(registry.publishModel(await publishable(favoring(0))), {
      code: "DISK_FULL",
      message: /MiB free/,
    });
    assert.deepEqual(await readdir(modelsDir), []);
  });

  test("replaces a damaged folder of the same model", async (t) => {
    const { registry, a } = await registryOfThree(t);
    await flipBit(join(registry.folder(a), "model.onnx"));
    await registry.publishModel(await publishable(favoring(0), { createdAt: DAY(1) }));
    assert.equal((await registry.validateModel(a)).valid, true);
  });
});

describe("registry: pointer", () => {
  test("names only models that are there", async (t) => {
    const { modelsDir, registry, a } = await registryOfThree(t);
    await registry.setCurrent(a);
    assert.equal(await registry.readCurrent(), a);
    assert.equal(await readlink(join(modelsDir, "current")), a);
    await assert.rejects(registry.setCurrent("0".repeat(64)), { code: "REGISTRY_INVALID" });
    await assert.rejects(registry.setCurrent("../elsewhere"), RangeError);
    assert.equal(await registry.readCurrent(), a);
  });

  test("goes back to the model that the current one was made beside", async (t) => {
    const { registry, a, b } = await registryOfThree(t);
    await registry.setCurrent(a);
    assert.equal(await registry.rollbackTarget(), null);
    await registry.setCurrent(b);
    assert.equal(await registry.rollbackTarget(), a);
  });
});

describe("registry: repair", () => {
  test("changes nothing in a valid registry", async (t) => {
    const { modelsDir, registry, b } = await registryOfThree(t);
    await registry.setCurrent(b);
    const before = (await readdir(modelsDir)).sort();
    const report = await registry.repair();
    assert.deepEqual(report, { removed: [], broken: [], current: b, reason: null });
    assert.deepEqual((await readdir(modelsDir)).sort(), before);
  });

  test("makes an empty registry where there is none", async (t) => {
    const modelsDir = join(await temporaryFolder(t), "models");
    const report = await new ModelRegistry({ modelsDir }).repair();
    assert.equal(report.current, null);
    assert.match(report.reason ?? "", /no current model/);
  });

  test("removes what a crash left behind", async (t) => {
    const { modelsDir, registry, c } = await registryOfThree(t);
    await registry.setCurrent(c);
    await mkdir(join(modelsDir, `.publish-${"1".repeat(64)}`));
    await writeFile(join(modelsDir, `.publish-${"1".repeat(64)}`, "model.onnx"), "half");
    await symlink("nowhere", join(modelsDir, "current.4711.new"));
    const report = await registry.repair();
    assert.equal(report.removed.length, 2);
    assert.equal(report.current, c);
    assert.equal((await readdir(modelsDir)).length, 4);
  });

  const damages: [string, RegExp, (folder: string) => Promise<void>][] = [
    ["truncated", /damaged or incomplete/, (f) => truncate(join(f, "model.onnx"), 100)],
    ["bit-flipped", /damaged or incomplete/, (f) => flipBit(join(f, "model.onnx"))],
    ["without its network", /model\.onnx is missing/, (f) => rm(join(f, "model.onnx"))],
    ["without known answers", /check\.json is missing/, (f) => rm(join(f, "check.json"))],
    ["with a torn manifest", /is no JSON/, (f) => truncate(join(f, "model.json"), 50)],
  ];
  for (const [what, reason, damage] of damages) {
    test(`sets a current model ${what} aside and goes on with a valid one`, async (t) => {
      const { modelsDir, registry, a, b, c } = await registryOfThree(t);
      await registry.setCurrent(b);
      await damage(registry.folder(b));
      const report = await registry.repair();
      assert.match(report.broken[0]?.reason ?? "", reason);
      // Its incumbent where the manifest still tells it, else the newest.
      assert.equal(report.current, what === "with a torn manifest" ? c : a);
      assert.equal(await registry.readCurrent(), report.current);
      assert.match(report.reason ?? "", new RegExp(`${b} was unusable`));
      assert.ok((await readdir(modelsDir)).includes(`.broken-${b}`));
      assert.equal((await registry.repair()).reason, null);
    });
  }

  test("takes a model that was rolled back only as the last resort", async (t) => {
    const { modelsDir, registry, a, b, c } = await registryOfThree(t);
    await symlink("0".repeat(64), join(modelsDir, "current"));
    assert.equal((await registry.repair(new Set([c]))).current, b);
    await rm(registry.folder(a), { recursive: true });
    await rm(registry.folder(b), { recursive: true });
    assert.equal((await registry.repair(new Set([c]))).current, c);
  });

  test("leaves no pointer where no model is valid", async (t) => {
    const { modelsDir, registry, a, b, c } = await registryOfThree(t);
    await registry.setCurrent(a);
    for (const id of [a, b, c]) await rm(join(registry.folder(id), "check.json"));
    const report = await registry.repair();
    assert.equal(report.current, null);
    assert.equal(report.broken.length, 3);
    assert.ok(!(await readdir(modelsDir)).includes("current"));
  });

  test("replaces something that is no link in the pointer's place", async (t) => {
    const { modelsDir, registry, c } = await registryOfThree(t);
    await mkdir(join(modelsDir, "current"));
    assert.equal((await registry.repair()).current, c);
    assert.equal(await readlink(join(modelsDir, "current")), c);
  });
});

test("registry: pruning spares the current model, its rollback target and those to keep", async (t) => {
  const { registry, a, b, c } = await registryOfThree(t);
  const d = await registry.publishModel(await publishable(favoring(3), { createdAt: DAY(4) }));
  await registry.setCurrent(b);
  assert.deepEqual(await registry.pruneModels(new Set([d])), [c]);
  const left = (await registry.listModels()).map((model) => model.sha256);
  assert.deepEqual(left, [a, b, d]);
});
