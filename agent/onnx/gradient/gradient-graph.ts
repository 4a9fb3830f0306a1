import { type AttributeValue, floatValue, node } from "../builder.ts";
import { removeDeadCode } from "../dead-code.ts";
import { type Graph, type Node, qualifiedName } from "../graph.ts";
import { inferNode, inferShapes, knownTensor } from "../infer-shapes.ts";
import { describe, readsOf } from "../query.ts";
import type { Known } from "../shape-values.ts";
import { elementCount, floatTensor, int64Tensor, type Tensor } from "../tensor.ts";
import type { BackwardContext, BackwardRule } from "./backward-rule.ts";
import { BACKWARD_RULES } from "./rules.ts";

/** What to differentiate. */
export interface GradientOptions {
  /** Shape of each graph input. */
  readonly inputDims: ReadonlyMap<string, readonly number[]>;
  /** The value to differentiate: one number. */
  readonly loss: string;
  /** Initializers and graph inputs whose gradients are wanted; initializers become inputs. */
  readonly of: readonly string[];
}

/** A graph that computes a loss and its gradients. */
export interface GradientGraph {
  /**
   * The forward graph, whose outputs stay, followed by the backward one. Differentiated
   * initializers are inputs; the gradients, and the loss, are further outputs.
   */
  readonly graph: Graph;
  /** The output that holds the gradient of each value, in the value's shape. */
  readonly gradients: ReadonlyMap<string, string>;
}

/** The standard operator set from which ReduceSum, Squeeze and Split take axes and sizes as inputs. */
const LEAST_OPSET = 13;

/**
 * Reverse-mode differentiation of a graph, as a graph: every node on a path from a wanted value to
 * the loss is followed, from the last to the first, by the nodes that its operator's backward rule
 * builds (Griewank & Walther, Evaluating Derivatives, ch. 3). Shapes are those of `inputDims`.
 *
 * @throws {RangeError} where the loss is no single number or does not depend on a wanted value, a
 *   shape on the way is not known, or an operator has no rule: then with what can be frozen.
 */
export function buildGradientGraph(forward: Graph, options: GradientOptions): GradientGraph {
  const { loss, of, inputDims } = options;
  if (forward.opset < LEAST_OPSET) {
    throw new RangeError(`expected operator set ${LEAST_OPSET} or later, got ${forward.opset}`);
  }
  const builder = new BackwardBuilder(forward, inputDims, of);
  builder.differentiate(loss);
  const gradients = new Map(of.map((name) => [name, builder.gradientOf(name, loss)]));
  const trained = of.filter((name) => forward.initializers.has(name));
  const initializers = new Map([...forward.initializers, ...builder.constants]);
  for (const name of trained) initializers.delete(name);
  const stated = new Set(forward.outputs.map(({ name }) => name));
  const added = [loss, ...gradients.values()].filter((name) => !stated.has(name));
  const graph = removeDeadCode({
    ...forward,
    nodes: [...forward.nodes, ...builder.nodes],
    initializers,
    inputs: [
      ...forward.inputs.map((input) => ({ ...input, dims: inputDims.get(input.name)! })),
      ...trained.map((name) => floatValue(name, forward.initializers.get(name)!.dims)),
    ],
    outputs: [
      ...forward.outputs,
      ...[...new Set(added)].map((name) => floatValue(name, builder.dims(name))),
    ],
    valueInfos: new Map(),
  });
  return { graph, gradients };
}

/** Adds the backward nodes of one graph. */
class BackwardBuilder {
  readonly nodes: Node[] = [];
  readonly constants = new Map<string, Tensor>();
  readonly #forward: Graph;
  readonly #known: Map<string, Known>;
  readonly #producers = new Map<string, Node>();
  readonly #wanted: ReadonlySet<string>;
  /** Values that depend on a wanted one. */
  readonly #active: ReadonlySet<string>;
  readonly #gradients = new Map<string, string>();
  /** What Expand nodes of the backward graph have spread, by their outputs. */
  readonly #spreadFrom = new Map<string, string>();
  readonly #taken: Set<string>;
  readonly #constantNames = new Map<string, string>();

  constructor(
    forward: Graph,
    inputDims: ReadonlyMap<string, readonly number[]>,
    wanted: readonly string[],
  ) {
    this.#forward = forward;
    this.#wanted = new Set(wanted);
    this.#known = inferShapes(forward, inputDims);
    this.#active = dependentsOf(forward, this.#wanted);
    this.#taken = new Set([...forward.initializers.keys(), ...inputDims.keys()]);
    for (const each of forward.nodes) {
      for (const name of each.outputs) {
        this.#taken.add(name);
        this.#producers.set(name, each);
      }
    }
  }

  /** Goes through the graph from the loss backwards. */
  differentiate(loss: string): void {
    if (elementCount(this.dims(loss)) !== 1) {
      throw new RangeError(`expected a loss of one number, got "${loss}" [${this.dims(loss)}]`);
    }
    this.#gradients.set(loss, this.#constant(floatTensor(this.dims(loss), [1])));
    for (const each of [...this.#forward.nodes].reverse()) {
      const reached = each.outputs.some((name) => this.#gradients.has(name));
      if (!reached || !each.inputs.some((name) => this.#active.has(name))) continue;
      const gradients = this.#backward(each);
      each.inputs.forEach((name, i) => {
        const gradient = gradients[i];
        if (gradient !== undefined && this.#active.has(name)) this.#accumulate(name, gradient);
      });
    }
  }

  /** @throws {RangeError} where the loss does not depend on the value. */
  gradientOf(value: string, loss: string): string {
    const gradient = this.#gradients.get(value);
    if (gradient !== undefined) return gradient;
    throw new RangeError(`the loss "${loss}" does not depend on "${value}"; freeze it`);
  }

  dims(value: string): readonly number[] {
    const known = this.#known.get(value);
    if (known) return known.dims;
    throw new RangeError(`the shape of "${value}" is not known; fix the shapes of all inputs`);
  }

  #backward(forward: Node): readonly (string | undefined)[] {
    const name = qualifiedName(forward);
    const rule: BackwardRule | undefined = BACKWARD_RULES.get(name);
    try {
      if (rule === undefined) throw new RangeError(`there is no rule for ${name}`);
      return rule(this.#context(forward));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      const frozen = [...this.#wanted].filter((name) => reaches(this.#forward, name, forward));
      throw new RangeError(
        `${describe(forward)} cannot be differentiated: ${error.message}. ` +
          `To train the rest, freeze what is read through it: ${inWords(frozen)}`,
        { cause: error },
      );
    }
  }

  #context(forward: Node): BackwardContext {
    return {
      node: forward,
      dims: (value) => this.dims(value),
      values: (value) => this.#known.get(value)?.values,
      constant: (value) =>
        this.#wanted.has(value)
          ? undefined
          : (this.#forward.initializers.get(value) ?? this.constants.get(value)),
      producer: (value) => this.#producers.get(value),
      wants: (input) => this.#active.has(forward.inputs[input] ?? ""),
      gradientOf: (output) => this.#gradients.get(forward.outputs[output] ?? ""),
      make: (opType, inputs, attributes, dims) =>
        this.#add(opType, inputs, 1, attributes, dims)[0]!,
      makeSeveral: (opType, inputs, outputs, attributes) =>
        this.#add(opType, inputs, outputs, attributes),
      floats: (dims, values) => this.#constant(floatTensor(dims, values)),
      integers: (values) => this.#constant(int64Tensor([values.length], values)),
    };
  }

  #accumulate(value: string, gradient: string): void {
    const before = this.#gradients.get(value);
    this.#gradients.set(value, before === undefined ? gradient : this.#sum(before, gradient));
  }

  /** A gradient that was but spread to its shape, as that of a mean, broadcasts while it is added. */
  #sum(a: string, b: string): string {
    const [narrowA, narrowB] = [this.#spreadFrom.get(a), this.#spreadFrom.get(b)];
    if (narrowB !== undefined) return this.#add("Add", [a, narrowB], 1)[0]!;
    return this.#add("Add", [narrowA ?? a, b], 1)[0]!;
  }

  /** Adds a node; what undoes the one before it, as the gradients of layouts do, is left out. */
  #add(
    opType: string,
    inputs: readonly string[],
    outputs: number,
    attributes: Readonly<Record<string, AttributeValue>> = {},
    dims?: readonly number[],
  ): string[] {
    const names = Array.from({ length: outputs }, () => this.#freshName(`backward/${opType}`));
    const made = node(opType, inputs, names, attributes);
    const shapes = inferNode(
      made,
      inputs.map((name) => this.#known.get(name)),
    );
    const known = names.map((_, i) => (dims ? { dims } : shapes[i]));
    if (known.some((shape) => shape === undefined)) {
      throw new RangeError(`the shape behind ${opType} is not known`);
    }
    const same = this.#alreadyThere(made, known[0]!.dims);
    if (same !== undefined) return [same];
    const source = opType === "Reshape" ? this.#beforeReshape(inputs[0]!) : inputs[0]!;
    const added = source === inputs[0] ? made : { ...made, inputs: [source, inputs[1]!] };
    names.forEach((name, i) => {
      this.#known.set(name, known[i]!);
      this.#producers.set(name, added);
    });
    this.nodes.push(added);
    if (opType === "Expand") this.#spreadFrom.set(names[0]!, inputs[0]!);
    return names;
  }

  /** The value that a Reshape or a Transpose would only bring back, or leave as it is. */
  #alreadyThere({ opType, inputs, attributes }: Node, dims: readonly number[]): string | undefined {
    const [x] = inputs as [string];
    if (opType === "Reshape") {
      const source = this.#beforeReshape(x);
      return [x, source].find((name) => this.dims(name).join() === dims.join());
    }
    if (opType !== "Transpose") return undefined;
    const before = this.#producers.get(x);
    if (before?.opType !== "Transpose" || before.domain !== "") return undefined;
    const [perm, first] = [attributes.get("perm"), before.attributes.get("perm")];
    if (perm?.type !== "ints" || first?.type !== "ints") return undefined;
    return perm.value.every((axis, i) => first.value[axis] === i) ? before.inputs[0] : undefined;
  }

  /** What a value was before one or several Reshapes. */
  #beforeReshape(value: string): string {
    const maker = this.#producers.get(value);
    return maker?.opType === "Reshape" ? this.#beforeReshape(maker.inputs[0]!) : value;
  }

  #constant(tensor: Tensor): string {
    const small = tensor.data.length <= SHARED_ELEMENTS;
    const key = `${tensor.dataType} [${tensor.dims}] ${small ? tensor.data.join() : ""}`;
    const before = small ? this.#constantNames.get(key) : undefined;
    if (before !== undefined) return before;
    const name = this.#freshName("backward/constant");
    this.constants.set(name, tensor);
    this.#known.set(name, knownTensor(tensor));
    if (small) this.#constantNames.set(key, name);
    return name;
  }

  #freshName(base: string): string {
    let name = base;
    for (let i = 1; this.#taken.has(name); i++) name = `${base}_${this.#taken.size + i}`;
    this.#taken.add(name);
    return name;
  }
}

/** The nearest of some values, by name, and how many others there are. */
function inWords(names: readonly string[]): string {
  const nearest = names.slice(-NAMED);
  const others = names.length - nearest.length;
  return nearest.join(", ") + (others > 0 ? ` and the ${others} before them` : "");
}

/** Names in a message, at most. */
const NAMED = 8;

/** Constants of at most so many elements are shared where they are equal. */
const SHARED_ELEMENTS = 64;

/** All values that depend on one of some, those included. */
function dependentsOf(graph: Graph, sources: ReadonlySet<string>): Set<string> {
  const dependents = new Set(sources);
  for (const each of graph.nodes) {
    if (!readsOf(each).some((name) => dependents.has(name))) continue;
    for (const name of each.outputs) if (name !== "") dependents.add(name);
  }
  return dependents;
}

function reaches(graph: Graph, source: string, target: Node): boolean {
  const dependents = dependentsOf(graph, new Set([source]));
  return target.inputs.some((name) => dependents.has(name));
}
