import { type FileHandle, mkdir, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import * as v from "valibot";
import { type Clock, systemClock } from "../clock.ts";
import { AgentError, messageOf } from "../errors.ts";
import { diskError, readJsonIfExists, sha256File, syncFolder, writeJsonAtomic } from "../files.ts";

/** What to fetch, and what it must be. */
export interface DownloadOptions {
  readonly url: string;
  /** Final place. Unfinished bytes lie beside it as `<path>.part`, with `<path>.part.json`. */
  readonly path: string;
  /** Expected digest in lower-case hex; null: not known yet, see {@link downloadFile}. */
  readonly sha256: string | null;
  readonly signal?: AbortSignal;
  /** Called as bytes arrive; `totalBytes` is null where the server does not say. */
  readonly onProgress?: (doneBytes: number, totalBytes: number | null) => void;
  readonly clock?: Clock;
  /** Tries without a single new byte before giving up; default 5. */
  readonly tries?: number;
  /** Silence after which a connection counts as dead; default 60,000 ms. */
  readonly stallMs?: number;
  /** Largest file that is accepted; default 4 GiB. */
  readonly maxBytes?: number;
}

/** How a download ended. */
export type DownloadOutcome =
  | { readonly state: "done"; readonly sha256: string }
  /** All bytes are here, but nobody said what they should be: the digest must be confirmed. */
  | { readonly state: "unconfirmed"; readonly sha256: string };

const partSchema = v.object({
  url: v.string(),
  /** Strong ETag or Last-Modified of what the part file holds; null where neither was sent. */
  validator: v.nullable(v.string()),
});

/**
 * Fetches a file so that it can be cut off at any moment and goes on where it was (RFC 9110
 * Range with If-Range, so that a file that changed meanwhile starts anew). It appears at its path
 * only once its SHA-256 was checked. Without an expected digest it stays as a part file and the
 * digest is returned: call again with it and no byte is fetched twice.
 *
 * @throws {AgentError} DOWNLOAD_FAILED where the server refuses, the connection keeps failing or
 *   the digest differs (the part file is then removed); DISK_FULL.
 */
export async function downloadFile(options: DownloadOptions): Promise<DownloadOutcome> {
  const part = `${options.path}.part`;
  await mkdir(dirname(options.path), { recursive: true });
  await fetchAll(options, part);
  const digest = await sha256File(part);
  if (options.sha256 === null) return { state: "unconfirmed", sha256: digest };
  if (digest !== options.sha256) {
    await removePart(part);
    throw new AgentError(
      "DOWNLOAD_FAILED",
      `${options.url}: expected sha256 ${options.sha256}, got ${digest}: the file there is another one; nothing was kept`,
    );
  }
  await rename(part, options.path);
  await rm(`${part}.json`, { force: true });
  await syncFolder(dirname(options.path));
  return { state: "done", sha256: digest };
}

async function removePart(part: string): Promise<void> {
  await rm(part, { force: true });
  await rm(`${part}.json`, { force: true });
}

const FIRST_DELAY_MS = 500;

async function fetchAll(options: DownloadOptions, part: string): Promise<void> {
  const clock = options.clock ?? systemClock;
  const tries = options.tries ?? 5;
  let failures = 0;
  for (;;) {
    const before = await sizeOf(part);
    try {
      await fetchOnce(options, part, before);
      return;
    } catch (error) {
      options.signal?.throwIfAborted();
      if (error instanceof AgentError) throw error;
      // Any progress shows that going on makes sense.
      failures = (await sizeOf(part)) > before ? 1 : failures + 1;
      if (failures >= tries) {
        throw new AgentError(
          "DOWNLOAD_FAILED",
          `${options.url}: ${describeFailure(error)}; what arrived is kept, so run the same again to go on`,
          { cause: error },
        );
      }
      await clock.sleep(FIRST_DELAY_MS * 2 ** (failures - 1), options.signal);
    }
  }
}

/** fetch() hides the reason in its cause: "fetch failed" alone helps nobody. */
function describeFailure(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined;
  return cause === undefined ? messageOf(error) : `${messageOf(error)} (${messageOf(cause)})`;
}

async function sizeOf(path: string): Promise<number> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  return info?.size ?? 0;
}

/** One connection: appends to the part file, or starts it anew where the server says so. */
async function fetchOnce(options: DownloadOptions, part: string, have: number): Promise<void> {
  const resume = await resumeHeaders(options, part, have);
  const watch = new StallWatch(options.stallMs ?? 60_000, options.signal);
  try {
    const response = await fetch(options.url, {
      // Compressed transfers would make byte ranges meaningless.
      headers: { "accept-encoding": "identity", ...resume },
      signal: watch.signal,
    });
    const start = await startOf(options, part, response, have);
    if (start === null) return;
    await writePartInfo(options, part, response);
    await writeBody(options, part, response, start, watch);
  } finally {
    watch.stop();
  }
}

async function resumeHeaders(
  options: DownloadOptions,
  part: string,
  have: number,
): Promise<Record<string, string>> {
  if (have === 0) return {};
  const known = v.safeParse(partSchema, await readJsonIfExists(`${part}.json`));
  if (!known.success || known.output.url !== options.url) return {};
  const { validator } = known.output;
  if (validator !== null) return { range: `bytes=${have}-`, "if-range": validator };
  // Without a validator only a digest can tell whether the halves belong together.
  return options.sha256 === null ? {} : { range: `bytes=${have}-` };
}

/** Offset at which the body belongs; null where the part file is complete already. */
async function startOf(
  options: DownloadOptions,
  part: string,
  response: Response,
  have: number,
): Promise<number | null> {
  const range = /^bytes (?:(\d+)-\d+|\*)\/(\d+|\*)$/.exec(
    response.headers.get("content-range") ?? "",
  );
  if (response.status === 416) {
    await response.body?.cancel();
    if (range?.[2] === String(have)) return null;
    await removePart(part);
    throw new Error("the server holds another file than the part fetched so far");
  }
  if (response.status === 206 && range?.[1] === String(have)) return have;
  if (response.status === 200) return 0;
  await response.body?.cancel();
  const what =
    `${options.url}: the server answered ${response.status} ${response.statusText}`.trim();
  // 408, 429 and 5xx pass by themselves; the rest does not.
  if (response.status >= 500 || response.status === 429 || response.status === 408) {
    throw new Error(what);
  }
  throw new AgentError("DOWNLOAD_FAILED", `${what}: check the address`);
}

async function writePartInfo(
  options: DownloadOptions,
  part: string,
  response: Response,
): Promise<void> {
  const etag = response.headers.get("etag");
  // If-Range takes strong validators only (RFC 9110, section 13.1.5).
  const strong = etag?.startsWith("W/") ? null : etag;
  const validator = strong ?? response.headers.get("last-modified");
  await writeJsonAtomic(`${part}.json`, { url: options.url, validator });
}

async function writeBody(
  options: DownloadOptions,
  part: string,
  response: Response,
  start: number,
  watch: StallWatch,
): Promise<void> {
  const stated = response.headers.get("content-length");
  const total = stated === null ? null : start + Number(stated);
  const limit = options.maxBytes ?? 4 * 2 ** 30;
  const file = await open(part, start === 0 ? "w" : "a");
  try {
    let done = start;
    for await (const chunk of response.body ?? []) {
      watch.reset();
      done += chunk.length;
      if (done > limit) {
        throw new AgentError(
          "DOWNLOAD_FAILED",
          `${options.url}: larger than the limit of ${limit} bytes`,
        );
      }
      await writeAll(file, chunk, part);
      options.onProgress?.(done, total);
    }
    await file.sync();
    if (total !== null && done < total) throw new Error(`ended after ${done} of ${total} bytes`);
  } finally {
    await file.close();
  }
}

async function writeAll(file: FileHandle, chunk: Uint8Array, path: string): Promise<void> {
  try {
    await file.writeFile(chunk);
  } catch (error) {
    throw diskError(error, path);
  }
}

/** Aborts when nothing arrived for a while, or when the caller says so. */
class StallWatch {
  readonly signal: AbortSignal;
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;

  constructor(stallMs: number, outer: AbortSignal | undefined) {
    const signals = outer ? [outer, this.#controller.signal] : [this.#controller.signal];
    this.signal = AbortSignal.any(signals);
    const why = new Error(`no data for ${stallMs / 1000} s`);
    this.#timer = setTimeout(() => this.#controller.abort(why), stallMs);
  }

  reset(): void {
    this.#timer.refresh();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}
