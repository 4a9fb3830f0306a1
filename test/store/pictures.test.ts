import assert from "node:assert/strict";
import { test } from "node:test";
import { sha256 } from "../../agent/files.ts";
import { asked, message, picture, prediction, testStation } from "./store.helpers.ts";

test("pictures: an inbox picture waits until it is predicted, across a reopen", async (t) => {
  const station = await testStation(t);
  const first = await station.open();
  const a = first.store.pictures.recordPicture(picture("a"));
  const b = first.store.pictures.recordPicture(picture("b"));
  assert.deepEqual(a, { mediaId: 1, isNew: true, state: "waiting" });
  assert.ok(first.store.predictions.recordPrediction(prediction(a.mediaId), []));
  await first.store.close();

  const { store } = await station.open();
  const waiting = store.pictures.waitingPictures(10);
  assert.deepEqual(
    waiting.map((w) => [w.mediaId, w.path]),
    [[b.mediaId, "inbox/b.jpg"]],
  );
  assert.deepEqual(store.pictures.waitingPictures(10, b.mediaId), []);
});

test("pictures: a known file is one of the same path, size and time", async (t) => {
  const { store } = await (await testStation(t)).open();
  const found = picture("a", { mtimeMs: 1234.75 });
  store.pictures.recordPicture(found);
  assert.ok(store.pictures.isKnownFile(found.path, found.sizeBytes, 1234.75));
  assert.ok(!store.pictures.isKnownFile(found.path, found.sizeBytes + 1, 1234.75));
  assert.ok(!store.pictures.isKnownFile(found.path, found.sizeBytes, 1300));
  assert.ok(!store.pictures.isKnownFile("inbox/x.jpg", found.sizeBytes, 1234.75));
  assert.deepEqual(store.pictures.knownFiles("inbox"), [
    {
      path: found.path,
      sha256: found.sha256,
      source: "inbox",
      sizeBytes: found.sizeBytes,
      mtimeMs: 1234,
    },
  ]);
});

test("pictures: a file of labeled/ is known only once its label is recorded", async (t) => {
  const { store } = await (await testStation(t)).open();
  const path = "labeled/fox/a.jpg";
  const found = picture("a", { path, source: "labeled" });
  const isKnown = () => store.pictures.isKnownFile(path, found.sizeBytes, found.mtimeMs);
  const { mediaId } = store.pictures.recordPicture(found);
  assert.equal(isKnown(), false, "a process that died here must find the file again");
  store.labels.setLabel({ mediaId, label: "fox", source: "human", origin: path });
  assert.ok(isKnown());
});

test("pictures: a renamed file stays one picture with its new path", async (t) => {
  const { store } = await (await testStation(t)).open();
  const before = store.pictures.recordPicture(picture("a"));
  const after = store.pictures.recordPicture(picture("a", { path: "inbox/day-2/a.jpg" }));
  store.pictures.forgetFile("inbox/a.jpg");
  assert.deepEqual(after, { mediaId: before.mediaId, isNew: false, state: "waiting" });
  assert.equal(store.pictures.waitingPictures(10)[0]?.path, "inbox/day-2/a.jpg");
});

test("pictures: one moved into labeled/ before its turn still gets its prediction", async (t) => {
  const { store } = await (await testStation(t)).open();
  const { mediaId } = store.pictures.recordPicture(picture("a"));
  // The worst order: the file is seen to be gone before it is found again.
  store.pictures.forgetFile("inbox/a.jpg");
  assert.deepEqual(store.pictures.waitingPictures(10), []);
  const path = "labeled/red fox/a.jpg";
  const moved = store.pictures.recordPicture(picture("a", { path, source: "labeled" }));
  assert.deepEqual(moved, { mediaId, isNew: false, state: "waiting" });
  assert.equal(store.pictures.waitingPictures(10)[0]?.path, path);
  assert.ok(store.predictions.recordPrediction(prediction(mediaId), []));
});

test("pictures: a labeled one waits only once it comes to the inbox, and only once", async (t) => {
  const { store } = await (await testStation(t)).open();
  const labeled = picture("a", { path: "labeled/fox/a.jpg", source: "labeled" });
  const { mediaId, state } = store.pictures.recordPicture(labeled);
  assert.equal(state, "done");
  assert.equal(store.predictions.recordPrediction(prediction(mediaId), []), false);
  assert.equal(store.pictures.recordPicture(picture("a")).state, "waiting");
  assert.ok(store.predictions.recordPrediction(prediction(mediaId), []));
  assert.equal(store.pictures.recordPicture(picture("a", { path: "inbox/2.jpg" })).state, "done");
});

test("pictures: another picture under the same name does not inherit a prediction", async (t) => {
  const { store } = await (await testStation(t)).open();
  store.pictures.recordPicture(picture("a"));
  const other = picture("b", { path: "inbox/a.jpg" });
  assert.equal(store.pictures.recordPicture(other).state, "waiting");
  assert.deepEqual(
    store.pictures.waitingPictures(10).map((w) => w.sha256),
    [other.sha256],
  );
  assert.equal(store.pictures.findPicture(sha256("a"))?.state, "rejected");
});

test("pictures: a rejected one is quarantined with its reason and gets another try", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const { mediaId } = store.pictures.recordPicture(picture("a"));
  const rejection = {
    mediaId,
    path: "inbox/a.jpg",
    reason: "the JPEG ends after 12 of 1536 rows",
    quarantinedPath: "quarantine/a.jpg",
    sizeBytes: 1001,
  };
  assert.ok(store.pictures.reject(rejection));
  assert.equal(store.pictures.reject(rejection), false);
  assert.ok(store.pictures.reject({ ...rejection, mediaId: null, path: "inbox/notes.txt" }));
  const rows = asked(station.path, "SELECT path, reason, quarantined_path FROM v_quarantine");
  assert.deepEqual(
    rows.map((row) => row["path"]),
    ["inbox/notes.txt", "inbox/a.jpg"],
  );
  assert.equal(rows[1]?.["reason"], rejection.reason);
  assert.equal(store.pictures.recordPicture(picture("a")).state, "waiting");
});

test("predictions: exactly one a picture, however often and in whatever order", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const names = Array.from({ length: 40 }, (_, i) => `p${i % 20}`);
  let written = 0;
  for (const [i, name] of names.entries()) {
    const { mediaId } = store.pictures.recordPicture(
      picture(name, { path: `inbox/${name}-${i}.jpg` }),
    );
    for (let again = 0; again <= i % 3; again++) {
      const id = `${name}-${i}-${again}`;
      if (store.predictions.recordPrediction(prediction(mediaId), [message(id)])) written++;
    }
  }
  assert.equal(written, 20);
  assert.equal(store.outbox.pendingCount(), 20, "a refused prediction writes no message");
  const [row] = asked(
    station.path,
    "SELECT count(*) AS n, count(DISTINCT media_id) AS d FROM predictions",
  );
  assert.deepEqual({ ...row }, { n: 20, d: 20 });
});

test("predictions: a bad value writes neither prediction nor message", async (t) => {
  const { store } = await (await testStation(t)).open();
  const { mediaId } = store.pictures.recordPicture(picture("a"));
  const bad = prediction(mediaId, { probability: Number.NaN });
  assert.throws(() => store.predictions.recordPrediction(bad, [message("a")]), RangeError);
  assert.throws(() => store.predictions.recordPrediction(prediction(99), []), RangeError);
  assert.equal(store.outbox.pendingCount(), 0);
  assert.equal(store.pictures.waitingPictures(10).length, 1);
});

test("predictions: retention removes old ones and never makes a picture wait again", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const old = store.pictures.recordPicture(picture("old"));
  store.predictions.recordPrediction(prediction(old.mediaId), []);
  station.clock.now += 40 * 86_400_000;
  const recent = store.pictures.recordPicture(picture("recent"));
  store.predictions.recordPrediction(prediction(recent.mediaId), []);
  station.clock.now += 4000 * 86_400_000;
  assert.deepEqual(
    store.predictions.retain({ predictionsDays: 30 }),
    { predictions: 1, events: 0 },
    "a clock in the far future does not make everything old",
  );
  assert.equal(store.pictures.recordPicture(picture("old")).state, "done");
  assert.equal(store.predictions.recordPrediction(prediction(old.mediaId), []), false);
});
