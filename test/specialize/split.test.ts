import assert from "node:assert/strict";
import { test } from "node:test";
import { assignRoles, splitByShots, takeShots } from "../../agent/specialize/split.ts";

interface Picture {
  path: string;
  label: string;
  burst: string;
}

/** `bursts` bursts of `frames` frames of one label. */
function burstsOf(label: string, bursts: number, frames: number): Picture[] {
  return Array.from({ length: bursts * frames }, (_, i) => ({
    path: `${label}/${i}.jpg`,
    label,
    burst: `${label}-${Math.floor(i / frames)}`,
  }));
}

test("split: no burst lies on both sides, whatever the seed", () => {
  const pictures = [
    ...burstsOf("fox", 6, 4),
    ...burstsOf("paca", 4, 10),
    ...burstsOf("deer", 1, 3),
  ];
  for (let seed = 0; seed < 50; seed++) {
    const split = splitByShots(pictures, { shots: 12, heldOutPerClass: 8, seed });
    const sides = new Map<string, Set<string>>();
    for (const { burst, role } of split) {
      sides.set(burst, (sides.get(burst) ?? new Set()).add(role));
    }
    for (const [burst, roles] of sides) assert.equal(roles.size, 1, `${burst}, seed ${seed}`);
  }
});

test("split: a class with two bursts has one on each side, a class with one trains", () => {
  const pictures = [...burstsOf("fox", 2, 40), ...burstsOf("deer", 1, 5)];
  const split = splitByShots(pictures, { shots: 32, heldOutPerClass: 100, seed: 3 });
  const count = (label: string, role: string) =>
    split.filter((p) => p.label === label && p.role === role).length;
  assert.equal(count("fox", "train"), 32);
  assert.equal(count("fox", "heldOut"), 40);
  assert.equal(count("deer", "train"), 5);
});

test("split: shots and held-out limits hold a class, and every picture is its own burst in a plain folder", () => {
  const pictures = burstsOf("a", 85, 1).concat(burstsOf("b", 85, 1));
  const split = splitByShots(pictures, { shots: 32, heldOutPerClass: 20, seed: 1 });
  for (const label of ["a", "b"]) {
    assert.equal(split.filter((p) => p.label === label && p.role === "train").length, 32);
    assert.equal(split.filter((p) => p.label === label && p.role === "heldOut").length, 20);
  }
});

test("split: the same seed gives the same split in any order of the pictures, another seed another", () => {
  const pictures = burstsOf("a", 30, 1).concat(burstsOf("b", 30, 1));
  const held = (list: Picture[], seed: number) =>
    splitByShots(list, { shots: 10, heldOutPerClass: 30, seed })
      .filter((p) => p.role === "heldOut")
      .map((p) => p.path)
      .sort();
  assert.deepEqual(held(pictures, 7), held([...pictures].reverse(), 7));
  assert.notDeepEqual(held(pictures, 7), held(pictures, 8));
});

test("roles: a burst keeps its side for ever, and both sides know a label after two bursts", () => {
  const first = assignRoles(
    [
      { burst: "f1", label: "fox" },
      { burst: "f2", label: "fox" },
    ],
    new Map(),
    new Map(),
    0.3,
  );
  assert.deepEqual(
    [...first],
    [
      ["f1", "train"],
      ["f2", "heldOut"],
    ],
  );
  const again = assignRoles([{ burst: "f1", label: "fox" }], first, new Map(), 0.99);
  assert.equal(again.size, 0, "a known burst is not decided anew");
});

test("roles: about the asked share is held out, decided by the burst's identity alone", () => {
  const counts = new Map([["fox", { train: 1, heldOut: 1 }]]);
  const bursts = Array.from({ length: 2000 }, (_, i) => ({ burst: `burst ${i}`, label: "fox" }));
  const roles = assignRoles(bursts, new Map(), counts, 0.3);
  const share = [...roles.values()].filter((r) => r === "heldOut").length / bursts.length;
  assert.ok(Math.abs(share - 0.3) < 0.04, `${share}`);
  const reversed = assignRoles([...bursts].reverse(), new Map(), counts, 0.3);
  assert.deepEqual(new Map([...reversed].sort()), new Map([...roles].sort()));
});

test("shots: training pictures are spread over bursts before a burst gives its second frame", () => {
  const pictures = burstsOf("fox", 5, 10).map((p) => ({ ...p, role: "train" as const }));
  const taken = takeShots(pictures, { shots: 5, heldOutPerClass: 10 });
  assert.equal(new Set(taken.map((p) => p.burst)).size, 5);
});
