import assert from "node:assert/strict";
import { test } from "node:test";
import Database from "better-sqlite3";
import { asked, picture, testStation } from "./store.helpers.ts";

const run = { kind: "scheduled", reason: null, spec: {}, seed: 1 } as const;

test("labels: the last word counts, the history stays, and a file that left takes its", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const path = "labeled/fox/a.jpg";
  const { mediaId } = store.pictures.recordPicture(picture("a", { path, source: "labeled" }));
  const csv = { mediaId, source: "file", origin: "labeled/labels.csv" } as const;
  const folder = { mediaId, source: "human", origin: path } as const;
  assert.ok(store.labels.setLabel({ ...csv, label: "dog" }));
  assert.ok(store.labels.setLabel({ ...folder, label: "fox" }));
  assert.equal(store.labels.setLabel({ ...csv, label: "dog" }), false, "read again, no change");
  assert.equal(store.labels.currentLabel(mediaId), "fox");
  assert.ok(store.labels.setLabel({ ...csv, label: "wolf" }));
  assert.equal(store.labels.currentLabel(mediaId), "wolf");
  assert.deepEqual(store.labels.replaceLabelsOf("file", csv.origin, []), { set: 0, ended: 1 });
  assert.equal(store.labels.currentLabel(mediaId), "fox");
  store.pictures.forgetFile(path);
  assert.equal(store.labels.currentLabel(mediaId), undefined);
  assert.deepEqual(store.labels.labeledPictures(), []);
  assert.equal(asked(station.path, "SELECT * FROM labels").length, 3);
  assert.throws(() => store.labels.setLabel({ ...folder, label: "  " }), RangeError);
});

test("labels: a file moved to another label's folder changes the label", async (t) => {
  const { store } = await (await testStation(t)).open();
  const place = (label: string): number => {
    const path = `labeled/${label}/a.jpg`;
    const { mediaId } = store.pictures.recordPicture(picture("a", { path, source: "labeled" }));
    store.labels.setLabel({ mediaId, label, source: "human", origin: path });
    return mediaId;
  };
  const mediaId = place("fox");
  place("wolf");
  store.pictures.forgetFile("labeled/fox/a.jpg");
  assert.equal(store.labels.currentLabel(mediaId), "wolf");
  assert.equal(store.labels.labeledPictures()[0]?.path, "labeled/wolf/a.jpg");
});

test("labels: new ones are counted from a run's making, not by the clock", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const label = (name: string, value: string): void => {
    const path = `labeled/${value}/${name}.jpg`;
    const found = picture(name, { path, source: "labeled" });
    const { mediaId } = store.pictures.recordPicture(found);
    store.labels.setLabel({ mediaId, label: value, source: "human", origin: path });
  };
  label("a", "fox");
  label("b", "fox");
  assert.equal(store.labels.countNewLabelsSince(null), 2);
  store.runs.createRun({ ...run, id: "run-1", dir: "runs/run-1" });
  assert.equal(store.labels.countNewLabelsSince("run-1"), 0);
  station.clock.now -= 90 * 86_400_000;
  label("c", "wolf");
  label("a", "wolf");
  assert.equal(store.labels.countNewLabelsSince("run-1"), 2);
  assert.throws(() => store.labels.countNewLabelsSince("run-9"), RangeError);
});

test("bursts: a role is fixed once, also against a person with a shell", async (t) => {
  const station = await testStation(t);
  const first = await station.open();
  assert.equal(first.store.bursts.assignBurstRole("s1", "heldOut"), "heldOut");
  assert.equal(first.store.bursts.assignBurstRole("s1", "train"), "heldOut");
  await first.store.close();
  const shell = new Database(station.path);
  const change = "UPDATE bursts SET role = 'train' WHERE id = 's1'";
  assert.throws(() => shell.exec(change), /fixed once/);
  shell.close();
  const { store } = await station.open();
  assert.equal(store.bursts.assignBurstRole("s1", "train"), "heldOut");
  assert.equal(store.bursts.assignBurstRole("s2", "train"), "train");
  assert.deepEqual(
    [...store.bursts.burstRoles()],
    [
      ["s1", "heldOut"],
      ["s2", "train"],
    ],
  );
});

test("bursts: a picture changes burst only while its burst has no role", async (t) => {
  const { store } = await (await testStation(t)).open();
  const labeled = { path: "labeled/fox/a.jpg", source: "labeled", burstId: "by-time" } as const;
  const { mediaId } = store.pictures.recordPicture(picture("a", labeled));
  store.labels.setLabel({ mediaId, label: "fox", source: "human", origin: labeled.path });
  store.pictures.recordPicture(picture("a", { ...labeled, burstId: "seq-7" }));
  assert.equal(store.labels.labeledPictures()[0]?.burstId, "seq-7");
  store.bursts.assignBurstRole("seq-7", "heldOut");
  store.pictures.recordPicture(picture("a", { ...labeled, burstId: "seq-8" }));
  const [found] = store.labels.labeledPictures();
  assert.deepEqual([found?.burstId, found?.role], ["seq-7", "heldOut"]);
});
