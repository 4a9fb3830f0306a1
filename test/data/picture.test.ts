import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import * as ort from "onnxruntime-node";
import sharp, { type Sharp } from "sharp";
import { inspectPicture, readPicture } from "../../agent/data/picture.ts";
import { AgentError } from "../../agent/errors.ts";
import type { Preprocessing } from "../../agent/model.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";

const LIMITS = { maxMegapixels: 100 };
const IMAGENET: Preprocessing = {
  height: 224,
  width: 224,
  mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225],
  resize: { mode: "shortSide", size: 256 },
  kernel: "cubic",
  cropTop: 0,
  cropBottom: 0,
};
/** Values of the tensor are then the bytes of the resized picture. */
const BYTES: Preprocessing = { ...IMAGENET, mean: [0, 0, 0], std: [1 / 255, 1 / 255, 1 / 255] };

const broken = benchPath("images/broken");
const sample = benchPath("images/imagenet-sample");
const model = benchPath("models/efficientnet_b0_imagenet1k.onnx");
const labels = benchPath("labels/imagenet1k.txt");

let folder = "";
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "taco-picture-"));
});
after(() => rm(folder, { recursive: true, force: true }));

interface BrokenCase {
  file: string;
  expect: string;
  also_accept?: string;
  width?: number;
  height?: number;
}

const cases: BrokenCase[] = broken
  ? JSON.parse(readFileSync(join(broken, "expected.json"), "utf8"))
  : [];

test("picture: the broken set is there", { skip: broken ? false : BENCH_ABSENT }, () => {
  assert.ok(cases.length >= 36);
});

/** What a reader said of a file, in the words of expected.json. */
async function verdict(read: () => Promise<{ widthPx: number; heightPx: number }>) {
  try {
    const { widthPx, heightPx } = await read();
    return { text: "valid", widthPx, heightPx };
  } catch (error) {
    assert.ok(error instanceof AgentError, String(error));
    assert.equal(error.code, "PICTURE_UNREADABLE");
    return { text: `reject: ${error.message.replace(/^.*?\.[a-z]+: /, "")}` };
  }
}

for (const c of cases) {
  test(`picture: broken/${c.file} is ${c.expect}`, async () => {
    const path = join(broken ?? "", c.file);
    const crop = { ...IMAGENET, cropBottom: c.file.startsWith("one") ? 0 : 60 };
    const verdicts = [
      await verdict(() => inspectPicture(path, LIMITS)),
      await verdict(() => readPicture(path, IMAGENET, LIMITS)),
      await verdict(() => readPicture(path, crop, LIMITS)),
    ];
    for (const v of verdicts) {
      const allowed = [c.expect, c.also_accept ?? c.expect];
      const reason = (want: string) => want.replace(/^reject: /, "");
      assert.ok(
        allowed.some((want) =>
          want === "valid" ? v.text === want : v.text.includes(reason(want)),
        ),
        `expected ${allowed.join(" or ")}, got ${v.text}`,
      );
      assert.equal(v.text, verdicts[0]?.text);
      if (v.text !== "valid") continue;
      assert.deepEqual([v.widthPx, v.heightPx], [c.width, c.height]);
    }
  });
}

test("picture: EfficientNet-B0 names the sample as well as the bench says", {
  skip: sample && model && labels ? false : BENCH_ABSENT,
}, async () => {
  const names = readFileSync(labels ?? "", "utf8")
    .trimEnd()
    .split("\n");
  const session = await ort.InferenceSession.create(model ?? "");
  let right = 0;
  const count = 60;
  const step = Math.floor(names.length / 2 / count);

  const files = readdirSync(sample ?? "").filter((f) => f.endsWith(".jpg"));
  for (let i = 0; i < count; i++) {
    const file = files[i * step] ?? "";
    const { tensor } = await readPicture(join(sample ?? "", file), IMAGENET, LIMITS);
    const input = new ort.Tensor("float32", tensor, [1, 3, 224, 224]);
    const { logits } = await session.run({ input });
    const values = logits?.data as Float32Array;
    const best = values.reduce((b, v, j) => (v > (values[b] ?? 0) ? j : b), 0);
    if (names[best]?.startsWith(file.slice(0, 9))) right += 1;
  }
  await session.release();
  // 86.2 % of 60 pictures: 51.7 expected, standard deviation 2.7; below 45 is a 2.5 sigma miss.
  assert.ok(right >= 45, `expected at least 45 of ${count} right, got ${right}`);
});

test("picture: whole pictures are resized as sharp's bicubic does", async () => {
  const path = join(folder, "scene.png");
  await scene(400, 300).png().toFile(path);
  const { tensor } = await readPicture(path, BYTES, LIMITS);
  const want = await sharp(path)
    .resize(256, 256, { fit: "outside", kernel: "cubic" })
    .extract({ left: 59, top: 16, width: 224, height: 224 })
    .raw()
    .toBuffer();
  assert.equal(meanDifference(tensor, want), 0);
});

test("picture: shrinking while decoding stays close to a full decode", async () => {
  const path = join(folder, "large.jpg");
  await scene(3200, 2400).jpeg({ quality: 95 }).toFile(path);
  const full = join(folder, "large.png");
  await sharp(path).png().toFile(full);
  const a = await readPicture(path, BYTES, LIMITS);
  const b = await readPicture(full, BYTES, LIMITS);
  assert.ok(meanDifference(a.tensor, b.tensor) < 1);
});

test("picture: a banner is cut before the resize, within half a pixel of the input", async () => {
  for (const [width, height, top, bottom] of [
    [640, 480, 20, 40],
    [3200, 2400, 93, 117],
  ] as const) {
    const path = join(folder, `banner-${width}.png`);
    await scene(width, height).png().toFile(path);
    const cut = { ...BYTES, cropTop: top, cropBottom: bottom };
    const { tensor, heightPx } = await readPicture(path, cut, LIMITS);
    assert.equal(heightPx, height);
    const by = join(folder, `cut-${width}.png`);
    const rows = { left: 0, top, width, height: height - top - bottom };
    await sharp(path).extract(rows).png().toFile(by);
    const want = await readPicture(by, BYTES, LIMITS);
    assert.ok(meanDifference(tensor, want.tensor) < (width === 640 ? 1e-6 : 3));
  }
});

test("picture: a window is a part of the picture after the banner crop", async () => {
  const path = join(folder, "quarters.png");
  const red = await sharp({ create: { width: 100, height: 100, channels: 3, background: "#f00" } })
    .png()
    .toBuffer();
  await sharp({ create: { width: 200, height: 250, channels: 3, background: "#00f" } })
    .composite([{ input: red, left: 100, top: 150 }])
    .png()
    .toFile(path);
  const cut = { ...BYTES, cropTop: 50 };
  const window = { left: 0.5, top: 0.5, width: 0.5, height: 0.5 };
  const { tensor } = await readPicture(path, cut, LIMITS, { window });
  assert.ok(tensor.subarray(0, 224 * 224).every((v) => Math.abs(v - 255) < 1e-3));
  assert.ok(tensor.subarray(224 * 224).every((v) => Math.abs(v) < 1e-3));
  await assert.rejects(
    readPicture(path, cut, LIMITS, { window: { ...window, left: 0.6 } }),
    RangeError,
  );
});

test("picture: flip mirrors left to right", async () => {
  const path = join(folder, "flip.png");
  await scene(300, 300).png().toFile(path);
  const plain = (await readPicture(path, BYTES, LIMITS)).tensor;
  const flipped = (await readPicture(path, BYTES, LIMITS, { flip: true })).tensor;
  for (let x = 0; x < 224; x++) assert.equal(flipped[224 * 7 + x], plain[224 * 7 + 223 - x]);
});

test("picture: EXIF orientation turns the picture before the banner is cut", async () => {
  const path = join(folder, "turned.jpg");
  const top = await sharp({ create: { width: 300, height: 60, channels: 3, background: "#fff" } })
    .png()
    .toBuffer();
  const upright = await sharp({
    create: { width: 300, height: 400, channels: 3, background: "#000" },
  })
    .composite([{ input: top, left: 0, top: 0 }])
    .png()
    .toBuffer();
  await sharp(upright).rotate(270).withMetadata({ orientation: 6 }).jpeg().toFile(path);
  const p: Preprocessing = { ...BYTES, cropTop: 64, resize: { mode: "stretch" } };
  const { tensor, widthPx, heightPx } = await readPicture(path, p, LIMITS);
  assert.deepEqual([widthPx, heightPx], [300, 400]);
  assert.ok(tensor.every((v) => v < 20));
  const uncut = await readPicture(path, { ...p, cropTop: 0 }, LIMITS);
  assert.ok(uncut.tensor.some((v) => v > 235));
});

test("picture: CMYK looks like its RGB twin", { skip: broken ? false : BENCH_ABSENT }, async () => {
  const cmyk = await readPicture(join(broken ?? "", "cmyk.jpg"), BYTES, LIMITS);
  const rgb = await readPicture(join(broken ?? "", "plain.jpg"), BYTES, LIMITS);
  assert.ok(meanDifference(cmyk.tensor, rgb.tensor) < 40);
});

test("picture: gray, 16-bit and transparent pictures come out with three channels", async () => {
  const size = { width: 256, height: 256 };
  const gray = sharp(Buffer.alloc(256 * 256, 200), { raw: { ...size, channels: 1 } });
  const deep = sharp(new Uint16Array(256 * 256 * 3).fill(0x8080), {
    raw: { ...size, channels: 3 },
  });
  const clear = sharp({
    create: { ...size, channels: 4, background: { r: 255, g: 0, b: 0, alpha: 0 } },
  });
  const files: [string, Sharp, number][] = [
    ["gray.png", gray.toColourspace("b-w").png(), 200],
    ["deep.png", deep.toColourspace("rgb16").png(), 128],
    ["clear.png", clear.png(), 128],
  ];
  for (const [name, source, value] of files) {
    const path = join(folder, name);
    await source.toFile(path);
    const { tensor } = await readPicture(path, BYTES, LIMITS);
    assert.ok(
      tensor.every((v) => Math.abs(v - value) <= 1),
      `${name}: got ${tensor[0]}`,
    );
  }
});

test("picture: four 48-megapixel pictures at once stay far below their decoded size", async () => {
  const path = join(folder, "blank.jpg");
  const blank = { width: 8000, height: 6000, channels: 3, background: "#777" } as const;
  await sharp({ create: blank }).jpeg().toFile(path);
  const before = process.memoryUsage().rss;
  const cut = { ...BYTES, cropTop: 100 };
  await Promise.all([1, 2, 3, 4].map((i) => readPicture(path, i % 2 ? cut : BYTES, LIMITS)));
  const grownMb = (process.memoryUsage().rss - before) / 1e6;
  assert.ok(grownMb < 200, `expected below 200 MB, got ${grownMb}`);
});

test("picture: a strip of a picture is cut without resizing all of it", async () => {
  const path = join(folder, "strip.png");
  const strip = { width: 8, height: 9000, channels: 3, background: "#408040" } as const;
  await sharp({ create: strip }).png().toFile(path);
  const { tensor } = await readPicture(path, BYTES, LIMITS);
  assert.ok(tensor.subarray(0, 100).every((v) => Math.abs(v - 64) < 1));
});

test("picture: a harmless warning does not refuse a whole picture", async () => {
  const bytes = await scene(320, 240).jpeg().toBuffer();
  const path = join(folder, "padded.jpg");
  const end = bytes.length - 2;
  await writeFile(
    path,
    Buffer.concat([bytes.subarray(0, end), Buffer.alloc(8), bytes.subarray(end)]),
  );
  assert.equal((await inspectPicture(path, LIMITS)).widthPx, 320);
});

test("picture: a lost sector in a large picture is found although it is shrunk while decoded", async () => {
  const bytes = await scene(2400, 1800).jpeg({ quality: 95 }).toBuffer();
  bytes.fill(0, Math.floor(bytes.length * 0.6), Math.floor(bytes.length * 0.6) + 4096);
  const path = join(folder, "sector.jpg");
  await writeFile(path, bytes);
  await assert.rejects(readPicture(path, IMAGENET, LIMITS), /corrupt data/);
});

test("picture: damaged EXIF never refuses a picture", async () => {
  const bytes = await scene(320, 240)
    .withExif({ IFD2: { DateTimeOriginal: "2026:05:01 06:30:09" } })
    .jpeg()
    .toBuffer();
  const start = bytes.indexOf("Exif");
  const path = join(folder, "exif.jpg");
  for (let at = start; at < start + 120; at += 4) {
    const damaged = Buffer.from(bytes);
    damaged.fill(at % 8 ? 0xff : 0x7e, at, at + 6);
    await writeFile(path, damaged);
    await inspectPicture(path, LIMITS);
  }
});

test("picture: every cut of every format is refused as truncated", async () => {
  for (const format of ["jpeg", "png", "webp", "gif"] as const) {
    const bytes = await scene(200, 150).toFormat(format).toBuffer();
    for (const share of [0.3, 0.7, 0.97]) {
      const path = join(folder, `cut.${format}`);
      await writeFile(path, bytes.subarray(0, Math.floor(bytes.length * share)));
      await assert.rejects(inspectPicture(path, LIMITS), /truncated/, `${format} ${share}`);
    }
  }
});

test("picture: a picture that the banner crop uses up is refused with the numbers", async () => {
  const path = join(folder, "low.png");
  await scene(100, 50).png().toFile(path);
  const cut = { ...BYTES, cropTop: 30, cropBottom: 20 };
  await assert.rejects(readPicture(path, cut, LIMITS), /too small: 50 rows.*cropTop 30/);
});

test("picture: a vector drawing, a BMP and a missing file are refused by reason", async () => {
  const svg = join(folder, "drawing.jpg");
  await writeFile(svg, '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>');
  await assert.rejects(inspectPicture(svg, LIMITS), /not an image/);
  const bmp = join(folder, "old.bmp");
  await writeFile(
    bmp,
    Buffer.concat([Buffer.from("BM"), Buffer.alloc(12), Buffer.from([40, 0, 0, 0])]),
  );
  await assert.rejects(inspectPicture(bmp, LIMITS), /unsupported format BMP/);
  await assert.rejects(inspectPicture(join(folder, "gone.jpg"), LIMITS), /missing/);
});

test("picture: a name with quotes and an emoji is read", async () => {
  const path = join(folder, 'été "renard" fox\'s den 🦊 (1).jpg');
  await scene(64, 48).jpeg().toFile(path);
  assert.equal((await inspectPicture(path, LIMITS)).heightPx, 48);
});

/** A drawn scene: gradients with waves, so that resizing has something to get wrong. */
function scene(width: number, height: number): Sharp {
  const data = Buffer.alloc(width * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = (y * width + x) * 3;
      const u = x / width;
      const v = y / height;
      data[at] = 255 * u;
      data[at + 1] = 127 + 120 * Math.sin(40 * v + 9 * u);
      data[at + 2] = 127 + 120 * Math.cos(30 * u * v);
    }
  }
  return sharp(data, { raw: { width, height, channels: 3 } });
}

/** Mean |difference| of two inputs; `b` may be interleaved bytes. */
function meanDifference(a: Float32Array, b: Float32Array | Buffer): number {
  assert.equal(a.length, b.length);
  const plane = a.length / 3;
  let sum = 0;
  for (let i = 0; i < a.length; i++) {
    const other = Buffer.isBuffer(b) ? b[(i % plane) * 3 + Math.floor(i / plane)] : b[i];
    sum += Math.abs((a[i] ?? 0) - (other ?? 0));
  }
  const mean = sum / a.length;
  return mean < 1e-4 ? 0 : mean;
}
