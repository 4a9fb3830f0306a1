import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { readJsonIfExists, writeFileAtomic, writeJsonAtomic } from "../files.ts";
import { readGraph, writeGraph } from "../onnx/graph.ts";
import type { FineTuneState } from "./fine-tune.ts";
import { roundReportSchema } from "./front.ts";

const stateFile = v.object({
  done: v.array(roundReportSchema),
  trained: v.boolean(),
  student: v.boolean(),
  checkpoint: v.boolean(),
});

/**
 * The state of a fine-tuning on disk, so that a killed one goes on where it was: the networks of
 * each round and the last checkpoint first, then the file that points at them.
 */
export class TuningFiles {
  readonly #dir: string;

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** Null where nothing was written. */
  async read(): Promise<FineTuneState | null> {
    const value = await readJsonIfExists(this.#path("state.json"));
    if (value === undefined) return null;
    const { done, trained, student, checkpoint } = v.parse(stateFile, value);
    const round = done.length;
    const network = async (name: string) => readGraph(await readFile(this.#path(name)));
    return {
      done,
      trained: trained ? await network(trainedName(round)) : null,
      student: student ? await network(studentName(round)) : null,
      checkpoint: checkpoint ? await readFile(this.#path(checkpointName(round))) : null,
    };
  }

  async write({ done, trained, student, checkpoint }: FineTuneState): Promise<void> {
    const round = done.length;
    await mkdir(this.#dir, { recursive: true });
    const before = await readJsonIfExists(this.#path("state.json"));
    // A network is the same all through its round.
    if (student === null && trained) {
      await writeFileAtomic(this.#path(trainedName(round)), writeGraph(trained));
    }
    if (student && checkpoint === null) {
      await writeFileAtomic(this.#path(studentName(round)), writeGraph(student));
    }
    if (checkpoint !== null) await writeFileAtomic(this.#path(checkpointName(round)), checkpoint);
    await writeJsonAtomic(this.#path("state.json"), {
      done,
      trained: trained !== null,
      student: student !== null,
      checkpoint: checkpoint !== null,
    });
    const known = before === undefined ? undefined : v.parse(stateFile, before);
    const over = known?.done.length ?? round;
    if (over < round) {
      for (const nameOf of [studentName, trainedName, checkpointName]) {
        await rm(this.#path(nameOf(over)), { force: true });
      }
    }
  }

  async remove(): Promise<void> {
    await rm(this.#dir, { recursive: true, force: true });
  }

  #path(name: string): string {
    return join(this.#dir, name);
  }
}

function trainedName(round: number): string {
  return `trained-${round}.onnx`;
}

function checkpointName(round: number): string {
  return `checkpoint-${round}.bin`;
}

function studentName(round: number): string {
  return `student-${round}.onnx`;
}
