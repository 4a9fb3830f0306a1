import type { Sysfs } from "./sysfs.ts";

/** One temperature with the points at which the kernel acts on it. */
export interface Temperature {
  name: string;
  tempC: number;
  /** Where the kernel begins to throttle; null where the zone has no such point. */
  passiveC: number | null;
  /** Where the kernel switches the machine off; null where the zone has no such point. */
  criticalC: number | null;
}

/** All batteries that feed the machine, as one. */
export interface Battery {
  /** Charge of the emptiest battery, in [0, 100]. */
  percent: number;
  /** Whether a battery takes charge, or is full. */
  charging: boolean;
}

const THERMAL = "sys/class/thermal";

/**
 * Every thermal zone that is on. A zone that is off reads −256 °C on a Jetson or answers with an
 * error; both are left out, as is what no silicon survives.
 */
export async function readThermalZones(sysfs: Sysfs): Promise<Temperature[]> {
  const zones: Temperature[] = [];
  for (const zone of await sysfs.names(THERMAL, /^thermal_zone\d+$/)) {
    const folder = `${THERMAL}/${zone}`;
    const tempC = celsius(await sysfs.number(`${folder}/temp`));
    if (tempC === null) continue;
    const name = (await sysfs.text(`${folder}/type`)) ?? zone;
    zones.push({ name, tempC, ...(await readTrips(sysfs, folder)) });
  }
  return zones;
}

/** Lowest passive and critical trip point of a zone; points at or below 0 °C are placeholders. */
async function readTrips(sysfs: Sysfs, folder: string) {
  const found: { passive: number[]; critical: number[] } = { passive: [], critical: [] };
  for (const file of await sysfs.names(folder, /^trip_point_\d+_type$/)) {
    const type = await sysfs.text(`${folder}/${file}`);
    const tempC = celsius(await sysfs.number(`${folder}/${file.replace(/type$/, "temp")}`));
    if (tempC === null || tempC <= 0) continue;
    if (type === "passive" || type === "critical") found[type].push(tempC);
  }
  const lowest = (points: number[]) => (points.length === 0 ? null : Math.min(...points));
  return { passiveC: lowest(found.passive), criticalC: lowest(found.critical) };
}

/** Thousandths of a degree to degrees; null for what no sensor in the open can mean. */
function celsius(thousandths: number | null): number | null {
  if (thousandths === null) return null;
  const tempC = thousandths / 1000;
  return tempC > -60 && tempC < 250 ? tempC : null;
}

const SUPPLIES = "sys/class/power_supply";

/** The batteries that feed the machine; those of mice and pens (scope "Device") do not count. */
export async function readBattery(sysfs: Sysfs): Promise<Battery | null> {
  const percents: number[] = [];
  let charging = false;
  for (const supply of await sysfs.names(SUPPLIES)) {
    const folder = `${SUPPLIES}/${supply}`;
    if ((await sysfs.text(`${folder}/type`)) !== "Battery") continue;
    if ((await sysfs.text(`${folder}/scope`)) === "Device") continue;
    const percent = await readCharge(sysfs, folder);
    if (percent === null) continue;
    percents.push(Math.min(100, Math.max(0, percent)));
    const status = await sysfs.text(`${folder}/status`);
    charging ||= status === "Charging" || status === "Full";
  }
  return percents.length === 0 ? null : { percent: Math.min(...percents), charging };
}

/** Fuel gauges tell percent, or energy (µWh), or charge (µAh). */
async function readCharge(sysfs: Sysfs, folder: string): Promise<number | null> {
  const capacity = await sysfs.number(`${folder}/capacity`);
  if (capacity !== null) return capacity;
  for (const unit of ["energy", "charge"]) {
    const now = await sysfs.number(`${folder}/${unit}_now`);
    const full = await sysfs.number(`${folder}/${unit}_full`);
    if (now !== null && full !== null && full > 0) return (100 * now) / full;
  }
  return null;
}

/** Highest load of the AMD GPUs in percent, or null where there is none. */
export async function readGpuBusy(sysfs: Sysfs): Promise<number | null> {
  const loads: number[] = [];
  for (const card of await sysfs.names("sys/class/drm", /^card\d+$/)) {
    const load = await sysfs.number(`sys/class/drm/${card}/device/gpu_busy_percent`);
    if (load !== null) loads.push(load);
  }
  return loads.length === 0 ? null : Math.max(...loads);
}

/** `MemAvailable` of proc/meminfo in bytes, or null. */
export async function readMemoryAvailable(sysfs: Sysfs): Promise<number | null> {
  const kibibytes = /^MemAvailable:\s+(\d+) kB$/m.exec((await sysfs.text("proc/meminfo")) ?? "");
  return kibibytes === null ? null : Number(kibibytes[1]) * 1024;
}
