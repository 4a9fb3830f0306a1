import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, lstat, mkdir, open, opendir, realpath } from "node:fs/promises";
import { dirname, join, relative, sep } from "node:path";
import { type Clock, isoTime } from "../clock.ts";
import { messageOf, systemCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type CaptureTime, captureTimeOf, HEAD_BYTES } from "./capture-time.ts";
import { FolderWatcher, folderIdentity } from "./folder-watcher.ts";
import { looksComplete } from "./picture-format.ts";
import { hasPictureName, isTemporaryName, normalizeLabel } from "./picture-names.ts";

/** A whole picture file that is not known yet. */
export interface FoundPicture {
  kind: "inbox" | "labeled";
  /** Absolute. */
  path: string;
  /** Below `inboxDir` or `labeledDir`, with `/` between folders. */
  relativePath: string;
  /** Name of the first folder below `labeledDir`; only for `labeled`. */
  label?: string;
  /** Of the content, lower-case hexadecimal: the identity of the picture. */
  sha256: string;
  sizeBytes: number;
  /** Modification time, whole milliseconds since 1970 (cut off, not rounded). */
  mtimeMs: number;
  /** See {@link CaptureTime}. */
  capturedAt: string;
  captureTimeSource: CaptureTime["source"];
}

export interface IntakeOptions {
  inboxDir: string;
  labeledDir: string;
  /** Pause between two reconciliation scans. */
  scanIntervalMs: number;
  /** How long a file's size and time must stay the same before it is taken for whole. */
  settleMs: number;
  clock: Clock;
  log: Logger;
  /**
   * Whether a file was recorded before; asked for every file of every scan, so it must be fast.
   * `mtimeMs` is in whole milliseconds, as in {@link FoundPicture}.
   */
  known: (path: string, sizeBytes: number, mtimeMs: number) => boolean;
  /**
   * Records a picture. At most `concurrency` calls are open at once and nothing more is read
   * until one returns. A file of the same content under a new path is found again: the consumer
   * tells by `sha256`. Where it rejects, the file is found again by the next scan.
   */
  onPicture: (found: FoundPicture) => Promise<void>;
  /** Files hashed and handed over at the same time; default 4. */
  concurrency?: number;
}

/** Settling times that a file which looks cut off is given before it is handed over as it is. */
const PATIENCE = 5;
/** Files that settle at once; a scan that finds more ends early and comes again. */
const MAX_WAITING = 20_000;
/** Hints kept apart; above it one scan of everything is cheaper. */
const MAX_HINTS = 2_000;
/** Hints that come within this time are looked at together. */
const HINT_DELAY_MS = 50;
const TAIL_BYTES = 16 * 1024;
const PIECE_BYTES = 1024 * 1024;

interface Root {
  kind: "inbox" | "labeled";
  folder: string;
}

interface Observed {
  root: Root;
  sizeBytes: number;
  mtimeMs: number;
  /** Monotonic time of the first observation with this size and time. */
  sinceMs: number;
  /** Monotonic time of the next look. */
  dueMs: number;
}

/**
 * Finds the pictures in `inbox/` (any depth) and `labeled/<label>/` (any depth below the label).
 *
 * The truth is a scan, at the start and every `scanIntervalMs`; chokidar's events are hints that
 * only say where to look sooner, as it loses events and goes blind when a root is recreated.
 * A file is handed over when its size and time were the same for `settleMs` and its end looks
 * like the end of its format; one that looks cut off is given {@link PATIENCE} times as long and
 * then handed over as it is, for the decoder to refuse. Settling goes by the monotonic clock.
 * Symbolic links below the roots are not followed. Roots that vanish are made again.
 */
export class Intake {
  readonly #options: IntakeOptions;
  readonly #roots: readonly Root[];
  readonly #waiting = new Map<string, Observed>();
  readonly #hints = new Set<string>();
  readonly #complained = new Set<string>();
  #stopping = new AbortController();
  #loop: Promise<void> | undefined;
  #watcher: FolderWatcher | undefined;
  /** Real path of each watched root → the root, as chokidar reports real paths. */
  #watched = new Map<string, Root>();
  #watchedIdentity = "";
  #watchFailed = false;
  #nextScanMs = 0;
  #wake: AbortController | undefined;

  constructor(options: IntakeOptions) {
    this.#options = options;
    this.#roots = [
      { kind: "inbox", folder: options.inboxDir },
      { kind: "labeled", folder: options.labeledDir },
    ];
  }

  /** Makes the folders where they are missing, then scans and watches until `stop`. */
  async start(): Promise<void> {
    if (this.#loop !== undefined)
      throw new TypeError("expected a stopped intake, got a started one");
    this.#stopping = new AbortController();
    for (const root of this.#roots) await mkdir(root.folder, { recursive: true });
    this.#nextScanMs = this.#options.clock.monotonicMs();
    this.#loop = this.#run(this.#stopping.signal);
  }

  /** Ends watching and scanning; resolves when every open `onPicture` has returned. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#loop;
    this.#loop = undefined;
    await this.#closeWatcher();
    this.#waiting.clear();
    this.#hints.clear();
  }

  /** Asks for a scan now. */
  rescan(): void {
    this.#nextScanMs = this.#options.clock.monotonicMs();
    this.#wake?.abort();
  }

  /** Files seen that have not settled yet. */
  get waiting(): number {
    return this.#waiting.size;
  }

  async #run(stop: AbortSignal): Promise<void> {
    const { clock, log } = this.#options;
    while (!stop.aborted) {
      try {
        await this.#step(stop);
      } catch (error) {
        log.error({ err: error }, "looking for pictures failed; the next scan tries again");
        this.#nextScanMs = clock.monotonicMs() + this.#options.scanIntervalMs;
      }
      await this.#sleepUntilNext(stop);
    }
  }

  async #step(stop: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    if (clock.monotonicMs() >= this.#nextScanMs) {
      this.#nextScanMs = clock.monotonicMs() + this.#options.scanIntervalMs;
      this.#hints.clear();
      await this.#scan(stop);
    }
    const hints = [...this.#hints];
    this.#hints.clear();
    for (const path of hints) await this.#look(path, stop);
    await this.#handOverDue(stop);
  }

  /** Sleeps until a scan or a waiting file is due, or a hint comes. */
  async #sleepUntilNext(stop: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    let due = this.#nextScanMs;
    for (const file of this.#waiting.values()) due = Math.min(due, file.dueMs);
    const wake = new AbortController();
    this.#wake = wake;
    const hinted = this.#hints.size > 0;
    const ms = hinted ? 0 : Math.max(0, due - clock.monotonicMs());
    await sleepQuietly(clock, ms, AbortSignal.any([stop, wake.signal]));
    this.#wake = undefined;
    if (hinted || wake.signal.aborted) await sleepQuietly(clock, HINT_DELAY_MS, stop);
  }

  async #scan(stop: AbortSignal): Promise<void> {
    await this.#watchRoots();
    for (const root of this.#roots) {
      await mkdir(root.folder, { recursive: true });
      await this.#walk(root, root.folder, stop);
    }
  }

  /** Observes every picture below a folder. */
  async #walk(root: Root, folder: string, stop: AbortSignal): Promise<void> {
    let folders: string[] = [];
    try {
      for await (const entry of await opendir(folder)) {
        if (stop.aborted) return;
        const path = join(folder, entry.name);
        if (entry.isDirectory() && !isTemporaryName(entry.name)) folders.push(path);
        else if (entry.isFile() && hasPictureName(entry.name)) await this.#observe(root, path);
        else if (entry.isSymbolicLink()) this.#complain(path, "symbolic link", "not followed");
        if (this.#waiting.size >= MAX_WAITING) {
          this.#nextScanMs = this.#options.clock.monotonicMs() + this.#options.settleMs;
          return;
        }
      }
      this.#complained.delete(`${folder}: unreadable`);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return;
      this.#complain(folder, "unreadable", messageOf(error));
      folders = [];
    }
    for (const below of folders) {
      if (stop.aborted) return;
      await this.#walk(root, below, stop);
    }
  }

  /** Looks at one path that a hint named: a picture, a folder, or nothing any more. */
  async #look(path: string, stop: AbortSignal): Promise<void> {
    const root = this.#roots.find((r) => path.startsWith(r.folder + sep));
    if (!root || relative(root.folder, path).split(sep).some(isTemporaryName)) return;
    try {
      const entry = await lstat(path);
      if (entry.isDirectory()) {
        this.#watcher?.folderCame(this.#realPath(root, path), entry);
        await this.#walk(root, path, stop);
      } else if (entry.isFile() && hasPictureName(path)) await this.#observe(root, path);
    } catch (error) {
      if (isGone(error)) this.#watcher?.folderWent(this.#realPath(root, path));
      else this.#complain(path, "unreadable", messageOf(error));
    }
  }

  /** Starts or restarts the settling of a file, unless it is known or waits unchanged. */
  async #observe(root: Root, path: string): Promise<void> {
    if (root.kind === "labeled" && labelOf(root, path) === undefined) {
      this.#complain(path, "no label", "expected labeled/<label>/<picture>; left where it is");
      return;
    }
    const stats = await lstat(path).catch(undefinedWhereGone);
    if (!stats) {
      this.#waiting.delete(path);
      return;
    }
    const sizeBytes = stats.size;
    const mtimeMs = Math.floor(stats.mtimeMs);
    const before = this.#waiting.get(path);
    if (before && before.sizeBytes === sizeBytes && before.mtimeMs === mtimeMs) return;
    if (this.#options.known(path, sizeBytes, mtimeMs)) {
      this.#waiting.delete(path);
      return;
    }
    const sinceMs = this.#options.clock.monotonicMs();
    const dueMs = sinceMs + this.#options.settleMs;
    this.#waiting.set(path, { root, sizeBytes, mtimeMs, sinceMs, dueMs });
  }

  /** Hands over the files whose time has come, a few at once. */
  async #handOverDue(stop: AbortSignal): Promise<void> {
    const now = this.#options.clock.monotonicMs();
    const due = [...this.#waiting].filter(([, file]) => file.dueMs <= now).values();
    const worker = async () => {
      for (const [path, file] of due) {
        if (stop.aborted) return;
        await this.#settle(path, file);
      }
    };
    // One iterator shared by all workers: each takes the next file when it is done with its own.
    await Promise.all(Array.from({ length: this.#options.concurrency ?? 4 }, worker));
  }

  /** Reads a file whose time has come: changed, cut off, or ready to be handed over. */
  async #settle(path: string, file: Observed): Promise<void> {
    const { clock, settleMs } = this.#options;
    try {
      const content = await readThrough(path);
      file.dueMs = clock.monotonicMs() + settleMs;
      if (content.sizeBytes !== file.sizeBytes || content.mtimeMs !== file.mtimeMs) {
        await this.#observe(file.root, path);
        return;
      }
      const patient = clock.monotonicMs() - file.sinceMs < settleMs * PATIENCE;
      if (patient && !looksComplete(content.head, content.tail, file.sizeBytes)) return;
      this.#waiting.delete(path);
      await this.#handOver(path, file.root, content);
    } catch (error) {
      this.#waiting.delete(path);
      if (!isGone(error)) this.#complain(path, "unreadable", messageOf(error));
    }
  }

  async #handOver(path: string, root: Root, content: Content): Promise<void> {
    const exif = captureTimeOf(content.head);
    const label = labelOf(root, path);
    const found: FoundPicture = {
      kind: root.kind,
      path,
      relativePath: relative(root.folder, path).split(sep).join("/"),
      ...(label === undefined ? {} : { label }),
      sha256: content.sha256,
      sizeBytes: content.sizeBytes,
      mtimeMs: content.mtimeMs,
      capturedAt: exif ?? isoTime(content.mtimeMs),
      captureTimeSource: exif === undefined ? "file-modified" : "exif",
    };
    try {
      await this.#options.onPicture(found);
    } catch (error) {
      const { log } = this.#options;
      log.error({ err: error, path }, "recording a picture failed; the next scan tries again");
    }
  }

  /** Watches the roots, again where one was recreated; without it scans go on alone. */
  async #watchRoots(): Promise<void> {
    if (this.#watchFailed) return;
    const identity = await this.#identify();
    if (this.#watcher && identity === this.#watchedIdentity) return;
    await this.#closeWatcher();
    this.#watchedIdentity = identity;
    const watched = new Map<string, Root>();
    for (const root of this.#roots) watched.set(await realpath(root.folder), root);
    this.#watched = watched;
    const parents = new Set([...watched.keys()].map((folder) => dirname(folder)));
    let isReady = false;
    const watcher = new FolderWatcher({
      // The parents are watched to see a root come back.
      watches: (path) => parents.has(path) || this.#rootOf(path) !== undefined,
      onWatched: (path) => {
        if (isReady) this.#hintPath(path);
      },
    });
    watcher.on("raw", (_event, name, details) => this.#hint(name, details));
    // What came while the watcher was getting ready was seen by neither it nor the last scan.
    watcher.on("ready", () => {
      isReady = true;
      this.rescan();
    });
    watcher.on("error", (error) => this.#onWatchError(error));
    watcher.add([...parents]);
    this.#watcher = watcher;
  }

  /** Differs once a root was removed and made again. */
  async #identify(): Promise<string> {
    const identities: string[] = [];
    for (const root of this.#roots) {
      await mkdir(root.folder, { recursive: true });
      identities.push(folderIdentity(await lstat(await realpath(root.folder))));
    }
    return identities.join(" ");
  }

  #rootOf(path: string): Root | undefined {
    for (const [folder, root] of this.#watched) {
      if (path === folder || path.startsWith(folder + sep)) return root;
    }
    return undefined;
  }

  /** A path as the watcher knows it. */
  #realPath(root: Root, path: string): string {
    for (const [folder, { kind }] of this.#watched) {
      if (kind === root.kind) return folder + path.slice(root.folder.length);
    }
    return path;
  }

  #hint(name: unknown, details: unknown): void {
    if (typeof name !== "string" || typeof details !== "object" || details === null) return;
    if (!("watchedPath" in details) || typeof details.watchedPath !== "string") return;
    this.#hintPath(join(details.watchedPath, name));
  }

  /** Marks a path for a look; a root that comes or goes, or a storm, asks for a scan. */
  #hintPath(realPath: string): void {
    for (const [folder, root] of this.#watched) {
      if (realPath === folder) this.#nextScanMs = this.#options.clock.monotonicMs();
      else if (realPath.startsWith(folder + sep)) {
        this.#hints.add(root.folder + realPath.slice(folder.length));
      } else continue;
      if (this.#hints.size > MAX_HINTS) {
        this.#hints.clear();
        this.#nextScanMs = this.#options.clock.monotonicMs();
      }
      this.#wake?.abort();
      return;
    }
  }

  #onWatchError(error: unknown): void {
    const code = systemCode(error);
    if (code !== "ENOSPC" && code !== "EMFILE") {
      this.#complain(code ?? "watching", "watch error", messageOf(error));
      return;
    }
    if (this.#watchFailed) return;
    this.#watchFailed = true;
    const { log, scanIntervalMs } = this.#options;
    const advice = "raise fs.inotify.max_user_watches to have new pictures seen at once";
    log.warn(
      { err: error },
      `no more watches: scanning every ${scanIntervalMs} ms only; ${advice}`,
    );
    this.#closeWatcher().catch((cause: unknown) => log.warn({ err: cause }, "watcher not closed"));
  }

  async #closeWatcher(): Promise<void> {
    const watcher = this.#watcher;
    this.#watcher = undefined;
    await watcher?.close();
  }

  /** Warns once for each path and kind, in bounded memory. */
  #complain(path: string, kind: string, what: string): void {
    const key = `${path}: ${kind}`;
    if (this.#complained.has(key)) return;
    if (this.#complained.size >= MAX_HINTS) this.#complained.clear();
    this.#complained.add(key);
    this.#options.log.warn({ path }, `${kind}: ${what}`);
  }
}

/** The first folder below `labeled/`; undefined for the inbox and for files without a folder. */
function labelOf(root: Root, path: string): string | undefined {
  if (root.kind === "inbox") return undefined;
  const parts = relative(root.folder, path).split(sep);
  return parts.length < 2 ? undefined : normalizeLabel(parts[0] ?? "");
}

/** What is taken from a file in one pass over it. */
interface Content {
  /** Size and time when the pass was over. */
  sizeBytes: number;
  mtimeMs: number;
  sha256: string;
  /** First bytes, at most {@link HEAD_BYTES}. */
  head: Buffer;
  /** Last bytes, at most {@link TAIL_BYTES}. */
  tail: Buffer;
}

/** Reads a file once, a piece at a time; not through a link put in its place. */
async function readThrough(path: string): Promise<Content> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { size } = await file.stat();
    const hash = createHash("sha256");
    const head = await readPiece(file, Math.min(HEAD_BYTES, size));
    hash.update(head);
    let tail = head.subarray(-TAIL_BYTES);
    for (let at = head.length; at < size; ) {
      const piece = await readPiece(file, Math.min(PIECE_BYTES, size - at));
      if (piece.length === 0) break;
      hash.update(piece);
      tail = Buffer.concat([tail, piece.subarray(-TAIL_BYTES)]).subarray(-TAIL_BYTES);
      at += piece.length;
    }
    const { size: sizeBytes, mtimeMs } = await file.stat();
    return { sizeBytes, mtimeMs: Math.floor(mtimeMs), sha256: hash.digest("hex"), head, tail };
  } finally {
    await file.close();
  }
}

async function readPiece(file: FileHandle, count: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.allocUnsafe(count), 0, count, null);
  return buffer.subarray(0, bytesRead);
}

/** A file that vanished midway is no error: the camera or a person took it away. */
function isGone(error: unknown): boolean {
  const code = systemCode(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

function undefinedWhereGone(error: unknown): undefined {
  if (isGone(error)) return undefined;
  throw error;
}

async function sleepQuietly(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  try {
    await clock.sleep(ms, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
