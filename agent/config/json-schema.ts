import { toJsonSchema } from "@valibot/to-json-schema";
import { stationConfigSchema } from "./schema.ts";

/**
 * The configuration's schema as JSON Schema (draft-07), for the completion and hints of editors.
 * What JSON Schema cannot say (that a cron expression parses, checks across keys) is left out:
 * the agent stays the judge.
 *
 * @returns indented JSON with a line break at its end.
 */
export function stationJsonSchema(): string {
  const options = { typeMode: "input", errorMode: "ignore" } as const;
  const { $schema, ...schema } = toJsonSchema(stationConfigSchema, options);
  return `${JSON.stringify({ $schema, title: "taco-agent station", ...schema }, null, 2)}\n`;
}
