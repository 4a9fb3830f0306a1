import { test } from "node:test";
import { node } from "../../agent/onnx/builder.ts";
import { elementCount } from "../../agent/onnx/tensor.ts";
import { assertGradients, randomIn, type Values } from "./gradient.helpers.ts";

/** Softmax along an axis, in double precision. */
function softmax({ dims, data }: Values, axis: number): Values {
  const inner = elementCount(dims.slice(axis + 1));
  const size = dims[axis]!;
  const lineOf = (place: number) => place - (Math.floor(place / inner) % size) * inner;
  const exponentials = Array.from(data, Math.exp);
  const sums = new Map<number, number>();
  exponentials.forEach((value, place) => {
    sums.set(lineOf(place), (sums.get(lineOf(place)) ?? 0) + value);
  });
  return { dims, data: exponentials.map((value, place) => value / sums.get(lineOf(place))!) };
}

for (const opType of ["Softmax", "LogSoftmax"]) {
  test(`gradient of ${opType}: along any axis, the last one if none is given`, async () => {
    const dims = [2, 3, 2, 5];
    for (const [seed, axis] of [0, 1, -2, 3, undefined].entries()) {
      await assertGradients(
        {
          nodes: [node(opType, ["x"], ["y"], axis === undefined ? {} : { axis })],
          inputs: { x: randomIn(dims, seed, -3, 3) },
          oracle: ([x]) => {
            const shares = softmax(x!, ((axis ?? -1) + dims.length) % dims.length);
            if (opType === "Softmax") return shares;
            return { dims, data: Array.from(shares.data, Math.log) };
          },
        },
        seed,
      );
    }
  });
}
