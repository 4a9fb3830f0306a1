import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AgentError } from "../errors.ts";
import { BLOCKED_CONV, importBlockedLayout, REORDER_INPUT } from "../onnx/blocked-layout.ts";
import { buildModel, floatValue, node } from "../onnx/builder.ts";
import { qualifiedName, readGraph } from "../onnx/graph.ts";
import { floatTensor } from "../onnx/tensor.ts";
import type { Engine } from "./engine.ts";

/** Channels that are tried, more than a block of any processor has. */
const CHANNELS = 128;

/**
 * How many channels lie side by side in ONNX Runtime's blocked layout on this processor: 16 with
 * AVX-512, 8 with AVX2.
 *
 * @returns null where the engine does not run on the CPU provider, or ONNX Runtime does not use such
 *   a layout there, as in most builds for ARM; the plain one always works.
 * @throws {AgentError} INFERENCE_FAILED where an operator of the layout was taken and does not run.
 */
export async function findBlockSize(engine: Engine): Promise<number | null> {
  try {
    return (await usesBlocks(engine)) ? await measureBlock(engine) : null;
  } catch (error) {
    // Refused when it was opened: each provider's reason is in the log of the engine.
    if (error instanceof AgentError && error.code === "MODEL_INVALID") return null;
    throw error;
  }
}

/**
 * Whether ONNX Runtime itself brings a convolution of constant weights into the layout. Where it
 * does not, its operators of the layout are there all the same, and write beyond their values.
 */
async function usesBlocks(engine: Engine): Promise<boolean> {
  const dims = [1, CHANNELS, 8, 8];
  const convolution = buildModel({
    nodes: [node("Conv", ["x", "w"], ["y"], { group: CHANNELS, pads: [1, 1, 1, 1] })],
    inputs: [floatValue("x", dims)],
    outputs: [floatValue("y", dims)],
    initializers: { w: floatTensor([CHANNELS, 1, 3, 3], new Float32Array(9 * CHANNELS)) },
  });
  // First without writing the graph, which a provider that compiles its nodes cannot, so that the
  // engine would pass on to the CPU.
  const plain = await engine.open(convolution);
  await plain.release();
  if (plain.provider !== "cpu") return false;
  const folder = await mkdtemp(join(tmpdir(), "taco-layout-"));
  try {
    const optimizedModelPath = join(folder, "optimized.onnx");
    const session = await engine.open(convolution, { optimizedModelPath });
    await session.release();
    const { nodes } = readGraph(await readFile(optimizedModelPath));
    return nodes.some((each) => qualifiedName(each) === BLOCKED_CONV);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** It is seen from where a value with two positions a channel puts the second. */
async function measureBlock(engine: Engine): Promise<number | null> {
  const dims = [1, CHANNELS, 1, 2];
  const probe = buildModel({
    nodes: [node(REORDER_INPUT, ["x"], ["y"])],
    inputs: [floatValue("x", dims)],
    outputs: [floatValue("y", dims)],
  });
  const session = await engine.open(importBlockedLayout(probe));
  try {
    const data = Float32Array.from({ length: 2 * CHANNELS }, (_, i) => i);
    const { y } = await session.run({ x: { data, dims } });
    const block = (y!.data as Float32Array).indexOf(1);
    return block > 1 && CHANNELS % block === 0 ? block : null;
  } finally {
    await session.release();
  }
}
