import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createConnection, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode } from "../agent/errors.ts";

/** Where Debian and others put the broker; it is not in the PATH of every user. */
const PLACES = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];

/** How a broker of a test differs from the plain one. */
export interface MosquittoOptions {
  /** More lines of `mosquitto.conf`; `allow_anonymous true` is there unless they set it. */
  readonly config?: readonly string[];
  /** Content of further files in the broker's folder, by name; `{folder}` in `config` names it. */
  readonly files?: Readonly<Record<string, string>>;
}

/** A real mosquitto of one test on 127.0.0.1. */
export class Mosquitto {
  readonly port: number;
  readonly #folder: string;
  #process: ChildProcess | undefined;
  #output = "";

  constructor(port: number, folder: string) {
    this.port = port;
    this.#folder = folder;
  }

  get url(): string {
    return `mqtt://127.0.0.1:${this.port}`;
  }

  /** What the broker logged since the first start. */
  get output(): string {
    return this.#output;
  }

  /** Starts it (again, on the same port); resolves when it takes connections. */
  async start(): Promise<void> {
    const child = spawn(mosquittoPath(), ["-c", join(this.#folder, "mosquitto.conf")]);
    this.#process = child;
    child.stderr.on("data", (chunk) => {
      this.#output += String(chunk);
    });
    for (let tries = 0; tries < 250; tries++) {
      if (child.exitCode !== null) break;
      if (await canConnect(this.port)) return;
      await delay(20);
    }
    throw new Error(`mosquitto does not listen on port ${this.port}:\n${this.#output}`);
  }

  /** SIGTERM: the broker says DISCONNECT to nobody, closes all connections and ends. */
  async stop(): Promise<void> {
    await this.#end("SIGTERM");
  }

  /** SIGKILL: what the broker held in memory is gone. */
  async kill(): Promise<void> {
    await this.#end("SIGKILL");
  }

  /** Stops it and removes its folder. */
  async remove(): Promise<void> {
    await this.kill();
    await rm(this.#folder, { recursive: true, force: true });
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exit = once(child, "exit");
    child.kill(signal);
    await exit;
  }
}

/**
 * Starts Debian's mosquitto on a free port of 127.0.0.1 with a configuration of its own.
 *
 * @throws {Error} that says what to install, where there is no mosquitto.
 */
export async function startMosquitto(options: MosquittoOptions = {}): Promise<Mosquitto> {
  mosquittoPath();
  const folder = await mkdtemp(join(tmpdir(), "taco-mosquitto-"));
  const port = await freePort();
  const more = (options.config ?? []).map((line) => line.replaceAll("{folder}", folder));
  const lines = [
    `listener ${port} 127.0.0.1`,
    "log_dest stderr",
    "persistence false",
    "set_tcp_nodelay true",
    // Started by root, mosquitto becomes another user, who may not read the folder.
    ...(process.getuid?.() === 0 ? ["user root"] : []),
    ...(more.some((line) => line.startsWith("allow_anonymous")) ? [] : ["allow_anonymous true"]),
    ...more,
  ];
  await writeFile(join(folder, "mosquitto.conf"), `${lines.join("\n")}\n`);
  for (const [name, content] of Object.entries(options.files ?? {})) {
    await writeFile(join(folder, name), content, { mode: 0o600 });
  }
  const broker = new Mosquitto(port, folder);
  try {
    await broker.start();
  } catch (error) {
    await broker.remove();
    throw error;
  }
  return broker;
}

/** A port of 127.0.0.1 that nobody listens on at this moment. */
export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return address.port;
}

function mosquittoPath(): string {
  const path = PLACES.find((place) => existsSync(place));
  if (path === undefined) {
    throw new Error(
      `mosquitto is not installed (looked for ${PLACES.join(", ")}): ` +
        "run scripts/test.sh, or apt-get install mosquitto",
    );
  }
  return path;
}

async function canConnect(port: number): Promise<boolean> {
  const socket = createConnection({ port, host: "127.0.0.1" });
  try {
    await once(socket, "connect");
    return true;
  } catch (error) {
    if (systemCode(error) === "ECONNREFUSED") return false;
    throw error;
  } finally {
    socket.destroy();
  }
}
