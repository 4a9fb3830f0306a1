import { type Command, InvalidArgumentError } from "commander";
import { MEASURES } from "../aim.ts";
import { METHOD_SYNTAX } from "../method.ts";

/** Reads a whole number of at least `min` from a flag. */
export function integer(min: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isSafeInteger(value) && value >= min) return value;
    throw new InvalidArgumentError(`expected a whole number of at least ${min}, got "${text}".`);
  };
}

/** Reads a number in [min, max] from a flag. */
export function real(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`expected a number from ${min} to ${max}, got "${text}".`);
  };
}

/**
 * Adds what a command is told to do to a network: a method, or an aim for method `auto`, by the
 * names of {@link AimParts}.
 *
 * @param searchMinutes default of `--search-minutes`.
 */
export function addMethodFlags(command: Command, searchMinutes: number): Command {
  return command
    .option("--method <method>", `what is done to the network: ${METHOD_SYNTAX}`)
    .option("--aim <measure>", `with auto: the least ${MEASURES.join(", ")}`)
    .option(
      "--max-drop-points <points>",
      "percentage points of accuracy (without labels: of the same answers) that --aim may cost",
      real(0, 100),
    )
    .option("--speedup <times>", "with auto: at least so many times the speed", real(1, 1e6))
    .option(
      "--nonzero-reduction <times>",
      "with auto: at least so many times fewer non-zero parameters",
      real(1, 1e6),
    )
    .option("--max-bytes <n>", "with auto: a file of at most so many bytes", real(1, 1e12))
    .option("--search-minutes <n>", "with auto: at most", real(0.1, 1440), searchMinutes);
}
