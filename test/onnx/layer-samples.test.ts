import assert from "node:assert/strict";
import { test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, writeGraph } from "../../agent/onnx/graph.ts";
import { appendSamples, type SampleStart, startOf } from "../../agent/onnx/layer-samples.ts";
import { appendOutputMoments } from "../../agent/onnx/output-moments.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { extractSubgraph } from "../../agent/onnx/subgraph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { openSession, type TensorValue } from "../../agent/runtime/session.ts";
import { randomValues } from "./run-graph.helpers.ts";

const SESSION = { executionProviders: ["cpu"], intraOpThreads: 1, log: createLogger("silent") };

async function runGraph(graph: Graph, feeds: Record<string, TensorValue>) {
  const session = await openSession(writeGraph(graph), SESSION);
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

interface ConvCase {
  readonly kernel: readonly [number, number];
  readonly groups?: number;
  readonly strides?: readonly [number, number];
  readonly dilations?: readonly [number, number];
  readonly pads?: readonly [number, number, number, number];
  readonly autoPad?: string;
}

const CHANNELS = 4;
const INPUT = [2, CHANNELS, 9, 8] as const;

function convGraph(c: ConvCase): Graph {
  const groups = c.groups ?? 1;
  const dims = [4, CHANNELS / groups, ...c.kernel];
  const padding = c.autoPad ? { auto_pad: c.autoPad } : c.pads ? { pads: c.pads } : {};
  const shape = { strides: c.strides ?? [1, 1], dilations: c.dilations ?? [1, 1] };
  return buildModel({
    inputs: [floatValue("x", ["N", CHANNELS, "h", "w"])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Conv", ["x", "W"], ["y"], {
        group: groups,
        kernel_shape: c.kernel,
        ...shape,
        ...padding,
      }),
    ],
    initializers: {
      W: floatTensor(
        dims,
        randomValues(
          dims.reduce((a, b) => a * b, 1),
          3,
        ),
      ),
    },
  });
}

function feed(start: SampleStart | null, phases: readonly number[]): Record<string, TensorValue> {
  if (!start) return {};
  const data = BigInt64Array.from(start.strides, (stride, axis) => BigInt(stride * phases[axis]!));
  return { [start.name]: { data, dims: [data.length] } };
}

/** Rows of samples at every start, one after the other. */
async function everyStart(graph: Graph, x: TensorValue, step: number): Promise<number[][]> {
  const layers = findPrunableLayers(graph);
  const { graph: tapped, samples } = appendSamples(graph, layers, [step]);
  const { rowsName, start } = samples[0]!;
  const part = extractSubgraph(tapped, ["x", ...(start ? [start.name] : [])], [rowsName]);
  const width = layers[0]!.groups * layers[0]!.inFeaturesPerGroup;
  const axes = start?.strides.length ?? 0;
  const rows: number[][] = [];
  for (let phase = 0; phase < step ** axes; phase++) {
    const phases = [phase % step, Math.floor(phase / step)];
    const data = (await runGraph(part, { x, ...feed(start, phases) }))[rowsName]!.data;
    for (let at = 0; at < data.length; at += width) {
      rows.push(Array.from(data.slice(at, at + width), Number));
    }
  }
  return rows;
}

function sorted(rows: readonly number[][]): string[] {
  return rows.map((row) => row.map((value) => value.toFixed(5)).join(" ")).sort();
}

const CASES: Record<string, ConvCase> = {
  "1×1": { kernel: [1, 1] },
  "1×1 stride 2": { kernel: [1, 1], strides: [2, 2] },
  "1×1 padded": { kernel: [1, 1], pads: [1, 0, 1, 1] },
  "3×3 padded": { kernel: [3, 3], pads: [1, 1, 1, 1] },
  "3×3 stride 2, padded on one side": { kernel: [3, 3], strides: [2, 2], pads: [0, 0, 1, 1] },
  "3×2 stride 2×1 dilated": { kernel: [3, 2], strides: [2, 1], dilations: [1, 2] },
  "depthwise 3×3": { kernel: [3, 3], groups: 4, pads: [1, 1, 1, 1] },
  "grouped 3×3": { kernel: [3, 3], groups: 2, pads: [1, 1, 1, 1] },
  SAME_UPPER: { kernel: [3, 3], strides: [2, 2], autoPad: "SAME_UPPER" },
  VALID: { kernel: [3, 3], autoPad: "VALID" },
};

for (const [name, c] of Object.entries(CASES)) {
  test(`samples: all starts together are every position of a ${name} convolution, once`, async () => {
    const graph = convGraph(c);
    const x = {
      data: randomValues(
        INPUT.reduce((a, b) => a * b, 1),
        11,
      ),
      dims: INPUT,
    };
    const whole = await everyStart(graph, x, 1);
    for (const step of [2, 3]) {
      assert.deepEqual(sorted(await everyStart(graph, x, step)), sorted(whole), `step ${step}`);
    }
    // A row times the weights is the layer's output at that position.
    const layer = findPrunableLayers(graph)[0]!;
    const y = (await runGraph(graph, { x }))["y"]!;
    const positions = y.dims.slice(2).reduce((a, b) => a * b, 1);
    const W = graph.initializers.get("W")!.data as Float32Array;
    const { outFeatures: rows, inFeaturesPerGroup: cols, groups } = layer;
    for (const [p, row] of whole.entries()) {
      for (let r = 0; r < rows; r++) {
        const group = Math.floor((r * groups) / rows);
        let sum = 0;
        for (let j = 0; j < cols; j++) sum += W[r * cols + j]! * row[group * cols + j]!;
        const picture = Math.floor(p / positions);
        const got = Number(y.data[(picture * rows + r) * positions + (p % positions)]!);
        assert.ok(Math.abs(sum - got) < 1e-4, `position ${p}, row ${r}`);
      }
    }
  });
}

for (const opType of ["Gemm", "MatMul", "MatMul with the weight on the left"]) {
  test(`samples: all starts together are every row of a ${opType}, once`, async () => {
    const left = opType.endsWith("left");
    const dims = opType === "Gemm" ? [7, 3] : left ? [2, 3, 5] : [2, 5, 3];
    const graph = buildModel({
      inputs: [floatValue("x", null)],
      outputs: [floatValue("y", null)],
      nodes: [node(opType === "Gemm" ? "Gemm" : "MatMul", left ? ["W", "x"] : ["x", "W"], ["y"])],
      initializers: { W: floatTensor(left ? [2, 3] : [3, 2], randomValues(6, 5)) },
    });
    const x = {
      data: randomValues(
        dims.reduce((a, b) => a * b, 1),
        9,
      ),
      dims,
    };
    const whole = await everyStart(graph, x, 1);
    assert.equal(whole.length, x.data.length / 3);
    assert.deepEqual(sorted(await everyStart(graph, x, 3)), sorted(whole));
  });
}

test("samples: output moments from the same starts are moments of the same positions", async () => {
  const graph = convGraph({ kernel: [3, 3], strides: [2, 1], pads: [1, 1, 1, 1] });
  const layers = findPrunableLayers(graph);
  const x = {
    data: randomValues(
      INPUT.reduce((a, b) => a * b, 1),
      12,
    ),
    dims: INPUT,
  };
  const tapped = appendSamples(graph, layers, [2]);
  const { rowsName, start } = tapped.samples[0]!;
  const moments = appendOutputMoments(graph, layers, [2]);
  const { sumName, squareName, start: other } = moments.outputs[0]!;
  const W = graph.initializers.get("W")!.data as Float32Array;
  const cols = layers[0]!.inFeaturesPerGroup;
  for (const phases of [
    [0, 0],
    [1, 0],
    [1, 1],
  ]) {
    const part = extractSubgraph(tapped.graph, ["x", start!.name], [rowsName]);
    const rows = (await runGraph(part, { x, ...feed(start, phases) }))[rowsName]!.data;
    const outer = extractSubgraph(moments.graph, ["x", other!.name], [sumName, squareName]);
    const got = await runGraph(outer, { x, ...feed(other, phases) });
    for (let r = 0; r < 4; r++) {
      let sum = 0;
      let square = 0;
      for (let at = 0; at < rows.length; at += cols) {
        let y = 0;
        for (let j = 0; j < cols; j++) y += W[r * cols + j]! * Number(rows[at + j]!);
        sum += y;
        square += y * y;
      }
      assert.ok(Math.abs(Number(got[sumName]!.data[r]!) - sum) < 1e-3);
      assert.ok(Math.abs(Number(got[squareName]!.data[r]!) - square) < 1e-3);
    }
  }
});

test("samples: successive turns start at every place about equally often", () => {
  const start = { name: "s", step: 4, strides: [3, 1] };
  const counts = new Map<string, number>();
  for (let turn = 0; turn < 160; turn++) {
    const [y, x] = startOf(start, turn) as unknown as [bigint, bigint];
    assert.ok(y % 3n === 0n && y < 12n && x < 4n, `${y} ${x}`);
    counts.set(`${y} ${x}`, (counts.get(`${y} ${x}`) ?? 0) + 1);
  }
  assert.equal(counts.size, 16);
  for (const count of counts.values()) assert.ok(count >= 7 && count <= 13, `${count}`);
});
