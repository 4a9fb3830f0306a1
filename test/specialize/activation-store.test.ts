import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ActivationStore } from "../../agent/specialize/activation-store.ts";

test("activation store: batches come back as written, from memory and from the overflow file", async () => {
  const dir = mkdtempSync(join(tmpdir(), "taco-activations-"));
  const path = join(dir, "border.f32");
  const store = new ActivationStore(path, 3 * 400);
  const batch = (i: number) => Float32Array.from({ length: 100 - i }, (_, k) => 1000 * i + k);
  try {
    for (let i = 0; i < 10; i++) await store.write(i, batch(i));
    assert.ok(existsSync(path), "the memory limit sends the later batches to the file");
    for (const i of [9, 0, 4, 2, 7]) assert.deepEqual(await store.read(i), batch(i));
    await assert.rejects(store.read(10), /never written/);
    await store.dispose();
    assert.ok(!existsSync(path), "nothing is left behind");
  } finally {
    rmSync(dir, { recursive: true });
  }
});
