/** Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2). */
interface AdamW {
  readonly kind: "adamw";
  /** Memory of the mean of gradients, in [0, 1). */
  readonly beta1: number;
  /** Memory of the mean of squared gradients, in [0, 1). */
  readonly beta2: number;
  /** Added to the root of the second moment; above 0. */
  readonly epsilon: number;
  /** Share of a weight lost per step and unit of learning rate. */
  readonly weightDecay: number;
}

/** Momentum with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 1, SGDW). */
interface Sgd {
  readonly kind: "sgd";
  /** In [0, 1). */
  readonly momentum: number;
  /** Looks one step of momentum ahead (Sutskever et al. 2013, in the form of PyTorch). */
  readonly nesterov: boolean;
  /** Share of a weight lost per step and unit of learning rate. */
  readonly weightDecay: number;
}

/** A rule that turns gradients into updates. */
export type Optimizer = AdamW | Sgd;

/** A parameter that training changes. */
export interface TrainedParameter {
  readonly name: string;
  /** Its values at the start; never changed by training. */
  readonly initial: Float32Array;
  /** Whether weight decay applies; not for vectors such as biases and scales of norms. */
  readonly decays: boolean;
  /** Factor of the learning rate, at least 0; at 0 the parameter is frozen and costs nothing. */
  readonly rateFactor: number;
}

/** What an optimizer remembers of one parameter; empty where it remembers nothing. */
export interface Moments {
  /** Running mean of gradients, or the momentum. */
  readonly first: Float32Array;
  /** Running mean of squared gradients. */
  readonly second: Float32Array;
}

/** Moments of a parameter that has seen no gradient. */
export function zeroMoments(optimizer: Optimizer, parameter: TrainedParameter): Moments {
  const size = isFrozen(parameter) ? 0 : parameter.initial.length;
  const remembers = optimizer.kind === "adamw" || optimizer.momentum > 0;
  return {
    first: new Float32Array(remembers ? size : 0),
    second: new Float32Array(optimizer.kind === "adamw" ? size : 0),
  };
}

/** Whether training leaves a parameter as it is. */
export function isFrozen({ rateFactor }: TrainedParameter): boolean {
  return rateFactor === 0;
}

/** The sum of squares in double precision: finite if, and only if, every value is. */
export function sumOfSquares(gradient: Float32Array): number {
  let squares = 0;
  for (let i = 0; i < gradient.length; i++) squares += gradient[i]! * gradient[i]!;
  return squares;
}

/** How one update is scaled. */
export interface UpdateScale {
  /** Learning rate of this parameter. */
  readonly rate: number;
  /** Factor of the gradient: the share of the samples, and clipping. */
  readonly gradient: number;
  /** Updates so far with this one, at least 1, for the bias correction of Adam. */
  readonly updates: number;
}

/**
 * Changes the weights of one parameter by its gradient, in one pass over memory. With g the scaled
 * gradient, η the rate and λ the weight decay (0 where the parameter does not decay):
 *
 * - AdamW: m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g²,
 *   w ← (1−ηλ)w − η·m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)
 * - SGD: b ← μb + g, w ← (1−ηλ)w − η·(g + μb with Nesterov, b without)
 *
 * Computed in double precision, stored in single.
 *
 * @param weights and `moments` are changed in place.
 */
export function updateWeights(
  optimizer: Optimizer,
  weights: Float32Array,
  moments: Moments,
  gradient: Float32Array,
  decays: boolean,
  { rate, gradient: scale, updates }: UpdateScale,
): void {
  const kept = 1 - (decays ? rate * optimizer.weightDecay : 0);
  if (optimizer.kind === "adamw") {
    const { beta1, beta2, epsilon } = optimizer;
    const step = rate / (1 - beta1 ** updates);
    const root = 1 / Math.sqrt(1 - beta2 ** updates);
    adam(weights, moments, gradient, { beta1, beta2, epsilon, step, root, kept, scale });
  } else if (optimizer.momentum > 0) {
    const { momentum, nesterov } = optimizer;
    const ahead = nesterov ? momentum : 1;
    const fresh = nesterov ? rate * scale : 0;
    descendWithMomentum(weights, moments.first, gradient, {
      momentum,
      scale,
      kept,
      step: rate * ahead,
      fresh,
    });
  } else {
    const step = rate * scale;
    for (let i = 0; i < weights.length; i++) weights[i] = weights[i]! * kept - step * gradient[i]!;
  }
}

interface AdamFactors extends Pick<AdamW, "beta1" | "beta2" | "epsilon"> {
  /** η / (1−β₁ᵗ). */
  readonly step: number;
  /** 1 / √(1−β₂ᵗ). */
  readonly root: number;
  /** 1 − ηλ. */
  readonly kept: number;
  readonly scale: number;
}

function adam(
  weights: Float32Array,
  { first, second }: Moments,
  gradient: Float32Array,
  { beta1, beta2, epsilon, step, root, kept, scale }: AdamFactors,
): void {
  const fresh1 = 1 - beta1;
  const fresh2 = 1 - beta2;
  for (let i = 0; i < weights.length; i++) {
    const g = gradient[i]! * scale;
    const m = beta1 * first[i]! + fresh1 * g;
    const v = beta2 * second[i]! + fresh2 * g * g;
    first[i] = m;
    second[i] = v;
    weights[i] = weights[i]! * kept - (step * m) / (Math.sqrt(v) * root + epsilon);
  }
}

interface MomentumFactors {
  readonly momentum: number;
  readonly scale: number;
  readonly kept: number;
  /** Factor of the momentum in the update. */
  readonly step: number;
  /** Factor of the gradient itself in the update. */
  readonly fresh: number;
}

function descendWithMomentum(
  weights: Float32Array,
  velocity: Float32Array,
  gradient: Float32Array,
  { momentum, scale, kept, step, fresh }: MomentumFactors,
): void {
  for (let i = 0; i < weights.length; i++) {
    const g = gradient[i]!;
    const b = momentum * velocity[i]! + scale * g;
    velocity[i] = b;
    weights[i] = weights[i]! * kept - step * b - fresh * g;
  }
}

/** @throws {RangeError} where a setting is out of its range. */
export function checkOptimizer(optimizer: Optimizer): void {
  const memories =
    optimizer.kind === "adamw"
      ? { beta1: optimizer.beta1, beta2: optimizer.beta2 }
      : { momentum: optimizer.momentum };
  for (const [name, value] of Object.entries(memories)) {
    if (!(value >= 0 && value < 1)) {
      throw new RangeError(`${name}: expected a number in [0, 1), got ${value}`);
    }
  }
  if (optimizer.kind === "adamw" && !(optimizer.epsilon > 0)) {
    throw new RangeError(`epsilon: expected a number above 0, got ${optimizer.epsilon}`);
  }
  if (!(optimizer.weightDecay >= 0 && Number.isFinite(optimizer.weightDecay))) {
    throw new RangeError(`weightDecay: expected at least 0, got ${optimizer.weightDecay}`);
  }
}

/** @throws {RangeError} naming the parameter where its rate is out of its range. */
export function checkParameter({ name, rateFactor }: TrainedParameter): void {
  if (!(rateFactor >= 0 && Number.isFinite(rateFactor))) {
    throw new RangeError(`${name}: expected a rateFactor of at least 0, got ${rateFactor}`);
  }
}
