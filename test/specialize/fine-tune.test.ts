import assert from "node:assert/strict";
import { test } from "node:test";
import type { Graph } from "../../agent/onnx/graph.ts";
import { extractSubgraph } from "../../agent/onnx/subgraph.ts";
import { floatTensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { comparedValues } from "../../agent/specialize/fine-tune.ts";
import { pictureClassifier } from "./picture-classifier.helpers.ts";

const SIDE = 32;
const teacher = extractSubgraph(pictureClassifier(1, SIDE), ["picture"], ["logits"]);
const dims = [3, SIDE, SIDE];
const names = (student: Graph, border = "picture", pictureDims = dims) =>
  comparedValues(student, teacher, border, pictureDims).map((pair) => {
    assert.equal(pair.student, pair.teacher);
    return pair.student;
  });

test("fine-tune: values between equal blocks are compared, and the features", () => {
  assert.deepEqual(names(teacher), ["second.s", "third.s", "features"]);
  assert.deepEqual(names(teacher, "second"), ["third.s", "features"]);
});

test("fine-tune: what lies close to the value before is left out", () => {
  // Nearly all parameters are in the last block: those before it are no eighth of them.
  const sparse = (name: string): [string, ReturnType<typeof floatTensor>] => {
    const tensor = teacher.initializers.get(name)!;
    const values = toFloat32(tensor).map((value, i) => (i % 50 === 0 ? value : 0));
    return [name, floatTensor(tensor.dims, values)];
  };
  const pruned = ["second.W1", "second.W2", "third.W1", "third.W2"].map(sparse);
  const student = { ...teacher, initializers: new Map([...teacher.initializers, ...pruned]) };
  assert.deepEqual(names(student), ["features"]);
});

test("fine-tune: with smaller pictures only the features can be compared", () => {
  assert.deepEqual(names(teacher, "picture", [3, 16, 16]), ["features"]);
});
