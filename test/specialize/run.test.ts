import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { systemClock } from "../../agent/clock.ts";
import { AgentError } from "../../agent/errors.ts";
import { readGeneralist } from "../../agent/generalist/description.ts";
import { createLogger } from "../../agent/log.ts";
import { knownAnswersSchema, modelManifestSchema, readModelJson } from "../../agent/model.ts";
import { node } from "../../agent/onnx/builder.ts";
import { readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { int64Tensor } from "../../agent/onnx/tensor.ts";
import { checkKnownAnswers } from "../../agent/runtime/known-answers.ts";
import { openSession } from "../../agent/runtime/session.ts";
import { chooseClasses, makeSpec } from "../../agent/specialize/plan.ts";
import { type RunEvent, reopenRun, specialize } from "../../agent/specialize/run.ts";
import type { RunResult, RunSpec } from "../../agent/specialize/spec.ts";
import { splitByShots } from "../../agent/specialize/split.ts";
import type { TrainingPoint } from "../../agent/specialize/training-point.ts";
import { drawPicture, LABELS, writeTinyGeneralist } from "../flow/station.helpers.ts";

const LOG = createLogger("fatal");
let root: string;
let modelPath: string;
const pictures: { path: string; label: string; burst: string }[] = [];

before(async () => {
  root = await mkdtemp(join(tmpdir(), "taco-run-"));
  modelPath = await writeTinyGeneralist(join(root, "generalist"));
  for (const label of LABELS) {
    await mkdir(join(root, label));
    for (let i = 0; i < 24; i++) {
      const path = join(root, label, `${i}.jpg`);
      await writeFile(path, await drawPicture(label, i));
      pictures.push({ path, label, burst: `${label} ${i}` });
    }
  }
});

after(() => rm(root, { recursive: true }));

async function specOf(
  options: Partial<RunSpec["options"]> = {},
  incumbentDir: string | null = null,
  generalistPath = modelPath,
) {
  const split = splitByShots(pictures, { shots: 12, heldOutPerClass: 12, seed: 2 });
  const generalist = await readGeneralist(generalistPath);
  return makeSpec({
    id: "run",
    createdAt: "2026-11-24T00:00:00.000Z",
    softwareVersion: "0",
    generalist,
    crop: { cropTop: 0, cropBottom: 0 },
    incumbentDir,
    pictures: chooseClasses(split, 2).pictures,
    problems: [],
    labelMap: {},
    options: {
      method: "unstructured:0.5",
      aim: { aim: "latency", maxDropPoints: 1 },
      searchSeconds: 60,
      latencyTablePath: join(root, "latency.json"),
      blockSize: 128,
      damping: 0.01,
      calibrationPictures: 64,
      batchSize: 8,
      seed: 2,
      executionProviders: ["cpu"],
      intraOpThreads: 1,
      maxMegapixels: 10,
      fineTune: null,
      ...options,
    },
    gate: {
      maxDropPoints: 100,
      minMacroF1: 0,
      maxLatencyRatio: 2,
      confidence: 0.95,
      onThinEvidence: "probation",
    },
  });
}

/** Ends by its steps, since what ends by the clock is never twice the same. */
const TRAINING = {
  maxSeconds: 1e6,
  memoryBytes: 2 ** 28,
  lessonBytes: 2 ** 22,
  schedule: "gradual",
} as const;

function run(
  spec: RunSpec,
  runDir: string,
  more: {
    onEvent?: (event: RunEvent) => void;
    onChild?: (pid: number) => void;
    signal?: AbortSignal;
  } = {},
): Promise<RunResult> {
  return specialize({
    spec,
    runDir,
    measureLatency: (dirs) => Promise.resolve(dirs.map(() => 5)),
    onEvent: more.onEvent ?? (() => undefined),
    ...(more.onChild ? { onChild: more.onChild } : {}),
    clock: systemClock,
    log: LOG,
    signal: more.signal ?? new AbortController().signal,
  });
}

test("run: the candidate's folder is complete, true to its figures, and gives its known answers", async () => {
  const runDir = join(root, "runs", "whole");
  const result = await run(await specOf(), runDir);
  const dir = join(runDir, "candidate");
  const manifest = await readModelJson(join(dir, "model.json"), modelManifestSchema);
  const known = await readModelJson(join(dir, "check.json"), knownAnswersSchema);
  const file = await readFile(result.modelPath);
  const { parameters, nonzero } = countParameters(readGraph(file));
  assert.equal(manifest.sha256, result.candidateSha256);
  assert.deepEqual(manifest.metrics, result.candidate);
  assert.deepEqual([result.candidate.parameters, result.candidate.nonzero], [parameters, nonzero]);
  assert.equal(result.candidate.bytes, file.length);
  assert.ok(nonzero < 0.65 * result.dense.nonzero, `${nonzero} of ${result.dense.nonzero}`);
  assert.ok(result.dense.accuracy > 0.9, `dense ${result.dense.accuracy}`);
  assert.ok(result.candidate.accuracy > 0.85, `candidate ${result.candidate.accuracy}`);
  assert.deepEqual(result.heldOut, { frames: 36, bursts: 36 });
  assert.deepEqual(
    result.stages.map(({ name }) => name),
    [
      "pictures",
      "features",
      "head",
      "search",
      "compress",
      "head-refit",
      "fine-tune",
      "evaluate",
      "latency",
      "verdict",
    ],
  );
  const session = await openSession(file, {
    executionProviders: ["cpu"],
    intraOpThreads: 1,
    log: LOG,
  });
  assert.equal((await checkKnownAnswers(session, manifest, known)).ok, true);
  await session.release();
  assert.ok(!existsSync(join(runDir, "work")), "temporary files are gone");
});

test("run: killed in the middle of every stage, it goes on and ends as one that was not", async () => {
  const spec = await specOf({ fineTune: TRAINING });
  const whole = await run(spec, join(root, "runs", "undisturbed"));
  assert.ok(whole.chosen.trainedFrom !== null, "the candidate was trained");
  const runDir = join(root, "runs", "killed");
  const killedIn = new Set<string>();
  const finished: string[] = [];
  let result: RunResult | undefined;
  for (let tries = 0; result === undefined && tries < 12; tries++) {
    let pid = 0;
    try {
      result = await run(spec, runDir, {
        onChild: (child) => {
          pid = child;
        },
        onEvent: (event) => {
          if (event.type === "stage-finished") finished.push(event.stage);
          const place = event.type === "trained" ? "in training" : event.stage;
          if (event.type !== "stage-started" && event.type !== "trained") return;
          if (killedIn.has(place) || event.stage === "latency" || event.stage === "verdict") return;
          killedIn.add(place);
          process.kill(pid, "SIGKILL");
        },
      });
    } catch (error) {
      assert.ok(error instanceof AgentError, String(error));
    }
  }
  assert.equal(killedIn.size, 9, "each stage of the child was hit once, and training again");
  assert.equal(new Set(finished).size, finished.length, "no finished stage was done again");
  assert.deepEqual(result?.candidate, whole.candidate);
  assert.equal(result?.candidateSha256, whole.candidateSha256);
  assert.deepEqual(await run(spec, runDir), result, "a finished run returns its result");
});

test("run: trains the candidate, tells its loss curve, and serves the trained network", async () => {
  const points: TrainingPoint[] = [];
  const spec = await specOf({ method: "unstructured:0.8", fineTune: TRAINING });
  const runDir = join(root, "runs", "trained");
  const { chosen, candidate, dense, problems } = await run(spec, runDir, {
    onEvent: (event) => {
      if (event.type === "trained") points.push(event.point);
    },
  });
  assert.deepEqual(problems, []);
  assert.equal(chosen.trainedFrom, 1);
  // Half of the weights, then half of those that are left.
  assert.equal(chosen.training.length, 2);
  const steps = chosen.training.reduce((sum, round) => sum + round.steps, 0);
  assert.ok(steps > 20 && points.length > 2, `${steps} steps, ${points.length} points`);
  const at = points.map(({ step }) => step);
  assert.deepEqual(
    at,
    [...new Set(at)].sort((a, b) => a - b),
    "steps go on from round to round",
  );
  assert.equal(at.at(-1), steps);
  assert.ok(points.every(({ loss, learningRate }) => loss > 0 && learningRate > 0));
  const lines = (await readFile(join(runDir, "training.jsonl"), "utf8")).trim().split("\n");
  assert.deepEqual(
    lines.map((line) => JSON.parse(line) as TrainingPoint),
    points,
  );
  const untrained = readGraph(await readFile(join(runDir, "front", "1.onnx")));
  const trained = readGraph(await readFile(join(runDir, "front", "2.onnx")));
  const [before, after] = [countParameters(untrained).nonzero, countParameters(trained).nonzero];
  assert.ok(after <= before * 1.02, `${after} non-zero after training, ${before} before`);
  assert.ok(candidate.accuracy >= dense.accuracy - 0.1, `${candidate.accuracy}`);
  const model = join(runDir, "candidate", "model.json");
  const { layers } = await readModelJson(model, modelManifestSchema);
  assert.equal(layers.at(-1)?.method, "trained", "the head is the one that was trained");
});

test("run: trains a network that takes one picture at a time", async () => {
  const folder = join(root, "one-at-a-time");
  const path = await writeTinyGeneralist(folder);
  const graph = readGraph(await readFile(path));
  const channels = graph.initializers.get("w")!.dims[1]!;
  const [input, output] = [graph.inputs[0]!, graph.outputs[0]!];
  const fixed = {
    ...graph,
    inputs: [{ ...input, dims: [1, ...input.dims!.slice(1)] }],
    outputs: [{ ...output, dims: [1, ...output.dims!.slice(1)] }],
    // A shape without the batch in it: no rewrite can tell where several pictures would go.
    nodes: graph.nodes.flatMap((each) =>
      each.outputs[0] === "features"
        ? [
            node("Reshape", ["pooled", "row"], ["single"]),
            node("Reshape", ["single", "one row"], ["features"]),
          ]
        : [each],
    ),
    initializers: new Map([
      ...graph.initializers,
      ["row", int64Tensor([1], [channels])],
      ["one row", int64Tensor([2], [1, channels])],
    ]),
  };
  await writeFile(path, writeGraph(fixed));
  const fineTune = { ...TRAINING, schedule: "one-shot" } as const;
  const spec = await specOf({ method: "unstructured:0.8", fineTune }, null, path);
  const { chosen, problems } = await run(spec, join(root, "runs", "one-at-a-time"));
  assert.deepEqual(problems, []);
  assert.equal(chosen.trainedFrom, 1);
});

test("run: integers are made of the trained network", async () => {
  const fineTune = { ...TRAINING, schedule: "one-shot" } as const;
  const spec = await specOf({ method: "unstructured:0.5+int8", fineTune });
  const { chosen, candidate, dense } = await run(spec, join(root, "runs", "trained-int8"));
  assert.equal(chosen.training.length, 1);
  assert.ok(candidate.bytes < 0.5 * dense.bytes, `${candidate.bytes} of ${dense.bytes}`);
  assert.ok(candidate.accuracy > 0.8, `${candidate.accuracy}`);
});

test("run: stopped by its signal it says so, and can be taken up", async () => {
  const abort = new AbortController();
  const runDir = join(root, "runs", "aborted");
  const spec = await specOf();
  const stopped = run(spec, runDir, {
    signal: abort.signal,
    onEvent: (event) => {
      if (event.type === "stage-started" && event.stage === "head") abort.abort();
    },
  });
  await assert.rejects(stopped, (e) => e instanceof AgentError && e.code === "RUN_ABORTED");
  assert.equal((await run(spec, runDir)).verdict.accepted, true);
});

test("run: judges an incumbent on the same pictures, whatever classes it has", async () => {
  const first = join(root, "runs", "first");
  await run(await specOf({ method: "none" }), first);
  const second = await run(
    await specOf({}, join(first, "candidate")),
    join(root, "runs", "second"),
  );
  assert.ok(second.incumbent, "the incumbent was evaluated");
  assert.ok(second.incumbent.accuracy > 0.9, `${second.incumbent.accuracy}`);
  assert.equal(second.verdict.againstIncumbent?.bursts, 36);
});

test("run: method none takes nothing away, and N:M its share", async () => {
  const dense = await run(await specOf({ method: "none" }), join(root, "runs", "dense"));
  assert.equal(dense.candidate.nonzero, dense.dense.nonzero);
  assert.equal(dense.candidate.accuracy, dense.dense.accuracy);
  const nm = await run(await specOf({ method: "nm:2:4" }), join(root, "runs", "nm"));
  assert.ok(nm.candidate.nonzero < 0.65 * nm.dense.nonzero, `${nm.candidate.nonzero}`);
});

test("run: weights of four bits are a quarter of the file, and known answers hold", async () => {
  const small = await run(await specOf({ method: "int4" }), join(root, "runs", "small"));
  const { dense, candidate } = small;
  const added = candidate.parameters - dense.parameters;
  assert.ok(added >= 0 && added < 0.01 * dense.parameters, `${added} biases`);
  assert.ok(candidate.bytes < 0.4 * dense.bytes, `${candidate.bytes} of ${dense.bytes}`);
  assert.equal(small.chosen.plan.weightBits, 4);
});

test("run: method auto keeps to its aim, and another aim is chosen from what it built", async () => {
  const runDir = join(root, "runs", "auto");
  const aim = { nonzeroReduction: 2 };
  const spec = await specOf({ method: "auto", aim, searchSeconds: 20, fineTune: TRAINING });
  const result = await run(spec, runDir);
  const { generalistParameters, candidate, chosen } = result;
  assert.ok(chosen.trainedFrom !== null, "something was built, and trained");
  assert.ok(candidate.nonzero <= generalistParameters / 2, `${candidate.nonzero} non-zero`);
  assert.equal(chosen.nonzero, candidate.nonzero, "the front says what was served");
  const other = { aim: "nonzero", maxDropPoints: 0 } as const;
  const again = await run(await reopenRun(runDir, spec, other), runDir);
  assert.ok((again.chosen.expectedDropPoints ?? 1) <= 0, "nothing is lost that may not be");
  const done = again.stages.filter(({ name }) => name === "search" || name === "compress");
  const before = result.stages.filter(({ name }) => name === "search" || name === "compress");
  assert.deepEqual(done, before, "nothing was searched or built again");
  assert.equal(again.dense.accuracy, result.dense.accuracy);
});

test("run: a run of a stated method has nothing to choose from, and says so", async () => {
  const spec = await specOf();
  await assert.rejects(reopenRun(root, spec, { speedup: 2 }), /expected a run of method auto/);
});

test("run: an unreadable picture is left out and named", async () => {
  const spec = await specOf();
  const broken = join(root, "broken.jpg");
  await writeFile(broken, "no picture");
  const withBroken = {
    ...spec,
    pictures: [
      ...spec.pictures,
      { path: broken, label: "fox", burst: "b", role: "train" as const },
    ],
  };
  const result = await run(withBroken, join(root, "runs", "broken"));
  assert.deepEqual(
    result.problems.map(({ subject }) => subject),
    [broken],
  );
  assert.match(result.problems[0]!.reason, /not an image/);
});

test("run: what is no classifier is refused with the reason, and leaves nothing to serve", async () => {
  const spec = await specOf();
  const junk = join(root, "junk.onnx");
  await writeFile(junk, "no model");
  const runDir = join(root, "runs", "junk");
  const bad = { ...spec, generalist: { ...spec.generalist, modelPath: junk } };
  await assert.rejects(run(bad, runDir), (error) => {
    return error instanceof AgentError && error.code === "MODEL_INVALID";
  });
  assert.ok(!(await readdir(runDir)).includes("candidate"), "no candidate");
});
