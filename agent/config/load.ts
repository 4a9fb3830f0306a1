import { readFileSync } from "node:fs";
import { dirname, isAbsolute, join, resolve } from "node:path";
import * as v from "valibot";
import { type Document, isNode, isPair, isScalar, LineCounter, parseDocument } from "yaml";
import { AgentError, messageOf } from "../errors.ts";
import { describeIssues, type KeyPath } from "./issues.ts";
import { type StationConfig, stationConfigSchema } from "./schema.ts";

const CREDENTIALS = "$CREDENTIALS_DIRECTORY";

/**
 * Reads a station's configuration: YAML → schema with defaults → paths made absolute → frozen.
 *
 * Relative `station.dir`, `generalist`, `mqtt.passwordFile` and `mqtt.caFile` start at the folder
 * of the file, so that the working directory does not matter. A leading `$CREDENTIALS_DIRECTORY`
 * in the two files is replaced where systemd has set it; where not (a command given by hand), it
 * stays as written and {@link readSecret} says so when the secret is really needed.
 *
 * @param environment only `CREDENTIALS_DIRECTORY` is read.
 * @throws {AgentError} CONFIG_UNREADABLE (no file, no YAML; with line and column), CONFIG_INVALID
 *   with every problem of the file at once, each with its dotted key, line and column.
 */
export function loadConfig(path: string, environment: NodeJS.ProcessEnv): StationConfig {
  const lines = new LineCounter();
  const document = parseDocument(readText(path), { lineCounter: lines, prettyErrors: true });
  const problems = document.errors.map((error) => `  ${error.message.trimEnd()}`);
  if (problems.length > 0) {
    throw new AgentError("CONFIG_UNREADABLE", `${path} is no YAML:\n${problems.join("\n")}`);
  }
  const value = toValue(document, path) ?? {};
  const result = v.safeParse(stationConfigSchema, value);
  const lists = listsForSections(value);
  if (result.success && lists.length === 0) {
    return deepFreeze(withAbsolutePaths(result.output, path, environment));
  }
  const issues =
    result.issues?.filter(({ path: at }) => !lists.includes(String(at?.[0].key))) ?? [];
  const found = [
    ...lists.map((key) => `${key}: expected a section of keys, got a list (leave out the dashes)`),
    ...describeIssues(Array.isArray(value) ? [] : issues, (keys) =>
      position(document, lines, keys),
    ),
  ];
  throw new AgentError(
    "CONFIG_INVALID",
    `${path} does not fit the schema (config/station.example.yaml shows every key):\n` +
      found.map((line) => `  ${line}`).join("\n"),
  );
}

/**
 * The text of a secret file without the line break at its end.
 *
 * @param path as `loadConfig` returns `mqtt.passwordFile`.
 * @throws {AgentError} CONFIG_UNREADABLE where the file cannot be read, CONFIG_INVALID where it is
 *   empty. The message never holds the secret.
 */
export function readSecret(path: string): string {
  if (path.startsWith(CREDENTIALS)) {
    throw new AgentError(
      "CONFIG_UNREADABLE",
      `${path}: the environment has no CREDENTIALS_DIRECTORY; systemd sets it for the service ` +
        "(LoadCredential=): outside of it, name a file that you may read",
    );
  }
  const secret = readText(path).replace(/\r?\n$/, "");
  if (secret !== "") return secret;
  throw new AgentError("CONFIG_INVALID", `${path} is empty: write the secret into it`);
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new AgentError("CONFIG_UNREADABLE", `cannot read ${path}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/** The document as plain values; YAML aliases may multiply, which the parser bounds by throwing. */
function toValue(document: Document, path: string): unknown {
  try {
    return document.toJS();
  } catch (error) {
    throw new AgentError("CONFIG_UNREADABLE", `${path}: ${messageOf(error)}`, { cause: error });
  }
}

/**
 * Sections written as lists. To valibot a list is an object without the
 * keys, so that `schedule: []` would quietly mean all defaults.
 */
function listsForSections(value: unknown): string[] {
  if (Array.isArray(value)) return ["the file"];
  return Object.entries(Object(value)).flatMap(([key, inner]) => (Array.isArray(inner) ? key : []));
}

/** Line and column of a key, or of its nearest parent that is in the file. */
function position(document: Document, lines: LineCounter, keys: KeyPath): string | null {
  for (let length = keys.length; length > 0; length -= 1) {
    const parent = length === 1 ? document.contents : document.getIn(keys.slice(0, length - 1));
    const offset = offsetOf(parent, keys[length - 1]!);
    if (offset === null) continue;
    const { line, col } = lines.linePos(offset);
    return `line ${line}, column ${col}`;
  }
  return null;
}

function offsetOf(parent: unknown, key: string | number): number | null {
  if (typeof parent !== "object" || parent === null || !("items" in parent)) return null;
  if (!Array.isArray(parent.items)) return null;
  const item: unknown =
    typeof key === "number"
      ? parent.items[key]
      : parent.items.find((pair) => isPair(pair) && isScalar(pair.key) && pair.key.value === key);
  const node = isPair(item) ? item.key : item;
  return isNode(node) && node.range ? node.range[0] : null;
}

function withAbsolutePaths(
  config: StationConfig,
  path: string,
  environment: NodeJS.ProcessEnv,
): StationConfig {
  const folder = dirname(resolve(path));
  const { mqtt } = config;
  const secrets = {
    ...(mqtt?.passwordFile && { passwordFile: secretPath(mqtt.passwordFile, folder, environment) }),
    ...(mqtt?.caFile && { caFile: secretPath(mqtt.caFile, folder, environment) }),
  };
  return {
    ...config,
    station: { ...config.station, dir: resolve(folder, config.station.dir) },
    generalist: isModelPath(config.generalist)
      ? resolve(folder, config.generalist)
      : config.generalist,
    mqtt: mqtt && { ...mqtt, ...secrets },
  };
}

/** Names of the catalog hold no slash and URLs a scheme; all else is a file. */
function isModelPath(generalist: string): boolean {
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(generalist)) return false;
  return generalist.includes("/") || generalist.endsWith(".onnx") || isAbsolute(generalist);
}

function secretPath(path: string, folder: string, environment: NodeJS.ProcessEnv): string {
  if (path !== CREDENTIALS && !path.startsWith(`${CREDENTIALS}/`)) return resolve(folder, path);
  const credentials = environment["CREDENTIALS_DIRECTORY"];
  return credentials === undefined ? path : join(credentials, path.slice(CREDENTIALS.length));
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null) {
    for (const inner of Object.values(value)) deepFreeze(inner);
    Object.freeze(value);
  }
  return value;
}
