import { readdirSync, readFileSync } from "node:fs";

const SAMPLE_MS = 200;

/** Follows the resident peaks (VmHWM of proc(5)) of a process and its children, by role. */
export function watchMemory(pid: number): { stop(): Record<string, number> } {
  const peaks: Record<string, number> = {};
  const look = () => {
    for (const id of [pid, ...childrenOf(pid)]) {
      try {
        const command = readFileSync(`/proc/${id}/cmdline`, "utf8");
        const status = readFileSync(`/proc/${id}/status`, "utf8");
        const role = roleOf(command);
        const kilobytes = Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 0);
        peaks[role] = Math.max(peaks[role] ?? 0, kilobytes * 1024);
      } catch {
        // The process ended between the listing and the look.
      }
    }
  };
  const timer = setInterval(look, SAMPLE_MS);
  return {
    stop: () => {
      clearInterval(timer);
      return peaks;
    },
  };
}

function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, "utf8")
        .split(" ")
        .filter((text) => text !== "")
        .map(Number),
    );
  } catch {
    return [];
  }
}

function roleOf(command: string): string {
  if (command.includes("inference-child")) return "inference";
  if (command.includes("specialize/child")) return "specialize";
  if (command.includes("generalist-child")) return "generalist";
  return "supervisor";
}
