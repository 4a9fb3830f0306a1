import { distance } from "fastest-levenshtein";
import type * as v from "valibot";
import { stationConfigSchema } from "./schema.ts";

/** Keys from the top of the file down to a value; numbers are places in a list. */
export type KeyPath = readonly (string | number)[];

/** Names for people of what valibot expects. */
const EXPECTED: Readonly<Record<string, string>> = {
  string: "text (put it in quotes)",
  number: "a number",
  boolean: "true or false",
  Object: "a section of keys",
  Array: "a list",
};

/**
 * One line for each problem: where, what was expected, what came, and for an unknown key the
 * nearest known one.
 *
 * @param positionOf line and column of a key for people, or null where it is not in the file.
 */
export function describeIssues(
  issues: readonly v.BaseIssue<unknown>[],
  positionOf: (keys: KeyPath) => string | null,
): string[] {
  return issues.map((issue) => {
    const keys = (issue.path ?? []).map(({ key }) => (typeof key === "number" ? key : String(key)));
    const where = positionOf(keys);
    const at = `${keys.join(".") || "the file"}${where === null ? "" : ` (${where})`}`;
    return `${at}: ${problem(issue, keys)}`;
  });
}

function problem(issue: v.BaseIssue<unknown>, keys: KeyPath): string {
  if (issue.type === "strict_object" && issue.expected === "never") return unknownKey(keys);
  if (issue.input === undefined) return `is missing: expected ${expectation(issue)}`;
  return `expected ${expectation(issue)}, got ${shown(issue.input)}`;
}

function expectation(issue: v.BaseIssue<unknown>): string {
  if (issue.message.startsWith("expected ")) return issue.message.slice("expected ".length);
  if (issue.type === "min_value") return `at least ${issue.requirement}`;
  if (issue.type === "max_value") return `at most ${issue.requirement}`;
  if (issue.type === "max_length") return `a length of at most ${issue.requirement}`;
  // A missing key of a section, named by valibot in quotes: what it holds is in the example.
  if (issue.type === "strict_object" && issue.input === undefined) return "a value";
  const expected = issue.expected ?? "a valid value";
  return EXPECTED[expected] ?? expected.replace(/^\((.*)\)$/, "$1").replaceAll(" | ", " or ");
}

/** JSON of what came, cut so that a whole section does not drown the message. */
function shown(input: unknown): string {
  const json = JSON.stringify(input) ?? String(input);
  return json.length > 80 ? `${json.slice(0, 77)}...` : json;
}

function unknownKey(keys: KeyPath): string {
  const name = String(keys[keys.length - 1]);
  const siblings = keysOf(schemaAt(keys.slice(0, -1)));
  const elsewhere = allPaths().find((path) => path.endsWith(`.${name}`));
  if (!siblings.includes(name) && elsewhere !== undefined) {
    return `unknown key here; did you mean "${elsewhere}"?`;
  }
  const [nearest] = siblings.sort((a, b) => distance(name, a) - distance(name, b));
  if (nearest === undefined) return "unknown key";
  return `unknown key; did you mean "${[...keys.slice(0, -1), nearest].join(".")}"?`;
}

/** The entries of an object schema under any `optional`, `nullable` or `pipe` around it. */
function entriesOf(schema: unknown): Readonly<Record<string, unknown>> {
  if (typeof schema !== "object" || schema === null) return {};
  if ("entries" in schema) return schema.entries as Readonly<Record<string, unknown>>;
  return "wrapped" in schema ? entriesOf(schema.wrapped) : {};
}

const keysOf = (schema: unknown) => Object.keys(entriesOf(schema));

function schemaAt(keys: KeyPath): unknown {
  return keys.reduce<unknown>((schema, key) => entriesOf(schema)[String(key)], stationConfigSchema);
}

/** Every `section.key` of the schema. */
function allPaths(): string[] {
  return keysOf(stationConfigSchema).flatMap((section) =>
    keysOf(schemaAt([section])).map((key) => `${section}.${key}`),
  );
}
