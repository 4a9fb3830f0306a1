import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import { keptPlaces, pickKept, putKept } from "../../agent/train/kept-weights.ts";

test("kept weights: picked and put back, the others stay exactly zero", () => {
  const random = createRandom(3);
  const values = new Float32Array(500).map(() => (random.uniform() < 0.6 ? 0 : random.normal()));
  const places = keptPlaces(values)!;
  const kept = pickKept(values, places);
  assert.deepEqual(
    [...kept],
    [...values].filter((value) => value !== 0),
  );
  assert.deepEqual(putKept(kept, places, new Float32Array(500)), values);
  const moved = putKept(
    kept.map((value) => value + 1),
    places,
    new Float32Array(500),
  );
  moved.forEach((value, i) => {
    assert.equal(value, values[i] === 0 ? 0 : Math.fround(values[i]! + 1));
  });
});

test("kept weights: a layer without zeros is trained as it is", () => {
  const values = Float32Array.of(1, -2);
  assert.equal(keptPlaces(values), null);
  assert.equal(pickKept(values, null), values);
  assert.deepEqual(putKept(values, null, new Float32Array(2)), values);
});

test("kept weights: zeros of both signs are pruned, and a layer may have nothing but them", () => {
  assert.deepEqual(keptPlaces(Float32Array.of(1, 0, -0, 2)), Uint32Array.of(0, 3));
  assert.deepEqual(keptPlaces(new Float32Array(2)), new Uint32Array(0));
});
