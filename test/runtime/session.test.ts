import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { AgentError } from "../../agent/errors.ts";
import { createLogger } from "../../agent/log.ts";
import { openSession } from "../../agent/runtime/session.ts";
import { tinyModel } from "../tiny-models.helpers.ts";

const log = createLogger("silent");
const model = tinyModel({ classes: ["deer", "fox"], side: 8, favorite: 1 });
const config = { executionProviders: ["cpu"], intraOpThreads: 1, log };

describe("session", () => {
  test("tells names, types and shapes, and runs", async () => {
    const session = await openSession(model, config);
    assert.deepEqual(session.inputs, [{ name: "input", type: "float32", dims: ["N", 3, 8, 8] }]);
    assert.deepEqual(session.outputs, [{ name: "logits", type: "float32", dims: ["N", 2] }]);
    const input = { data: new Float32Array(2 * 3 * 64), dims: [2, 3, 8, 8] };
    const { logits } = await session.run({ input });
    assert.deepEqual(logits?.dims, [2, 2]);
    assert.deepEqual([...(logits?.data ?? [])], [0, 4, 0, 4]);
    await session.release();
  });

  test("falls back to the next provider and says why", async () => {
    const lines: string[] = [];
    const heard = createLogger("warn", { write: (line: string) => void lines.push(line) });
    const executionProviders = ["cuda", "cpu"];
    const session = await openSession(model, { ...config, executionProviders, log: heard });
    assert.equal(session.provider, "cpu");
    assert.equal(session.fallbacks.length, 1);
    assert.equal(session.fallbacks[0]?.provider, "cuda");
    assert.notEqual(session.fallbacks[0]?.reason, "");
    assert.match(lines.join(""), /"provider":"cuda".*trying the next/);
    await session.release();
  });

  test("refuses a file that is no model, with every provider's reason", async () => {
    const bytes = model.subarray(0, model.length >> 1);
    await assert.rejects(
      openSession(bytes, { ...config, executionProviders: ["cuda", "cpu"] }),
      (error) =>
        error instanceof AgentError &&
        error.code === "MODEL_INVALID" &&
        /cuda: .*; cpu: /.test(error.message),
    );
  });

  test("refuses feeds that do not fit the graph", async () => {
    const session = await openSession(model, config);
    const data = new Float32Array(3 * 64);
    const misfits = [
      { wrong: { data, dims: [1, 3, 8, 8] } },
      { input: { data, dims: [1, 3, 16, 4] } },
      { input: { data, dims: [2, 3, 8, 8] } },
      { input: { data: new BigInt64Array(3 * 64), dims: [1, 3, 8, 8] } },
    ];
    for (const feeds of misfits) {
      await assert.rejects(session.run(feeds), { code: "MODEL_INVALID" });
    }
    await session.release();
  });
});
