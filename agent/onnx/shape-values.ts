import { intAttribute, type Node } from "./graph.ts";
import { DataType, isFloatType } from "./tensor.ts";

/** What is known of a value before the graph runs. */
export interface Known {
  readonly dims: readonly number[];
  /** Elements of a small constant or of shape arithmetic, row-major. */
  readonly values?: readonly number[];
  /** Whether `values` are fractions: integers divide without rest, fractions do not. */
  readonly fractions?: boolean;
}

/** Elements of a small result; see {@link Known}. */
type Values = Required<Pick<Known, "values" | "fractions">>;

/**
 * Works out the elements of a small result: the arithmetic on shapes that exporters leave in a
 * graph, on scalars and lists.
 *
 * @param dims shape of the result.
 * @returns undefined where the operator is none of these, or an input is not known.
 */
export function inferValues(
  node: Node,
  inputs: readonly (Known | undefined)[],
  dims: readonly number[],
): Values | undefined {
  const [x] = inputs;
  const given = inputs.map((input) => input?.values);
  const whole = (values: readonly number[]): Values => ({ values, fractions: false });
  switch (node.opType) {
    case "Shape":
      return x && whole(x.dims.slice(...shapeRange(node, x.dims.length)));
    case "Size":
      return x && whole([x.dims.reduce((a, b) => a * b, 1)]);
    case "Constant":
    case "ConstantOfShape":
      return constantValues(node, dims);
    case "Cast":
      return castValues(node, x);
    case "Concat":
      return dims.length === 1 && given.every(Boolean)
        ? passOn(
            x,
            given.flatMap((v) => v!),
          )
        : undefined;
    case "Identity":
    case "Reshape":
    case "Squeeze":
    case "Unsqueeze":
      return passOn(x, given[0]);
    case "Expand":
      return given[0]?.length === 1 ? passOn(x, spread(given[0], dims)) : undefined;
    case "Gather":
      return gatherValues(x, given);
    case "Slice":
      return sliceValues(x, given);
    case "Range":
      return (
        given[0] &&
        passOn(
          x,
          Array.from({ length: dims[0]! }, (_, i) => given[0]![0]! + i * given[2]![0]!),
        )
      );
    case "ReduceProd":
      return x?.dims.length === 1 && given[0]
        ? passOn(x, [given[0].reduce((a, b) => a * b, 1)])
        : undefined;
    case "Where":
      return whereValues(inputs, dims);
    default:
      return elementwise(node, inputs, dims);
  }
}

function shapeRange(node: Node, rank: number): [number, number] {
  return [intAttribute(node, "start", 0), intAttribute(node, "end", rank)];
}

function passOn(
  like: Known | undefined,
  values: readonly number[] | undefined,
): Values | undefined {
  return values && { values, fractions: like?.fractions ?? false };
}

/** A single value repeated to fill `dims`; a list that fills them already stays. */
function spread(values: readonly number[], dims: readonly number[]): readonly number[] | undefined {
  const count = dims.reduce((a, b) => a * b, 1);
  if (values.length === count) return values;
  return values.length === 1 ? Array.from({ length: count }, () => values[0]!) : undefined;
}

function constantValues(node: Node, dims: readonly number[]): Values | undefined {
  const value = node.attributes.get("value");
  if (value === undefined && node.opType === "ConstantOfShape") {
    return { values: spread([0], dims)!, fractions: true };
  }
  if (value?.type !== "tensor" || value.value.strings) return undefined;
  const numbers = Array.from(value.value.data as ArrayLike<number | bigint>, Number);
  const filled = spread(numbers, dims);
  return filled && { values: filled, fractions: isFloatType(value.value.dataType) };
}

function castValues(node: Node, x: Known | undefined): Values | undefined {
  const to = intAttribute(node, "to", DataType.FLOAT) as DataType;
  const fractions = isFloatType(to);
  return x?.values && { values: fractions ? x.values : x.values.map(Math.trunc), fractions };
}

function gatherValues(
  x: Known | undefined,
  [list, indices]: readonly (readonly number[] | undefined)[],
): Values | undefined {
  if (x?.dims.length !== 1 || !list || !indices) return undefined;
  return passOn(
    x,
    indices.map((at) => list.at(at)!),
  );
}

function sliceValues(
  x: Known | undefined,
  [list, starts, ends, , steps]: readonly (readonly number[] | undefined)[],
): Values | undefined {
  if (x?.dims.length !== 1 || !list || !starts || !ends || (steps && steps[0] !== 1)) {
    return undefined;
  }
  return passOn(x, list.slice(starts[0], ends[0]));
}

function whereValues(
  inputs: readonly (Known | undefined)[],
  dims: readonly number[],
): Values | undefined {
  const lists = inputs.map((input) => input?.values && spread(input.values, dims));
  const [choose, yes, no] = lists;
  if (!choose || !yes || !no) return undefined;
  return passOn(
    inputs[1],
    choose.map((which, i) => (which ? yes[i]! : no[i]!)),
  );
}

const UNARY: Readonly<Record<string, (x: number) => number>> = {
  Neg: (x) => -x,
  Abs: Math.abs,
  Floor: Math.floor,
  Ceil: Math.ceil,
  Sqrt: Math.sqrt,
  Not: (x) => (x ? 0 : 1),
};

const BINARY: Readonly<Record<string, (a: number, b: number) => number>> = {
  Add: (a, b) => a + b,
  Sub: (a, b) => a - b,
  Mul: (a, b) => a * b,
  Div: (a, b) => a / b,
  Mod: (a, b) => a - b * Math.floor(a / b),
  Pow: (a, b) => a ** b,
  Max: Math.max,
  Min: Math.min,
  Equal: (a, b) => Number(a === b),
  Greater: (a, b) => Number(a > b),
  Less: (a, b) => Number(a < b),
};

function elementwise(
  node: Node,
  inputs: readonly (Known | undefined)[],
  dims: readonly number[],
): Values | undefined {
  const lists = inputs.map((input) => input?.values && spread(input.values, dims));
  const [a, b] = lists;
  const unary = UNARY[node.opType];
  if (unary && a) return passOn(inputs[0], a.map(unary));
  const binary = BINARY[node.opType];
  if (!binary || !a || !b || lists.length !== 2) return undefined;
  const fractions = inputs[0]?.fractions ?? false;
  const values = a.map((value, i) => binary(value, b[i]!));
  return {
    values: node.opType === "Div" && !fractions ? values.map(Math.trunc) : values,
    fractions,
  };
}
