import { AgentError } from "../errors.ts";
import { importBlockedLayout, REORDER_INPUT } from "../onnx/blocked-layout.ts";
import { buildModel, floatValue, node } from "../onnx/builder.ts";
import type { Engine } from "./engine.ts";

/** Channels that are tried, more than a block of any processor has. */
const CHANNELS = 128;

/**
 * How many channels lie side by side in ONNX Runtime's blocked layout on this processor: 16 with
 * AVX-512, 8 with AVX2. It is seen from where a value with two positions a channel puts the second.
 *
 * @returns null where the engine does not run on the CPU provider, or has no such layout there; the
 *   plain one always works.
 */
export async function findBlockSize(engine: Engine): Promise<number | null> {
  const dims = [1, CHANNELS, 1, 2];
  const probe = buildModel({
    nodes: [node(REORDER_INPUT, ["x"], ["y"])],
    inputs: [floatValue("x", dims)],
    outputs: [floatValue("y", dims)],
  });
  try {
    const session = await engine.open(importBlockedLayout(probe));
    try {
      if (session.provider !== "cpu") return null;
      const data = Float32Array.from({ length: 2 * CHANNELS }, (_, i) => i);
      const { y } = await session.run({ x: { data, dims } });
      const block = (y!.data as Float32Array).indexOf(1);
      return block > 1 && CHANNELS % block === 0 ? block : null;
    } finally {
      await session.release();
    }
  } catch (error) {
    // Each provider's reason is in the log of the engine.
    if (error instanceof AgentError) return null;
    throw error;
  }
}
