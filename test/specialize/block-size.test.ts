import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { after, test } from "node:test";
import { AgentError } from "../../agent/errors.ts";
import { createLogger } from "../../agent/log.ts";
import { type Graph, writeGraph } from "../../agent/onnx/graph.ts";
import { findBlockSize } from "../../agent/specialize/block-size.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";

const engine = await createEngine({
  executionProviders: ["cpu"],
  intraOpThreads: 1,
  log: createLogger("fatal"),
});
after(() => engine.close());

test("block size: a divisor of usual channel counts, or none", async () => {
  const block = await findBlockSize(engine);
  assert.ok(
    block === null || block === 4 || block === 8 || block === 16 || block === 32,
    `${block}`,
  );
});

test("block size: none where ONNX Runtime leaves convolutions in the plain layout", async () => {
  const asked: Graph[] = [];
  const plain: Engine = {
    ...engine,
    open: async (graph, how) => {
      asked.push(graph);
      const session = await engine.open(graph, how);
      const path = how?.optimizedModelPath;
      if (path !== undefined) await writeFile(path, writeGraph(graph));
      return session;
    },
  };
  assert.equal(await findBlockSize(plain), null);
  assert.equal(asked.length, 2, "operators of the layout are not even tried");
});

test("block size: none on another provider than the CPU's, even one that writes no graphs", async () => {
  const elsewhere: Engine = {
    ...engine,
    open: async (graph, how) => {
      const session = await engine.open(graph, how);
      return how?.optimizedModelPath ? session : { ...session, provider: "tensorrt" };
    },
  };
  assert.equal(await findBlockSize(elsewhere), null);
});

test("block size: none where ONNX Runtime refuses the operators; what does not run is a fault", async () => {
  const refused = new AgentError("MODEL_INVALID", "no such operator");
  const without: Engine = { ...engine, open: () => Promise.reject(refused) };
  assert.equal(await findBlockSize(without), null);
  const broken: Engine = {
    ...engine,
    open: async (graph, how) => ({
      ...(await engine.open(graph, how)),
      run: () => Promise.reject(new AgentError("INFERENCE_FAILED", "not implemented")),
    }),
  };
  if ((await findBlockSize(engine)) !== null) {
    await assert.rejects(findBlockSize(broken), /not implemented/);
  }
  const bug: Engine = { ...engine, open: () => Promise.reject(new TypeError("a mistake")) };
  await assert.rejects(findBlockSize(bug), /a mistake/);
});
