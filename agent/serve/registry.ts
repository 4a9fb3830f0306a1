import { constants } from "node:fs";
import {
  copyFile,
  lstat,
  mkdir,
  open,
  readdir,
  readlink,
  rename,
  rm,
  stat,
  statfs,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import {
  diskError,
  fileExists,
  publishByRename,
  replaceSymlink,
  sha256File,
  syncFolder,
} from "../files.ts";
import {
  type KnownAnswers,
  knownAnswersSchema,
  type ModelManifest,
  modelManifestSchema,
  readModelJson,
} from "../model.ts";

const SHA256 = /^[0-9a-f]{64}$/;
/** Folders being filled; whatever of them is left at boot was never published. */
const UNFINISHED = ".publish-";
const BROKEN = ".broken-";

/** Options of {@link ModelRegistry}. */
export interface RegistryOptions {
  /** `models/` of the station; created by {@link ModelRegistry.repair}. */
  modelsDir: string;
  /** Bytes that must stay free on the disk beyond the model to publish; default 64 MiB. */
  minFreeBytes?: number;
}

/** A model to publish; its manifest's `sha256` must be that of the file. */
export interface ModelToPublish {
  /** Path of the ONNX file, which is copied, or its bytes. */
  onnx: string | Uint8Array;
  manifest: ModelManifest;
  knownAnswers: KnownAnswers;
}

/** Whether a model folder may be served, as far as can be told without opening the model. */
export type ModelValidity =
  | { valid: true; manifest: ModelManifest }
  | { valid: false; reason: string };

/** One folder of the registry. */
export type ListedModel = { sha256: string } & ModelValidity;

/** What {@link ModelRegistry.repair} found and did. */
export interface RepairReport {
  /** Names of leftovers that were removed. */
  removed: string[];
  /** Folders moved to `.broken-<sha256>`. */
  broken: { sha256: string; reason: string }[];
  /** The model that `current` points at now; null where no valid model is left. */
  current: string | null;
  /** Why the pointer was changed; null where it was valid. */
  reason: string | null;
}

/**
 * The models of a station on disk: immutable folders by SHA-256 and one symbolic link, `current`,
 * which is only ever replaced by rename. Any two steps may have a power cut between them. Only
 * the supervisor writes here; it never opens a model.
 */
export class ModelRegistry {
  readonly modelsDir: string;
  readonly #minFreeBytes: number;

  constructor(options: RegistryOptions) {
    this.modelsDir = options.modelsDir;
    this.#minFreeBytes = options.minFreeBytes ?? 64 * 1024 * 1024;
  }

  /** Folder of a model, published or not. */
  folder(sha256: string): string {
    return join(this.modelsDir, checkedSha256(sha256));
  }

  /**
   * Puts a model into the registry: hidden folder → files → fsync → SHA-256 of what lies on the
   * disk → rename → fsync. Publishing the same model again does nothing; a broken folder in its
   * place is set aside. Does not make it current.
   *
   * @throws {AgentError} MODEL_INVALID if the file is not what the manifest says; DISK_FULL.
   */
  async publishModel(model: ModelToPublish): Promise<string> {
    const { sha256 } = model.manifest;
    const folder = this.folder(sha256);
    await mkdir(this.modelsDir, { recursive: true });
    if (await fileExists(folder)) {
      const validity = await this.validateModel(sha256);
      if (validity.valid) return sha256;
      await this.#setAside(sha256);
    }
    await this.#checkRoom(model);
    const unfinished = join(this.modelsDir, `${UNFINISHED}${sha256}`);
    await rm(unfinished, { recursive: true, force: true });
    try {
      await fillFolder(unfinished, model);
      const validity = await validateFolder(unfinished, sha256);
      if (!validity.valid) {
        throw new AgentError("MODEL_INVALID", `not published: ${validity.reason}`);
      }
      await publishByRename(unfinished, folder);
    } catch (error) {
      await rm(unfinished, { recursive: true, force: true });
      throw diskError(error, folder);
    }
    return sha256;
  }

  /** The model that `current` names, whether it is valid or not; null where there is no link. */
  async readCurrent(): Promise<string | null> {
    try {
      const target = await readlink(this.#currentLink);
      return SHA256.test(target) ? target : null;
    } catch (error) {
      const code = systemCode(error);
      // EINVAL: something that is no link lies there; repair() takes care of it.
      if (code === "ENOENT" || code === "EINVAL") return null;
      throw error;
    }
  }

  /**
   * Makes a published model the current one, by rename of the link. Validate it first.
   *
   * @throws {AgentError} REGISTRY_INVALID if it is not in the registry.
   */
  async setCurrent(sha256: string): Promise<void> {
    if (!(await fileExists(this.folder(sha256)))) {
      throw new AgentError(
        "REGISTRY_INVALID",
        `${sha256} cannot become current: it is not in ${this.modelsDir}; publish it first`,
      );
    }
    await replaceSymlink(sha256, this.#currentLink);
  }

  /** Reads all of a model's files: complete, of the right format, and of the right SHA-256. */
  validateModel(sha256: string): Promise<ModelValidity> {
    return validateFolder(this.folder(sha256), sha256);
  }

  /** The manifest of a published model. @throws {AgentError} MODEL_INVALID */
  readManifest(sha256: string): Promise<ModelManifest> {
    return readModelJson(join(this.folder(sha256), "model.json"), modelManifestSchema);
  }

  /** Every published model with its validity, oldest first; broken manifests come first. */
  async listModels(): Promise<ListedModel[]> {
    const models: ListedModel[] = [];
    for (const sha256 of await this.#published()) {
      models.push({ sha256, ...(await this.validateModel(sha256)) });
    }
    return models.sort((a, b) => createdMs(a) - createdMs(b));
  }

  /**
   * The model to go back to from the current one: the incumbent it was made beside, as long as
   * that is still here. Null where there is none.
   */
  async rollbackTarget(): Promise<string | null> {
    const current = await this.readCurrent();
    if (current === null) return null;
    const incumbent = await this.#incumbentOf(current);
    return incumbent !== null && (await fileExists(this.folder(incumbent))) ? incumbent : null;
  }

  /**
   * Brings the registry into a valid state at boot: leftovers of an interrupted publication are
   * removed, damaged models set aside, and a missing or unusable `current` replaced by the model
   * it was made beside, else by the newest valid one.
   *
   * @param avoid models that were rolled back: taken only where nothing else is valid.
   */
  async repair(avoid: ReadonlySet<string> = new Set()): Promise<RepairReport> {
    await mkdir(this.modelsDir, { recursive: true });
    const removed = await this.#removeLeftovers();
    const pointed = await this.readCurrent();
    const successor = pointed === null ? null : await this.#incumbentOf(pointed);
    const models = await this.listModels();
    const broken = models.flatMap((m) => (m.valid ? [] : [{ sha256: m.sha256, reason: m.reason }]));
    const valid = models.filter((m) => m.valid).map((m) => m.sha256);
    let current: string | null = pointed;
    let reason: string | null = null;
    if (pointed === null || !valid.includes(pointed)) {
      const why = broken.find((m) => m.sha256 === pointed)?.reason ?? "its folder is missing";
      reason = pointed === null ? "there was no current model" : `${pointed} was unusable: ${why}`;
      current = chooseSuccessor(valid, successor, avoid);
      if (current === null) await rm(this.#currentLink, { recursive: true, force: true });
      else await this.#replaceCurrent(current);
    }
    // After the pointer, so that it never names a folder that was just moved away.
    for (const { sha256 } of broken) await this.#setAside(sha256);
    await syncFolder(this.modelsDir);
    return { removed, broken, current, reason };
  }

  /**
   * Deletes every model but those of `keep`, the current one and its rollback target.
   *
   * @returns the deleted ones.
   */
  async pruneModels(keep: ReadonlySet<string>): Promise<string[]> {
    const current = await this.readCurrent();
    const target = await this.rollbackTarget();
    const deleted: string[] = [];
    for (const sha256 of await this.#published()) {
      if (keep.has(sha256) || sha256 === current || sha256 === target) continue;
      // Renamed first, so that no half-deleted folder ever bears a model's name.
      const doomed = join(this.modelsDir, `${UNFINISHED}${sha256}`);
      await rename(this.folder(sha256), doomed);
      await rm(doomed, { recursive: true });
      deleted.push(sha256);
    }
    await syncFolder(this.modelsDir);
    return deleted;
  }

  get #currentLink(): string {
    return join(this.modelsDir, "current");
  }

  async #published(): Promise<string[]> {
    return (await readdir(this.modelsDir)).filter((name) => SHA256.test(name));
  }

  async #incumbentOf(sha256: string): Promise<string | null> {
    try {
      return (await this.readManifest(sha256)).origin.incumbentSha256;
    } catch (error) {
      if (error instanceof AgentError && error.code === "MODEL_INVALID") return null;
      throw error;
    }
  }

  async #removeLeftovers(): Promise<string[]> {
    const names = await readdir(this.modelsDir);
    const leftovers = names.filter((n) => n.startsWith(UNFINISHED) || /^current\..*\.new$/.test(n));
    for (const name of leftovers) {
      await rm(join(this.modelsDir, name), { recursive: true, force: true });
    }
    return leftovers;
  }

  /** As {@link setCurrent}, also where something that is no link lies in its place. */
  async #replaceCurrent(sha256: string): Promise<void> {
    const status = await lstatIfExists(this.#currentLink);
    if (status !== undefined && !status.isSymbolicLink()) {
      await rm(this.#currentLink, { recursive: true, force: true });
    }
    await this.setCurrent(sha256);
  }

  async #setAside(sha256: string): Promise<void> {
    const aside = join(this.modelsDir, `${BROKEN}${sha256}`);
    await rm(aside, { recursive: true, force: true });
    await publishByRename(this.folder(sha256), aside);
  }

  async #checkRoom(model: ModelToPublish): Promise<void> {
    const { onnx } = model;
    const bytes = typeof onnx === "string" ? (await stat(onnx)).size : onnx.byteLength;
    const { bavail, bsize } = await statfs(this.modelsDir);
    const free = bavail * bsize;
    if (free >= bytes + this.#minFreeBytes) return;
    throw new AgentError(
      "DISK_FULL",
      `not published: ${this.modelsDir} has ${mib(free)} MiB free, the model needs ${mib(bytes)} ` +
        `and ${mib(this.#minFreeBytes)} must stay free: remove old models or pictures`,
    );
  }
}

function chooseSuccessor(
  valid: readonly string[],
  preferred: string | null,
  avoid: ReadonlySet<string>,
): string | null {
  if (preferred !== null && valid.includes(preferred)) return preferred;
  return valid.filter((sha256) => !avoid.has(sha256)).at(-1) ?? valid.at(-1) ?? null;
}

async function fillFolder(folder: string, model: ModelToPublish): Promise<void> {
  await mkdir(folder);
  const onnx = join(folder, "model.onnx");
  if (typeof model.onnx === "string") {
    await copyFile(model.onnx, onnx, constants.COPYFILE_FICLONE);
  } else {
    await writeFile(onnx, model.onnx);
  }
  const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;
  await writeFile(join(folder, "model.json"), json(model.manifest));
  await writeFile(join(folder, "check.json"), json(model.knownAnswers));
  for (const name of ["model.onnx", "model.json", "check.json"]) {
    await syncFile(join(folder, name));
  }
  await syncFolder(folder);
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

async function validateFolder(folder: string, sha256: string): Promise<ModelValidity> {
  try {
    const manifest = await readModelJson(join(folder, "model.json"), modelManifestSchema);
    await readModelJson(join(folder, "check.json"), knownAnswersSchema);
    if (manifest.sha256 !== sha256) {
      return { valid: false, reason: `model.json is that of ${manifest.sha256}` };
    }
    const onnx = join(folder, "model.onnx");
    if (!(await fileExists(onnx))) return { valid: false, reason: "model.onnx is missing" };
    const actual = await sha256File(onnx);
    if (actual === sha256) return { valid: true, manifest };
    return { valid: false, reason: `model.onnx has the SHA-256 ${actual}: damaged or incomplete` };
  } catch (error) {
    // A medium that cannot be read makes this model unusable, not the whole registry.
    return { valid: false, reason: messageOf(error) };
  }
}

function createdMs(model: ListedModel): number {
  const ms = model.valid ? Date.parse(model.manifest.createdAt) : Number.NaN;
  return Number.isNaN(ms) ? 0 : ms;
}

function checkedSha256(sha256: string): string {
  if (SHA256.test(sha256)) return sha256;
  throw new RangeError(`expected a SHA-256 in lower-case hex, got "${sha256}"`);
}

async function lstatIfExists(path: string) {
  try {
    return await lstat(path);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}

function mib(bytes: number): string {
  return (bytes / 1024 / 1024).toFixed(0);
}
