import assert from "node:assert/strict";
import { test } from "node:test";
import { AgentError } from "../../agent/errors.ts";
import { chooseClasses } from "../../agent/specialize/plan.ts";
import type { Role } from "../../agent/specialize/split.ts";

function pictures(label: string, train: number, heldOut: number) {
  return Array.from({ length: train + heldOut }, (_, i) => ({
    path: `${label}${i}.jpg`,
    label,
    burst: `${label}${i}`,
    role: (i < train ? "train" : "heldOut") as Role,
  }));
}

test("plan: a class with too few training pictures is left out with its reason", () => {
  const chosen = chooseClasses(
    [...pictures("fox", 9, 3), ...pictures("deer", 8, 1), ...pictures("owl", 2, 5)],
    8,
  );
  assert.deepEqual(chosen.classes, ["deer", "fox"]);
  assert.ok(chosen.pictures.every((p) => p.label !== "owl"));
  assert.deepEqual(chosen.problems, [
    { subject: "class owl", reason: "2 training pictures, at least 8 are needed" },
  ]);
});

test("plan: fewer than two classes, or nothing held out, is an error that says what to do", () => {
  const isTooFew = (error: unknown) =>
    error instanceof AgentError && error.code === "TOO_FEW_LABELS" && /label/.test(error.message);
  assert.throws(() => chooseClasses(pictures("fox", 50, 50), 8), isTooFew);
  assert.throws(
    () => chooseClasses([...pictures("fox", 9, 0), ...pictures("deer", 9, 0)], 8),
    isTooFew,
  );
  assert.throws(() => chooseClasses([], 8), isTooFew);
});
