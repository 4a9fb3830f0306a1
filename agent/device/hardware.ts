import * as os from "node:os";
import * as systeminformation from "systeminformation";
import { type Clock, isoTime } from "../clock.ts";
import { Sysfs } from "./sysfs.ts";

/** What a machine is; does not change while it runs. */
export interface Hardware {
  readAt: string;
  /** `NVIDIA Jetson Orin Nano Developer Kit`, a board's name, or null where nothing tells it. */
  model: string | null;
  /** First line of `etc/nv_tegra_release`, which names the release of Jetson Linux; null elsewhere. */
  jetsonRelease: string | null;
  cpuModel: string;
  cpuCores: number;
  memoryBytes: number;
  /** `Ubuntu 22.04.4 LTS`. */
  os: string;
  kernel: string;
  arch: string;
  nodeVersion: string;
}

/** What {@link readHardware} reads and where. */
export interface HardwareOptions {
  /** Folder that holds `proc/`, `sys/` and `etc/`; `/` on a real machine. */
  root: string;
  clock: Clock;
}

/**
 * The facts for `twin/hardware`. Model and operating system come from files under `root`; cores,
 * memory and versions are those of the machine that runs this process.
 */
export async function readHardware({ root, clock }: HardwareOptions): Promise<Hardware> {
  const sysfs = new Sysfs(root);
  const model =
    (await sysfs.text("proc/device-tree/model")) ??
    (await sysfs.text("sys/class/dmi/id/product_name"));
  const release = await sysfs.text("etc/nv_tegra_release");
  return {
    readAt: isoTime(clock.nowMs()),
    model: model || null,
    jetsonRelease: release?.split("\n")[0]?.replace(/^#\s*/, "") ?? null,
    cpuModel: await readCpuModel(),
    cpuCores: os.availableParallelism(),
    memoryBytes: os.totalmem(),
    os: prettyName(await sysfs.text("etc/os-release")) ?? `${os.type()} ${os.release()}`,
    kernel: `${os.type()} ${os.release()}`,
    arch: process.arch,
    nodeVersion: process.version,
  };
}

/** Node knows no names of ARM cores ("unknown"); systeminformation asks lscpu for them. */
async function readCpuModel(): Promise<string> {
  const name = os.cpus()[0]?.model.trim() ?? "";
  if (name !== "" && name !== "unknown") return name;
  const { manufacturer, brand } = await systeminformation.cpu();
  return `${manufacturer} ${brand}`.trim() || "unknown";
}

function prettyName(release: string | null): string | null {
  return /^PRETTY_NAME="?([^"\n]*)"?$/m.exec(release ?? "")?.[1] ?? null;
}
