import { buildModel, floatValue, node } from "../onnx/builder.ts";
import { DataType, type Tensor } from "../onnx/tensor.ts";
import type { Engine } from "./engine.ts";

/** Inputs and outputs of the product that is tried: enough for every kernel's main loop. */
const SIZE = 64;

/**
 * Bits that the weights of integer layers may have on this device: 8, or 7 where two products of 8
 * bits overflow. x64 processors without VNNI add pairs of products in 16 bits and cut what does not
 * fit (VPMADDUBSW): 255·127·2 > 2¹⁵ − 1, 255·63·2 is not. With 8 bits their answers are wrong, and no
 * error is reported.
 */
export async function integerWeightBits(engine: Engine): Promise<7 | 8> {
  const weights: Tensor = {
    dataType: DataType.INT8,
    dims: [SIZE, SIZE],
    data: new Int8Array(SIZE * SIZE).fill(127),
  };
  const product = buildModel({
    nodes: [
      node("Cast", ["x"], ["codes"], { to: DataType.UINT8 }),
      node("MatMulInteger", ["codes", "w"], ["sums"]),
      node("Cast", ["sums"], ["y"], { to: DataType.FLOAT }),
    ],
    inputs: [floatValue("x", [SIZE, SIZE])],
    outputs: [floatValue("y", [SIZE, SIZE])],
    initializers: { w: weights },
  });
  const session = await engine.open(product);
  try {
    const data = new Float32Array(SIZE * SIZE).fill(255);
    const { y } = await session.run({ x: { data, dims: [SIZE, SIZE] } });
    return (y!.data as Float32Array).every((sum) => sum === SIZE * 255 * 127) ? 8 : 7;
  } finally {
    await session.release();
  }
}
