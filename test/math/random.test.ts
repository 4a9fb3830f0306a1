import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";

/** xoshiro128** and splitmix32 again, in BigInt, as their authors print them. */
function slowStream(seed: number): () => number {
  const MASK = 0xffffffffn;
  const times = (a: bigint, b: bigint) => (a * b) & MASK;
  const rotate = (x: bigint, k: bigint) => ((x << k) | (x >> (32n - k))) & MASK;
  let mixed = BigInt(seed);
  const s = [0, 1, 2, 3].map(() => {
    mixed = (mixed + 0x9e3779b9n) & MASK;
    let z = mixed ^ (mixed >> 16n);
    z = times(z, 0x21f0aaadn);
    z ^= z >> 15n;
    z = times(z, 0x735a2d97n);
    return z ^ (z >> 15n);
  });
  return () => {
    const result = times(rotate(times(s[1]!, 5n), 7n), 9n);
    const t = (s[1]! << 9n) & MASK;
    s[2]! ^= s[0]!;
    s[3]! ^= s[1]!;
    s[1]! ^= s[2]!;
    s[0]! ^= s[3]!;
    s[2]! ^= t;
    s[3] = rotate(s[3]!, 11n);
    return Number(result);
  };
}

test("random: is xoshiro128** of a splitmix32 state", () => {
  const random = createRandom(42);
  const slow = slowStream(42);
  for (let i = 0; i < 100; i++) {
    const expected = ((slow() >>> 5) * 2 ** 26 + (slow() >>> 6)) / 2 ** 53;
    assert.equal(random.uniform(), expected);
  }
});

test("random: the same seed gives the same stream, others another", () => {
  const stream = (seed: number) => {
    const random = createRandom(seed);
    return [random.uniform(), random.normal(), random.integer(10 ** 6), random.normal()];
  };
  assert.deepEqual(stream(7), stream(7));
  const seeds = [0, 1, -1, 2 ** 32, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER];
  const firsts = new Set(seeds.map((seed) => createRandom(seed).uniform()));
  assert.equal(firsts.size, seeds.length);
  assert.throws(() => createRandom(0.5), /seed: expected an integer, got 0.5/);
});

test("random: moments, ranges and fairness", () => {
  const random = createRandom(1);
  const count = 40_000;
  let sum = 0;
  let square = 0;
  let fourth = 0;
  const dice = new Array<number>(6).fill(0);
  for (let i = 0; i < count; i++) {
    const x = random.normal();
    sum += x;
    square += x * x;
    fourth += x ** 4;
    dice[random.integer(6)]!++;
    const u = random.uniform();
    assert.ok(u >= 0 && u < 1);
  }
  assert.ok(Math.abs(sum / count) < 0.02);
  assert.ok(Math.abs(square / count - 1) < 0.03);
  assert.ok(Math.abs(fourth / count - 3) < 0.25);
  for (const face of dice) assert.ok(Math.abs(face - count / 6) < 350);
  assert.throws(() => random.integer(0), /\[1, 2³²\], got 0/);
});

test("random: shuffle keeps every item, sample gives different ones", () => {
  const random = createRandom(3);
  const items = Array.from({ length: 50 }, (_, i) => i);
  const shuffled = random.shuffle([...items]);
  assert.notDeepEqual(shuffled, items);
  assert.deepEqual(
    shuffled.toSorted((a, b) => a - b),
    items,
  );
  const sample = random.sample(items, 10);
  assert.equal(new Set(sample).size, 10);
  assert.equal(random.sample(items, 80).length, 50);
});
