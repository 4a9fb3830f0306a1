import assert from "node:assert/strict";
import { readlink } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { putCommand } from "../../agent/station/control.ts";
import { asked } from "../store/store.helpers.ts";
import { eventually, TestStation } from "./station.helpers.ts";

const MAX_STOP_SECONDS = 5;

test("station: SIGTERM in the midst of a run ends in seconds, and the next start goes on", async (t) => {
  const station = await TestStation.make();
  t.after(() => station.remove());
  await station.label(8);
  await station.start();
  await station.labeled(24);
  const generalist = await readlink(join(station.dir, "models", "current"));
  const ask = (id: string) =>
    putCommand(join(station.dir, "control"), "specialize", id, { force: true });
  const seconds: string[] = [];
  const stopAt = async (what: string, fits: Parameters<typeof station.until>[0]) => {
    await station.until(fits);
    const took = await station.stop();
    seconds.push(`${what} ${took.toFixed(1)} s`);
    assert.ok(took < MAX_STOP_SECONDS, `${what}: ${took} s`);
    await station.start();
  };

  // Before the run is planned, while the generalist is prepared: nothing is left of it.
  const planning = stopAt("planning", ({ msg }) => msg === "command received");
  await ask("first");
  await planning;
  await eventually("the command's end", () =>
    station.ask((r) => r.findCommand("first")?.state === "failed"),
  );

  const running = stopAt("compress", ({ step }) => step === "run.compress.stage-started");
  await eventually("no run is left", () => station.ask((r) => r.listRuns().length === 0));
  await ask("second");
  await running;
  await stopAt("latency", ({ step }) => step === "run.latency.stage-started");
  await stopAt("swap", ({ step }) => step === "swap.begun");
  t.diagnostic(seconds.join(", "));

  await eventually("the run ends", () => station.ask((r) => r.listRuns()[0]?.state === "finished"));
  assert.notEqual(await readlink(join(station.dir, "models", "current")), generalist);
  assert.equal(
    station.ask((r) => r.listRuns().length),
    1,
  );
  const swaps = asked(join(station.dir, "taco.db"), "SELECT state FROM swaps WHERE kind = 'swap'");
  assert.deepEqual(swaps.map(({ state }) => state).sort(), ["interrupted", "probation"]);
});
