import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connectAsync } from "mqtt";
import { systemClock } from "../../agent/clock.ts";
import {
  type Command,
  type CommandJournal,
  type CommandResult,
  CommandRunner,
  type CommandRunnerOptions,
} from "../../agent/fleet/commands.ts";
import type { IncomingMessage } from "../../agent/fleet/connection.ts";
import { type CommandState, messageBuilder } from "../../agent/fleet/messages.ts";
import { startMosquitto } from "../mosquitto.helpers.ts";
import {
  listeningLogger,
  silentLogger,
  startConnection,
  until,
  watchBroker,
} from "./fleet.helpers.ts";

interface Known {
  state: CommandState;
  reason: string | null;
}

/** A journal that keeps commands as long as the test does: the disk of a station. */
class MemoryJournal implements CommandJournal {
  readonly known = new Map<string, Known & { op: string; payload: string }>();

  begin(id: string, op: string, payload: string): "new" | Known {
    const known = this.known.get(id);
    if (known !== undefined) return { state: known.state, reason: known.reason };
    this.known.set(id, { op, payload, state: "executing", reason: null });
    return "new";
  }

  finish(id: string, state: "successful" | "failed", reason: string | null): void {
    const known = this.known.get(id);
    if (known === undefined) throw new Error(`command ${id} is not in the journal`);
    this.known.set(id, { ...known, state, reason });
  }
}

interface Bench {
  readonly journal: MemoryJournal;
  readonly runner: CommandRunner;
  readonly executed: Command[];
  /** States told, as "topic state reason". */
  readonly told: string[];
}

function bench(
  onCommand: (command: Command) => Promise<CommandResult> = () =>
    Promise.resolve({ state: "successful" }),
  more: Partial<CommandRunnerOptions> = {},
): Bench {
  const journal = new MemoryJournal();
  const executed: Command[] = [];
  const told: string[] = [];
  const runner = new CommandRunner({
    journal,
    enqueue: (message) => {
      assert.ok(message.retain && message.qos === 1);
      const { state, reason, command, op } = JSON.parse(message.payload);
      assert.equal(message.topic, `cmd/${op}/${command}/state`);
      told.push(`${message.topic} ${state}${reason === null ? "" : `: ${reason}`}`);
    },
    build: messageBuilder("creek-3", systemClock, () => "id"),
    onCommand: (command) => {
      executed.push(command);
      return onCommand(command);
    },
    clock: systemClock,
    logger: silentLogger(),
    ...more,
  });
  return { journal, runner, executed, told };
}

function message(
  topic: string,
  payload: string,
  more: Partial<IncomingMessage> = {},
): IncomingMessage {
  return {
    topic,
    payload: Buffer.from(payload),
    retained: true,
    expiresMonotonicMs: undefined,
    ...more,
  };
}

test("commands: run once, and tell executing, then the end, with defaults filled in", async () => {
  const { runner, executed, told } = bench();
  runner.receive(message("cmd/specialize/7", "{}"));
  runner.receive(message("cmd/specialize/7", "{}"));
  await runner.idle();
  runner.receive(message("cmd/specialize/7", '{"force":true}'));
  await runner.idle();
  assert.deepEqual(executed, [{ id: "7", op: "specialize", payload: { force: false } }]);
  assert.deepEqual(told, [
    "cmd/specialize/7/state executing",
    "cmd/specialize/7/state successful",
    "cmd/specialize/7/state successful",
  ]);
});

test("commands: what cannot be understood fails with the reason, whatever it is", async () => {
  const cases: readonly [string, string, RegExp][] = [
    ["cmd/explode/1", "{}", /failed: expected one of specialize, rollback, refresh, got "explode"/],
    ["cmd/constructor/2", "{}", /failed: expected one of/],
    ["cmd/refresh/3", "now!", /failed: the payload is no JSON: .*send at least \{\}/],
    ["cmd/refresh/4", "[]", /failed: payload: /],
    ["cmd/refresh/5", "null", /failed: /],
    ["cmd/rollback/6", '{"toSha256":"abc"}', /failed: toSha256: expected a SHA-256/],
    ["cmd/specialize/7", '{"forse":true}', /failed: forse: /],
    ["cmd/specialize/8", '{"force":"yes"}', /failed: force: /],
    ["cmd/refresh/9", '{"schemaVersion":2}', /failed: schemaVersion: /],
    ["cmd/refresh/10", `{"a":"${"x".repeat(20_000)}"}`, /failed: expected at most 16384 bytes/],
    ["cmd/refresh/11", "\u0000\uffff\ud83d", /failed: the payload is no JSON/],
  ];
  for (const [topic, payload, expected] of cases) {
    const { runner, executed, told } = bench();
    runner.receive(message(topic, payload));
    await runner.idle();
    assert.equal(executed.length, 0, topic);
    assert.match(told.join("\n"), expected);
    runner.receive(message(topic, payload));
    assert.equal(told.length, 2, "a retained duplicate only repeats the state");
    assert.equal(told[0], told[1]);
  }
});

test("commands: topics that are none and cleared commands are ignored", async () => {
  const { logger, lines } = listeningLogger();
  const { runner, told, journal } = bench(undefined, { logger });
  for (const topic of [
    "cmd/refresh",
    "cmd/refresh/1/state",
    `cmd/refresh/${"x".repeat(200)}`,
    "x",
  ]) {
    runner.receive(message(topic, "{}"));
  }
  assert.equal(lines.length, 4);
  runner.receive(message("cmd/refresh/1", ""));
  await runner.idle();
  assert.deepEqual([told.length, journal.known.size], [0, 0]);
});

test("commands: what is out of date is not begun", async () => {
  const { runner, executed, told } = bench();
  const past = new Date(Date.now() - 1000).toISOString();
  const future = new Date(Date.now() + 60_000).toISOString();
  runner.receive(message("cmd/refresh/1", JSON.stringify({ expiresAt: past })));
  runner.receive(message("cmd/refresh/2", JSON.stringify({ expiresAt: future })));
  runner.receive(message("cmd/refresh/3", "{}", { expiresMonotonicMs: performance.now() - 1 }));
  await runner.idle();
  assert.deepEqual(
    executed.map(({ id }) => id),
    ["2"],
  );
  assert.match(told.join("\n"), /1\/state failed: the command is out of date: it held until/);
  assert.match(told.join("\n"), /3\/state failed: the command is out of date: its message expiry/);
});

test("commands: one that waited until it was out of date is not begun", async () => {
  const { runner, executed, told } = bench(async () => {
    await delay(60);
    return { state: "successful" };
  });
  runner.receive(message("cmd/refresh/1", "{}"));
  runner.receive(message("cmd/refresh/2", "{}", { expiresMonotonicMs: performance.now() + 20 }));
  await runner.idle();
  assert.deepEqual(
    executed.map(({ id }) => id),
    ["1"],
  );
  assert.match(told.join("\n"), /2\/state failed: the command is out of date/);
});

test("commands: a failure and an exception are told with their reasons", async () => {
  const { runner, told } = bench((command) => {
    if (command.id === "1") return Promise.resolve({ state: "failed", reason: "no such model" });
    throw new Error("disk full");
  });
  runner.receive(message("cmd/rollback/1", "{}"));
  runner.receive(message("cmd/rollback/2", "{}"));
  await runner.idle();
  assert.ok(told.includes("cmd/rollback/1/state failed: no such model"));
  assert.ok(told.includes("cmd/rollback/2/state failed: disk full"));
});

test("commands: a rollback does not wait for a run, a second run does", async () => {
  const running = { now: 0, most: 0 };
  const gates = new Map<string, () => void>();
  const { runner, told } = bench(async (command) => {
    if (command.op !== "specialize") return { state: "successful" };
    running.most = Math.max(running.most, ++running.now);
    await new Promise<void>((resolve) => gates.set(command.id, resolve));
    running.now -= 1;
    return { state: "successful" };
  });
  runner.receive(message("cmd/specialize/1", "{}"));
  runner.receive(message("cmd/specialize/2", "{}"));
  runner.receive(message("cmd/rollback/3", "{}"));
  await until("the rollback is done", () => told.includes("cmd/rollback/3/state successful"));
  assert.ok(!told.includes("cmd/specialize/2/state executing"));
  gates.get("1")?.();
  await until("the second begins", () => gates.has("2"));
  gates.get("2")?.();
  await runner.idle();
  assert.equal(running.most, 1);
});

test("commands: no more than 16 of one operation wait", async () => {
  const { runner, executed, told } = bench();
  for (let i = 0; i < 20; i++) runner.receive(message(`cmd/refresh/${i}`, "{}"));
  await runner.idle();
  assert.equal(executed.length, 16);
  assert.equal(told.filter((line) => /16 commands "refresh" are waiting/.test(line)).length, 4);
});

test("commands: one that was executing when the process died is told as failed", async () => {
  const { runner, journal, told, executed } = bench();
  journal.begin("1", "specialize", "{}");
  journal.begin("2", "refresh", "{}");
  runner.recover([{ id: "1", op: "specialize" }]);
  runner.receive(message("cmd/specialize/1", "{}"));
  // Not recovered at the start, and delivered again.
  runner.receive(message("cmd/refresh/2", "{}"));
  await runner.idle();
  assert.equal(executed.length, 0);
  assert.equal(told.length, 3);
  for (const line of told) assert.match(line, /failed: the agent was interrupted/);
  assert.equal(journal.known.get("2")?.state, "failed");
});

test("commands: a journal that cannot write begins nothing and throws nothing", async () => {
  const { logger, lines } = listeningLogger();
  const full = (): never => {
    throw new Error("database or disk is full");
  };
  const { runner, executed } = bench(undefined, {
    logger,
    journal: { begin: full, finish: full },
  });
  runner.receive(message("cmd/refresh/1", "{}"));
  await runner.idle();
  assert.equal(executed.length, 0);
  assert.match(String(lines[0]?.["msg"]), /could not be recorded and was not begun/);
});

test("commands: the end and its message are one transaction", async () => {
  const log: string[] = [];
  const { runner, told } = bench(undefined, {
    transaction: (work) => {
      log.push(`begin ${told.length}`);
      work();
      log.push(`commit ${told.length}`);
    },
  });
  runner.receive(message("cmd/refresh/1", "{}"));
  await runner.idle();
  assert.deepEqual(log, ["begin 1", "commit 2"]);
});

test("commands: over a real broker, retained commands of a fleet run once through reconnects", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const fleet = await connectAsync(broker.url, { protocolVersion: 5 });
  t.after(() => fleet.endAsync(true));
  const topic = "taco/default/creek-3/cmd/refresh/42";
  await fleet.publishAsync(topic, "{}", { qos: 1, retain: true });
  const witness = await watchBroker(broker.url, `${topic}/state`, 1);
  t.after(() => witness.client.endAsync(true));
  const journal = new MemoryJournal();
  const executed: Command[] = [];
  const received = { count: 0 };
  for (let start = 0; start < 3; start++) {
    const outbound: (() => void)[] = [];
    const runner = new CommandRunner({
      journal,
      enqueue: ({ topic: below, payload, qos, retain }) =>
        outbound.push(() => void connection.publish(below, payload, { qos, retain })),
      build: messageBuilder("creek-3", systemClock, () => `state-${start}-${outbound.length}`),
      onCommand: (command) => {
        executed.push(command);
        return Promise.resolve({ state: "successful", reason: "told everything again" });
      },
      clock: systemClock,
      logger: silentLogger(),
    });
    const connection = startConnection(broker.url, start === 1 ? 4 : 5, {
      onMessage: (incoming) => {
        received.count += 1;
        runner.receive(incoming);
      },
    });
    t.after(() => connection.stop());
    await until("the command came", () => received.count > start && connection.online);
    await runner.idle();
    for (const publish of outbound) publish();
    await until(
      "the state is told",
      () => (witness.seen.get(`${topic}/state`)?.length ?? 0) > start + 1,
    );
    await connection.stop();
  }
  assert.deepEqual(
    executed.map(({ id }) => id),
    ["42"],
  );
  const last = witness.last(`${topic}/state`);
  assert.deepEqual([last?.["state"], last?.["reason"]], ["successful", "told everything again"]);
});
