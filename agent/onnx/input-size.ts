import { removeDeadCode } from "./dead-code.ts";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import { inferNode, knownTensor } from "./infer-shapes.ts";
import { describe, freeName } from "./query.ts";
import { resampleGrid } from "./resample-grid.ts";
import type { Known } from "./shape-values.ts";
import {
  elementCount,
  int64Tensor,
  isFloatType,
  type Tensor,
  toFloat32,
  withFloatValues,
} from "./tensor.ts";

/** Why something could not be done, in words. */
interface Refused {
  readonly reason: string;
}

/** Stands for a batch of any size: a prime that no network has for a width. */
const ANY_BATCH = 10_007;

/**
 * The network for pictures of another size. What the picture's size has been written into follows:
 * constant targets of Reshape and Expand, ends of Slice, pools whose window is the whole picture,
 * and position embeddings, which are resampled on their grid (class and other extra tokens stay
 * as they are). At its own size the graph comes back as it is.
 *
 * The graph is walked at both sizes at once; every constant that stands in the way of the new
 * one must be explained by the shapes found so far, or the graph is refused.
 *
 * @param graph normalized; its input `[N, channels, height, width]` must state its size.
 * @param height, width in pixels, 1 or more.
 * @returns the graph, or the reason why it cannot be used at that size.
 */
export function withInputSize(graph: Graph, height: number, width: number): Graph | Refused {
  const [input, ...others] = graph.inputs;
  const dims = input?.dims;
  if (!input || others.length > 0 || dims?.length !== 4) {
    return { reason: `expected one input [N, channels, height, width], got [${dims ?? ""}]` };
  }
  const [batch, channels, oldHeight, oldWidth] = dims;
  if (
    typeof channels !== "number" ||
    typeof oldHeight !== "number" ||
    typeof oldWidth !== "number"
  ) {
    return { reason: `the input [${dims}] does not state the size that it is used with` };
  }
  if (oldHeight === height && oldWidth === width) return graph;
  const first = typeof batch === "number" ? batch : ANY_BATCH;
  const walk = new Walk(graph);
  walk.old.set(input.name, { dims: [first, channels, oldHeight, oldWidth] });
  walk.now.set(input.name, { dims: [first, channels, height, width] });
  walk.notePairs(input.name);
  let nodes: Node[];
  try {
    nodes = graph.nodes.map((node) => walk.step(node));
    walk.checkOutputs();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return { reason: `at ${height}×${width}: ${error.message}` };
  }
  const resized: ValueInfo = { ...input, dims: [dims[0]!, channels, height, width] };
  return removeDeadCode({
    ...graph,
    nodes,
    inputs: [resized],
    initializers: walk.initializers,
    valueInfos: new Map(),
  });
}

/** Tokens that are places of a grid, behind `before` others: `[… before, rows · columns, …]`. */
interface TokenGrid {
  readonly count: { readonly old: number; readonly now: number };
  readonly from: readonly [number, number];
  readonly to: readonly [number, number];
  readonly before: number;
}

/** One pass over the nodes with the shapes at both sizes in hand. */
class Walk {
  readonly old = new Map<string, Known>();
  readonly now = new Map<string, Known>();
  readonly initializers: Map<string, Tensor>;
  readonly #graph: Graph;
  /** Sizes that have changed so far, by what they were. */
  readonly #pairs = new Map<number, Set<number>>();
  readonly #grids: TokenGrid[] = [];

  constructor(graph: Graph) {
    this.#graph = graph;
    this.initializers = new Map(graph.initializers);
    for (const [name, tensor] of graph.initializers) {
      const known = knownTensor(tensor);
      this.old.set(name, known);
      this.now.set(name, known);
    }
  }

  /** @throws {RangeError} naming a node that does not fit the new size. */
  step(node: Node): Node {
    const was = inferNode(node, this.#at(this.old, node));
    const adapted = this.#adapt(node, was);
    const is = inferNode(adapted, this.#at(this.now, adapted));
    node.outputs.forEach((name, i) => {
      const [before, after] = [was[i], is[i]];
      if (before) this.old.set(name, before);
      if (after) this.now.set(name, after);
      this.notePairs(name);
    });
    this.#noteGrids(node);
    return adapted;
  }

  notePairs(name: string): void {
    const [before, after] = [this.old.get(name)?.dims, this.now.get(name)?.dims];
    if (before?.length !== after?.length) return;
    before?.forEach((size, i) => {
      if (size === after![i]) return;
      this.#pairs.set(size, (this.#pairs.get(size) ?? new Set()).add(after![i]!));
    });
  }

  /** What the network hands out must keep its shape: its readers were made for it. */
  checkOutputs(): void {
    for (const { name } of this.#graph.outputs) {
      const [before, after] = [this.old.get(name), this.now.get(name)];
      if (before && after && !equal(before.dims, after.dims)) {
        const shape = (dims: readonly number[]) =>
          dims.map((size) => (size === ANY_BATCH ? "N" : size)).join(", ");
        throw new RangeError(
          `the output "${name}" would be [${shape(after.dims)}] in place of [${shape(before.dims)}]`,
        );
      }
    }
  }

  #at(known: ReadonlyMap<string, Known>, node: Node): (Known | undefined)[] {
    return node.inputs.map((name) => known.get(name));
  }

  #adapt(node: Node, was: readonly (Known | undefined)[]): Node {
    switch (node.opType) {
      case "Reshape":
        return this.#adaptReshape(node, was[0]);
      case "Expand":
        return this.#adaptExpand(node);
      case "Slice":
        return this.#adaptSlice(node);
      case "AveragePool":
      case "MaxPool":
        return this.#adaptPool(node, was[0]);
      case "Add":
      case "Sub":
      case "Mul":
      case "Div":
        return this.#adaptConstant(node, was[0]);
      default:
        return node;
    }
  }

  /** Target sizes that came from the old picture take the new one's. */
  #adaptReshape(node: Node, result: Known | undefined): Node {
    const target = node.inputs[1] ?? "";
    const written = this.initializers.has(target) ? this.old.get(target)?.values : undefined;
    if (written === undefined || written.filter((size) => size > 0).length === 0) return node;
    const [before, after] = this.#both(node, 0);
    const sizes = reshapedSizes(node, before, after, result!.dims, this.#pairs);
    const next = written.map((size, i) => (size > 0 ? sizes[i]! : size));
    return equal(next, written) ? node : this.#withInput(node, 1, int64Tensor([next.length], next));
  }

  /** Shapes of an input at both sizes. */
  #both(node: Node, at: number): [readonly number[], readonly number[]] {
    const name = node.inputs[at] ?? "";
    const [before, after] = [this.old.get(name), this.now.get(name)];
    if (before && after) return [before.dims, after.dims];
    throw new RangeError(`the shape that ${describe(node)} gets is not known`);
  }

  /** A size of 1 keeps what is there. */
  #adaptExpand(node: Node): Node {
    const name = node.inputs[1] ?? "";
    const written = this.initializers.has(name) ? this.old.get(name)?.values : undefined;
    if (written === undefined) return node;
    const [before, after] = this.#both(node, 0);
    const next = written.map((size, i) => {
      const at = i - written.length + before.length;
      return size === before[at] && size !== after[at] ? 1 : size;
    });
    return equal(next, written) ? node : this.#withInput(node, 1, int64Tensor([next.length], next));
  }

  /** An end at the last place stays at the last place. */
  #adaptSlice(node: Node): Node {
    const name = node.inputs[2] ?? "";
    const written = this.initializers.has(name) ? this.old.get(name)?.values : undefined;
    if (written === undefined) return node;
    const [before, after] = this.#both(node, 0);
    const axes = node.inputs[3] ? this.old.get(node.inputs[3])?.values : undefined;
    const next = written.map((end, i) => {
      const axis = axes?.[i] ?? i;
      const at = axis < 0 ? axis + before.length : axis;
      return end > 0 && end === before[at] ? after[at]! : end;
    });
    return equal(next, written) ? node : this.#withInput(node, 2, int64Tensor([next.length], next));
  }

  /** Exporters write a global pool as one over the whole, known size. */
  #adaptPool(node: Node, result: Known | undefined): Node {
    const kernel = node.attributes.get("kernel_shape");
    const name = node.inputs[0] ?? "";
    const [before, after] = [this.old.get(name)?.dims, this.now.get(name)?.dims];
    if (kernel?.type !== "ints" || !before || !after || !result || node.outputs[1]) return node;
    const whole = equal(kernel.value, before.slice(2)) && !equal(before, after);
    if (!whole || result.dims.slice(2).some((size) => size !== 1)) return node;
    return { ...node, opType: `Global${node.opType}`, attributes: new Map() };
  }

  /** A constant with one value a place (a position embedding) is resampled. */
  #adaptConstant(node: Node, result: Known | undefined): Node {
    const side = node.inputs.findIndex((name) => this.initializers.has(name));
    const constant = this.initializers.get(node.inputs[side] ?? "");
    if (!constant || node.inputs.length !== 2 || !isFloatType(constant.dataType)) return node;
    const [before, after] = [this.old, this.now].map(
      (known) => known.get(node.inputs[1 - side]!)?.dims,
    );
    if (!result || !before || !after) return node;
    const changed = constant.dims.flatMap((size, axis) => {
      const at = axis - constant.dims.length + before.length;
      return size !== 1 && size === before[at] && size !== after[at] ? [{ axis, at }] : [];
    });
    if (changed.length === 0) return node;
    const places = changed.map(({ at }) => after[at]!);
    const axes = changed.map(({ axis }) => axis);
    const next =
      axes.length === 1
        ? this.#resampleTokens(constant, axes[0]!, places[0]!)
        : resamplePlane(constant, axes, places);
    if (next) return this.#withInput(node, side, next);
    throw new RangeError(
      `${describe(node)} has a constant [${constant.dims}] that holds one value a place, on no grid that is known`,
    );
  }

  #resampleTokens(constant: Tensor, axis: number, places: number): Tensor | undefined {
    const count = constant.dims[axis]!;
    const grid = this.#grids.find(({ count: { old, now } }) => old === count && now === places);
    if (grid === undefined) return undefined;
    const { before, from, to } = grid;
    const behind = count - before - from[0] * from[1];
    const outer = elementCount(constant.dims.slice(0, axis));
    const inner = elementCount(constant.dims.slice(axis + 1));
    const source = toFloat32(constant);
    const result = new Float32Array(outer * places * inner);
    for (let o = 0; o < outer; o++) {
      const tokens = source.subarray(o * count * inner, (o + 1) * count * inner);
      const middle = tokens.subarray(before * inner, (count - behind) * inner);
      const start = o * places * inner;
      result.set(tokens.subarray(0, before * inner), start);
      result.set(resampleGrid(middle, { outer: 1, inner }, from, to), start + before * inner);
      result.set(tokens.subarray((count - behind) * inner), start + (places - behind) * inner);
    }
    const dims = constant.dims.with(axis, places);
    return withFloatValues({ ...constant, dims }, result);
  }

  /** Keeps track of which token counts are grids, and of what was put in front of them. */
  #noteGrids(node: Node): void {
    if (node.opType === "Reshape" || node.opType === "Flatten") this.#noteFlattened(node);
    if (node.opType === "Concat") this.#noteConcatenated(node);
  }

  #noteFlattened(node: Node): void {
    const before = this.old.get(node.inputs[0] ?? "")?.dims;
    const after = this.now.get(node.inputs[0] ?? "")?.dims;
    const result = this.old.get(node.outputs[0]!)?.dims;
    if (!before || !after || !result) return;
    for (const { from, to } of alignSizes(before, result)) {
      const moved = from.filter((i) => before[i] !== 1 || after[i] !== 1);
      if (moved.length !== 2 || to.filter((i) => result[i] !== 1).length !== 1) continue;
      const [a, b] = moved as [number, number];
      if (b !== a + 1 || a === 0) continue;
      const grids = [before, after].map((dims) => [dims[a]!, dims[b]!] as const);
      const [from2, to2] = grids as [readonly [number, number], readonly [number, number]];
      const count = { old: from2[0] * from2[1], now: to2[0] * to2[1] };
      if (count.old !== count.now) this.#grids.push({ count, from: from2, to: to2, before: 0 });
    }
  }

  #noteConcatenated(node: Node): void {
    const before = node.inputs.map((name) => this.old.get(name)?.dims);
    const after = node.inputs.map((name) => this.now.get(name)?.dims);
    const result = this.old.get(node.outputs[0]!)?.dims;
    const changed = before.findIndex((dims, i) => dims && after[i] && !equal(dims, after[i]));
    if (!result || changed < 0 || before.some((dims) => !dims)) return;
    const axis = result.findIndex((size, i) => size !== before[changed]![i]);
    const grid = this.#grids.find(
      ({ count }) => count.old === before[changed]![axis] && count.now === after[changed]![axis],
    );
    if (axis < 0 || grid === undefined) return;
    const added = before.reduce((sum, dims) => sum + dims![axis]!, 0) - grid.count.old;
    const ahead = before.slice(0, changed).reduce((sum, dims) => sum + dims![axis]!, 0);
    this.#grids.push({
      ...grid,
      count: { old: grid.count.old + added, now: grid.count.now + added },
      before: grid.before + ahead,
    });
  }

  /** The node with another constant; whoever else reads the old one keeps it. */
  #withInput(node: Node, at: number, tensor: Tensor): Node {
    const taken = new Set(this.initializers.keys());
    const name = freeName(this.#graph, `${node.inputs[at]}_resized`, taken);
    this.initializers.set(name, tensor);
    const known = knownTensor(tensor);
    this.now.set(name, known);
    return { ...node, inputs: node.inputs.with(at, name) };
  }
}

function equal(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

/** A constant over two neighboring axes, rows and columns. */
function resamplePlane(
  constant: Tensor,
  axes: readonly number[],
  places: readonly number[],
): Tensor | undefined {
  const [row, column, ...more] = axes;
  if (row === undefined || column !== row + 1 || more.length > 0) return undefined;
  const { dims } = constant;
  const outer = elementCount(dims.slice(0, row));
  const inner = elementCount(dims.slice(column + 1));
  const to = [places[0]!, places[1]!] as const;
  const from = [dims[row]!, dims[column]!] as const;
  const values = resampleGrid(toFloat32(constant), { outer, inner }, from, to);
  return withFloatValues({ ...constant, dims: dims.with(row, to[0]).with(column, to[1]) }, values);
}

/** Axes that a Reshape turns into one another: the smallest runs of equal products. */
interface Run {
  readonly from: readonly number[];
  readonly to: readonly number[];
}

function alignSizes(from: readonly number[], to: readonly number[]): Run[] {
  const runs: Run[] = [];
  let [i, j] = [0, 0];
  while (i < from.length || j < to.length) {
    const run = { from: [] as number[], to: [] as number[] };
    let [a, b] = [1, 1];
    do {
      const first = a <= b ? i < from.length : j >= to.length;
      if (first) {
        a *= from[i]!;
        run.from.push(i++);
      } else {
        b *= to[j]!;
        run.to.push(j++);
      }
    } while (a !== b && (i < from.length || j < to.length));
    runs.push(run);
  }
  return runs;
}

/** The sizes that a Reshape gives at the new picture size, by those it gave at the old. */
function reshapedSizes(
  node: Node,
  before: readonly number[],
  after: readonly number[],
  result: readonly number[],
  pairs: ReadonlyMap<number, ReadonlySet<number>>,
): number[] {
  const sizes = [...result];
  for (const { from, to } of alignSizes(before, result)) {
    if (from.every((i) => before[i] === after[i])) continue;
    const product = elementCount(from.map((i) => after[i]!));
    const parts = to.filter((j) => result[j] !== 1);
    const ways = choices(
      parts.map((j) => sizesNow(result[j]!, pairs)),
      product,
    );
    const [only, ...more] = parts.length === 1 ? [[product]] : ways;
    if (only === undefined || more.length > 0) {
      const how = only === undefined ? "no size seen before" : "more than one size";
      throw new RangeError(
        `${describe(node)} splits ${product} places into [${to.map((j) => result[j])}] of old: ${how} fits`,
      );
    }
    parts.forEach((j, k) => {
      sizes[j] = only[k]!;
    });
  }
  return sizes;
}

/** What a size may be at the new picture size, alone or times the batch. */
function sizesNow(size: number, pairs: ReadonlyMap<number, ReadonlySet<number>>): number[] {
  const batched = size % ANY_BATCH === 0 ? [...(pairs.get(size / ANY_BATCH) ?? [])] : [];
  const now = batched.map((part) => part * ANY_BATCH);
  return [...new Set([size, ...(pairs.get(size) ?? []), ...now])];
}

/** Every choice of one option each whose product is `product`. */
function choices(options: readonly (readonly number[])[], product: number): number[][] {
  const [first, ...rest] = options;
  if (first === undefined) return product === 1 ? [[]] : [];
  return first.flatMap((size) =>
    product % size === 0 ? choices(rest, product / size).map((way) => [size, ...way]) : [],
  );
}
