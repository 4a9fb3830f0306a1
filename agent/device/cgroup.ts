import { mkdir, readFile, writeFile } from "node:fs/promises";
import * as os from "node:os";
import { basename, join } from "node:path";
import { messageOf } from "../errors.ts";

/** CPU and IO weight of a run against 100 of the station; the same as in taco-specialize.slice. */
export const RUN_WEIGHT = 10;

/** Share of the memory from which a run is slowed and its caches are reclaimed; as in the slice. */
export const RUN_MEMORY_SHARE = 0.75;

/** What {@link RunCgroup} reads and where. */
export interface CgroupOptions {
  /** Folder that holds `proc/` and `sys/`; `/` on a real machine. */
  root: string;
  /** TACO_DELEGATED_CGROUP is read; the unit sets it beside Delegate=. */
  environment: NodeJS.ProcessEnv;
}

/**
 * Keeps runs at a low CPU and IO weight inside the part of the control group tree that systemd
 * hands over to the service by `Delegate=`:
 *
 *     taco-agent.service/            belongs to the service's user
 *       station/                     supervisor and inference, weight 100
 *       run/                         the specialize child, weight 10, memory.high
 *
 * Only the kernel's version 2 tree has this (JetPack 6, Debian 11 and later). Where it is missing,
 * runs still have nice 19 and the idle IO class.
 */
export class RunCgroup {
  readonly #options: CgroupOptions;
  #runFolder: string | null = null;

  constructor(options: CgroupOptions) {
    this.#options = options;
  }

  /**
   * Makes the two groups and moves this process into `station/`, as a group with processes of its
   * own may hand no controllers down (cgroups(7), "no internal processes"). Call it before the
   * first child is forked.
   *
   * @returns what could not be done, in words; empty where all was.
   */
  async start(): Promise<string[]> {
    if (this.#options.environment["TACO_DELEGATED_CGROUP"] !== "1") {
      return ["no control group was delegated (not started by taco-agent.service)"];
    }
    const refused: string[] = [];
    try {
      const service = await this.#ownGroup();
      await mkdir(join(service, "station"), { recursive: true });
      await mkdir(join(service, "run"), { recursive: true });
      await writeFile(join(service, "station", "cgroup.procs"), String(process.pid));
      this.#runFolder = join(service, "run");
      refused.push(...(await this.#limit(service, this.#runFolder)));
    } catch (error) {
      refused.push(messageOf(error));
    }
    return refused;
  }

  /**
   * Moves a process with all its threads into `run/`.
   *
   * @returns what could not be done, in words; empty where it was, or where there are no groups.
   */
  async place(pid: number): Promise<string[]> {
    if (this.#runFolder === null) return [];
    return await write(join(this.#runFolder, "cgroup.procs"), String(pid));
  }

  /** A kernel without a controller, or with another IO scheduler, refuses single lines only. */
  async #limit(service: string, run: string): Promise<string[]> {
    const memoryHigh = Math.floor(os.totalmem() * RUN_MEMORY_SHARE);
    const lines: [string, string][] = [
      [join(service, "cgroup.subtree_control"), "+cpu"],
      [join(service, "cgroup.subtree_control"), "+io"],
      [join(service, "cgroup.subtree_control"), "+memory"],
      [join(run, "cpu.weight"), String(RUN_WEIGHT)],
      [join(run, "memory.high"), String(memoryHigh)],
    ];
    const refused: string[] = [];
    for (const [path, line] of lines) refused.push(...(await write(path, line)));
    // The weight of the io.cost controller, or that of the BFQ scheduler: a kernel has one or none.
    const byCost = await write(join(run, "io.weight"), `default ${RUN_WEIGHT}`);
    const byBfq = await write(join(run, "io.bfq.weight"), `default ${RUN_WEIGHT}`);
    return byCost.length > 0 && byBfq.length > 0 ? [...refused, ...byCost] : refused;
  }

  /**
   * The service's group. A process that was restarted in place is in `station/` already.
   *
   * @throws {Error} where the kernel has no version 2 tree.
   */
  async #ownGroup(): Promise<string> {
    const { root } = this.#options;
    const groups = await readFile(join(root, "proc/self/cgroup"), "utf8");
    const path = /^0::(\/.+)$/m.exec(groups)?.[1];
    if (path === undefined) throw new Error("the kernel has no control groups of version 2");
    const own = basename(path) === "station" ? join(path, "..") : path;
    return join(root, "sys/fs/cgroup", own);
  }
}

/** Writes to a file of the kernel, which must exist: one that is made anew has no effect. */
async function write(path: string, line: string): Promise<string[]> {
  try {
    await writeFile(path, line, { flag: "r+" });
    return [];
  } catch (error) {
    return [`${line}: ${messageOf(error)}`];
  }
}
