import { type FileHandle, open, rm } from "node:fs/promises";
import { writeAt } from "../files.ts";

/**
 * Activations of the calibration set at one border of the network, written and read batch by
 * batch in any order. They stay in memory as long as `memoryBytes` allows and lie in a file
 * beyond that, so that a run's memory does not grow with the number of pictures.
 */
export class ActivationStore {
  readonly #path: string;
  readonly #memoryBytes: number;
  readonly #inMemory = new Map<number, Float32Array>();
  /** Byte offset and length of each batch that went to the file. */
  readonly #inFile = new Map<number, { offset: number; length: number }>();
  #usedBytes = 0;
  #fileBytes = 0;
  #file: FileHandle | undefined;

  /** @param path the overflow file; made at the first batch that does not fit, removed at the end. */
  constructor(path: string, memoryBytes: number) {
    this.#path = path;
    this.#memoryBytes = memoryBytes;
  }

  /** Takes over `data`. What is written of a batch again takes the place of what was in the file. */
  async write(batch: number, data: Float32Array): Promise<void> {
    const before = this.#inFile.get(batch);
    if (before === undefined && this.#usedBytes + data.byteLength <= this.#memoryBytes) {
      this.#usedBytes += data.byteLength;
      this.#inMemory.set(batch, data);
      return;
    }
    this.#file ??= await open(this.#path, "w+");
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const fits = before?.length === data.length;
    const offset = fits ? before.offset : this.#fileBytes;
    await writeAt(this.#file, bytes, offset, this.#path);
    this.#inFile.set(batch, { offset, length: data.length });
    if (!fits) this.#fileBytes += bytes.length;
  }

  /** @throws {RangeError} for a batch that was never written. */
  async read(batch: number): Promise<Float32Array> {
    const kept = this.#inMemory.get(batch);
    if (kept) return kept;
    const place = this.#inFile.get(batch);
    if (!place || !this.#file) throw new RangeError(`batch ${batch} was never written`);
    const data = new Float32Array(place.length);
    const { bytesRead } = await this.#file.read(
      new Uint8Array(data.buffer),
      0,
      data.byteLength,
      place.offset,
    );
    if (bytesRead !== data.byteLength) {
      throw new RangeError(
        `batch ${batch}: ${bytesRead} of ${data.byteLength} bytes in ${this.#path}`,
      );
    }
    return data;
  }

  /** Frees memory and removes the file. */
  async dispose(): Promise<void> {
    this.#inMemory.clear();
    this.#inFile.clear();
    await this.#file?.close();
    this.#file = undefined;
    await rm(this.#path, { force: true });
  }
}
