import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { findChannelGroups } from "../../agent/onnx/channel-groups.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { keepUnits } from "../../agent/onnx/keep-units.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { dropBlock, findResidualBlocks } from "../../agent/onnx/residual-blocks.ts";
import { withOnlyOutputs } from "../../agent/onnx/subgraph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { dropBlocks, measureBlocks } from "../../agent/specialize/drop-blocks.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { measureGroups, stitch } from "../../agent/specialize/group-tables.ts";
import { narrowNetwork } from "../../agent/specialize/narrow-network.ts";

let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-narrow-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

/** Batches of smooth random pictures, always the same. */
function calibrationOf(batches: number, dims: readonly number[], seed = 1): Calibration {
  const size = dims.reduce((product, dim) => product * dim, 1);
  const data = Array.from({ length: batches }, (_, batch) => {
    const random = createRandom(seed * 100 + batch);
    let last = 0;
    return Float32Array.from({ length: size }, () => {
      last = 0.7 * last + 0.7 * random.normal();
      return last;
    });
  });
  return { batches, read: (batch) => Promise.resolve({ data: data[batch]!.slice(), dims }) };
}

function environment(calibration: Calibration, damping = 1e-4): CompressEnvironment {
  return {
    engine,
    calibration,
    workDir,
    // So little that borders overflow into files.
    memoryBytes: 20_000,
    damping,
    onProgress: () => undefined,
    signal: new AbortController().signal,
  };
}

/** Three residual blocks of 1×1 and 3×3 convolutions, then two matrix products. */
function residualNetwork(seed = 3): Graph {
  const random = createRandom(seed);
  const weight = (...dims: number[]) => {
    const fanIn = dims.length === 2 ? dims[0]! : dims.slice(1).reduce((a, b) => a * b, 1);
    const count = dims.reduce((a, b) => a * b, 1);
    return floatTensor(
      dims,
      Array.from({ length: count }, () => (1.4 * random.normal()) / Math.sqrt(fanIn)),
    );
  };
  const bias = (count: number) =>
    floatTensor(
      [count],
      Array.from({ length: count }, () => 0.2 * random.normal()),
    );
  const pads = { pads: [1, 1, 1, 1] };
  const block = (from: string, name: string) => [
    node("Conv", [from, `${name}_w1`, `${name}_b1`], [`${name}_1`]),
    node("Relu", [`${name}_1`], [`${name}_1a`]),
    node("Conv", [`${name}_1a`, `${name}_w2`, `${name}_b2`], [`${name}_2`], pads),
    node("Relu", [`${name}_2`], [`${name}_2a`]),
    node("Conv", [`${name}_2a`, `${name}_w3`, `${name}_b3`], [`${name}_3`]),
    node("Add", [`${name}_3`, from], [name]),
  ];
  const blocks = ["p", "q", "r"];
  const weights = blocks.flatMap((name) => [
    [`${name}_w1`, weight(32, 16, 1, 1)] as const,
    [`${name}_b1`, bias(32)] as const,
    [`${name}_w2`, weight(24, 32, 3, 3)] as const,
    [`${name}_b2`, bias(24)] as const,
    [`${name}_w3`, weight(16, 24, 1, 1)] as const,
    [`${name}_b3`, bias(16)] as const,
  ]);
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 10, 10])],
    outputs: [floatValue("features", ["N", 12])],
    nodes: [
      node("Conv", ["x", "stem"], ["s"], { ...pads, strides: [2, 2] }),
      ...block("s", "p"),
      ...block("p", "q"),
      ...block("q", "r"),
      node("GlobalAveragePool", ["r"], ["pooled"]),
      node("Flatten", ["pooled"], ["f"], { axis: 1 }),
      node("MatMul", ["f", "w"], ["m"]),
      node("Add", ["m", "wb"], ["h"]),
      node("Relu", ["h"], ["ha"]),
      node("Gemm", ["ha", "v"], ["features"]),
    ],
    initializers: new Map([
      ["stem", weight(16, 3, 3, 3)],
      ...weights,
      ["w", weight(16, 40)],
      ["wb", bias(40)],
      ["v", weight(40, 12)],
    ]),
  });
}

/** ‖ŷ − y‖ / ‖y‖ of the outputs over all batches. */
async function outputError(dense: Graph, other: Graph, pictures: Calibration): Promise<number> {
  const [first, second] = [await engine.open(dense), await engine.open(other)];
  let difference = 0;
  let size = 0;
  for (let batch = 0; batch < pictures.batches; batch++) {
    const feeds = { x: await pictures.read(batch) };
    const y = (await first.run(feeds))["features"]!.data as Float32Array;
    const z = (await second.run(feeds))["features"]!.data as Float32Array;
    for (let i = 0; i < y.length; i++) {
      difference += (z[i]! - y[i]!) ** 2;
      size += y[i]! ** 2;
    }
  }
  await first.release();
  await second.release();
  return Math.sqrt(difference / size);
}

const PICTURES = [6, 3, 10, 10] as const;
const half = (units: number) => Math.ceil(units / 2);

test("narrow: half of the widths are gone, the rest comes close to the dense network", async () => {
  const dense = residualNetwork();
  const calibration = calibrationOf(6, PICTURES);
  const fresh = calibrationOf(3, PICTURES, 9);
  const { groups } = findChannelGroups(dense);
  const inner = groups.filter(({ kind }) => kind === "internal");
  assert.ok(inner.length >= 7, `${inner.length} groups`);
  const { graph, reports } = await narrowNetwork(dense, {
    ...environment(calibration),
    include: ({ kind }) => kind === "internal",
    keep: ({ units }) => half(units),
  });
  let cut = dense;
  for (const group of inner) {
    cut = keepUnits(cut, group, [...Array(half(group.units)).keys()]);
  }
  assert.equal(countParameters(graph).parameters, countParameters(cut).parameters);
  assert.ok(countParameters(graph).parameters < 0.5 * countParameters(dense).parameters);
  const ours = await outputError(dense, graph, fresh);
  const plain = await outputError(dense, cut, fresh);
  assert.ok(ours < 0.5 * plain, `${ours} against ${plain} by cutting alone`);
  const second = reports.find(({ name }) => name === "p_2")!;
  assert.equal(second.method, "structured 32 → 16");
  assert.ok(second.relativeLoss! > 0 && second.relativeLoss! < 1);
  assert.deepEqual(readdirSync(workDir), [], "nothing is left on disk");
});

test("narrow: fitting on the inputs of the narrowed network is better than on those of the dense one", async () => {
  const calibration = calibrationOf(6, [48, 3, 10, 10]);
  const fresh = calibrationOf(3, PICTURES, 9);
  let ours = 0;
  let parallel = 0;
  for (const seed of [3, 4]) {
    const dense = residualNetwork(seed);
    const tables = await measureGroups(dense, environment(calibration));
    const keep = new Map(
      tables.groups
        .filter(({ group }) => group.kind === "internal")
        .map(({ group }) => [group.id, half(group.units)]),
    );
    const stitched = await stitch(dense, tables, keep);
    const { graph } = await narrowNetwork(dense, {
      ...environment(calibration),
      tables,
      keep: ({ id, units }) => keep.get(id) ?? units,
      refit: "behind",
      correct: false,
    });
    await tables.dispose();
    parallel += await outputError(dense, stitched, fresh);
    ours += await outputError(dense, graph, fresh);
  }
  assert.ok(ours < 0.95 * parallel, `${ours / 2} against ${parallel / 2}`);
});

test("narrow: nothing changes where everything is kept", async () => {
  const dense = residualNetwork();
  const calibration = calibrationOf(2, PICTURES);
  const { graph, reports } = await narrowNetwork(dense, {
    ...environment(calibration),
    keep: ({ units }) => units,
  });
  assert.deepEqual(reports, []);
  assert.equal(await outputError(dense, graph, calibration), 0);
});

test("narrow: units without weight behind them cost nothing and change nothing", async () => {
  const dense = residualNetwork();
  const tensor = dense.initializers.get("q_w2")!;
  const values = Float32Array.from(tensor.data as Float32Array);
  const unused = [3, 4, 20, 31];
  for (let row = 0; row < 24; row++) {
    for (const unit of unused) values.fill(0, (row * 32 + unit) * 9, (row * 32 + unit + 1) * 9);
  }
  const initializers = new Map(dense.initializers).set("q_w2", floatTensor(tensor.dims, values));
  const sparse = { ...dense, initializers };
  const calibration = calibrationOf(3, PICTURES);
  const tables = await measureGroups(sparse, environment(calibration));
  const table = tables.groups.find(({ group }) => group.id === "q_1")!;
  assert.deepEqual(
    [...table.order.slice(0, 4)].sort((a, b) => a - b),
    unused,
  );
  assert.ok(table.losses[4]! < 1e-9 && table.losses[5]! > 1e-6);
  const graph = await stitch(sparse, tables, new Map([["q_1", 28]]));
  await tables.dispose();
  assert.ok((await outputError(sparse, graph, calibration)) < 1e-5);
});

test("tables: a stitched network does what its losses say, and refits are used again", async () => {
  const dense = residualNetwork();
  const calibration = calibrationOf(6, PICTURES);
  const tables = await measureGroups(dense, environment(calibration, 1e-6));
  const table = tables.groups.find(({ group }) => group.id === "h" || group.id === "m")!;
  for (const count of [30, 20, 8]) {
    const graph = await stitch(dense, tables, new Map([[table.group.id, count]]));
    const error = await outputError(dense, graph, calibration);
    assert.ok(error >= 0);
    const refits = tables.refits.size;
    await stitch(dense, tables, new Map([[table.group.id, count]]));
    assert.equal(tables.refits.size, refits);
    // The last layer has no bias, so its loss is that of its plain outputs: the features.
    const loss = table.losses[table.group.units - count]!;
    assert.ok(Math.abs(error ** 2 - loss) < 0.02 * loss + 1e-6, `${error ** 2} and ${loss}`);
  }
  await assert.rejects(stitch(dense, tables, new Map([["p_1", 33]])), /expected 1 to 32 units/);
  await assert.rejects(stitch(dense, tables, new Map([["nobody", 3]])), /no table of a group/);
  await tables.dispose();
  assert.deepEqual(readdirSync(workDir), []);
});

test("tables: one picture gives numbers, and a network that still runs", async () => {
  const dense = residualNetwork();
  const calibration = calibrationOf(1, [1, 3, 10, 10]);
  const { graph } = await narrowNetwork(dense, {
    ...environment(calibration, 0.01),
    keep: ({ units }) => half(units),
  });
  const error = await outputError(dense, graph, calibrationOf(1, PICTURES, 4));
  assert.ok(Number.isFinite(error));
  for (const layer of findPrunableLayers(graph)) {
    const tensor = graph.initializers.get(layer.weightName)!;
    assert.ok((tensor.data as Float32Array).every(Number.isFinite), layer.name);
  }
});

test("narrow: an abort ends it with the signal's reason and leaves no files", async () => {
  const abort = new AbortController();
  const reason = new Error("enough");
  const work = narrowNetwork(residualNetwork(), {
    ...environment(calibrationOf(2, PICTURES)),
    keep: ({ units }) => half(units),
    onProgress: () => abort.abort(reason),
    signal: abort.signal,
  });
  await assert.rejects(work, reason);
  assert.deepEqual(readdirSync(workDir), []);
});

test("blocks: what a block costs is what the stream lacks without it, channel by channel", async () => {
  const dense = residualNetwork();
  const calibration = calibrationOf(3, PICTURES);
  const tables = await measureBlocks(dense, environment(calibration));
  assert.deepEqual(
    tables.map(({ block }) => block.name),
    ["p", "q", "r"],
  );
  const session = await engine.open(withOnlyOutputs(dense, ["p", "q"]));
  const pairs: { x: number[]; y: number[] }[] = Array.from({ length: 16 }, () => ({
    x: [],
    y: [],
  }));
  for (let batch = 0; batch < calibration.batches; batch++) {
    const values = await session.run({ x: await calibration.read(batch) });
    const [p, q] = [values["p"]!, values["q"]!];
    const area = p.dims[2]! * p.dims[3]!;
    for (let i = 0; i < p.data.length; i++) {
      const channel = pairs[Math.floor(i / area) % 16]!;
      channel.x.push(Number(p.data[i]));
      channel.y.push(Number(q.data[i]));
    }
  }
  await session.release();
  let lost = 0;
  let all = 0;
  for (const { x, y } of pairs) {
    const mean = (list: number[]) => list.reduce((a, b) => a + b, 0) / list.length;
    const [mx, my] = [mean(x), mean(y)];
    const cov = mean(x.map((v, i) => (v - mx) * (y[i]! - my)));
    const spread = mean(x.map((v) => (v - mx) ** 2));
    const wanted = mean(y.map((v) => (v - my) ** 2));
    all += wanted;
    lost += wanted - cov ** 2 / spread;
  }
  assert.ok(Math.abs(tables[1]!.loss - lost / all) < 1e-4, `${tables[1]!.loss}, ${lost / all}`);
  assert.equal(tables[1]!.weights, 32 * 16 + 24 * 32 * 9 + 16 * 24);
});

test("blocks: layers behind a dropped block make up for some of it", async () => {
  const dense = residualNetwork();
  const calibration = calibrationOf(6, [48, 3, 10, 10]);
  const fresh = calibrationOf(3, PICTURES, 9);
  const { graph, reports } = await dropBlocks(dense, {
    ...environment(calibration, 1e-3),
    blocks: ["q"],
  });
  const block = findResidualBlocks(dense).find(({ name }) => name === "q")!;
  const plain = await outputError(dense, dropBlock(dense, block), fresh);
  const ours = await outputError(dense, graph, fresh);
  assert.ok(ours < 0.8 * plain, `${ours} against ${plain} without a refit`);
  assert.equal(reports.filter(({ method }) => method === 'dropped with block "q"').length, 3);
  assert.deepEqual(
    findPrunableLayers(graph).map(({ name }) => name),
    findPrunableLayers(dense)
      .map(({ name }) => name)
      .filter((name) => !name.startsWith("q_")),
  );
  const options = { ...environment(calibration), blocks: ["q_2"] };
  await assert.rejects(dropBlocks(dense, options), /"q_2" is no residual block/);
  assert.deepEqual(readdirSync(workDir), []);
});

test("blocks: one that adds nothing costs nothing and changes nothing", async () => {
  const dense = residualNetwork();
  const initializers = new Map(dense.initializers);
  initializers.set("q_w3", floatTensor([16, 24, 1, 1], new Float32Array(16 * 24)));
  initializers.set("q_b3", floatTensor([16], new Float32Array(16)));
  const idle = { ...dense, initializers };
  const calibration = calibrationOf(6, [24, 3, 10, 10]);
  const tables = await measureBlocks(idle, environment(calibration));
  assert.ok(tables[1]!.loss < 1e-5 && tables[0]!.loss > 1e-2, `${tables[1]!.loss}`);
  const options = { ...environment(calibration), blocks: ["q"] };
  const { graph } = await dropBlocks(idle, options);
  assert.ok((await outputError(idle, graph, calibration)) < 1e-4);
});
