import assert from "node:assert/strict";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { swapTo } from "../../agent/serve/swap.ts";
import { tinyModel } from "../tiny-models.helpers.ts";
import { favoring, manifestOf, publishable, station } from "./models.helpers.ts";

const LABELS = favoring(0).classes;

test("swap: a candidate that may not be served is refused and the model of before goes on", async (t) => {
  const { inference, registry, ids, pictures } = await station(t, [favoring(0)]);
  await inference.start();
  const wellMade = await publishable(favoring(1));
  const publish = async (more: Partial<typeof wellMade>) =>
    registry.publishModel({ ...wellMade, ...more });
  const sizes = favoring(1, { side: 16 });
  const nan = favoring(1, { nan: true });
  const fewer = favoring(1, { classes: LABELS.slice(0, 3) });
  /** The network of another model under the manifest of the well-made one. */
  const impostor = (model: typeof sizes) => {
    const onnx = tinyModel(model);
    const { sha256 } = manifestOf(model, onnx);
    return { onnx, manifest: { ...wellMade.manifest, sha256 } };
  };
  const cases: [RegExp, () => Promise<string>][] = [
    [
      /expected float32 \[1, 3, 32, 32\], got float32 \[N, 3, 16, 16\]/,
      () => publish(impostor(sizes)),
    ],
    [/is NaN, no finite number/, () => publish(impostor(nan))],
    [/expected float32 \[1, 4\], got float32 \[N, 3\]/, () => publish(impostor(fewer))],
    [/known answers differ by/, () => publish(impostor(favoring(2)))],
    [
      /no usable|could not be opened/,
      () => {
        const onnx = Buffer.from("no network at all");
        const { sha256 } = manifestOf(favoring(1), onnx);
        return publish({ onnx, manifest: { ...wellMade.manifest, sha256 } });
      },
    ],
    [
      /damaged or incomplete/,
      async () => {
        const id = await publish({});
        await truncate(join(registry.folder(id), "model.onnx"), 200);
        return id;
      },
    ],
    [
      /damaged or incomplete/,
      async () => {
        const id = await publish({});
        const path = join(registry.folder(id), "model.onnx");
        const bytes = await readFile(path);
        bytes[bytes.length - 40] = bytes[bytes.length - 40]! ^ 4;
        await writeFile(path, bytes);
        return id;
      },
    ],
  ];
  for (const [reason, prepare] of cases) {
    const sha256 = await prepare();
    const outcome = await swapTo({ registry, inference, sha256 });
    assert.ok(outcome.kind === "refused");
    assert.match(outcome.reason, reason);
    assert.equal(await registry.readCurrent(), ids[0]);
    const answer = await inference.classify({ path: pictures[0]! });
    assert.ok(answer.kind === "classified" && answer.modelSha256 === ids[0]);
  }
  assert.equal(inference.status().restarts, 0);
});
