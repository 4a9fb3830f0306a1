import assert from "node:assert/strict";
import { after, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import { integerWeightBits } from "../../agent/specialize/integer-bits.ts";

const engine = await createEngine({
  executionProviders: ["cpu"],
  intraOpThreads: 1,
  log: createLogger("error"),
});
after(() => engine.close());

/** The engine of a processor that adds two products in 16 bits, if its weights have so many. */
const overflowing: Engine = {
  ...engine,
  open: async (graph) => {
    const weight = Number(graph.initializers.get("w")!.data[0]);
    const session = await engine.open(graph);
    return {
      ...session,
      run: async (feeds) => {
        const { y } = await session.run(feeds);
        const pairs = y!.data.length ** 0.5 / 2;
        const sum = pairs * Math.min(2 * 255 * weight, 2 ** 15 - 1);
        return { y: { ...y!, data: new Float32Array(y!.data.length).fill(sum) } };
      },
    };
  },
};

test("integer bits: 7 where two products of 8 bits overflow, else 8", async () => {
  assert.equal(await integerWeightBits(overflowing), 7);
  const own = await integerWeightBits(engine);
  assert.ok(own === 7 || own === 8);
});
