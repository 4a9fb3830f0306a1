import { floatAttribute, intAttribute } from "../graph.ts";
import { elementCount } from "../tensor.ts";
import {
  type BackwardContext,
  type BackwardRule,
  outputGradient,
  unbroadcast,
} from "./backward-rule.ts";

/** A · B of two matrices, either of them transposed, times alpha. */
function product(
  context: BackwardContext,
  a: string,
  transA: boolean,
  b: string,
  transB: boolean,
  alpha = 1,
): string {
  return context.make("Gemm", [a, b], {
    transA: Number(transA),
    transB: Number(transB),
    alpha: { type: "float", value: alpha },
  });
}

/** The value itself where it has that shape already. */
function reshaped(context: BackwardContext, value: string, dims: readonly number[]): string {
  if (context.dims(value).join() === dims.join()) return value;
  return context.make("Reshape", [value, context.integers(dims)]);
}

/**
 * Y = α · A' · B' + β · C, where A' is A or its transpose, B' likewise, and C is broadcast:
 * dA' = α · dY · B'ᵀ, dB' = α · A'ᵀ · dY, dC = β · dY summed to the shape of C.
 *
 * The gradient of a transposed operand comes out transposed by the order of the factors, so that
 * nothing is transposed on its own.
 */
const gemm: BackwardRule = (context) => {
  const { node } = context;
  const [a = "", b = "", c = ""] = node.inputs;
  const dy = outputGradient(context);
  const transA = intAttribute(node, "transA", 0) !== 0;
  const transB = intAttribute(node, "transB", 0) !== 0;
  const alpha = floatAttribute(node, "alpha", 1);
  const beta = floatAttribute(node, "beta", 1);
  const gradientOfA = () =>
    transA
      ? product(context, b, transB, dy, true, alpha)
      : product(context, dy, false, b, !transB, alpha);
  const gradientOfB = () =>
    transB
      ? product(context, dy, true, a, transA, alpha)
      : product(context, a, !transA, dy, false, alpha);
  const gradientOfC = () => {
    const sum = unbroadcast(context, dy, context.dims(c));
    return beta === 1 ? sum : context.make("Mul", [sum, context.floats([], [beta])]);
  };
  return [
    context.wants(0) ? gradientOfA() : undefined,
    context.wants(1) ? gradientOfB() : undefined,
    context.wants(2) ? gradientOfC() : undefined,
  ];
};

/** A stack of matrices with the last two axes exchanged. */
function transposed(context: BackwardContext, value: string): string {
  const last = context.dims(value).length - 1;
  const perm = Array.from({ length: last + 1 }, (_, i) => i);
  perm[last] = last - 1;
  perm[last - 1] = last;
  return context.make("Transpose", [value], { perm });
}

/**
 * Y = A · B with one matrix B for all rows of all matrices of A, as a linear layer has it:
 * dA = dY · Bᵀ and dB = Aᵀ · dY, with all rows under one another, `[N·T, K]` and `[N·T, O]`. So dB
 * is one large product, with no stack of products to be summed.
 */
function behindSharedMatrix(
  context: BackwardContext,
  a: string,
  b: string,
  dy: string,
): (string | undefined)[] {
  const dimsA = context.dims(a);
  const [inner = 1, columns = 1] = context.dims(b).slice(-2);
  const rows = elementCount(dimsA.slice(0, -1));
  const flatDy = reshaped(context, dy, [rows, columns]);
  const gradientOfA = () => {
    const matrix = reshaped(context, b, [inner, columns]);
    return reshaped(context, product(context, flatDy, false, matrix, true), dimsA);
  };
  const gradientOfB = () => {
    const flatA = reshaped(context, a, [rows, inner]);
    return reshaped(context, product(context, flatA, true, flatDy, false), context.dims(b));
  };
  return [
    context.wants(0) ? gradientOfA() : undefined,
    context.wants(1) ? gradientOfB() : undefined,
  ];
}

/**
 * Y = A · B of stacks of matrices, whose leading axes broadcast: dA = dY · Bᵀ, dB = Aᵀ · dY, each
 * summed over the axes along which it was broadcast. A vector is one row on the left and one column
 * on the right.
 */
const matMul: BackwardRule = (context) => {
  const [a = "", b = ""] = context.node.inputs;
  const [dimsA, dimsB] = [context.dims(a), context.dims(b)];
  const matrixA = dimsA.length === 1 ? [1, ...dimsA] : dimsA;
  const matrixB = dimsB.length === 1 ? [...dimsB, 1] : dimsB;
  const y = outputGradient(context);
  const outer = context.dims(y).slice(0, Math.max(matrixA.length, matrixB.length) - 2);
  const dy = reshaped(context, y, [...outer, matrixA.at(-2)!, matrixB.at(-1)!]);
  const [left, right] = [reshaped(context, a, matrixA), reshaped(context, b, matrixB)];
  const back = ([da, db]: readonly (string | undefined)[]) => [
    da && reshaped(context, da, dimsA),
    db && reshaped(context, db, dimsB),
  ];
  if (elementCount(matrixB.slice(0, -2)) === 1) {
    return back(behindSharedMatrix(context, left, right, dy));
  }
  const stack = (first: string, second: string, dims: readonly number[]) =>
    unbroadcast(context, context.make("MatMul", [first, second]), dims);
  return back([
    context.wants(0) ? stack(dy, transposed(context, right), matrixA) : undefined,
    context.wants(1) ? stack(transposed(context, left), dy, matrixB) : undefined,
  ]);
};

/** Products of matrices. */
export const MATRIX_PRODUCT_RULES: Readonly<Record<string, BackwardRule>> = {
  Gemm: gemm,
  MatMul: matMul,
};
