import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { readPicture } from "../../agent/data/picture.ts";
import { type Preprocessing, preprocessingAt } from "../../agent/model.ts";
import { decodePictures, RunPictures } from "../../agent/specialize/run-pictures.ts";
import { drawPicture, LABELS } from "../flow/station.helpers.ts";

const SHAPE: Preprocessing = {
  height: 32,
  width: 32,
  mean: [0.5, 0.5, 0.5],
  std: [0.25, 0.25, 0.25],
  resize: { mode: "shortSide", size: 36 },
  kernel: "cubic",
  cropTop: 0,
  cropBottom: 0,
};
let dir: string;
const paths: string[] = [];

before(async () => {
  dir = await mkdtemp(join(tmpdir(), "taco-pictures-"));
  for (let i = 0; i < 6; i++) {
    const path = join(dir, `${i}.jpg`);
    await writeFile(path, await drawPicture(LABELS[i % 2]!, i));
    paths.push(path);
  }
});

after(() => rm(dir, { recursive: true }));

async function opened(): Promise<RunPictures> {
  const options = {
    dir,
    preprocessing: SHAPE,
    maxMegapixels: 10,
    signal: new AbortController().signal,
  };
  const listed = paths.map((path, i) => ({
    path,
    label: LABELS[i % 2]!,
    burst: `${i}`,
    role: i < 4 ? ("train" as const) : ("heldOut" as const),
  }));
  await decodePictures(listed, options, () => undefined);
  return RunPictures.open(options);
}

test("run pictures: calibration takes the classes in turn, each with its mirror image", async () => {
  const pictures = await opened();
  const samples = pictures.calibrationSamples(3);
  const labels = samples.map(({ row }) => pictures.pictures[row]!.label);
  assert.deepEqual(labels, [...pictures.classes, pictures.classes[0]]);
  assert.equal(pictures.trainingSamples().length, 8);
  await pictures.close();
});

test("run pictures: another size is decoded anew by the same rules, side by side of the split", async () => {
  const pictures = await opened();
  const size = { height: 24, width: 24 };
  const source = pictures.source(pictures.samples("heldOut"), size, 2);
  const { data, dims } = await source.read(0);
  assert.deepEqual(dims, [2, 3, 24, 24]);
  const shape = preprocessingAt(SHAPE, size);
  assert.deepEqual(shape.resize, { mode: "shortSide", size: 27 });
  for (const [i, path] of paths.slice(4).entries()) {
    const { tensor } = await readPicture(path, shape, { maxMegapixels: 10 });
    const part = data.subarray(i * tensor.length, (i + 1) * tensor.length) as Float32Array;
    const farthest = part.reduce((most, x, at) => Math.max(most, Math.abs(x - tensor[at]!)), 0);
    assert.ok(farthest < 1e-5, `${path}: ${farthest}`);
  }
  await pictures.close();
});
