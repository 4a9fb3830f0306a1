import { floatValue, node } from "../builder.ts";
import type { Graph, Node, ValueInfo } from "../graph.ts";
import { freeName } from "../query.ts";
import { floatTensor, type Tensor } from "../tensor.ts";

/** What a student network is trained towards; terms of weight 0 are left out. */
export interface Objective {
  /**
   * Weight of T²·KL(teacher ‖ student), both softened by the temperature T (Hinton et al. 2015,
   * Distilling the Knowledge in a Neural Network, sec. 2).
   */
  readonly distillation: number;
  /** T above. */
  readonly temperature: number;
  /** Weight of ‖s − t‖² / ‖t‖², the mean over the features listed, each summed over the batch. */
  readonly features: number;
  /** Weight of the cross entropy with the targets, which may be soft. */
  readonly labels: number;
  /**
   * Added to the logits where they meet the labels, one a class: τ·log prior makes up for classes
   * of many pictures (Menon et al. 2021, Long-tail learning via logit adjustment, eq. 10).
   */
  readonly logitOffsets: readonly number[];
}

/** The inputs and outputs that an objective adds to a network. */
export interface ObjectiveGraph {
  readonly graph: Graph;
  /** The value to minimize: one number. */
  readonly loss: string;
  /** Input for soft labels, `[N, classes]`, rows adding up to 1. */
  readonly targets: string;
  /** Input for the teacher's logits, `[N, classes]`. */
  readonly teacherLogits: string;
  /** Inputs for the teacher's values of the features listed, in their order. */
  readonly teacherFeatures: readonly string[];
}

/**
 * A network followed by its training objective, in plain operators, for `buildGradientGraph`. An
 * input that no term reads is left out of the graph's inputs.
 *
 * @param network with logits `[N, classes]` as its only output.
 * @param dims shape of the logits.
 * @param features values of the network to hold against the teacher's.
 */
export function withObjective(
  network: Graph,
  dims: readonly number[],
  features: readonly string[],
  objective: Objective,
): ObjectiveGraph {
  const [pictures = 1, classes = 1] = dims;
  if (objective.logitOffsets.length !== classes) {
    throw new RangeError(
      `expected logit offsets of ${classes} classes, got ${objective.logitOffsets.length}`,
    );
  }
  const nodes: Node[] = [];
  const constants = new Map<string, Tensor>();
  const inputs: ValueInfo[] = [];
  const taken = new Set<string>();
  const fresh = (base: string): string => {
    const name = freeName(network, base, taken);
    taken.add(name);
    return name;
  };
  const add = (opType: string, from: readonly string[], attributes = {}): string => {
    const name = fresh(`objective/${opType}`);
    nodes.push(node(opType, from, [name], attributes));
    return name;
  };
  const constant = (tensor: Tensor): string => {
    const name = fresh("objective/constant");
    constants.set(name, tensor);
    return name;
  };
  const scaled = (value: string, by: number): string =>
    by === 1 ? value : add("Mul", [value, constant(floatTensor([], [by]))]);
  const sumOf = (value: string): string => add("ReduceSum", [value], { keepdims: 0 });
  const logits = network.outputs[0]!.name;
  const targets = fresh("targets");
  const teacherLogits = fresh("teacher_logits");
  const teacherFeatures = features.map((name) => fresh(`teacher/${name}`));
  const terms: string[] = [];
  const { distillation, temperature, labels, logitOffsets } = objective;
  if (labels > 0) {
    inputs.push(floatValue(targets, dims));
    const offset = logitOffsets.some((value) => value !== 0)
      ? add("Add", [logits, constant(floatTensor([classes], logitOffsets))])
      : logits;
    const product = add("Mul", [targets, add("LogSoftmax", [offset], { axis: 1 })]);
    terms.push(scaled(sumOf(product), -labels / pictures));
  }
  if (distillation > 0) {
    inputs.push(floatValue(teacherLogits, dims));
    const soften = (value: string) =>
      add("LogSoftmax", [scaled(value, 1 / temperature)], { axis: 1 });
    const teacher = soften(teacherLogits);
    const difference = add("Sub", [teacher, soften(logits)]);
    const divergence = add("Mul", [add("Exp", [teacher]), difference]);
    terms.push(scaled(sumOf(divergence), (distillation * temperature ** 2) / pictures));
  }
  if (objective.features > 0) {
    for (const [i, name] of features.entries()) {
      const teacher = teacherFeatures[i]!;
      inputs.push(floatValue(teacher, null));
      const difference = add("Sub", [name, teacher]);
      const wrong = sumOf(add("Mul", [difference, difference]));
      const size = sumOf(add("Mul", [teacher, teacher]));
      terms.push(scaled(add("Div", [wrong, size]), objective.features / features.length));
    }
  }
  if (terms.length === 0) throw new RangeError("expected an objective of at least one term");
  const loss = terms.length === 1 ? terms[0]! : add("Sum", terms);
  const graph: Graph = {
    ...network,
    nodes: [...network.nodes, ...nodes],
    initializers: new Map([...network.initializers, ...constants]),
    inputs: [...network.inputs, ...inputs],
  };
  return { graph, loss, targets, teacherLogits, teacherFeatures };
}
