import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { writeGraph } from "../../agent/onnx/graph.ts";
import { type BreadthSubject, breadthOf } from "../../scripts/bench/breadth.ts";
import { convnext } from "../../scripts/networks/convnext.ts";
import { resnet } from "../../scripts/networks/resnet.ts";
import { visionTransformer } from "../../scripts/networks/vision-transformer.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { randomValues } from "../onnx/run-graph.helpers.ts";

function subject(bytes: Uint8Array, size: number): BreadthSubject {
  return {
    bytes,
    size,
    pictures: (count, from) =>
      Promise.resolve(
        Array.from({ length: count }, (_, i) => randomValues(3 * size * size, from + i)),
      ),
  };
}

const SMALL = { classes: 10, size: 32 } as const;
const NETWORKS: Readonly<Record<string, () => Uint8Array>> = {
  "a residual network of opset 11": () =>
    writeGraph(resnet("r", { ...SMALL, opset: 11, kind: "bottleneck", depths: [1, 1], width: 32 })),
  "a transformer of opset 13 for one picture": () =>
    writeGraph(
      visionTransformer("t", {
        ...SMALL,
        opset: 13,
        batch: "one",
        width: 64,
        depth: 2,
        heads: 4,
        patch: 8,
      }),
    ),
  "a ConvNeXt of opset 21": () =>
    writeGraph(convnext("c", { ...SMALL, opset: 21, widths: [32, 64], depths: [1, 1] })),
};

for (const [name, build] of Object.entries(NETWORKS)) {
  test(`breadth: ${name} goes through every method, into a file, and runs`, async () => {
    const bytes = build();
    const cells = await breadthOf(subject(bytes, SMALL.size));
    const ok = (method: string) => {
      const cell = cells[method]!;
      if (cell.state === "refused") assert.fail(`${method}: ${cell.reason}`);
      return cell;
    };
    for (const method of ["unstructured:0.5", "nm:2:4"]) {
      assert.ok(ok(method).nonzero < 0.7 * ok(method).parameters, method);
    }
    assert.ok(ok("structured:0.5").parameters < 0.8 * ok("int8").parameters);
    assert.ok(ok("int8").bytes < 0.5 * bytes.length);
    // A network of random weights keeps its answers through integers, if they are put right.
    assert.ok(ok("int8").relativeError! < 0.1, `${ok("int8").relativeError}`);
  });
}

const shuffle = benchPath("graphs/shufflenet_v2_x0_5_opset17.onnx");
test("breadth: a channel shuffle is named as what cannot be narrowed, and the rest goes on", {
  skip: shuffle ? false : BENCH_ABSENT,
}, async () => {
  const cells = await breadthOf(subject(readFileSync(shuffle!), 64), ["structured:0.5"]);
  const narrowed = cells["structured:0.5"]!;
  assert.ok(narrowed.state === "ok");
  assert.ok(Object.keys(narrowed.left).some((reason) => /Reshape .* is not followed/.test(reason)));
});
