import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { Clock } from "../../agent/clock.ts";
import { sha256 } from "../../agent/files.ts";
import { addGeneralist, resolveGeneralist } from "../../agent/generalist/add.ts";
import { downloadFile } from "../../agent/generalist/download.ts";
import { writeGraph } from "../../agent/onnx/graph.ts";
import { quiet, smallClassifier, temporaryFolder } from "./small-classifier.helpers.ts";

const CONTENT = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 7919) % 251));
const DIGEST = sha256(CONTENT);

interface ServerBehavior {
  content?: Buffer;
  etag?: string | null;
  /** Connections that are cut after this many bytes, before one is served whole. */
  cutAfterBytes?: number;
  cuts?: number;
  ranges?: boolean;
  status?: number;
  /** Sends half and then nothing. */
  stalls?: number;
}

interface TestServer {
  readonly url: string;
  readonly behavior: ServerBehavior;
  /** Range header of each request, "" where it had none. */
  readonly requests: string[];
  bytesSent: number;
  /** Bytes that the client has stored; a connection is cut once it has all that was sent. */
  storedBytes: number;
}

async function serve(context: TestContext, behavior: ServerBehavior): Promise<TestServer> {
  const state: { -readonly [K in keyof TestServer]: TestServer[K] } = {
    url: "",
    behavior,
    requests: [],
    bytesSent: 0,
    storedBytes: 0,
  };
  const server = createServer((request, response) => answer(state, request, response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  state.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/models/net.onnx`;
  return state;
}

function answer(state: TestServer, request: IncomingMessage, response: ServerResponse): void {
  const { behavior } = state;
  const content = behavior.content ?? CONTENT;
  const etag = behavior.etag === undefined ? '"one"' : behavior.etag;
  const range = request.headers.range ?? "";
  state.requests.push(range);
  if (behavior.status !== undefined) {
    response.writeHead(behavior.status).end();
    return;
  }
  const ifRange = request.headers["if-range"];
  const honors = behavior.ranges !== false && (ifRange === undefined || ifRange === etag);
  const start = honors ? Number(/^bytes=(\d+)-$/.exec(range)?.[1] ?? 0) : 0;
  const validator = etag === null ? {} : { etag };
  if (start > 0 && start >= content.length) {
    response.writeHead(416, { "content-range": `bytes */${content.length}` }).end();
    return;
  }
  const part = content.subarray(start);
  const partial = start > 0;
  response.writeHead(partial ? 206 : 200, {
    ...validator,
    "content-length": part.length,
    ...(partial
      ? { "content-range": `bytes ${start}-${content.length - 1}/${content.length}` }
      : {}),
  });
  if ((behavior.stalls ?? 0) > 0) {
    behavior.stalls = (behavior.stalls ?? 0) - 1;
    response.write(part.subarray(0, Math.floor(part.length / 2)));
    return;
  }
  if ((behavior.cuts ?? 0) > 0) {
    behavior.cuts = (behavior.cuts ?? 0) - 1;
    const sent = part.subarray(0, behavior.cutAfterBytes ?? 0);
    state.bytesSent += sent.length;
    response.write(sent);
    const wait = setInterval(() => {
      if (state.storedBytes < start + sent.length) return;
      clearInterval(wait);
      response.destroy();
    }, 5);
    return;
  }
  state.bytesSent += part.length;
  response.end(part);
}

/** Waits for nothing, and remembers how long it was asked to. */
function hastyClock(): Clock & { readonly sleeps: number[] } {
  const sleeps: number[] = [];
  return {
    sleeps,
    nowMs: () => 0,
    monotonicMs: () => 0,
    sleep: (ms, signal) => {
      signal?.throwIfAborted();
      sleeps.push(ms);
      return Promise.resolve();
    },
  };
}

test("download: goes on where cut connections left it, byte for byte", async (context) => {
  const path = join(await temporaryFolder(context), "net.onnx");
  const server = await serve(context, { cuts: 3, cutAfterBytes: 60_000 });
  const clock = hastyClock();
  const seen: number[] = [];
  const outcome = await downloadFile({
    url: server.url,
    path,
    sha256: DIGEST,
    clock,
    onProgress: (done, total) => {
      assert.equal(total, CONTENT.length);
      server.storedBytes = done;
      seen.push(done);
    },
  });
  assert.deepEqual(outcome, { state: "done", sha256: DIGEST });
  assert.deepEqual(await readFile(path), CONTENT);
  assert.deepEqual(server.requests.slice(0, 2), ["", "bytes=60000-"]);
  assert.equal(server.bytesSent, CONTENT.length, "no byte is fetched twice");
  assert.deepEqual(clock.sleeps, [500, 500, 500], "progress starts the waiting over");
  assert.deepEqual(
    seen,
    [...seen].sort((a, b) => a - b),
  );
  assert.deepEqual(await readdir(join(path, "..")), ["net.onnx"]);
});

test("download: starts anew where the file changed between two tries", async (context) => {
  const path = join(await temporaryFolder(context), "net.onnx");
  const server = await serve(context, {
    content: Buffer.alloc(200_000, 1),
    cuts: 1,
    cutAfterBytes: 50_000,
  });
  const clock = hastyClock();
  const change = {
    ...clock,
    sleep: () => {
      server.behavior.content = CONTENT;
      server.behavior.etag = '"two"';
      return Promise.resolve();
    },
  };
  await downloadFile({
    url: server.url,
    path,
    sha256: DIGEST,
    clock: change,
    onProgress: (done) => {
      server.storedBytes = done;
    },
  });
  assert.deepEqual(await readFile(path), CONTENT);
});

for (const [what, behavior] of Object.entries({
  "a server without ranges": { ranges: false },
  "a server without validators": { etag: null },
})) {
  test(`download: copes with ${what}`, async (context) => {
    const path = join(await temporaryFolder(context), "net.onnx");
    const server = await serve(context, { ...behavior, cuts: 1, cutAfterBytes: 70_000 });
    await downloadFile({
      url: server.url,
      path,
      sha256: DIGEST,
      clock: hastyClock(),
      onProgress: (done) => {
        server.storedBytes = done;
      },
    });
    assert.deepEqual(await readFile(path), CONTENT);
  });
}

test("download: wrong bytes never reach their place, and nothing of them is kept", async (context) => {
  const path = join(await temporaryFolder(context), "net.onnx");
  const server = await serve(context, { content: Buffer.from("somebody else's file") });
  await assert.rejects(downloadFile({ url: server.url, path, sha256: DIGEST }), {
    code: "DOWNLOAD_FAILED",
    message: /expected sha256 .* got/,
  });
  assert.deepEqual(await readdir(join(path, "..")), []);
});

test("download: a connection that falls silent is dropped and taken up again", async (context) => {
  const path = join(await temporaryFolder(context), "net.onnx");
  const server = await serve(context, { stalls: 1 });
  await downloadFile({ url: server.url, path, sha256: DIGEST, clock: hastyClock(), stallMs: 300 });
  assert.deepEqual(await readFile(path), CONTENT);
  assert.equal(server.requests.length, 2);
});

test("download: a missing file is told at once, a failing server after the tries", async (context) => {
  const path = join(await temporaryFolder(context), "net.onnx");
  const missing = await serve(context, { status: 404 });
  const clock = hastyClock();
  await assert.rejects(
    downloadFile({ url: missing.url, path, sha256: DIGEST, clock }),
    /answered 404.*check the address/,
  );
  assert.equal(missing.requests.length, 1);
  const failing = await serve(context, { status: 503 });
  await assert.rejects(
    downloadFile({ url: failing.url, path, sha256: DIGEST, clock, tries: 3 }),
    /503.*run the same again/,
  );
  assert.deepEqual(clock.sleeps, [500, 1000]);
});

test("download: an abort keeps what arrived", async (context) => {
  const path = join(await temporaryFolder(context), "net.onnx");
  const server = await serve(context, { stalls: 1 });
  const controller = new AbortController();
  const running = downloadFile({
    url: server.url,
    path,
    sha256: DIGEST,
    signal: controller.signal,
    onProgress: (done) => {
      if (done >= 100_000) controller.abort(new Error("stopped"));
    },
  });
  await assert.rejects(running, /stopped/);
  assert.ok(existsSync(`${path}.part`));
  assert.ok(!existsSync(path));
  await downloadFile({ url: server.url, path, sha256: DIGEST });
  assert.match(server.requests[1]!, /^bytes=1\d{5}-$/);
});

test("generalist add: a URL is fetched, its digest confirmed, its guesses confirmed, once each", async (context) => {
  const folder = await temporaryFolder(context);
  const model = Buffer.from(writeGraph(smallClassifier()));
  const server = await serve(context, { content: model });
  const labelsPath = join(folder, "labels.txt");
  await writeFile(labelsPath, "fox\nbadger\nempty\n");
  const options = { source: server.url, dir: join(folder, "generalists"), log: quiet };
  const flags = { labelsPath };
  await assert.rejects(addGeneralist({ ...options, flags }), {
    code: "GENERALIST_UNAVAILABLE",
    message: new RegExp(`--sha256 ${sha256(model)}`),
  });
  const pinned = { ...flags, sha256: sha256(model) };
  await assert.rejects(addGeneralist({ ...options, flags: pinned }), /Guessed:/);
  const added = await addGeneralist({ ...options, flags: pinned, confirm: true });
  assert.equal(server.bytesSent, model.length, "the model was sent once");
  assert.deepEqual([added.name, added.description.sha256], ["net", sha256(model)]);
  assert.deepEqual(await resolveGeneralist(options), added.description);
  await assert.rejects(
    resolveGeneralist({ ...options, source: `${server.url}x` }),
    /taco generalist add/,
  );
});
