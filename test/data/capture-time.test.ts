import assert from "node:assert/strict";
import { mkdtemp, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import sharp from "sharp";
import { captureTimeOf, readCaptureTime } from "../../agent/data/capture-time.ts";

async function withExif(tags: Record<string, string>, format: "jpeg" | "png" | "webp" = "jpeg") {
  return await sharp({ create: { width: 32, height: 24, channels: 3, background: "#456" } })
    .withExif({ IFD0: { DateTime: "2020:01:01 00:00:00" }, IFD2: tags })
    .toFormat(format)
    .toBuffer();
}

test("capture time: camera-local without a zone, with one where the camera gives it", async () => {
  const local = await withExif({ DateTimeOriginal: "2026:05:01 06:30:09" });
  assert.equal(captureTimeOf(local), "2026-05-01T06:30:09");
  for (const format of ["jpeg", "png", "webp"] as const) {
    const tags = { DateTimeOriginal: "2026:05:01 06:30:09", OffsetTimeOriginal: "-03:30" };
    assert.equal(captureTimeOf(await withExif(tags, format)), "2026-05-01T06:30:09-03:30");
  }
  const digitized = await withExif({ DateTimeDigitized: "2026:05:02 00:00:00" });
  assert.equal(captureTimeOf(digitized), "2026-05-02T00:00:00");
});

test("capture time: dates that are none, and the time of an edit, do not count", async () => {
  for (const time of [
    "0000:00:00 00:00:00",
    "2026:02:31 10:00:00",
    "2026:05:01 25:00:00",
    "soon",
  ]) {
    assert.equal(captureTimeOf(await withExif({ DateTimeOriginal: time })), undefined, time);
  }
  assert.equal(captureTimeOf(await withExif({})), undefined);
});

test("capture time: any damage to EXIF is no error", async () => {
  const bytes = await withExif({ DateTimeOriginal: "2026:05:01 06:30:09" });
  for (let at = 2; at < 300; at += 3) {
    const damaged = Buffer.from(bytes);
    damaged.fill(0xff, at, at + 5);
    captureTimeOf(damaged);
    captureTimeOf(bytes.subarray(0, at));
  }
  captureTimeOf(Buffer.from("Exif"));
});

test("capture time: the source is named", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "taco-time-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, "a.jpg");
  await writeFile(path, await withExif({ DateTimeOriginal: "2026:05:01 06:30:09" }));
  assert.deepEqual(await readCaptureTime(path), {
    capturedAt: "2026-05-01T06:30:09",
    source: "exif",
  });
  await writeFile(path, "text");
  await utimes(path, 1_700_000_000, 1_700_000_000);
  const time = { capturedAt: "2023-11-14T22:13:20.000Z", source: "file-modified" };
  assert.deepEqual(await readCaptureTime(path), time);
});
