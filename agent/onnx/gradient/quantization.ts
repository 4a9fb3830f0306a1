import { intAttribute } from "../graph.ts";
import { DataType, dataTypeName, integersOf, type Tensor, toFloat32 } from "../tensor.ts";
import { isWithin } from "./activation.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";

/** Least and largest code of the types that values are quantized to. */
const CODES: ReadonlyMap<DataType, readonly [number, number]> = new Map([
  [DataType.INT8, [-128, 127]],
  [DataType.UINT8, [0, 255]],
  [DataType.INT16, [-32768, 32767]],
  [DataType.UINT16, [0, 65535]],
] as const);

/**
 * q = round(x / s) + z, cut off at the least and the largest code: by the straight-through estimate
 * (Bengio et al. 2013, arXiv:1308.3432) rounding counts as the identity, so
 * dx = dq · 1[q_min ≤ x / s + z ≤ q_max].
 *
 * The gradient of q is in units of the value that it stands for: dq here is 1 / s of the
 * derivative. The s of this node and of the DequantizeLinear that turns q back, which is expected
 * to have the same one, thus cancel. Scales and zero points are constants, not trained.
 */
const quantizeLinear: BackwardRule = (context) => {
  const { low, high } = limits(context);
  const [x = ""] = context.node.inputs;
  const mask = isWithin(context, x, low, high, "inside")!;
  return [context.make("Mul", [outputGradient(context), mask])];
};

/** y = (q − z) · s: dq = dy, in units of the value that q stands for. */
const dequantizeLinear: BackwardRule = (context) => {
  if (context.wants(1) || context.wants(2)) throw new RangeError("its scale is not constant");
  return [outputGradient(context)];
};

/** The least and the largest x that are not cut off, shaped to broadcast to x. */
function limits(context: BackwardContext): { low: string; high: string } {
  const { inputs } = context.node;
  const scale = context.constant(inputs[1]!);
  const zero = inputs[2] ? context.constant(inputs[2]) : undefined;
  if (scale === undefined || (inputs[2] && zero === undefined)) {
    throw new RangeError("its scale or zero point is not constant");
  }
  const [least, largest] = codes(context, zero);
  if (intAttribute(context.node, "block_size", 0) !== 0) {
    throw new RangeError("expected scales a tensor or a channel, got blocks");
  }
  const rank = context.dims(inputs[0]!).length;
  const axis = (intAttribute(context.node, "axis", 1) + rank) % rank;
  const behind = Array.from({ length: rank - 1 - axis }, () => 1);
  const scales = toFloat32(scale);
  const zeros = zero && integersOf(zero);
  const limit = (code: number) =>
    context.floats(
      scales.length === 1 ? [] : [scales.length, ...behind],
      scales.map((s, i) => (code - (zeros?.[i] ?? 0)) * s),
    );
  return { low: limit(least), high: limit(largest) };
}

function codes(context: BackwardContext, zero: Tensor | undefined): readonly [number, number] {
  const stated = intAttribute(context.node, "output_dtype", 0) || DataType.UINT8;
  const type = zero?.dataType ?? (stated as DataType);
  const found = CODES.get(type);
  if (found) return found;
  throw new RangeError(`expected codes of 8 or 16 bits, got ${dataTypeName(type)}`);
}

/** Quantization to integers and back. */
export const QUANTIZATION_RULES: Readonly<Record<string, BackwardRule>> = {
  QuantizeLinear: quantizeLinear,
  DequantizeLinear: dequantizeLinear,
};
