import { InvalidArgumentError } from "commander";

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
