import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { createRandom, type Random } from "../../agent/math/random.ts";
import { ModelRegistry } from "../../agent/serve/registry.ts";
import { STAGES } from "../../agent/specialize/spec.ts";
import { putCommand } from "../../agent/station/control.ts";
import { startMosquitto } from "../mosquitto.helpers.ts";
import { asked } from "../store/store.helpers.ts";
import { FleetView } from "./fleet-view.helpers.ts";
import { eventually, LABELS, type LogLine, TestStation } from "./station.helpers.ts";

type Victim = "supervisor" | "inference" | "specialize";

const SEED = 2026;
const MAX_DELAY_MS = 10;
/** Each of some thirty kills takes a run, which is half a minute on a slow processor. */
const DEADLINE_MS = 1_200_000;
/** Stages that the specialize child does; the supervisor does the two after them. */
const CHILD_STAGES = STAGES.filter((stage) => stage !== "latency" && stage !== "verdict");
const STEPS = [
  "intake.recorded",
  "intake.predicted",
  "intake.labeled",
  ...STAGES.flatMap((stage) => [`run.${stage}.stage-started`, `run.${stage}.stage-finished`]),
  "run.verdict",
  "publish.published",
  "swap.begun",
  "swap.loaded",
  "swap.pointer-renamed",
  "swap.switched",
  "rollback.done",
];

/** Kills one process of the station at every step of its log, each pair of both once. */
class Killer {
  readonly kills: { step: string; victim: Victim }[] = [];
  /** Children of supervisors that were killed; nobody waits for them. */
  readonly orphans = new Set<number>();
  readonly #station: TestStation;
  readonly #random: Random;
  readonly #pending = new Map<string, Set<Victim>>();
  #killing: Promise<void> | undefined;
  #error: unknown;

  constructor(station: TestStation, random: Random) {
    this.#station = station;
    this.#random = random;
    for (const step of STEPS) this.#pending.set(step, new Set(["supervisor", "inference"]));
    for (const stage of CHILD_STAGES) {
      this.#pending.get(`run.${stage}.stage-started`)?.add("specialize");
      this.#pending.get(`run.${stage}.stage-finished`)?.add("specialize");
    }
    station.onLine((line) => this.#see(line));
  }

  /** What is still to be killed, as `step victim`. */
  get left(): string[] {
    return [...this.#pending].flatMap(([step, victims]) => [...victims].map((v) => `${step} ${v}`));
  }

  /** Whether a process is to be killed at this step. */
  wants(step: string): boolean {
    return (this.#pending.get(step)?.size ?? 0) > 0;
  }

  /** Waits for a kill under way. @throws what went wrong in one. */
  async settled(): Promise<void> {
    await this.#killing;
    if (this.#error !== undefined) throw this.#error;
  }

  #see({ step }: LogLine): void {
    const victims = this.#pending.get(step ?? "");
    if (step === undefined || !victims || victims.size === 0 || this.#killing !== undefined) return;
    const victim = [...victims][this.#random.integer(victims.size)]!;
    const waitMs = this.#random.uniform() * MAX_DELAY_MS;
    this.#killing = this.#strike(step, victim, waitMs)
      .catch((error: unknown) => {
        this.#error = error;
      })
      .finally(() => {
        this.#killing = undefined;
      });
  }

  async #strike(step: string, victim: Victim, waitMs: number): Promise<void> {
    await delay(waitMs);
    const station = this.#station;
    if (victim === "supervisor") {
      const inference = await station.children("inference-child.js");
      const children = [...inference, ...(await station.children("child.js"))];
      await station.kill();
      for (const pid of children) this.orphans.add(pid);
      await station.start();
    } else {
      const file = victim === "inference" ? "inference-child.js" : "child.js";
      const pids = await station.children(file);
      // It had ended, or was not there yet: the step comes again.
      if (pids.length === 0) return;
      process.kill(pids[this.#random.integer(pids.length)]!, "SIGKILL");
    }
    this.#pending.get(step)?.delete(victim);
    this.kills.push({ step, victim });
  }
}

/** What people and the camera do meanwhile: pictures, labels, runs, and now and then a rollback. */
class Life {
  pictures = 0;
  labelsEach = 0;
  readonly #station: TestStation;
  readonly #killer: Killer;
  #asked: string | undefined;

  constructor(station: TestStation, killer: Killer) {
    this.#station = station;
    this.#killer = killer;
  }

  async go(): Promise<void> {
    await this.#station.shoot(2, this.pictures);
    this.pictures += 2;
    if (this.pictures % 8 === 0) await this.label(1);
    await this.#askForWork();
  }

  async label(count: number): Promise<void> {
    await this.#station.label(count, 100_000 + this.labelsEach);
    this.labelsEach += count;
  }

  async #askForWork(): Promise<void> {
    const id = this.#asked;
    const { command, run, swap } = this.#station.ask((reports) => ({
      command: id === undefined ? undefined : reports.findCommand(id),
      run: reports.listRuns(1)[0],
      swap: reports.listSwaps(1)[0],
    }));
    if (id !== undefined && (command === undefined || command.state === "executing")) return;
    if (run !== undefined && run.state !== "finished" && run.state !== "failed") return;
    if (swap?.state === "loading" || swap?.state === "probation") return;
    const isBack = swap?.kind === "swap" && this.#killer.wants("rollback.done");
    this.#asked = randomUUID();
    const control = join(this.#station.dir, "control");
    if (isBack) await putCommand(control, "rollback", this.#asked, {});
    else await putCommand(control, "specialize", this.#asked, { force: true });
  }
}

test("station: SIGKILL of any process at any step loses nothing", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const fleet = await FleetView.connect(broker.url);
  t.after(() => fleet.close());
  const station = await TestStation.make({ mqtt: { url: broker.url } });
  t.after(() => station.remove());
  const startMs = performance.now();
  await station.start();
  const killer = new Killer(station, createRandom(SEED));
  const life = new Life(station, killer);
  await life.label(8);
  while (killer.left.length > 0) {
    const isOver = performance.now() - startMs > DEADLINE_MS;
    assert.ok(!isOver, `never reached: ${killer.left.join(", ")}`);
    await life.go();
    await delay(300);
    await killer.settled();
    assert.ok(station.alive, `the agent ended by itself: ${JSON.stringify(station.lines.at(-1))}`);
  }
  const seconds = (performance.now() - startMs) / 1000;
  const { kills } = killer;
  for (const victim of ["supervisor", "inference", "specialize"] as const) {
    const steps = kills.filter((kill) => kill.victim === victim).map(({ step }) => step);
    t.diagnostic(`${steps.length} of ${victim}: ${steps.join(", ")}`);
  }
  t.diagnostic(
    `${kills.length} kills in ${seconds.toFixed(0)} s, ${life.pictures} pictures, ` +
      `${3 * life.labelsEach} labels, ${station.ask((r) => r.listRuns().length)} runs, ` +
      `${station.ask((r) => r.listSwaps().length)} swaps`,
  );
  assert.ok(kills.length >= 60);
  for (const step of STEPS)
    assert.ok(
      kills.some((kill) => kill.step === step),
      step,
    );

  const database = join(station.dir, "taco.db");
  await eventually("every run ends", () =>
    station.ask((r) => r.listRuns().every(({ state }) => state === "finished")),
  );
  await station.predicted(life.pictures);
  await station.labeled(3 * life.labelsEach);
  await eventually("the outbox is empty", () =>
    station.ask((r) => r.summary(Date.now()).pendingMessages === 0),
  );
  assert.ok((await station.stop()) < 10);
  await station.start();
  await station.until((line) => line.msg === "models open");

  await t.test("every picture has exactly one prediction, which was told once", async () => {
    const rows = asked(
      database,
      `SELECT m.sha256, m.state, p.label FROM media AS m
       LEFT JOIN predictions AS p ON p.media_id = m.id WHERE m.source = 'inbox'`,
    );
    assert.equal(rows.length, (await readdir(join(station.dir, "inbox"))).length);
    for (const { state, label } of rows) assert.ok(state === "done" && label !== null);
    const told = new Map(fleet.of("e/prediction").map((message) => [message.id, message]));
    assert.equal(told.size, rows.length, "unique ids = predictions");
    const labels = new Map(rows.map(({ sha256, label }) => [sha256, label]));
    for (const message of told.values()) {
      assert.equal(labels.get(message["pictureSha256"]), message["label"]);
    }
  });

  await t.test("every label is there", async () => {
    for (const label of LABELS) {
      const files = (await readdir(join(station.dir, "labeled", label))).map((name) =>
        join(station.dir, "labeled", label, name),
      );
      const rows = asked(database, `SELECT path FROM v_labels WHERE label = '${label}'`);
      assert.deepEqual(rows.map(({ path }) => path).sort(), files.sort());
    }
  });

  await t.test("no finished stage was done again, and every run tells all of them", () => {
    const finished = new Set<string>();
    for (const { step, run } of station.lines) {
      const [, stage, event] = /^run\.([\w-]+)\.stage-(\w+)$/.exec(step ?? "") ?? [];
      if (!CHILD_STAGES.some((name) => name === stage)) continue;
      const key = `${String(run)} ${stage}`;
      if (event === "finished") finished.add(key);
      else assert.ok(!finished.has(key), `${key} was done again`);
    }
    for (const run of station.ask((r) => r.listRuns())) {
      assert.deepEqual(
        run.stages.map(({ name, state }) => `${name} ${state}`),
        STAGES.map((name) => `${name} finished`),
      );
      assert.ok(run.verdict);
    }
  });

  await t.test("one model is current and valid, and the database agrees", async () => {
    const registry = new ModelRegistry({ modelsDir: join(station.dir, "models") });
    const current = await readlink(join(station.dir, "models", "current"));
    const validity = await registry.validateModel(current);
    assert.ok(validity.valid, JSON.stringify(validity));
    for (const model of await registry.listModels()) assert.ok(model.valid, model.sha256);
    assert.equal(
      station.ask((r) => r.summary(Date.now()).currentModel?.sha256),
      current,
    );
    const names = await readdir(join(station.dir, "models"));
    assert.deepEqual(
      names.filter((name) => name !== "current" && !/^[0-9a-f]{64}$/.test(name)),
      [],
    );
    assert.equal(fleet.last("twin/model")?.["modelSha256"], current);
  });

  await t.test("the database is sound and nothing in it is left half done", () => {
    assert.equal(asked(database, "PRAGMA quick_check")[0]?.["quick_check"], "ok");
    assert.deepEqual(asked(database, "PRAGMA foreign_key_check"), []);
    assert.deepEqual(asked(database, "SELECT * FROM swaps WHERE state = 'loading'"), []);
    assert.deepEqual(asked(database, "SELECT * FROM commands WHERE state = 'executing'"), []);
  });

  await t.test("no child outlived its supervisor", async () => {
    const own = [
      ...(await station.children("inference-child.js")),
      ...(await station.children("child.js")),
    ];
    const living = async () => {
      const processes = new Set((await readdir("/proc")).map(Number));
      return [...killer.orphans].filter((pid) => processes.has(pid) && !own.includes(pid));
    };
    await eventually("they ended", async () => (await living()).length === 0, 10_000);
  });
});

test("station: a rollback that SIGKILL interrupts is taken up again, and told once", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const fleet = await FleetView.connect(broker.url);
  t.after(() => fleet.close());
  const station = await TestStation.make({
    mqtt: { url: broker.url },
    probation: { frames: 1000, minutes: 1000 },
  });
  t.after(() => station.remove());
  const current = () => readlink(join(station.dir, "models", "current"));
  await station.label(8);
  await station.start();
  await station.labeled(24);
  const generalist = await current();
  for (const [i, step] of ["swap.loaded", "swap.pointer-renamed"].entries()) {
    await fleet.command("specialize", `learn-${i}`, '{"force": true}');
    await fleet.end("specialize", `learn-${i}`);
    assert.notEqual(await current(), generalist);
    const reached = station.until((line) => line.step === step);
    await fleet.command("rollback", `back-${i}`, "{}");
    await reached;
    await station.kill();
    await station.start();
    await eventually(`the way back after ${step}`, () => fleet.of("e/rollback").length === i + 1);
    assert.equal(await current(), generalist);
    assert.equal(fleet.last("e/rollback")?.["cause"], "command");
    const swap = station.ask((r) => r.listSwaps().find(({ kind }) => kind === "swap"));
    assert.equal(swap?.state, "rolled_back");
    assert.equal(
      station.ask((r) => r.summary(Date.now()).currentModel?.sha256),
      generalist,
    );
    await station.shoot(2, 100 * i);
    await station.predicted(2 * (i + 1));
    // The same labels would give the same model, which is not learned twice in a row.
    await station.label(1, 200_000 + i);
    await station.labeled(24 + 3 * (i + 1));
  }
});
