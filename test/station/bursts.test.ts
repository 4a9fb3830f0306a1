import assert from "node:assert/strict";
import { test } from "node:test";
import { burstOf, cameraFolder } from "../../agent/station/bursts.ts";

const FOLDER = cameraFolder("/s/inbox", "/s/labeled");

/** A station's memory of pictures, as the database answers. */
function memory() {
  const pictures: { path: string; burstId: string; capturedAt: string }[] = [];
  return {
    capturedBetween: (from: string, to: string) =>
      pictures.filter(({ capturedAt }) => capturedAt >= from && capturedAt <= to),
    take(path: string, capturedAt: string) {
      const sha256 = Buffer.from(path.padEnd(32, ".")).toString("hex").slice(0, 64);
      const found = { path, sha256, capturedAt, captureTimeSource: "exif" as const };
      const burstId = burstOf(found, this, FOLDER, 60);
      pictures.push({ path, burstId, capturedAt });
      return burstId;
    },
  };
}

test("burst: frames within the gap share one, whatever order they come in", () => {
  const station = memory();
  const first = station.take("/s/inbox/a.jpg", "2026-05-01T06:30:00");
  const third = station.take("/s/inbox/c.jpg", "2026-05-01T06:30:50");
  const second = station.take("/s/inbox/b.jpg", "2026-05-01T06:30:20");
  assert.equal(third, first);
  assert.equal(second, first);
  assert.notEqual(station.take("/s/inbox/d.jpg", "2026-05-01T06:32:30"), first);
});

test("burst: another camera's folder is another burst, a label's folder is not", () => {
  const station = memory();
  const first = station.take("/s/inbox/cam1/a.jpg", "2026-05-01T06:30:00");
  assert.notEqual(station.take("/s/inbox/cam2/a.jpg", "2026-05-01T06:30:01"), first);
  assert.equal(station.take("/s/labeled/fox/cam1/b.jpg", "2026-05-01T06:30:02"), first);
  assert.equal(station.take("/s/labeled/empty/cam1/c.jpg", "2026-05-01T06:30:03"), first);
});

test("burst: a picture that joins two bursts late changes neither", () => {
  const station = memory();
  const early = station.take("/s/inbox/a.jpg", "2026-05-01T06:30:00");
  const late = station.take("/s/inbox/b.jpg", "2026-05-01T06:31:40");
  assert.notEqual(early, late);
  assert.equal(station.take("/s/inbox/c.jpg", "2026-05-01T06:30:45"), early, "the nearer one");
});

test("burst: a time that is only the file's makes a burst of its own", () => {
  const at = "2026-05-01T06:30:00.000Z";
  const of = (sha256: string) =>
    burstOf(
      { path: "/s/inbox/x.jpg", sha256, capturedAt: at, captureTimeSource: "file-modified" },
      { capturedBetween: () => [] },
      FOLDER,
      60,
    );
  assert.notEqual(of("a".repeat(64)), of("b".repeat(64)));
});
