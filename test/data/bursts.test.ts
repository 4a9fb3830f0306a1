import assert from "node:assert/strict";
import { test } from "node:test";
import { assignBursts, type BurstMember } from "../../agent/data/bursts.ts";

function at(id: string, seconds: number, folder = "cam"): BurstMember {
  const time = new Date(Date.UTC(2026, 4, 1) + seconds * 1000).toISOString().slice(0, 19);
  return { id, folder, capturedAt: time };
}

test("bursts: a chain of gaps of at most the limit is one burst", () => {
  const bursts = assignBursts([at("a", 0), at("b", 60), at("c", 120), at("d", 181)], 60);
  assert.equal(bursts.get("a"), "cam@2026-05-01T00:00:00");
  assert.equal(bursts.get("b"), bursts.get("a"));
  assert.equal(bursts.get("c"), bursts.get("a"));
  assert.equal(bursts.get("d"), "cam@2026-05-01T00:03:01");
});

test("bursts: folders, sequences and pictures without a time stay apart", () => {
  const bursts = assignBursts(
    [
      at("a", 0, "one"),
      at("b", 0, "two"),
      { ...at("c", 0, "one"), sequence: "SEQ1" },
      { ...at("d", 900, "two"), sequence: "SEQ1" },
      { id: "e", folder: "one", capturedAt: null },
      { id: "f", folder: "one", capturedAt: "no time" },
      { id: "g", folder: "one", capturedAt: "2026-05-01T00:00:00Z" },
    ],
    60,
  );
  assert.equal(new Set(bursts.values()).size, 6);
  assert.equal(bursts.get("c"), bursts.get("d"));
  assert.equal(bursts.get("e"), "e");
});

test("bursts: times with different offsets are compared as moments", () => {
  const bursts = assignBursts(
    [
      { id: "a", folder: "f", capturedAt: "2026-05-01T12:00:00+02:00" },
      { id: "b", folder: "f", capturedAt: "2026-05-01T10:00:30Z" },
    ],
    60,
  );
  assert.equal(bursts.get("a"), bursts.get("b"));
});

test("bursts: a late picture between two bursts joins the nearer and merges nothing", () => {
  const known = [
    { ...at("a", 0), burst: "A" },
    { ...at("c", 100), burst: "C" },
  ];
  const joined = (seconds: number) => assignBursts([...known, at("b", seconds)], 60);
  assert.equal(joined(45).get("b"), "A");
  assert.equal(joined(50).get("b"), "A", "equally near: the older");
  assert.equal(joined(55).get("b"), "C");
  assert.equal(joined(55).get("a"), "A");
  assert.equal(assignBursts([at("z", -30), ...known], 60).get("z"), "A");
});

/** A small generator of reproducible numbers in [0, 1) (mulberry32). */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled<T>(list: readonly T[], next: () => number): T[] {
  return list
    .map((value) => ({ value, key: next() }))
    .sort((a, b) => a.key - b.key)
    .map(({ value }) => value);
}

for (let seed = 1; seed <= 60; seed++) {
  test(`bursts: properties hold for random pictures (seed ${seed})`, () => {
    const next = random(seed);
    const pictures = Array.from({ length: 40 }, (_, i) =>
      at(`p${i}`, Math.floor(next() * 2500), next() < 0.5 ? "one" : "two"),
    );
    const all = assignBursts(pictures, 60);
    assert.equal(all.size, pictures.length);

    // The order does not matter.
    assert.deepEqual(new Map([...assignBursts(shuffled(pictures, next), 60)].sort()), sorted(all));

    // Slow oracle: connected by a path of steps of at most the gap.
    for (const a of pictures) {
      for (const b of pictures) {
        assert.equal(all.get(a.id) === all.get(b.id), connected(pictures, a, b), `${a.id} ${b.id}`);
      }
    }

    // Pictures that arrive in any order, a few at a time: nothing assigned ever changes, and in
    // the order of time the bursts are those of all at once.
    const inTime = [...pictures].sort((a, b) =>
      (a.capturedAt ?? "").localeCompare(b.capturedAt ?? ""),
    );
    assert.deepEqual(sorted(arriveOneByOne(inTime)), sorted(all));
    arriveOneByOne(shuffled(pictures, next));

    // The neighbors within the gap are all that a new picture needs.
    const [late, ...rest] = shuffled(pictures, next);
    assert.ok(late);
    const before = assignBursts(rest, 60);
    const assigned = rest.map((p) => ({ ...p, burst: before.get(p.id) ?? null }));
    const near = assigned.filter((p) => p.folder === late.folder && gap(p, late) <= 60);
    const joined = assignBursts([...near, late], 60).get(late.id);
    assert.equal(joined, assignBursts([...assigned, late], 60).get(late.id));
  });
}

function arriveOneByOne(pictures: readonly BurstMember[]): Map<string, string> {
  let known: BurstMember[] = [];
  for (const picture of pictures) {
    const bursts = assignBursts([...known, picture], 60);
    for (const p of known) assert.equal(bursts.get(p.id), p.burst);
    known = [...known, picture].map((p) => ({ ...p, burst: bursts.get(p.id) ?? null }));
  }
  return new Map(known.map((p) => [p.id, p.burst ?? ""]));
}

function sorted(map: Map<string, string>): Map<string, string> {
  return new Map([...map].sort());
}

function gap(a: BurstMember, b: BurstMember): number {
  return Math.abs(Date.parse(`${a.capturedAt}Z`) - Date.parse(`${b.capturedAt}Z`)) / 1000;
}

function connected(pictures: readonly BurstMember[], a: BurstMember, b: BurstMember): boolean {
  const seen = new Set([a.id]);
  const open = [a];
  for (let p = open.pop(); p !== undefined; p = open.pop()) {
    const from = p;
    for (const q of pictures) {
      if (seen.has(q.id) || q.folder !== from.folder || gap(q, from) > 60) continue;
      seen.add(q.id);
      open.push(q);
    }
  }
  return seen.has(b.id);
}
