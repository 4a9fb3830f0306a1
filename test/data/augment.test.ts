import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import sharp from "sharp";
import {
  type Augmentation,
  augmentBatch,
  type DrawnView,
  drawMixing,
  drawView,
  FIELD_AUGMENTATION,
  keptPreprocessing,
  mixRows,
  PLAIN_VIEW,
} from "../../agent/data/augment.ts";
import { readPicture } from "../../agent/data/picture.ts";
import { createRandom } from "../../agent/math/random.ts";
import type { Preprocessing } from "../../agent/model.ts";

const NETWORK: Preprocessing = {
  height: 96,
  width: 96,
  mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225],
  resize: { mode: "shortSide", size: 110 },
  kernel: "cubic",
  cropTop: 0,
  cropBottom: 10,
};
/** Values of the tensor are then those of the pixels, 0 to 255. */
const asBytes = (p: Preprocessing): Preprocessing => ({
  ...p,
  mean: [0, 0, 0],
  std: [1 / 255, 1 / 255, 1 / 255],
});
const KEPT = keptPreprocessing(NETWORK);
const LIMITS = { maxMegapixels: 1 };
const OFF: Augmentation = {
  crop: null,
  flip: 0,
  brightness: 0,
  contrast: 0,
  saturation: 0,
  grayscale: 0,
  blur: { probability: 0, maxSigma: 0.01 },
  noise: { probability: 0, maxSigma: 0.1 },
};

let folder = "";
let path = "";
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "taco-augment-"));
  path = join(folder, "drawn.png");
  // Colored discs on a slope of colors: smooth, and nowhere the same.
  const drawing = `<svg xmlns="http://www.w3.org/2000/svg" width="320" height="250">
    <linearGradient id="g" x2="1" y2="0.4"><stop stop-color="#251"/><stop offset="1" stop-color="#cdf"/>
    </linearGradient><rect width="320" height="250" fill="url(#g)"/>
    <circle cx="110" cy="90" r="60" fill="#b63"/><circle cx="220" cy="150" r="40" fill="#e9d"/></svg>`;
  await sharp(Buffer.from(drawing)).png().toFile(path);
});
after(() => rm(folder, { recursive: true, force: true }));

async function keep(kept: Preprocessing): Promise<Uint8Array> {
  const { tensor } = await readPicture(path, asBytes(kept), LIMITS);
  return Uint8Array.from(tensor, Math.round);
}

const view = async (drawn: Partial<DrawnView>, network = asBytes(NETWORK)) =>
  augmentBatch([await keep(KEPT)], KEPT, network, [{ ...PLAIN_VIEW, ...drawn }]);

function meanDistance(one: Float32Array, other: Float32Array): number {
  assert.equal(one.length, other.length);
  return one.reduce((sum, value, i) => sum + Math.abs(value - other[i]!), 0) / one.length;
}

test("augment: with all off it is the plain preprocessing, bit by bit", async () => {
  assert.deepEqual(drawView(OFF, createRandom(1).uniform), {
    ...PLAIN_VIEW,
    noiseSeed: drawView(OFF, createRandom(1).uniform).noiseSeed,
  });
  const { tensor } = await readPicture(path, NETWORK, LIMITS);
  assert.deepEqual(await view({}, NETWORK), tensor);
});

test("augment: off, pictures kept at another scale are the plain ones within rounding", async () => {
  for (const resize of [{ mode: "stretch" }, { mode: "shortSide", size: 96 }] as const) {
    const network = asBytes({ ...NETWORK, resize });
    const kept = keptPreprocessing(network);
    assert.ok(kept.height >= 110 && kept.width >= 110);
    const got = await augmentBatch([await keep(kept)], kept, network, [PLAIN_VIEW]);
    const { tensor } = await readPicture(path, network, LIMITS);
    const mean = meanDistance(got, tensor);
    // Scaled twice, and the center lies on another whole pixel: edges differ; of 255 levels.
    assert.ok(mean < 1.5, `${resize.mode}: ${mean}`);
  }
});

test("augment: a smaller network sees the same view", async () => {
  const drawn = drawView({ ...OFF, crop: FIELD_AUGMENTATION.crop }, createRandom(4).uniform);
  const large = await view(drawn);
  const half = asBytes({
    ...NETWORK,
    height: 48,
    width: 48,
    resize: { mode: "shortSide", size: 55 },
  });
  const small = await view(drawn, half);
  const halved = Float32Array.from(small, (_, i) => {
    const [channel, y, x] = [Math.floor(i / 2304), Math.floor(i / 48) % 48, i % 48];
    const at = channel * 9216 + 2 * y * 96 + 2 * x;
    return (large[at]! + large[at + 1]! + large[at + 96]! + large[at + 97]!) / 4;
  });
  assert.ok(meanDistance(small, halved) < 2);
});

test("augment: the same seed gives the same bits, another one other views", async () => {
  const picture = await keep(KEPT);
  const batch = (seed: number) => {
    const random = createRandom(seed);
    const views = Array.from({ length: 6 }, () => drawView(FIELD_AUGMENTATION, random.uniform));
    return augmentBatch(new Array<Uint8Array>(6).fill(picture), KEPT, NETWORK, views);
  };
  const [one, again, other] = await Promise.all([batch(3), batch(3), batch(4)]);
  assert.deepEqual(one, again);
  assert.notDeepEqual(one, other);
  const row = one.length / 6;
  const rows = Array.from({ length: 6 }, (_, i) => one.slice(i * row, (i + 1) * row).join());
  assert.equal(new Set(rows).size, 6);
});

test("augment: one setting does not move what the others draw", () => {
  const all = drawView(FIELD_AUGMENTATION, createRandom(8).uniform);
  const noFlip = drawView({ ...FIELD_AUGMENTATION, flip: 0, crop: null }, createRandom(8).uniform);
  assert.deepEqual({ ...noFlip, flip: all.flip, window: all.window }, all);
});

test("augment: a mirror image is exact, under every other change but noise", async () => {
  const drawn = {
    window: { left: 0.1, top: 0.2, width: 0.7, height: 0.7 },
    brightness: 1.1,
    contrast: 0.8,
    saturation: 1.2,
    blurSigma: 0.01,
  };
  const [plain, flipped] = await Promise.all([view(drawn), view({ ...drawn, flip: true })]);
  for (let i = 0; i < plain.length; i++) {
    const x = i % 96;
    assert.equal(flipped[i - x + 95 - x], plain[i]);
  }
});

test("augment: a gray view has three equal channels, also with noise", async () => {
  const gray = await view({ saturation: 0, contrast: 1.2, noiseSigma: 0.05, noiseSeed: 3 });
  const plane = 96 * 96;
  for (let i = 0; i < plane; i++) {
    assert.equal(gray[i], gray[plane + i]);
    assert.equal(gray[i], gray[2 * plane + i]);
  }
});

test("augment: colors change as stated, and stay between black and white", async () => {
  const plain = await view({});
  const plane = 96 * 96;
  const luma = (v: Float32Array, i: number) =>
    0.299 * v[i]! + 0.587 * v[plane + i]! + 0.114 * v[2 * plane + i]!;
  let meanLuma = 0;
  for (let i = 0; i < plane; i++) meanLuma += luma(plain, i) / plane;
  const [b, c, s] = [1.25, 0.8, 0.6];
  const changed = await view({ brightness: b, contrast: c, saturation: s });
  for (let i = 0; i < 3 * plane; i++) {
    const brighter = b * plain[i]!;
    const Y = b * luma(plain, i % plane);
    const expected = c * (s * brighter + (1 - s) * Y) + (1 - c) * b * meanLuma;
    const cut = Math.min(255, Math.max(0, expected));
    assert.ok(Math.abs(changed[i]! - cut) < 1e-3);
  }
  const wild = await view({ brightness: 2, contrast: 2, saturation: 2, noiseSigma: 0.5 });
  assert.ok(wild.every((value) => value >= 0 && value <= 255.001));
  assert.ok(wild.some((value) => value === 0));
});

test("augment: noise has the stated strength and no drift, blur smooths", async () => {
  const plain = await view({});
  const noisy = await view({ noiseSigma: 0.02, noiseSeed: 77 });
  const differences = noisy.map((value, i) => value - plain[i]!);
  const mean = differences.reduce((sum, d) => sum + d, 0) / differences.length;
  const variance = differences.reduce((sum, d) => sum + (d - mean) ** 2, 0) / differences.length;
  assert.ok(Math.abs(mean) < 0.15, `mean ${mean}`);
  assert.ok(Math.abs(Math.sqrt(variance) / (255 * 0.02) - 1) < 0.05, `variance ${variance}`);
  const roughness = (v: Float32Array) =>
    v.reduce((sum, x, i) => sum + (i % 96 ? (x - v[i - 1]!) ** 2 : 0), 0);
  assert.ok(roughness(await view({ blurSigma: 0.015 })) < 0.8 * roughness(plain));
});

test("augment: crops lie inside, have the stated areas and shapes, and reach every edge", () => {
  const random = createRandom(2);
  let [least, most, widest, narrowest] = [1, 0, 0, 9];
  const reach = { left: 1, top: 1, right: 0, bottom: 0 };
  for (let i = 0; i < 5000; i++) {
    const { left, top, width, height } = drawView(FIELD_AUGMENTATION, random.uniform).window!;
    const [right, bottom] = [left + width, top + height];
    assert.ok(left >= 0 && top >= 0 && right <= 1 + 1e-12 && bottom <= 1 + 1e-12);
    least = Math.min(least, width * height);
    most = Math.max(most, width * height);
    widest = Math.max(widest, width / height);
    narrowest = Math.min(narrowest, width / height);
    reach.left = Math.min(reach.left, left);
    reach.top = Math.min(reach.top, top);
    reach.right = Math.max(reach.right, right);
    reach.bottom = Math.max(reach.bottom, bottom);
  }
  assert.ok(least >= 0.45 - 1e-12 && least < 0.46 && most <= 1 + 1e-12 && most > 0.99);
  assert.ok(widest <= 4 / 3 + 1e-12 && widest > 1.32 && narrowest >= 0.75 - 1e-12);
  assert.ok(reach.left < 0.01 && reach.top < 0.01 && reach.right > 0.99 && reach.bottom > 0.99);
});

test("augment: shows the window that was drawn", async () => {
  const picture = new Uint8Array(3 * KEPT.height * KEPT.width);
  const plane = KEPT.height * KEPT.width;
  for (let y = 0; y < KEPT.height; y++) {
    for (let x = 0; x < KEPT.width; x++) {
      picture[y * KEPT.width + x] = x;
      picture[plane + y * KEPT.width + x] = y;
    }
  }
  const window = { left: 0.2, top: 0.4, width: 0.5, height: 0.6 };
  const views = [{ ...PLAIN_VIEW, window }];
  const seen = await augmentBatch([picture], KEPT, asBytes(NETWORK), views);
  for (const [y, x] of [
    [10, 10],
    [48, 48],
    [80, 90],
  ] as const) {
    const [u, v] = [(x + 0.5) / 96, (y + 0.5) / 96];
    const expected = [KEPT.width * (0.2 + 0.5 * u) - 0.5, KEPT.height * (0.4 + 0.6 * v) - 0.5, 0];
    for (const [channel, value] of expected.entries()) {
      assert.ok(Math.abs(seen[channel * 96 * 96 + y * 96 + x]! - value) <= 1);
    }
  }
});

test("augment: sizes that do not fit are refused", async () => {
  const picture = await keep(KEPT);
  await assert.rejects(augmentBatch([picture], KEPT, NETWORK, []), /expected 1 views, got 0/);
  const short = picture.subarray(1);
  await assert.rejects(augmentBatch([short], KEPT, NETWORK, [PLAIN_VIEW]), /expected pictures of/);
  const stretched = { ...NETWORK, resize: { mode: "stretch" } } as const;
  await assert.rejects(
    augmentBatch([picture], KEPT, stretched, [PLAIN_VIEW]),
    /expected pictures kept by stretch/,
  );
});

test("mixup: rows are mixed in pairs, their labels alike, and no weight is lost", () => {
  const random = createRandom(9);
  for (const count of [1, 2, 5, 8]) {
    const mixing = drawMixing(count, 0.4, random.uniform);
    const pictures = new Float32Array(count * 7).map(() => random.normal());
    const labels = new Float32Array(count * count);
    for (let row = 0; row < count; row++) labels[row * count + row] = 1;
    const [before, oneHot] = [pictures.slice(), labels.slice()];
    mixRows(pictures, mixing);
    mixRows(labels, mixing);
    for (let row = 0; row < count; row++) {
      const [share, partner] = [mixing.shares[row]!, mixing.partners[row]!];
      assert.ok(share >= 0.5 && share <= 1);
      const mixed = (values: Float32Array, length: number, i: number) =>
        share * values[row * length + i]! + (1 - share) * values[partner * length + i]!;
      for (let i = 0; i < 7; i++) {
        assert.ok(Math.abs(pictures[row * 7 + i]! - mixed(before, 7, i)) < 1e-6);
      }
      for (let i = 0; i < count; i++) {
        assert.ok(Math.abs(labels[row * count + i]! - mixed(oneHot, count, i)) < 1e-6);
      }
    }
  }
  assert.throws(
    () => mixRows(new Float32Array(7), drawMixing(2, 1, random.uniform)),
    /2 equal rows/,
  );
  assert.throws(() => drawMixing(2, 0, random.uniform), /alpha: expected/);
});

test("mixup: shares come from Beta(α, α)", () => {
  const random = createRandom(10);
  for (const alpha of [0.2, 1, 3]) {
    const draws = Array.from(
      { length: 4000 },
      () => drawMixing(2, alpha, random.uniform).shares[0]!,
    );
    // Folded at ½, the variance around it stays that of Beta(α, α): 1 / (4(2α + 1)).
    const variance = draws.reduce((sum, x) => sum + (x - 0.5) ** 2, 0) / draws.length;
    assert.ok(Math.abs(variance * 4 * (2 * alpha + 1) - 1) < 0.1, `alpha ${alpha}: ${variance}`);
  }
});
