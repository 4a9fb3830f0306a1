import assert from "node:assert/strict";
import { test } from "node:test";
import { type Aim, measureOf, parseAim, printAim } from "../agent/aim.ts";
import { changesNothing, formatMethod, parseMethod } from "../agent/method.ts";

test("method: what is written comes back, part by part", () => {
  const texts = [
    "auto",
    "none",
    "unstructured:0.5",
    "nm:2:4",
    "block4:0.5",
    "int8",
    "int4",
    "nm:2:4+int3",
    "size:160+structured:0.25+hard-swish+fold-gates+nm:1:4+int8",
  ];
  for (const text of texts) assert.equal(formatMethod(parseMethod(text)), text);
  assert.equal(formatMethod(parseMethod("int8+size:96")), "size:96+int8", "in the order of doing");
});

test("method: only what changes no weight changes nothing", () => {
  for (const text of ["none", "unstructured:0"]) {
    assert.equal(changesNothing(parseMethod(text)), true, text);
  }
  for (const text of [
    "auto",
    "int8",
    "int4",
    "nm:2:4",
    "size:160",
    "relu",
    "fold-gates",
    "structured:0.1",
  ]) {
    assert.equal(changesNothing(parseMethod(text)), false, text);
  }
});

test("method: what makes no sense is refused, naming the part", () => {
  const wrong = [
    ["half", "half"],
    ["", ""],
    ["unstructured", "unstructured"],
    ["unstructured:1", "unstructured:1"],
    ["unstructured:x", "unstructured:x"],
    ["nm:4:4", "nm:4:4"],
    ["nm:1.5:4", "nm:1.5:4"],
    ["structured:1", "structured:1"],
    ["size:8", "size:8"],
    ["int8:4", "int8:4"],
    ["unstructured:0.5+nm:2:4", "nm:2:4"],
    ["auto+int8", "auto"],
    ["int8+int4", "int4"],
    ["int3+int4", "int4"],
    ["int4+int8", "int8"],
    ["int4:1", "int4:1"],
  ];
  for (const [text, part] of wrong) {
    assert.throws(
      () => parseMethod(text!),
      (error) => error instanceof RangeError && error.message.endsWith(`got "${part}"`),
      text,
    );
  }
});

test("aim: one of four, with the measure that it is about", () => {
  const cases: [Parameters<typeof parseAim>[0], Aim | undefined, string][] = [
    [{}, undefined, ""],
    [{ aim: "nonzero" }, { aim: "nonzero", maxDropPoints: 1 }, "nonzero"],
    [{ aim: "bytes", maxDropPoints: 2 }, { aim: "bytes", maxDropPoints: 2 }, "bytes"],
    [{ speedup: 4 }, { speedup: 4 }, "latency"],
    [{ nonzeroReduction: 10 }, { nonzeroReduction: 10 }, "nonzero"],
    [{ maxBytes: 1e6 }, { maxBytes: 1e6 }, "bytes"],
  ];
  for (const [parts, aim, measure] of cases) {
    assert.deepEqual(parseAim(parts), aim);
    if (!aim) continue;
    assert.equal(measureOf(aim), measure);
    assert.match(printAim(aim), /\d/);
  }
});

test("aim: two at once, a drop without an aim, or a number below 1 is refused", () => {
  assert.throws(() => parseAim({ speedup: 2, maxBytes: 10 }), /expected one aim, got speedup and/);
  assert.throws(() => parseAim({ maxDropPoints: 1 }), /expected together with aim/);
  assert.throws(() => parseAim({ speedup: 0.5 }), /at least 1, got 0.5/);
  assert.throws(() => parseAim({ aim: "speed" }), /latency, nonzero, bytes, got "speed"/);
});
