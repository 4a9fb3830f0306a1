import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type TestContext, test } from "node:test";
import { systemClock } from "../../agent/clock.ts";
import { SystemdNotifier, watchdogPeriodMs } from "../../agent/device/sd-notify.ts";
import { createLogger } from "../../agent/log.ts";

/** Receives datagrams as systemd does; recv() without room for descriptors drops the barrier's. */
const RECEIVER = `
use Socket; $| = 1;
socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die; bind($s, pack_sockaddr_un($ARGV[0])) or die;
print "bound\\n";
while (defined recv($s, my $m, 4096, 0)) { $m =~ s/\\n/ /g; print "$m\\n"; }
`;

const PERL = "/usr/bin/perl";
const canRun = (command: string, ...args: string[]) => spawnSync(command, args).status === 0;
const skip =
  canRun("systemd-notify", "--version") && canRun(PERL, "-e", "use Socket")
    ? false
    : "needs systemd-notify and perl";

async function systemd(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), "taco-notify-"));
  const socket = join(folder, "notify");
  const receiver = spawn(PERL, ["-e", RECEIVER, socket], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.after(() => {
    receiver.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });
  const messages: string[] = [];
  const lines = createInterface({ input: receiver.stdout });
  await once(lines, "line");
  lines.on("line", (line) => messages.push(line.trim()));
  return { socket, messages };
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 200 && !condition(); i += 1) await systemClock.sleep(25);
  assert.ok(condition(), "the expected message did not come");
}

const log = createLogger("silent");

test("systemd: is told of start, status, more time and stop", { skip }, async (t) => {
  const { socket, messages } = await systemd(t);
  const environment = { ...process.env, NOTIFY_SOCKET: socket };
  const isAlive = () => Promise.resolve(true);
  const notifier = new SystemdNotifier({ environment, clock: systemClock, log, isAlive });
  await notifier.start("up\nand running");
  await notifier.status("3 models");
  await notifier.extendTimeout(90_000);
  await notifier.stop();
  await until(() => messages.includes("STOPPING=1"));
  const told = messages.filter((line) => !line.startsWith("BARRIER"));
  assert.deepEqual(told, [
    "READY=1 STATUS=up and running",
    "STATUS=3 models",
    "EXTEND_TIMEOUT_USEC=90000000",
    "STOPPING=1",
  ]);
});

test("systemd: the watchdog is fed only while the station is alive", { skip }, async (t) => {
  const { socket, messages } = await systemd(t);
  const environment = { ...process.env, NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000" };
  const answers: (() => Promise<boolean>)[] = [
    () => Promise.resolve(false),
    () => Promise.reject(new Error("broken")),
    () => new Promise(() => {}),
  ];
  let asked = 0;
  let healthy = false;
  const isAlive = () => {
    asked += 1;
    return healthy ? Promise.resolve(true) : (answers[asked % 3]?.() ?? assert.fail());
  };
  const notifier = new SystemdNotifier({ environment, clock: systemClock, log, isAlive });
  await notifier.start("up");
  await until(() => asked >= 4);
  assert.ok(!messages.includes("WATCHDOG=1"));
  healthy = true;
  await until(() => messages.includes("WATCHDOG=1"));
  await notifier.stop();
});

test("systemd: without NOTIFY_SOCKET nothing is done, and stop ends a silent watch", async () => {
  const clock = systemClock;
  const isAlive = () => new Promise<boolean>(() => {});
  const notifier = new SystemdNotifier({ environment: {}, clock, log, isAlive });
  await notifier.start("up");
  await notifier.stop();
  const environment = { WATCHDOG_USEC: "60000000" };
  const watching = new SystemdNotifier({ environment, clock, log, isAlive });
  await watching.start("up");
  await watching.stop();
});

test("systemd: the watchdog's period is half of the unit's, for this process only", () => {
  assert.equal(watchdogPeriodMs({ WATCHDOG_USEC: "60000000" }, 7), 30_000);
  assert.equal(watchdogPeriodMs({ WATCHDOG_USEC: "60000000", WATCHDOG_PID: "7" }, 7), 30_000);
  assert.equal(watchdogPeriodMs({ WATCHDOG_USEC: "60000000", WATCHDOG_PID: "8" }, 7), null);
  for (const wrong of [undefined, "", "0", "-1", "soon"]) {
    assert.equal(watchdogPeriodMs(wrong === undefined ? {} : { WATCHDOG_USEC: wrong }, 7), null);
  }
});
