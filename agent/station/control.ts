import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../clock.ts";
import { messageOf } from "../errors.ts";
import { writeFileAtomic } from "../files.ts";
import type { Logger } from "../log.ts";

/** Files with commands of people on the machine: `control/<op>.<id>.json`. */
const NAME = /^([a-z]+)\.([\w-]+)\.json$/;

/** Puts a command for a station into its folder; it is taken now, or at the next start. */
export async function putCommand(
  controlDir: string,
  op: string,
  id: string,
  payload: unknown,
): Promise<void> {
  await mkdir(controlDir, { recursive: true });
  await writeFileAtomic(join(controlDir, `${op}.${id}.json`), JSON.stringify(payload));
}

/**
 * Takes the commands that people on the machine put into a folder, as the fleet's come over MQTT.
 * A file is removed once the command was handed on, so one that comes while the agent is down
 * waits.
 */
export class ControlFolder {
  readonly #options: {
    readonly dir: string;
    readonly clock: Clock;
    readonly log: Logger;
    readonly intervalMs: number;
    readonly onCommand: (op: string, id: string, payload: Buffer) => void;
  };
  readonly #stop = new AbortController();
  /** Names told of once; few, as only people put files there. */
  readonly #complained = new Set<string>();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: {
    dir: string;
    clock: Clock;
    log: Logger;
    intervalMs: number;
    onCommand: (op: string, id: string, payload: Buffer) => void;
  }) {
    this.#options = options;
  }

  async start(): Promise<void> {
    await mkdir(this.#options.dir, { recursive: true });
    this.#loop = this.#run(this.#stop.signal);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { clock, intervalMs, log } = this.#options;
    while (!signal.aborted) {
      try {
        await this.#take();
      } catch (error) {
        log.warn({ reason: messageOf(error) }, "the folder of local commands cannot be read");
      }
      await clock.sleep(intervalMs, signal).catch(() => undefined);
    }
  }

  async #take(): Promise<void> {
    const { dir, onCommand } = this.#options;
    for (const name of (await readdir(dir)).sort()) {
      const [, op, id] = NAME.exec(name) ?? [];
      if (op === undefined || id === undefined) continue;
      const path = join(dir, name);
      try {
        onCommand(op, id, await readFile(path));
        await rm(path, { force: true });
      } catch (error) {
        if (this.#complained.has(name)) continue;
        this.#complained.add(name);
        this.#options.log.warn({ path, reason: messageOf(error) }, "a command cannot be read");
      }
    }
  }
}
