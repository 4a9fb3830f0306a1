import { execFile } from "node:child_process";
import { readdir, writeFile } from "node:fs/promises";
import * as os from "node:os";
import { promisify } from "node:util";
import { messageOf } from "../errors.ts";

const run = promisify(execFile);

/** Score with which the kernel ends a run long before the station when memory is short. */
const OOM_SCORE = 900;

/**
 * Puts a process behind all others: nice 19, IO class "idle", first to go when memory is short.
 * Lowering needs no privilege. Nothing of it is needed for a run, so what the machine refuses is
 * returned for the log rather than thrown. Linux keeps nice and IO class by thread: those that
 * exist are lowered one by one, and later ones inherit it.
 *
 * @returns what could not be done, in words; empty where all was.
 */
export async function lowerPriority(pid: number): Promise<string[]> {
  const refused: string[] = [];
  const attempt = async (what: string, change: () => unknown) => {
    try {
      await change();
    } catch (error) {
      refused.push(`${what}: ${messageOf(error).trim()}`);
    }
  };
  const threads = await threadsOf(pid);
  for (const thread of threads) {
    await attempt(`nice of ${thread}`, () =>
      os.setPriority(thread, os.constants.priority.PRIORITY_LOW),
    );
  }
  const ids = threads.map(String);
  await attempt("ionice -c3", () => run("ionice", ["-c3", "-p", ...ids], { timeout: 5000 }));
  await attempt("oom_score_adj", () => writeFile(`/proc/${pid}/oom_score_adj`, `${OOM_SCORE}`));
  return refused;
}

/** Thread ids of a process; the process id alone where /proc does not tell. */
async function threadsOf(pid: number): Promise<number[]> {
  try {
    return (await readdir(`/proc/${pid}/task`)).map(Number);
  } catch {
    // No /proc (not Linux), or the process is gone: the attempts that follow say which.
    return [pid];
  }
}
