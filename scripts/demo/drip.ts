import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { sha256 } from "../../agent/files.ts";
import type { Camera, Shot } from "./camera.ts";

/** A picture that was put into the inbox, without its bytes. */
export type PutShot = Omit<Shot, "bytes">;

/** Pictures drawn or read ahead of their time. */
const AHEAD = 100;
const LOOK_MS = 20;

/** Puts a camera's pictures into the inbox, some at once and then one after the other. */
export class Drip {
  /** What was put in, by file name. */
  readonly shots = new Map<string, PutShot>();
  readonly #source: Readable;
  readonly #put: (shot: Shot) => Promise<void>;
  readonly #ending = new AbortController();
  readonly #digests = new Set<string>();
  #failure: { error: unknown } | undefined;
  #work: Promise<void> = Promise.resolve();

  /** Begins to draw or read ahead. @param put takes a picture into the inbox. */
  constructor(camera: Camera, put: (shot: Shot) => Promise<void>) {
    this.#put = put;
    this.#source = Readable.from(camera.shots(), { objectMode: true, highWaterMark: AHEAD });
    this.#source.on("error", (error) => {
      this.#failure ??= { error };
    });
    this.#source.read(0);
  }

  /** Puts `atOnce` pictures in as fast as they come, then `perSecond` until it is stopped. */
  start(atOnce: number, perSecond: number): void {
    this.#work = this.#run(atOnce, 1000 / perSecond).catch((error: unknown) => {
      if (!this.#ending.signal.aborted) this.#failure ??= { error };
    });
  }

  /** Throws what made the pictures run dry, if anything did. */
  check(): void {
    if (this.#failure) throw this.#failure.error;
  }

  async stop(): Promise<void> {
    this.#ending.abort();
    await this.#work;
    this.#source.destroy();
  }

  async #run(atOnce: number, stepMs: number): Promise<void> {
    const { signal } = this.#ending;
    for (let i = 0; i < atOnce; i++) await this.#shoot();
    for (let dueMs = performance.now(); !signal.aborted; ) {
      await this.#shoot();
      // A camera that fell behind does not make up for it by a flood.
      dueMs = Math.max(dueMs + stepMs, performance.now() - stepMs);
      const waitMs = dueMs - performance.now();
      if (waitMs > 0) await delay(waitMs, undefined, { signal });
    }
  }

  async #shoot(): Promise<void> {
    for (;;) {
      const { bytes, ...shot } = await this.#next();
      const digest = sha256(bytes);
      // A picture is known by its content: the same again would be no new frame.
      if (this.#digests.has(digest)) continue;
      this.#digests.add(digest);
      this.shots.set(shot.name, shot);
      await this.#put({ ...shot, bytes });
      return;
    }
  }

  async #next(): Promise<Shot> {
    const { signal } = this.#ending;
    for (;;) {
      signal.throwIfAborted();
      this.check();
      const shot = this.#source.read() as Shot | null;
      if (shot !== null) return shot;
      await delay(LOOK_MS, undefined, { signal });
    }
  }
}
