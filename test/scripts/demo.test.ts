import assert from "node:assert/strict";
import { copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { after, before, test } from "node:test";
import { isRunning } from "../../agent/cli/control.ts";
import { loadConfig } from "../../agent/config/load.ts";
import { AgentError } from "../../agent/errors.ts";
import { startBroker } from "../../scripts/broker.ts";
import { drawnCamera, folderCamera, type Shot } from "../../scripts/demo/camera.ts";
import { type DemoOptions, runDemo } from "../../scripts/demo/journey.ts";
import { DemoStation } from "../../scripts/demo/station.ts";
import { LABELS as SPECIES } from "../../scripts/scene/species.ts";
import { drawPicture, LABELS, writeTinyGeneralist } from "../flow/station.helpers.ts";

const MAIN = join(import.meta.dirname, "..", "..", "agent", "main.ts");
const TACO = [process.execPath, "--import", "tsx", MAIN];
const PICTURES = 20;

let root = "";
let images = "";
let generalist = "";

before(async () => {
  root = await mkdtemp(join(tmpdir(), "taco-demo-"));
  images = join(root, "images");
  for (const label of LABELS) {
    await mkdir(join(images, label), { recursive: true });
    for (let i = 0; i < PICTURES; i++) {
      await writeFile(join(images, label, `${i}.jpg`), await drawPicture(label, i));
    }
  }
  generalist = await writeTinyGeneralist(join(root, "generalist"));
});

after(() => rm(root, { recursive: true, force: true, maxRetries: 5 }));

/** A demo on the tiny generalist, and what it has printed so far. */
function demo(changes: Partial<DemoOptions>): { options: DemoOptions; text: () => string } {
  const screen = new PassThrough();
  let text = "";
  screen.setEncoding("utf8").on("data", (part: string) => {
    text += part;
  });
  const options: DemoOptions = {
    dir: join(root, "station"),
    imagesDir: images,
    mqttUrl: null,
    seed: 3,
    method: "unstructured:0.2",
    generalist,
    cacheDir: join(root, "cache"),
    taco: TACO,
    shownTaco: "taco",
    framesPerSecond: 20,
    screen,
    signal: new AbortController().signal,
    ...changes,
  };
  return { options, text: () => text };
}

test("demo: goes from a generalist to a compressed model that serves, and loses no frame", async () => {
  const broker = await startBroker();
  try {
    const { options, text } = demo({ mqttUrl: broker.url });
    await runDemo(options).catch((error: unknown) => assert.fail(`${String(error)}\n${text()}`));
    const printed = text();
    // This broker refuses MQTT 5, so the demo must have fallen back.
    assert.match(printed, new RegExp(`broker: ${broker.url}, MQTT 3.1.1`));
    for (const model of ["generalist", "3 classes · dense", "3 classes · unstructured:0.2"]) {
      assert.match(printed, new RegExp(`│ tiny · ${model} `));
    }
    assert.match(printed, /non-zero parameters.*×/);
    assert.match(printed, /frames put in, .* 0 lost, 0 twice/);
    assert.match(printed, /e\/verdict +│ +2 /);
    assert.equal(isRunning(options.dir), false);
  } finally {
    await broker.stop();
  }
});

test("demo: stops everything where it is interrupted", async () => {
  const abort = new AbortController();
  const { options } = demo({ dir: join(root, "interrupted"), signal: abort.signal });
  const running = runDemo(options);
  const watch = setInterval(() => {
    void readdir(join(options.dir, "models")).then(
      () => abort.abort(),
      () => undefined,
    );
  }, 50);
  await assert.rejects(running, { name: "AbortError" });
  clearInterval(watch);
  assert.equal(isRunning(options.dir), false);
});

test("demo: empties a folder that it made, and keeps its generalists", async () => {
  const dir = join(root, "twice");
  assert.equal(await new DemoStation(dir, TACO).prepare(), false);
  await mkdir(join(dir, "generalists", "tiny"), { recursive: true });
  await writeFile(join(dir, "taco.db"), "old");
  assert.equal(await new DemoStation(dir, TACO).prepare(), true);
  const names = await readdir(dir);
  assert.ok(names.includes("generalists") && !names.includes("taco.db"), names.join(", "));
});

test("demo: leaves a folder alone that it did not make", async () => {
  const dir = join(root, "mine");
  await mkdir(dir);
  await writeFile(join(dir, "thesis.txt"), "years of work");
  await assert.rejects(
    new DemoStation(dir, TACO).prepare(),
    (error: unknown) =>
      error instanceof AgentError && /not made by this demo.*--dir/.test(error.message),
  );
  assert.deepEqual(await readdir(dir), ["thesis.txt"]);
});

test("demo: says what to do where no broker answers", async () => {
  const { options } = demo({ dir: join(root, "lonely"), mqttUrl: "mqtt://127.0.0.1:9" });
  await assert.rejects(runDemo(options), /no MQTT broker answers at mqtt:\/\/127.0.0.1:9 .*--mqtt/);
});

test("demo: its configuration fits the schema", async () => {
  const station = new DemoStation(join(root, "configured"), TACO);
  await station.prepare();
  const mqtt = { url: "mqtt://127.0.0.1:1883", protocolVersion: 4 };
  const settings = { id: "HV0406", generalist: "efficientnet_b0", cropBottom: 32, seed: 1 };
  await station.configure({ ...settings, method: "unstructured:0.5", mqtt });
  const config = loadConfig(station.configPath, {});
  assert.equal(config.station.dir, station.dir);
  assert.equal(config.specialize.method, "unstructured:0.5");
});

/** The first pictures of a camera. */
async function take(shots: AsyncGenerator<Shot>, wanted: number): Promise<Shot[]> {
  const taken: Shot[] = [];
  for await (const shot of shots) {
    taken.push(shot);
    if (taken.length === wanted) break;
  }
  return taken;
}

test("folder camera: labels three quarters, and never runs dry or shows a picture twice", async () => {
  const camera = await folderCamera(images, 1);
  assert.deepEqual(camera.labeledFor, [24, 21]);
  const shots = await take(camera.shots(), 100);
  for (const [round, wanted] of [24, 21].entries()) {
    assert.equal(shots.filter(({ labeledFor }) => labeledFor === round + 1).length, wanted);
  }
  assert.equal(new Set(shots.map(({ name }) => name)).size, 100);
  assert.equal(new Set(shots.map(({ bytes }) => Buffer.from(bytes).toString("base64"))).size, 100);
});

test("folder camera: leaves out double, broken and too few pictures, and says what it needs", async () => {
  const folder = join(root, "poor");
  await mkdir(join(folder, "fox"), { recursive: true });
  for (let i = 0; i < PICTURES; i++) {
    await copyFile(join(images, "fox", "0.jpg"), join(folder, "fox", `${i}.jpg`));
  }
  await writeFile(join(folder, "fox", "broken.jpg"), "no picture");
  await assert.rejects(folderCamera(folder, 1), /at least two folders.*12 pictures.*fox \(1\)/);
  await assert.rejects(folderCamera(join(root, "nowhere"), 1), /--images: ENOENT/);
});

test("drawn camera: shows every species before it comes again, and the same for a seed", async () => {
  const [first, again] = await Promise.all([drawnCamera("HV0406", 3), drawnCamera("HV0406", 3)]);
  assert.equal(first.labeledFor[0] % SPECIES.length, 0);
  const shots = await take(first.shots(), 4);
  assert.deepEqual(
    shots.map(({ label }) => label),
    [SPECIES[0], SPECIES[0], SPECIES[0], SPECIES[1]],
  );
  const [shot] = await take(again.shots(), 1);
  assert.deepEqual(shot, shots[0]);
});
