/** What a network is made smaller in. */
export const MEASURES = ["latency", "nonzero", "bytes"] as const;

/** One of {@link MEASURES}: milliseconds of one picture, weights that are not zero, or file size. */
export type Measure = (typeof MEASURES)[number];

/** What compression is asked for: the least of a measure, or the best accuracy within a limit. */
export type Aim =
  | {
      readonly aim: Measure;
      /** Accuracy that may be lost against the dense network, in percentage points. */
      readonly maxDropPoints: number;
    }
  | {
      /** Latency of the dense network over that of the result, at least. */
      readonly speedup: number;
    }
  | {
      /** Parameters of the dense network over the non-zero ones of the result, at least. */
      readonly nonzeroReduction: number;
    }
  | { readonly maxBytes: number };

/** An aim as flags or keys of a configuration give it: each part on its own. */
export interface AimParts {
  readonly aim?: string | undefined;
  readonly maxDropPoints?: number | undefined;
  readonly speedup?: number | undefined;
  readonly nonzeroReduction?: number | undefined;
  readonly maxBytes?: number | undefined;
}

const DEFAULT_MAX_DROP_POINTS = 1;

/**
 * Puts the parts of an aim together.
 *
 * @returns undefined where no part is given.
 * @throws {RangeError} where more than one aim is given, or a number makes no sense.
 */
export function parseAim(parts: AimParts): Aim | undefined {
  const given = (["aim", "speedup", "nonzeroReduction", "maxBytes"] as const).filter(
    (key) => parts[key] !== undefined,
  );
  const { aim, maxDropPoints, speedup, nonzeroReduction, maxBytes } = parts;
  if (given.length > 1) {
    throw new RangeError(`expected one aim, got ${given.join(" and ")}: leave all but one out`);
  }
  if (maxDropPoints !== undefined && aim === undefined) {
    throw new RangeError(`maxDropPoints: expected together with aim (${MEASURES.join(", ")})`);
  }
  if (speedup !== undefined) return { speedup: atLeastOne("speedup", speedup) };
  if (nonzeroReduction !== undefined) {
    return { nonzeroReduction: atLeastOne("nonzeroReduction", nonzeroReduction) };
  }
  if (maxBytes !== undefined) return { maxBytes: atLeastOne("maxBytes", maxBytes) };
  if (aim === undefined) return undefined;
  const measure = MEASURES.find((known) => known === aim);
  if (measure === undefined) {
    throw new RangeError(`aim: expected ${MEASURES.join(", ")}, got "${aim}"`);
  }
  const drop = maxDropPoints ?? DEFAULT_MAX_DROP_POINTS;
  if (!(drop >= 0 && drop <= 100)) {
    throw new RangeError(`maxDropPoints: expected points from 0 to 100, got ${drop}`);
  }
  return { aim: measure, maxDropPoints: drop };
}

function atLeastOne(name: string, value: number): number {
  if (value >= 1 && value < Number.POSITIVE_INFINITY) return value;
  throw new RangeError(`${name}: expected a number of at least 1, got ${value}`);
}

/** What an aim limits or lessens. */
export function measureOf(aim: Aim): Measure {
  if ("aim" in aim) return aim.aim;
  if ("speedup" in aim) return "latency";
  return "nonzeroReduction" in aim ? "nonzero" : "bytes";
}

/** An aim in words: `least latency at ≤ 1 point`, `≥ 4× faster`. */
export function printAim(aim: Aim): string {
  if ("aim" in aim) {
    const what = { latency: "least latency", nonzero: "fewest non-zero", bytes: "fewest bytes" };
    return `${what[aim.aim]} at ≤ ${aim.maxDropPoints} points`;
  }
  if ("speedup" in aim) return `≥ ${aim.speedup}× faster`;
  if ("nonzeroReduction" in aim) return `≥ ${aim.nonzeroReduction}× fewer non-zero`;
  return `≤ ${aim.maxBytes} bytes`;
}
