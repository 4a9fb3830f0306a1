import { type Graph, intAttribute, intsAttribute, type Node, stringAttribute } from "./graph.ts";
import { inferShapes } from "./infer-shapes.ts";
import { freeName } from "./query.ts";
import { hasSubgraphs } from "./rename.ts";
import { int64Tensor, type Tensor } from "./tensor.ts";

/** LayerNormalization came with 17; every ONNX Runtime since 1.12 and TensorRT 8.6 read it. */
const TARGET = 17;
/** File format of the ONNX release that brought the target. */
const TARGET_IR = 8;
/** The oldest operator set whose nodes are known to mean the same, or are rewritten below. */
const OLDEST = 11;

/** Operators of opset 11 whose every use means the same in opset 17. */
const UNCHANGED = new Set(
  (
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BitShift Cast Ceil " +
    "Celu Clip Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum " +
    "DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather " +
    "GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater " +
    "GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LRN LeakyRelu " +
    "Less LessOrEqual Log LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean " +
    "MeanVarianceNormalization Min Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear Range " +
    "Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin " +
    "ReduceProd ReduceSumSquare Relu Reshape Round ScatterElements ScatterND Selu Shape " +
    "Sigmoid Sign Sin Sinh Size Slice Softplus Softsign SpaceToDepth Sqrt Sub Sum Tan Tanh " +
    "ThresholdedRelu Tile TopK Transpose Trilu Where Xor"
  ).split(" "),
);

/** Operators whose axes, or sizes, moved from an attribute to the second input with opset 13. */
const MOVED: Readonly<Record<string, string>> = {
  Squeeze: "axes",
  Unsqueeze: "axes",
  ReduceSum: "axes",
  Split: "split",
};

/**
 * The same function in the operator set 17, so that all that follows has one form to know. Graphs
 * of 17 and later, and those with a node whose meaning has changed in a way not known here, come
 * back as they are.
 */
export function raiseOpset(graph: Graph): Graph {
  if (graph.opset >= TARGET || graph.opset < OLDEST || hasSubgraphs(graph)) return graph;
  const initializers = new Map(graph.initializers);
  const ranks = ranksOf(graph);
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    const raised = raisedNode(graph, node, initializers, ranks);
    if (raised === null) return graph;
    nodes.push(raised);
  }
  const irVersion = Math.max(graph.irVersion, TARGET_IR);
  return { ...graph, nodes, initializers, opset: TARGET, irVersion };
}

/** Ranks of values, as far as they can be told without knowing the sizes of the input. */
function ranksOf(graph: Graph): ReadonlyMap<string, number> {
  const ranks = new Map<string, number>();
  const dims = new Map<string, readonly number[]>();
  for (const input of graph.inputs) {
    if (input.dims)
      dims.set(
        input.name,
        input.dims.map((d) => (typeof d === "number" ? d : 224)),
      );
  }
  try {
    for (const [name, known] of inferShapes(graph, dims)) ranks.set(name, known.dims.length);
  } catch (error) {
    // Sizes that are only supposed may not fit; ranks are then taken from what the file states.
    if (!(error instanceof RangeError)) throw error;
  }
  for (const value of [...graph.valueInfos.values(), ...graph.outputs]) {
    if (value.dims) ranks.set(value.name, value.dims.length);
  }
  return ranks;
}

function raisedNode(
  graph: Graph,
  node: Node,
  initializers: Map<string, Tensor>,
  ranks: ReadonlyMap<string, number>,
): Node | null {
  if (node.domain !== "" || UNCHANGED.has(node.opType)) return node;
  const moved = MOVED[node.opType];
  if (moved !== undefined) return withMovedInput(graph, node, moved, initializers);
  switch (node.opType) {
    case "BatchNormalization":
      // Its running statistics are no outputs any more.
      return node.outputs.slice(1).some((name) => name !== "") ? null : node;
    case "Softmax":
    case "LogSoftmax":
      return graph.opset >= 13 ? node : softmaxOverLast(node, ranks);
    case "Resize":
      return stringAttribute(node, "coordinate_transformation_mode", "") === "tf_half_pixel_for_nn"
        ? null
        : node;
    case "Dropout":
      return graph.opset >= 12 ? node : null;
    default:
      return null;
  }
}

function withMovedInput(
  graph: Graph,
  node: Node,
  attribute: string,
  initializers: Map<string, Tensor>,
): Node {
  const values = intsAttribute(node, attribute, []);
  if (graph.opset >= 13 || values.length === 0) return node;
  const name = freeName(graph, `${node.outputs[0]}_${attribute}`, new Set(initializers.keys()));
  initializers.set(name, int64Tensor([values.length], values));
  const attributes = new Map([...node.attributes].filter(([key]) => key !== attribute));
  return { ...node, inputs: [node.inputs[0]!, name], attributes };
}

/** Before opset 13 all axes from `axis` on were taken as one; over the last alone it is the same. */
function softmaxOverLast(node: Node, ranks: ReadonlyMap<string, number>): Node | null {
  const rank = ranks.get(node.inputs[0] ?? "") ?? ranks.get(node.outputs[0] ?? "");
  const axis = intAttribute(node, "axis", 1);
  if (axis !== -1 && (rank === undefined || axis !== rank - 1)) return null;
  return { ...node, attributes: new Map(node.attributes).set("axis", { type: "int", value: -1 }) };
}
