/** Which weights become zero; see `compress/pattern.ts`. */
export type ZeroPattern =
  | { readonly kind: "unstructured"; readonly sparsity: number }
  | { readonly kind: "block"; readonly size: number; readonly sparsity: number }
  | { readonly kind: "n:m"; readonly n: number; readonly m: number };

/** Function that a network's swish is replaced by; `keep` leaves it. */
type Activations = "keep" | "hard-swish" | "relu";

/** What is done to a network, the same to all of its layers; each part may be left out. */
export interface FixedMethod {
  readonly kind: "fixed";
  /** Height and width of the network's input in pixels; null: the generalist's own. */
  readonly inputSize: number | null;
  /** Share of internal channels and attention heads taken away; 0 for none. */
  readonly structured: number;
  readonly activations: Activations;
  /** What becomes of squeeze-excite gates; `fold`: constants, folded into the weights. */
  readonly gates: "keep" | "fold";
  /** Which weights become zero; null for none. */
  readonly pattern: ZeroPattern | null;
  readonly int8: boolean;
  /** Bits of weights that are stored small and computed with in float; null: they stay float. */
  readonly weightBits: 3 | 4 | null;
}

/** How a network is compressed: as stated, or as a search for a budget finds best. */
export type Method = FixedMethod | { readonly kind: "auto" };

/** What a method may look like, for messages. */
export const METHOD_SYNTAX =
  '"auto", "none", or parts joined by "+": unstructured:0.5 | nm:2:4 | block4:0.5 (one of them), ' +
  "structured:0.5, int8, int4 or int3 (one of them), size:160, hard-swish or relu, fold-gates";

const NOTHING: FixedMethod = {
  kind: "fixed",
  inputSize: null,
  structured: 0,
  activations: "keep",
  gates: "keep",
  pattern: null,
  int8: false,
  weightBits: null,
};

/**
 * Reads a method as users write it, as in `size:160+structured:0.5+int8`.
 *
 * @throws {RangeError} saying what was expected.
 */
export function parseMethod(text: string): Method {
  if (text === "auto") return { kind: "auto" };
  if (text === "none") return NOTHING;
  let method = NOTHING;
  for (const part of text.split("+")) method = Object.assign({}, method, partOf(part, method));
  return method;
}

function partOf(part: string, before: FixedMethod): Partial<FixedMethod> {
  const [name = "", ...values] = part.trim().split(":");
  const [first, second] = values.map(Number);
  const only = (count: number): void => {
    if (values.length !== count || values.some((value) => !(Number(value) >= 0))) throw wrong(part);
  };
  const pattern = (value: ZeroPattern): Partial<FixedMethod> => {
    if (before.pattern !== null) throw wrong(part);
    return { pattern: value };
  };
  switch (name) {
    case "unstructured":
    case "block4":
      only(1);
      if (!(first! < 1)) throw wrong(part);
      return pattern(
        name === "block4"
          ? { kind: "block", size: 4, sparsity: first! }
          : { kind: name, sparsity: first! },
      );
    case "nm":
      only(2);
      if (!(values.map(Number).every(Number.isInteger) && first! > 0 && first! < second!)) {
        throw wrong(part);
      }
      return pattern({ kind: "n:m", n: first!, m: second! });
    case "structured":
      only(1);
      if (!(first! < 1)) throw wrong(part);
      return { structured: first! };
    case "size":
      only(1);
      if (!(Number.isInteger(first) && first! >= 16)) throw wrong(part);
      return { inputSize: first! };
    case "int8":
      only(0);
      if (before.weightBits !== null) throw wrong(part);
      return { int8: true };
    case "int4":
    case "int3":
      only(0);
      if (before.int8 || before.weightBits !== null) throw wrong(part);
      return { weightBits: name === "int4" ? 4 : 3 };
    case "hard-swish":
    case "relu":
      only(0);
      return { activations: name };
    case "fold-gates":
      only(0);
      return { gates: "fold" };
    default:
      throw wrong(part);
  }
}

function wrong(part: string): RangeError {
  return new RangeError(`method: expected ${METHOD_SYNTAX}; got "${part.trim()}"`);
}

/** A method as {@link parseMethod} reads it. */
export function formatMethod(method: Method): string {
  if (method.kind === "auto") return "auto";
  const { inputSize, structured, activations, gates, pattern, int8, weightBits } = method;
  const parts = [
    inputSize === null ? "" : `size:${inputSize}`,
    structured === 0 ? "" : `structured:${structured}`,
    activations === "keep" ? "" : activations,
    gates === "keep" ? "" : "fold-gates",
    pattern === null ? "" : formatPattern(pattern),
    int8 ? "int8" : "",
    weightBits === null ? "" : `int${weightBits}`,
  ].filter((part) => part !== "");
  return parts.length === 0 ? "none" : parts.join("+");
}

/** A pattern as a part of a method. */
export function formatPattern(pattern: ZeroPattern): string {
  switch (pattern.kind) {
    case "unstructured":
      return `unstructured:${pattern.sparsity}`;
    case "block":
      return `block${pattern.size}:${pattern.sparsity}`;
    case "n:m":
      return `nm:${pattern.n}:${pattern.m}`;
  }
}

/** Whether a method leaves the network as it is, to the last weight. */
export function changesNothing(method: Method): boolean {
  if (method.kind === "auto") return false;
  const { inputSize, structured, activations, gates, pattern, int8, weightBits } = method;
  const zeros = pattern === null ? 0 : pattern.kind === "n:m" ? pattern.n : pattern.sparsity;
  const shape = inputSize === null && structured === 0;
  const functions = activations === "keep" && gates === "keep";
  return shape && functions && zeros === 0 && !int8 && weightBits === null;
}
