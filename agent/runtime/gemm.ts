import { create, toBinary } from "@bufbuild/protobuf";
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorProto_DataType,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  ValueInfoProtoSchema,
} from "onnx-buf";
import { type ModelSession, openSession, type SessionConfig } from "./session.ts";

/** A matrix in single or double precision, row-major: `rows × cols` elements. */
interface Matrix<T extends Float32Array | Float64Array> {
  readonly data: T;
  readonly rows: number;
  readonly cols: number;
}

/** Which operands are taken transposed; neither by default. */
interface Transposes {
  readonly transA?: boolean;
  readonly transB?: boolean;
}

/** ONNX Runtime's matrix product, in the shape of the `Gemm` that `math` declares. */
export interface GemmEngine {
  /**
   * `op(a)·op(b)` in the precision of the operands, row-major, as a new array that the caller
   * owns. Blocks the calling thread while it computes.
   *
   * @throws {RangeError} if the sizes do not fit.
   */
  gemm<T extends Float32Array | Float64Array>(
    this: void,
    a: Matrix<T>,
    b: Matrix<T>,
    options?: Transposes,
  ): Promise<T>;
  /** Frees the sessions. */
  release(this: void): Promise<void>;
}

/** Opens the product on the first execution provider that takes it. */
export async function openGemm(
  config: Pick<SessionConfig, "executionProviders" | "intraOpThreads" | "log">,
): Promise<GemmEngine> {
  const sessions: ModelSession[] = [];
  for (const type of [TensorProto_DataType.FLOAT, TensorProto_DataType.DOUBLE]) {
    for (const which of [0, 1, 2, 3]) {
      const model = gemmModel((which & 1) !== 0, (which & 2) !== 0, type);
      sessions.push(await openSession(model, { ...config, keepMemory: false }));
    }
  }
  return {
    gemm: (a, b, options = {}) => {
      const { transA = false, transB = false } = options;
      checkSizes(a, b, transA, transB);
      const precision = a.data instanceof Float64Array ? 4 : 0;
      return multiply(sessions[precision + (transA ? 1 : 0) + (transB ? 2 : 0)]!, a, b);
    },
    release: async () => {
      for (const session of sessions) await session.release();
    },
  };
}

async function multiply<T extends Float32Array | Float64Array>(
  session: ModelSession,
  a: Matrix<T>,
  b: Matrix<T>,
): Promise<T> {
  const outputs = await session.run({
    a: { data: a.data, dims: [a.rows, a.cols] },
    b: { data: b.data, dims: [b.rows, b.cols] },
  });
  const product = outputs["product"]?.data;
  if (product?.constructor !== a.data.constructor) {
    throw new TypeError("expected a product of the operands' type");
  }
  return product as T;
}

type AnyMatrix = Matrix<Float32Array | Float64Array>;

function checkSizes(a: AnyMatrix, b: AnyMatrix, transA: boolean, transB: boolean): void {
  for (const [name, matrix] of Object.entries({ a, b })) {
    if (matrix.data.length !== matrix.rows * matrix.cols) {
      throw new RangeError(
        `${name}: expected ${matrix.rows}×${matrix.cols} values, got ${matrix.data.length}`,
      );
    }
  }
  const depth = transA ? a.rows : a.cols;
  const depthOfB = transB ? b.cols : b.rows;
  if (depth !== depthOfB) {
    throw new RangeError(`expected equal inner sizes, got ${depth} and ${depthOfB}`);
  }
}

/** The bytes of a model of one Gemm with free sizes (ONNX operator set 13). */
function gemmModel(transA: boolean, transB: boolean, elemType: TensorProto_DataType): Uint8Array {
  const value = (name: string, dims: readonly string[]) =>
    create(ValueInfoProtoSchema, {
      name,
      type: create(TypeProtoSchema, {
        value: {
          case: "tensorType",
          value: create(TypeProto_TensorSchema, {
            elemType,
            shape: create(TensorShapeProtoSchema, {
              dim: dims.map((dim) =>
                create(TensorShapeProto_DimensionSchema, {
                  value: { case: "dimParam", value: dim },
                }),
              ),
            }),
          }),
        },
      }),
    });
  const flag = (name: string, on: boolean) =>
    create(AttributeProtoSchema, {
      name,
      type: AttributeProto_AttributeType.INT,
      i: on ? 1n : 0n,
    });
  const graph = create(GraphProtoSchema, {
    name: "gemm",
    input: [value("a", ["a0", "a1"]), value("b", ["b0", "b1"])],
    output: [value("product", ["m", "n"])],
    node: [
      create(NodeProtoSchema, {
        opType: "Gemm",
        input: ["a", "b"],
        output: ["product"],
        attribute: [flag("transA", transA), flag("transB", transB)],
      }),
    ],
  });
  const model = create(ModelProtoSchema, {
    irVersion: 8n,
    opsetImport: [create(OperatorSetIdProtoSchema, { domain: "", version: 13n })],
    graph,
  });
  return toBinary(ModelProtoSchema, model);
}
