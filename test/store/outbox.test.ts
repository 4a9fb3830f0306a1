import assert from "node:assert/strict";
import { test } from "node:test";
import type { OutboxMessage } from "../../agent/store/outbox.ts";
import { message, testStation } from "./store.helpers.ts";

/** xorshift32: the same numbers at every run. */
function seeded(seed: number): () => number {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}

const idOf = (m: OutboxMessage): string => (JSON.parse(m.payload) as { id: string }).id;

test("outbox: gives the most important first, then the oldest, without those under way", async (t) => {
  const { store } = await (await testStation(t)).open();
  const { outbox } = store;
  outbox.enqueue([message("a"), message("b", { priority: 2 }), message("c", { priority: 1 })]);
  outbox.enqueue([message("d", { priority: 2 }), message("e")]);
  const first = outbox.next(3);
  assert.deepEqual(
    first.map((p) => idOf(p.message)),
    ["b", "d", "c"],
  );
  const rest = outbox.next(
    9,
    first.map((p) => p.id),
  );
  assert.deepEqual(
    rest.map((p) => idOf(p.message)),
    ["a", "e"],
  );
  assert.deepEqual(first[0]?.message, message("b", { priority: 2 }));
});

test("outbox: a message stays until it is acknowledged, with its failed attempts", async (t) => {
  const station = await testStation(t);
  const opened = await station.open();
  opened.store.outbox.enqueue([message("a"), message("b")]);
  const [a] = opened.store.outbox.next(1);
  assert.ok(a);
  opened.store.outbox.failed(a.id);
  await opened.store.close();

  const { store } = await station.open();
  const again = store.outbox.next(9);
  assert.deepEqual(
    again.map((p) => [idOf(p.message), p.attempts, p.createdAt]),
    [
      ["a", 1, "2026-05-01T06:30:00.000Z"],
      ["b", 0, "2026-05-01T06:30:00.000Z"],
    ],
  );
  for (const p of again) store.outbox.delivered(p.id);
  store.outbox.delivered(a.id);
  assert.equal(store.outbox.pendingCount(), 0);
  assert.equal(store.outbox.pendingBytes(), 0);
  store.outbox.enqueue([message("c")]);
  assert.ok((store.outbox.next(1)[0]?.id ?? 0) > 2, "an id never comes back");
});

test("outbox: a newer retained message of a topic takes the place of the older", async (t) => {
  const { store } = await (await testStation(t)).open();
  const twin = (id: string, topic = "twin/model"): OutboxMessage =>
    message(id, { topic, retain: true, priority: 1 });
  store.outbox.enqueue([twin("1"), twin("2"), twin("h", "twin/hardware"), message("x")]);
  store.outbox.enqueue([twin("3")]);
  assert.deepEqual(
    store.outbox.next(9).map((p) => idOf(p.message)),
    ["h", "3", "x"],
  );
  assert.equal(store.outbox.replacedCount(), 2);
  assert.equal(store.outbox.droppedCount(), 0);
});

test("outbox: messages of an undone transaction are not there", async (t) => {
  const { store } = await (await testStation(t)).open();
  store.outbox.enqueue([message("kept")]);
  const undo = (): never =>
    store.transaction(() => {
      store.outbox.enqueue([message("lost")]);
      throw new Error("undone");
    });
  assert.throws(undo, /undone/);
  assert.equal(store.outbox.pendingCount(), 1);
  assert.equal(store.outbox.pendingBytes(), "e/prediction".length + '{"id":"kept"}'.length);
});

for (const seed of [1, 2, 3]) {
  test(`outbox: above the limit drops the least important oldest, counted (seed ${seed})`, async (t) => {
    const limit = 3000;
    const { store } = await (await testStation(t)).open({ outboxLimitBytes: limit });
    const { outbox } = store;
    const random = seeded(seed);
    /** The rule in the plainest words: what should wait, oldest first. */
    let model: { id: string; priority: number; bytes: number }[] = [];
    const dropped = [0, 0, 0];
    let delivered = 0;
    const produced = 300;
    for (let n = 0; n < produced; n++) {
      const priority = Math.min(2, Math.floor(random() * 3.5)) as 0 | 1 | 2;
      const pad = "é".repeat(Math.floor(random() * 60));
      const m = message(`${n}`, { priority, payload: JSON.stringify({ id: `${n}`, pad }) });
      outbox.enqueue([m]);
      model.push({ id: `${n}`, priority, bytes: Buffer.byteLength(m.topic + m.payload) });
      while (model.reduce((sum, e) => sum + e.bytes, 0) > limit) {
        const least = Math.min(...model.map((e) => e.priority));
        const victim = model.find((e) => e.priority === least);
        assert.ok(victim);
        dropped[victim.priority] = (dropped[victim.priority] ?? 0) + 1;
        model = model.filter((e) => e !== victim);
      }
      if (random() < 0.1) {
        const [first] = outbox.next(1);
        assert.ok(first);
        outbox.delivered(first.id);
        delivered++;
        model = model.filter((e) => e.id !== idOf(first.message));
      }
      assert.ok(outbox.pendingBytes() <= limit);
    }
    const expected = [2, 1, 0].flatMap((p) => model.filter((e) => e.priority === p));
    assert.deepEqual(
      outbox.next(produced).map((p) => idOf(p.message)),
      expected.map((e) => e.id),
    );
    assert.deepEqual(outbox.droppedByPriority(), dropped);
    assert.equal(delivered + outbox.droppedCount() + outbox.pendingCount(), produced);
  });
}

test("outbox: one dropped while under way is not counted if it is acknowledged after all", async (t) => {
  const { store } = await (await testStation(t)).open({ outboxLimitBytes: 60 });
  const { outbox } = store;
  outbox.enqueue([message("a")]);
  const [a] = outbox.next(1);
  assert.ok(a);
  outbox.enqueue([message("b"), message("c", { priority: 2 })]);
  assert.equal(outbox.droppedCount(), 1);
  outbox.delivered(a.id);
  assert.equal(outbox.droppedCount(), 0);
  const [c] = outbox.next(1);
  assert.ok(c);
  outbox.discard(c.id);
  assert.deepEqual(outbox.droppedByPriority(), [0, 0, 1]);
});
