import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { pbkdf2Sync, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { Aedes } from "aedes";
import { connectAsync } from "mqtt";
import type { IncomingMessage } from "../../agent/fleet/connection.ts";
import { freePort, type Mosquitto, startMosquitto } from "../mosquitto.helpers.ts";
import {
  type Gate,
  listen,
  listeningLogger,
  startConnection,
  startGate,
  until,
  watchBroker,
} from "./fleet.helpers.ts";

const STATUS = "taco/default/creek-3/status";

async function brokerFor(
  t: TestContext,
  options: Parameters<typeof startMosquitto>[0] = {},
): Promise<Mosquitto> {
  const broker = await startMosquitto(options);
  t.after(() => broker.remove());
  return broker;
}

async function gateFor(t: TestContext, port: number): Promise<Gate> {
  const gate = await startGate(port);
  t.after(() => gate.remove());
  return gate;
}

/** A broker of MQTT 3.1.1 in this process. */
async function aedesFor(
  t: TestContext,
  prepare: (aedes: Aedes) => void = () => undefined,
): Promise<{ url: string }> {
  const aedes = await Aedes.createBroker();
  prepare(aedes);
  const server = createServer(aedes.handle);
  const port = await listen(server);
  t.after(() => {
    aedes.close();
    server.close();
  });
  return { url: `mqtt://127.0.0.1:${port}` };
}

/** A line of mosquitto's password file (PBKDF2-SHA512, mosquitto_passwd(1)). */
function passwordLine(user: string, password: string): string {
  const salt = randomBytes(12);
  const hash = pbkdf2Sync(password, salt, 101, 64, "sha512");
  return `${user}:$7$101$${salt.toString("base64")}$${hash.toString("base64")}\n`;
}

for (const version of [5, 4] as const) {
  const name = version === 5 ? "MQTT 5" : "MQTT 3.1.1";

  test(`connection: ${name}: says online, and offline when stopped, without the Will`, async (t) => {
    const broker = await brokerFor(t);
    const witness = await watchBroker(broker.url, "#", 1);
    t.after(() => witness.client.endAsync(true));
    const connection = startConnection(broker.url, version);
    t.after(() => connection.stop());
    await until("online", () => witness.last(STATUS)?.["state"] === "online");
    await until("known here", () => connection.online);
    await connection.stop();
    await until("offline", () => witness.last(STATUS)?.["state"] === "offline");
    await delay(50);
    assert.equal(witness.last(STATUS)?.["reason"], "stopped");
    assert.equal(witness.seen.get(STATUS)?.length, 2);
    assert.equal(connection.online, false);
  });

  test(`connection: ${name}: comes back from refused, killed and frozen brokers`, async (t) => {
    const broker = await brokerFor(t);
    await broker.stop();
    const gate = await gateFor(t, broker.port);
    const { logger, lines } = listeningLogger();
    const connection = startConnection(gate.url, version, { keepaliveSeconds: 1, logger });
    t.after(() => connection.stop());
    await delay(100);
    assert.equal(connection.online, false);

    gate.open();
    await broker.start();
    await until("online after the broker started", () => connection.online);
    await broker.kill();
    await until("offline after the kill", () => !connection.online);
    await broker.start();
    await until("online after the kill", () => connection.online);
    gate.freeze();
    await until("offline after the link froze", () => !connection.online);
    assert.ok(lines.some((line) => /Keepalive timeout/.test(String(line["reason"]))));
    gate.cut();
    gate.open();
    await until("online after the link froze", () => connection.online);
  });

  test(`connection: ${name}: gets commands that were sent while it was away`, async (t) => {
    const broker = await brokerFor(t);
    const got: IncomingMessage[] = [];
    const onMessage = (message: IncomingMessage): void => {
      got.push(message);
    };
    const first = startConnection(broker.url, version, { onMessage });
    t.after(() => first.stop());
    await until("online", () => first.online);
    await first.stop();
    const fleet = await connectAsync(broker.url, { protocolVersion: version });
    t.after(() => fleet.endAsync(true));
    await fleet.publishAsync("taco/default/creek-3/cmd/refresh/1", "{}", {
      qos: 1,
      ...(version === 5 ? { properties: { messageExpiryInterval: 600 } } : {}),
    });
    await fleet.publishAsync("taco/default/creek-3/cmd/refresh/1/state", "{}", { qos: 1 });
    if (version === 5) {
      await fleet.publishAsync("taco/default/creek-3/cmd/specialize/2", "{}", {
        qos: 1,
        properties: { messageExpiryInterval: 1 },
      });
      await delay(2100);
    }
    const second = startConnection(broker.url, version, { onMessage });
    t.after(() => second.stop());
    await until("the command came", () => got.length > 0);
    await delay(50);
    assert.deepEqual(
      got.map(({ topic, payload, retained }) => [topic, payload.toString(), retained]),
      [["cmd/refresh/1", "{}", false]],
    );
    const expiresMs = got[0]?.expiresMonotonicMs;
    if (version === 4) assert.equal(expiresMs, undefined);
    else
      assert.ok(
        Number(expiresMs) > performance.now() && Number(expiresMs) < performance.now() + 600_000,
      );
  });
}

test("connection: a wrong password is told with what to do, and tried again with a new one", async (t) => {
  const broker = await brokerFor(t, {
    config: ["allow_anonymous false", "password_file {folder}/passwords"],
    files: { passwords: passwordLine("station", "right") },
  });
  const folder = await mkdtemp(join(tmpdir(), "taco-credentials-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  for (const version of [5, 4] as const) {
    const { logger, lines } = listeningLogger();
    const connection = startConnection(broker.url, version, {
      username: "station",
      passwordFile: "mqtt-password",
      environment: { CREDENTIALS_DIRECTORY: folder },
      logger,
    });
    t.after(() => connection.stop());
    const told = (pattern: RegExp): boolean =>
      lines.some((line) => pattern.test(`${String(line["reason"])} ${String(line["advice"])}`));
    await until("the missing file is told", () => told(/mqtt\.passwordFile: .* cannot be read/));
    await writeFile(join(folder, "mqtt-password"), "wrong\n");
    await until("the refusal is told", () =>
      told(/Connection refused.*(mqtt\.passwordFile|right to connect)/),
    );
    await writeFile(join(folder, "mqtt-password"), "right\n");
    await until("online", () => connection.online);
    assert.doesNotMatch(JSON.stringify(lines), /"right"|"wrong"/);
    await connection.stop();
    await rm(join(folder, "mqtt-password"));
  }
});

test("connection: a broker that refuses the subscription is told, and messages still go", async (t) => {
  const { url } = await aedesFor(t, (aedes) => {
    aedes.authorizeSubscribe = (_client, _subscription, answer) => answer(null, null);
  });
  const { logger, lines } = listeningLogger();
  const connection = startConnection(url, 4, { logger });
  t.after(() => connection.stop());
  await until("online", () => connection.online);
  assert.ok(lines.some((line) => /no commands can arrive/.test(String(line["msg"]))));
});

test("connection: MQTT 5 to a broker of 3.1.1 only says which version to set", async (t) => {
  const { url } = await aedesFor(t);
  const { logger, lines } = listeningLogger();
  const connection = startConnection(url, 5, { logger });
  t.after(() => connection.stop());
  await until("it is told", () =>
    lines.some((line) => /mqtt\.protocolVersion to 4/.test(String(line["advice"]))),
  );
  assert.equal(connection.online, false);
});

test("connection: a broker that accepts and stays silent is given up in time", async (t) => {
  const server = createServer(() => undefined);
  const port = await listen(server);
  const { logger, lines } = listeningLogger();
  const connection = startConnection(`mqtt://127.0.0.1:${port}`, 5, {
    connectTimeoutMs: 100,
    logger,
  });
  t.after(async () => {
    await connection.stop();
    server.close();
  });
  const tries = (): number =>
    lines.filter((line) => /no answer from the broker within 100 ms/.test(String(line["reason"])))
      .length;
  await until("three attempts", () => tries() >= 3);
});

test("connection: a broker that never acknowledges is given up", async (t) => {
  const connack = Buffer.from([0x20, 0x03, 0x00, 0x00, 0x00]);
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", () => socket.write(connack));
  });
  const port = await listen(server);
  const { logger, lines } = listeningLogger();
  const connection = startConnection(`mqtt://127.0.0.1:${port}`, 5, { ackTimeoutMs: 100, logger });
  t.after(async () => {
    await connection.stop();
    server.close();
  });
  await until("it is told", () =>
    lines.some((line) =>
      /did not acknowledge a message within 100 ms/.test(String(line["reason"])),
    ),
  );
});

/** Packets of a broker, right ones to be damaged. */
function brokerPackets(version: 4 | 5): Buffer[] {
  const properties = version === 5 ? [0x00] : [];
  const topic = Buffer.from("taco/default/creek-3/cmd/refresh/1");
  const body = [0x00, topic.length, ...topic, 0x00, 0x07, ...properties, 0x7b, 0x7d];
  return [
    Buffer.from([0x20, 2 + properties.length, 0x00, 0x00, ...properties]),
    Buffer.from([0x90, 3 + properties.length, 0x00, 0x01, ...properties, 0x01]),
    Buffer.from([0x40, 0x02, 0x00, 0x01]),
    Buffer.from([0x32, body.length, ...body]),
    Buffer.from([0xd0, 0x00]),
    Buffer.from([0x62, 0x02, 0x00, 0x09]),
    Buffer.from(version === 5 ? [0xe0, 0x02, 0x8e, 0x00] : [0xe0, 0x00]),
    Buffer.from([0xf0, 0x02, 0x18, 0x00]),
  ];
}

for (const version of [5, 4] as const) {
  test(`connection: outlives ${version === 5 ? "MQTT 5" : "MQTT 3.1.1"} brokers that send damaged packets`, async (t) => {
    const random = seededRandom(version);
    const pick = (n: number): number => Math.floor(random() * n);
    const packets = brokerPackets(version);
    const served = { connections: 0 };
    const answer = (socket: Socket): void => {
      served.connections += 1;
      socket.on("error", () => undefined);
      socket.once("data", () => {
        if (pick(4) > 0) socket.write(packets[0]!);
        for (let i = 0; i < 6; i++) {
          const packet = Buffer.from(packets[pick(packets.length)]!);
          for (let hits = pick(3); hits > 0; hits--) packet[pick(packet.length)] = pick(256);
          socket.write(pick(8) === 0 ? packet.subarray(0, pick(packet.length)) : packet);
        }
        if (pick(2) === 0) socket.write(randomBytes(64));
        setTimeout(() => socket.destroy(), pick(8));
      });
    };
    const server = createServer(answer);
    const port = await listen(server);
    const connection = startConnection(`mqtt://127.0.0.1:${port}`, version, {
      backoff: { baseMs: 1, capMs: 1 },
      connectTimeoutMs: 50,
      onMessage: () => {
        throw new Error("a command that cannot be taken");
      },
    });
    t.after(async () => {
      await connection.stop();
      server.close();
    });
    await until("many connections were broken", () => served.connections > 150, 30_000);
  });
}

function seededRandom(seed: number): () => number {
  const state = { value: seed };
  return () => {
    state.value = (Math.imul(state.value, 1664525) + 1013904223) >>> 0;
    return state.value / 2 ** 32;
  };
}

test("connection: an impossible URL is told and the agent goes on", async (t) => {
  const { logger, lines } = listeningLogger();
  for (const url of ["http://broker", "broker:1883", "mqtt://"]) {
    const connection = startConnection(url, 5, { logger });
    t.after(() => connection.stop());
  }
  await until(
    "all are told",
    () => lines.filter((l) => /mqtt\.url: expected/.test(String(l["reason"]))).length >= 3,
  );
  assert.throws(() => startConnection("mqtt://x", 5, { station: "a/b" }), /station id: expected/);
});

test("connection: TLS trusts the certificate of caFile and no other", async (t) => {
  if (!existsSync("/usr/bin/openssl")) {
    t.skip("openssl is not installed");
    return;
  }
  const folder = await mkdtemp(join(tmpdir(), "taco-tls-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const key = join(folder, "key.pem");
  const certificate = join(folder, "certificate.pem");
  await promisify(execFile)("/usr/bin/openssl", [
    ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
    ...["-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"],
    ...["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
  ]);
  const port = await freePort();
  const broker = await brokerFor(t, {
    config: [
      `listener ${port} 127.0.0.1`,
      "certfile {folder}/certificate.pem",
      "keyfile {folder}/key.pem",
    ],
    files: {
      "certificate.pem": await readFile(certificate, "utf8"),
      "key.pem": await readFile(key, "utf8"),
    },
  });
  assert.ok(broker.port !== port);
  const { logger, lines } = listeningLogger();
  const trusting = startConnection(`mqtts://127.0.0.1:${port}`, 5, { caFile: certificate });
  const wary = startConnection(`mqtts://127.0.0.1:${port}`, 5, { station: "creek-4", logger });
  t.after(() => Promise.all([trusting.stop(), wary.stop()]));
  await until("online", () => trusting.online);
  await until("refused", () => lines.some((l) => /self-signed/.test(String(l["reason"]))));
  assert.equal(wary.online, false);
});

test("connection: stop ends at once in every phase", async () => {
  const port = await freePort();
  const refused = startConnection(`mqtt://127.0.0.1:${port}`, 5, {
    backoff: { baseMs: 60_000, capMs: 60_000 },
  });
  await delay(50);
  const startMs = performance.now();
  await refused.stop();
  const server = createServer(() => undefined);
  const silent = startConnection(`mqtt://127.0.0.1:${await listen(server)}`, 5);
  await delay(50);
  await silent.stop();
  server.close();
  const early = startConnection(`mqtt://127.0.0.1:${port}`, 5);
  await early.stop();
  assert.ok(performance.now() - startMs < 1000);
});
