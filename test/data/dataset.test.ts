import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type TestContext, test } from "node:test";
import sharp from "sharp";
import { openDataset } from "../../agent/data/dataset.ts";
import { AgentError } from "../../agent/errors.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";

const OPTIONS = { burstGapSeconds: 60 };

/** A folder with these files: text as it is, numbers as a picture of that shade. */
async function folderOf(t: TestContext, files: Record<string, string | number>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "taco-dataset-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(
      join(folder, name),
      typeof content === "string" ? content : await picture(content),
    );
  }
  return folder;
}

/** The shade, and the second of the EXIF time: pictures of different shades differ. */
async function picture(shade: number): Promise<Buffer> {
  const background = { r: shade, g: 80, b: 90 };
  const second = String(shade % 60).padStart(2, "0");
  return await sharp({ create: { width: 24, height: 16, channels: 3, background } })
    .withExif({ IFD2: { DateTimeOriginal: `2026:05:01 06:${Math.floor(shade / 60)}0:${second}` } })
    .jpeg()
    .toBuffer();
}

test("dataset: class folders give one burst a picture, by relative path", async (t) => {
  const folder = await folderOf(t, {
    "fox/a.jpg": 1,
    "fox/deep/er/b.JPG": 2,
    " roe deer /c.png": 3,
    "fox/._a.jpg": "apple double",
    ".git/x.jpg": 9,
    "fox/notes.txt": "hello",
    "README.md": "hello",
  });
  const { pictures, problems, format } = await openDataset(folder, OPTIONS);
  assert.equal(format, "class-folders");
  assert.deepEqual(
    pictures.map(({ label, burst, capturedAt }) => [label, burst, capturedAt]),
    [
      ["roe deer", " roe deer /c.png", null],
      ["fox", "fox/a.jpg", null],
      ["fox", "fox/deep/er/b.JPG", null],
    ],
  );
  assert.deepEqual(problems.map((p) => p.path.slice(folder.length + 1)).sort(), [
    "README.md",
    "fox/notes.txt",
  ]);
});

test("dataset: class folders are grouped by EXIF time on request, across labels", async (t) => {
  const folder = await folderOf(t, {
    "fox/cam1/a.jpg": 1,
    "empty/cam1/b.jpg": 30,
    "fox/cam2/c.jpg": 2,
    "fox/cam1/d.jpg": 130,
  });
  const { pictures } = await openDataset(folder, { ...OPTIONS, groupByTime: true });
  const burst = (end: string) => pictures.find((p) => p.path.endsWith(end))?.burst;
  assert.equal(burst("a.jpg"), burst("b.jpg"));
  assert.equal(new Set(pictures.map((p) => p.burst)).size, 3);
  assert.equal(pictures.find((p) => p.path.endsWith("a.jpg"))?.capturedAt, "2026-05-01T06:00:01");
});

test("dataset: content under two labels is a conflict, a copy is used once", async (t) => {
  const folder = await folderOf(t, {
    "fox/a.jpg": 1,
    "deer/a-copy.jpg": 1,
    "fox/b.jpg": 2,
    "fox/b-copy.jpg": 2,
    "deer/c.jpg": 3,
  });
  const { pictures, problems } = await openDataset(folder, OPTIONS);
  assert.deepEqual(
    pictures.map((p) => p.path.slice(folder.length + 1)),
    ["deer/c.jpg", "fox/b-copy.jpg"],
  );
  assert.equal(problems.filter((p) => /conflict: .*deer and fox/.test(p.reason)).length, 2);
  assert.equal(problems.filter((p) => /same content as .*b-copy/.test(p.reason)).length, 1);
});

test("dataset: linked pictures and class folders count, a dangling link is missing", async (t) => {
  const folder = await folderOf(t, { "set/fox/a.jpg": 1, "else/deer/b.jpg": 2 });
  await symlink(join(folder, "else", "deer"), join(folder, "set", "deer"));
  await symlink(join(folder, "nowhere.jpg"), join(folder, "set", "fox", "lost.jpg"));
  const { pictures, problems } = await openDataset(join(folder, "set"), OPTIONS);
  assert.deepEqual(pictures.map((p) => p.label).sort(), ["deer", "fox"]);
  assert.deepEqual(
    problems.map((p) => p.reason),
    ["missing picture"],
  );
});

test("dataset: nothing there, nothing in it, and no folder are named", async (t) => {
  const folder = await folderOf(t, { "fox/notes.txt": "x" });
  await assert.rejects(openDataset(join(folder, "gone"), OPTIONS), labelError(/got nothing there/));
  await assert.rejects(openDataset(folder, OPTIONS), labelError(/no usable one.*notes\.txt/));
});

const CATEGORIES = [
  { id: 0, name: "empty" },
  { id: 1, name: "fox" },
  { id: 2, name: "deer" },
];

interface Coco {
  images: Record<string, unknown>[];
  categories: Record<string, unknown>[];
  annotations: Record<string, unknown>[];
}

/** A COCO folder of five frames in two bursts, changed by `edit`. */
async function cocoFolder(t: TestContext, edit: (coco: Coco) => void = () => {}): Promise<string> {
  const image = (n: number, rest: object) => ({ id: `i${n}`, file_name: `s/${n}.jpg`, ...rest });
  const coco: Coco = {
    images: [
      image(1, { seq_id: "S1", frame_num: 1, location: 7, datetime: "2026-05-01 06:30:00" }),
      image(2, { seq_id: "S1", frame_num: 2, location: 7, datetime: "a while ago" }),
      image(3, { datetime: "2026-05-01 06:30:00", width: 200, height: 100, extra: 1 }),
      image(4, { datetime: "2026-05-01 06:30:50" }),
      image(5, { datetime: null }),
    ],
    categories: CATEGORIES,
    annotations: [
      { id: "a1", image_id: "i1", category_id: 1, bbox: [1, 2, 3, 4] },
      { id: "a2", image_id: "i2", category_id: 1, sequence_level_annotation: true },
      { id: "a3", image_id: "i3", category_id: 2, bbox_relative: [0.1, 0.2, 0.5, 0.5] },
      { id: "a4", image_id: "i4", category_id: 2 },
      { id: "a5", image_id: "i5", category_id: 0 },
      { id: "a6", image_id: "i5", category_id: 1, sequence_level_annotation: true },
    ],
  };
  edit(coco);
  return await folderOf(t, {
    "annotations.json": JSON.stringify(coco),
    "images/s/1.jpg": 1,
    "images/s/2.jpg": 2,
    "s/3.jpg": 3,
    "s/4.jpg": 4,
    "s/5.jpg": 5,
  });
}

test("coco: labels, boxes, bursts and times are read as the format says", async (t) => {
  const folder = await cocoFolder(t);
  const { pictures, problems, format } = await openDataset(folder, OPTIONS);
  assert.equal(format, "coco-camera-traps");
  assert.deepEqual(problems, []);
  const [one, two, three, four, five] = pictures;
  assert.deepEqual(one, {
    path: join(folder, "images/s/1.jpg"),
    label: "fox",
    burst: "S1",
    location: "7",
    frame: 1,
    capturedAt: "2026-05-01T06:30:00",
    sequenceLevel: false,
    boxes: [[1, 2, 3, 4]],
  });
  assert.equal(two?.sequenceLevel, true);
  assert.equal(two?.capturedAt, null);
  assert.equal(two?.burst, "S1");
  assert.deepEqual(three?.boxes, [[20, 20, 100, 50]]);
  assert.equal(three?.burst, four?.burst);
  assert.equal(five?.burst, "i5");
  assert.deepEqual([five?.label, five?.sequenceLevel], ["empty", false]);
});

test("coco: frames that cannot be used are left out with the reason", async (t) => {
  const folder = await cocoFolder(t, (coco) => {
    coco.images[0] = { ...coco.images[0], corrupt: true };
    coco.annotations.push({ id: "x", image_id: "i4", category_id: 1 });
    coco.annotations.push({ id: "y", image_id: "i3", category_id: 2, bbox: [0, 0, 0, 5] });
    coco.images.push({ id: 6, file_name: "s\\6.jpg" }, { id: "i7", file_name: "s/7.jpg" });
    coco.annotations.push({ id: "z", image_id: 6, category_id: 1 });
  });
  const { pictures, problems } = await openDataset(folder, OPTIONS);
  assert.deepEqual(
    pictures.map((p) => p.path.slice(-5)),
    ["2.jpg", "3.jpg", "5.jpg"],
  );
  const reasons = Object.fromEntries(problems.map((p) => [p.path.slice(-5), p.reason]));
  assert.match(reasons["1.jpg"] ?? "", /corrupt/);
  assert.match(reasons["3.jpg"] ?? "", /box without an area/);
  assert.match(reasons["4.jpg"] ?? "", /several species in one frame: deer, fox/);
  assert.match(reasons["6.jpg"] ?? "", /missing picture/);
  assert.match(reasons["7.jpg"] ?? "", /no label/);
});

const refusals: [string, (coco: Coco) => void, RegExp][] = [
  [
    "undeclared category",
    (c) => {
      c.annotations[0] = { image_id: "i1", category_id: 9 };
    },
    /annotations\[0\]\.category_id: expected an id of categories \(0, 1, 2\), got 9/,
  ],
  [
    "undeclared image",
    (c) => {
      c.annotations[1] = { image_id: "q", category_id: 1 };
    },
    /annotations\[1\]\.image_id: expected an id of images, got "q"/,
  ],
  [
    "image id twice",
    (c) => {
      c.images[1] = { id: "i1", file_name: "x.jpg" };
    },
    /images\[1\]\.id: expected a new id/,
  ],
  [
    "category id twice",
    (c) => {
      c.categories = [...CATEGORIES, { id: 1, name: "cat" }];
    },
    /categories\[3\]\.id: expected a new id/,
  ],
  [
    "empty name",
    (c) => {
      c.categories = [...CATEGORIES, { id: 3, name: "  " }];
    },
    /categories\[3\]\.name/,
  ],
  [
    "wrong type",
    (c) => {
      c.images[2] = { id: "i3", file_name: 5 };
    },
    /images\[2\]\.file_name: expected string, got 5/,
  ],
  [
    "missing field",
    (c) => {
      c.annotations[0] = { image_id: "i1" };
    },
    /annotations\[0\]\.category_id: expected .*, got undefined/,
  ],
  [
    "two kinds of box",
    (c) => {
      c.annotations[0] = { ...c.annotations[0], bbox_relative: [0, 0, 1, 1] };
    },
    /annotations\[0\]: expected bbox or bbox_relative, got both/,
  ],
  [
    "short box",
    (c) => {
      c.annotations[0] = { ...c.annotations[0], bbox: [1, 2, 3] };
    },
    /annotations\[0\]\.bbox/,
  ],
  [
    "path upwards",
    (c) => {
      c.images[0] = { id: "i1", file_name: "s/../../x.jpg" };
    },
    /images\[0\]\.file_name: expected a path inside the folder/,
  ],
  [
    "Windows path upwards",
    (c) => {
      c.images[0] = { id: "i1", file_name: "..\\x.jpg" };
    },
    /inside the folder/,
  ],
  [
    "absolute path",
    (c) => {
      c.images[0] = { id: "i1", file_name: "/etc/x.jpg" };
    },
    /inside the folder/,
  ],
];

for (const [name, edit, message] of refusals) {
  test(`coco: refuses ${name}, naming where and what`, async (t) => {
    const folder = await cocoFolder(t, edit);
    await assert.rejects(openDataset(folder, OPTIONS), labelError(message));
    await assert.rejects(openDataset(folder, OPTIONS), labelError(/annotations\.json: /));
  });
}

test("coco: refuses what is no JSON or no object", async (t) => {
  for (const text of ["{", "[]", "null", ""]) {
    const folder = await folderOf(t, { "annotations.json": text });
    await assert.rejects(openDataset(folder, OPTIONS), labelError(/annotations\.json/));
  }
});

const trap = benchPath("images/camera-trap");
test("coco: reads the camera-trap set as its page describes it", {
  skip: trap ? false : BENCH_ABSENT,
}, async () => {
  const { pictures, problems } = await openDataset(trap ?? "", OPTIONS);
  assert.equal(pictures.length, 776);
  assert.equal(new Set(pictures.map((p) => p.burst)).size, 68);
  assert.equal(new Set(pictures.map((p) => p.label)).size, 17);
  assert.equal(pictures.filter((p) => p.sequenceLevel).length, 188);
  assert.equal(
    pictures.reduce((sum, p) => sum + p.boxes.length, 0),
    701,
  );
  assert.deepEqual(problems, []);
});

const monkeys = benchPath("images/monkeys-10");
test("class folders: reads ten species of 85", {
  skip: monkeys ? false : BENCH_ABSENT,
}, async () => {
  const { pictures } = await openDataset(monkeys ?? "", OPTIONS);
  assert.equal(pictures.length, 850);
  assert.equal(new Set(pictures.map((p) => p.label)).size, 10);
});

function labelError(message: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof AgentError);
    assert.equal(error.code, "LABELS_INVALID");
    assert.match(error.message, message);
    return true;
  };
}
