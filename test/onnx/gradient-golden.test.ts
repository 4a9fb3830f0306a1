import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { withObjective } from "../../agent/onnx/gradient/objective.ts";
import { type Graph, readGraph } from "../../agent/onnx/graph.ts";
import { removeIdentities } from "../../agent/onnx/identity.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { raiseOpset } from "../../agent/onnx/opset.ts";
import { unshareVectors } from "../../agent/onnx/shared-initializers.ts";
import { type Results, runGraph } from "./run-graph.helpers.ts";

const FOLDER = join(import.meta.dirname, "../../../shared/golden/gradients");
const ABSENT = "the golden values are not beside this checkout (../shared/golden)";

/** A gradient, with its first values, row-major. */
interface GoldenGradient {
  readonly norm: number;
  readonly values: readonly number[];
}

/** What PyTorch's autograd gives for one graph. */
interface Golden {
  /** Of four pictures. */
  readonly labels: readonly number[];
  readonly lossValue: number;
  readonly logits: readonly number[];
  readonly input: { readonly shape: readonly number[]; readonly values: readonly number[] };
  readonly inputGradient: GoldenGradient;
  readonly gradients: Readonly<Record<string, GoldenGradient & { shape: readonly number[] }>>;
}

/** Largest error allowed, against the norm: what float32 leaves, in another order of sums. */
const TOLERANCE = 1e-4;

/** The classes of one picture as one row, the label at 0.9 and a tenth spread over all. */
function smoothed(labels: readonly number[], classes: number): Float32Array {
  return Float32Array.from({ length: labels.length * classes }, (_, i) => {
    const hit = i % classes === labels[Math.floor(i / classes)] ? 0.9 : 0;
    return hit + 0.1 / classes;
  });
}

/** A graph with its loss and gradients, run on the golden pictures. */
async function differentiate(
  network: Graph,
  golden: Golden,
): Promise<{ results: Results; gradients: ReadonlyMap<string, string>; loss: string }> {
  const dims = [golden.labels.length, golden.logits.length / golden.labels.length];
  const { graph, loss, targets } = withObjective(network, dims, [], {
    distillation: 0,
    temperature: 1,
    features: 0,
    labels: 1,
    logitOffsets: new Array<number>(dims[1]!).fill(0),
  });
  const input = network.inputs[0]!;
  const trained = Object.keys(golden.gradients).filter((name) => network.initializers.has(name));
  const built = buildGradientGraph(graph, {
    inputDims: new Map([
      [input.name, golden.input.shape],
      [targets, dims],
    ]),
    loss,
    of: [input.name, ...trained],
  });
  const weights = trained.map((name) => {
    const { dims: shape, data } = network.initializers.get(name)!;
    return [name, { dims: shape, data: Float32Array.from(data as Float32Array) }] as const;
  });
  const results = await runGraph(built.graph, {
    ...Object.fromEntries(weights),
    [input.name]: { dims: golden.input.shape, data: Float32Array.from(golden.input.values) },
    [targets]: { dims, data: smoothed(golden.labels, dims[1]!) },
  });
  return { results, gradients: built.gradients, loss };
}

function assertGradient(name: string, actual: Results[string], expected: GoldenGradient): void {
  const norm = Math.sqrt(actual.data.reduce((sum, value) => sum + value * value, 0));
  assert.ok(
    Math.abs(norm - expected.norm) <= TOLERANCE * expected.norm,
    `norm of the gradient of ${name}: expected ${expected.norm}, got ${norm}`,
  );
  expected.values.forEach((value, i) => {
    assert.ok(
      Math.abs(actual.data[i]! - value) <= TOLERANCE * expected.norm,
      `gradient of ${name} at ${i}: expected ${value}, got ${actual.data[i]}`,
    );
  });
}

/**
 * Normalized as the engine has it, or as the file has it: with batch norms unfolded, and layer norms
 * in their parts.
 */
type Form = "normalized" | "as it is";

const GRAPHS: readonly (readonly [string, Form])[] = [
  ["resnet", "normalized"],
  ["resnet_unfused_bn", "as it is"],
  ["deit_opset17", "normalized"],
  ["deit_opset13", "normalized"],
  ["deit_opset13", "as it is"],
  ["convnext", "normalized"],
  ["mobile_like", "normalized"],
  ["densenet", "normalized"],
];

function inForm(graph: Graph, form: Form): Graph {
  if (form === "normalized") return normalizeGraph(graph);
  // Vectors that the exporter shared because they were equal are parameters of their own.
  return unshareVectors(removeIdentities(raiseOpset(graph)));
}

for (const [name, form] of GRAPHS) {
  const path = join(FOLDER, `${name}.onnx`);
  const skip = existsSync(path) ? false : ABSENT;
  test(`gradients of ${name}, ${form}: those of PyTorch's autograd`, { skip }, async () => {
    const golden = JSON.parse(readFileSync(join(FOLDER, `${name}.json`), "utf8")) as Golden;
    const network = inForm(readGraph(readFileSync(path)), form);
    const { results, gradients, loss } = await differentiate(network, golden);
    const logits = results[network.outputs[0]!.name]!.data;
    golden.logits.forEach((value, i) => {
      assert.ok(Math.abs(logits[i]! - value) <= 1e-5, `logit ${i}: ${value}, got ${logits[i]}`);
    });
    assert.ok(Math.abs(results[loss]!.data[0]! - golden.lossValue) <= 1e-5);
    const of = (value: string) => results[gradients.get(value)!]!;
    assertGradient("the input", of(network.inputs[0]!.name), golden.inputGradient);
    for (const [each, expected] of Object.entries(golden.gradients)) {
      assert.ok(gradients.has(each), `"${each}" is no initializer`);
      assert.deepEqual(of(each).dims, expected.shape, each);
      assertGradient(each, of(each), expected);
    }
  });
}
