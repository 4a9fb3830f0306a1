import assert from "node:assert/strict";
import { test } from "node:test";
import { backoffMs } from "../../agent/fleet/backoff.ts";

/** Mulberry32: small seeded numbers in [0, 1). */
function seeded(seed: number): () => number {
  const state = { value: seed };
  return () => {
    state.value = (state.value + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state.value ^ (state.value >>> 15), 1 | state.value);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

test("backoff: every wait is a whole number in [0, min(cap, base * 2^attempt))", () => {
  const random = seeded(7);
  for (let round = 0; round < 2000; round++) {
    const baseMs = 1 + Math.floor(random() * 5000);
    const capMs = baseMs + Math.floor(random() * 300_000);
    const attempt = Math.floor(random() * 2000);
    const waitMs = backoffMs(attempt, { baseMs, capMs }, random);
    assert.ok(Number.isInteger(waitMs) && waitMs >= 0, `${waitMs}`);
    assert.ok(waitMs < Math.min(capMs, baseMs * 2 ** attempt), `${waitMs} at ${attempt}`);
  }
});

test("backoff: the jitter is full: waits spread evenly over the whole range", () => {
  const random = seeded(1);
  const quarters = [0, 0, 0, 0];
  for (let i = 0; i < 4000; i++) {
    const waitMs = backoffMs(3, { baseMs: 1000, capMs: 60_000 }, random);
    const quarter = Math.floor(waitMs / 2000);
    quarters[quarter] = quarters[quarter]! + 1;
  }
  for (const count of quarters) assert.ok(Math.abs(count - 1000) < 120, quarters.join(" "));
});

test("backoff: the same seed gives the same waits", () => {
  const waits = (): number[] => {
    const random = seeded(42);
    return Array.from({ length: 20 }, (_, i) => backoffMs(i, { baseMs: 100, capMs: 9000 }, random));
  };
  assert.deepEqual(waits(), waits());
});

test("backoff: refuses a negative attempt and impossible bounds", () => {
  assert.throws(() => backoffMs(-1, { baseMs: 1, capMs: 2 }, () => 0), /attempt: expected/);
  assert.throws(() => backoffMs(0, { baseMs: 3, capMs: 2 }, () => 0), /0 < base <= cap/);
  assert.throws(() => backoffMs(0, { baseMs: 0, capMs: 2 }, () => 0), RangeError);
});
