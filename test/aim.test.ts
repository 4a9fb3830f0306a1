import assert from "node:assert/strict";
import { test } from "node:test";
import { measureOf, parseAim, printAim } from "../agent/aim.ts";

test("aim: each way of saying it, what it measures and its words", () => {
  const cases = [
    [{ aim: "latency" }, { aim: "latency", maxDropPoints: 1 }, "latency", "least latency at ≤ 1 p"],
    [
      { aim: "nonzero", maxDropPoints: 0 },
      { aim: "nonzero", maxDropPoints: 0 },
      "nonzero",
      "fewest n",
    ],
    [{ aim: "bytes" }, { aim: "bytes", maxDropPoints: 1 }, "bytes", "fewest bytes"],
    [{ speedup: 4 }, { speedup: 4 }, "latency", "≥ 4× faster"],
    [{ nonzeroReduction: 10 }, { nonzeroReduction: 10 }, "nonzero", "≥ 10× fewer"],
    [{ maxBytes: 1e6 }, { maxBytes: 1e6 }, "bytes", "≤ 1000000 bytes"],
  ] as const;
  for (const [parts, expected, measure, words] of cases) {
    const aim = parseAim(parts);
    assert.deepEqual(aim, expected);
    assert.equal(measureOf(aim!), measure);
    assert.ok(printAim(aim!).startsWith(words), printAim(aim!));
  }
  assert.equal(parseAim({}), undefined);
});

test("aim: refuses two at once, a drop without an aim, and numbers without sense", () => {
  assert.throws(() => parseAim({ speedup: 2, maxBytes: 5 }), /speedup and maxBytes/);
  assert.throws(() => parseAim({ maxDropPoints: 1 }), /together with aim/);
  assert.throws(() => parseAim({ aim: "speed" }), /latency, nonzero, bytes, got "speed"/);
  assert.throws(() => parseAim({ speedup: 0.5 }), /at least 1, got 0.5/);
  assert.throws(() => parseAim({ aim: "bytes", maxDropPoints: -1 }), /from 0 to 100, got -1/);
  assert.throws(() => parseAim({ maxBytes: Number.NaN }), /at least 1, got NaN/);
});
