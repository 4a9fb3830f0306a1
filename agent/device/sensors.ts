import { statfs } from "node:fs/promises";
import * as systeminformation from "systeminformation";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type Rail, readGpuLoad, readRails, totalPower } from "./jetson.ts";
import {
  type Battery,
  readBattery,
  readGpuBusy,
  readMemoryAvailable,
  readThermalZones,
  type Temperature,
} from "./linux.ts";
import { Sysfs } from "./sysfs.ts";

/** One reading of all sensors. What the machine lacks, or does not tell, is null. */
export interface Sensors {
  temperatures: Temperature[];
  hottestC: number | null;
  /** Lowest trip points of all zones. */
  tripC: { passive: number | null; critical: number | null };
  /** Zones at or above their own passive point: the machine throttles. */
  throttling: string[];
  /** What the board draws. */
  powerWatts: number | null;
  /** Where `powerWatts` comes from: a rail, or "sum of …". */
  powerFrom: string | null;
  rails: Rail[];
  overCurrentAlarm: boolean | null;
  gpuLoadPercent: number | null;
  battery: Battery | null;
  /** Memory that programs can still have. */
  memoryFreeBytes: number | null;
  /** Room for this user on the disk of the station's folder. */
  diskFreeBytes: number | null;
  /** Why each null is null, by the name of its key. */
  unavailable: Record<string, string>;
}

/** What {@link SensorReader} reads and where. */
export interface SensorOptions {
  /** Folder that holds `sys/` and `proc/`; `/` on a real machine. */
  root: string;
  stationDir: string;
  log: Logger;
}

/**
 * Reads the machine's sensors: on Linux, Jetson among it, from sysfs and procfs under `root`;
 * what these lack is asked of systeminformation, which knows other systems and NVIDIA's desktop
 * GPUs. The latter always speaks of the real machine, so it is only asked where `root` is `/`.
 * The room on the disk is always that of `stationDir`.
 */
export class SensorReader {
  readonly #sysfs: Sysfs;
  readonly #stationDir: string;
  readonly #log: Logger;
  readonly #isRealMachine: boolean;
  /** `sensor: reason` pairs already logged; bounded, as both come from the code and errno. */
  readonly #logged = new Set<string>();
  /** nvidia-smi takes a second where it finds nothing; after one null it is not asked again. */
  #hasOtherGpu = true;

  constructor({ root, stationDir, log }: SensorOptions) {
    this.#sysfs = new Sysfs(root);
    this.#stationDir = stationDir;
    this.#log = log;
    this.#isRealMachine = root === "/";
  }

  /** Never rejects: a sensor that cannot be read is null, its reason logged once. */
  async read(): Promise<Sensors> {
    const unavailable: Record<string, string> = {};
    const read = async <T>(sensor: string, absent: string, from: () => Promise<T | null>) => {
      const value = await this.#attempt(sensor, absent, from);
      if (value.ok) return value.value;
      unavailable[sensor] = value.reason;
      return null;
    };
    const temperatures =
      (await read("temperatures", "no thermal zone", () => this.#temperatures())) ?? [];
    const power = await read("powerWatts", "no INA3221 power monitor", async () => {
      const { rails, overCurrent } = await readRails(this.#sysfs);
      const total = totalPower(rails);
      return total && { ...total, rails, overCurrent };
    });
    const gpuLoadPercent = await read("gpuLoadPercent", "no GPU load", () => this.#gpuLoad());
    const battery = await read("battery", "no battery", () => this.#battery());
    const memoryFreeBytes = await read("memoryFreeBytes", "no proc/meminfo", () => this.#memory());
    const diskFreeBytes = await read("diskFreeBytes", "no such folder", () => this.#disk());
    return {
      ...summary(temperatures),
      powerWatts: power?.watts ?? null,
      powerFrom: power?.from ?? null,
      rails: power?.rails ?? [],
      overCurrentAlarm: power?.overCurrent ?? null,
      gpuLoadPercent,
      battery,
      memoryFreeBytes,
      diskFreeBytes,
      unavailable,
    };
  }

  async #attempt<T>(
    sensor: string,
    absent: string,
    from: () => Promise<T | null>,
  ): Promise<{ ok: true; value: T } | { ok: false; reason: string }> {
    let reason = absent;
    try {
      const value = await from();
      if (value !== null) return { ok: true, value };
    } catch (error) {
      // A sensor must never stop the station: whatever the kernel or a tool answers is its reason.
      reason = messageOf(error);
    }
    if (!this.#logged.has(`${sensor}: ${reason}`)) {
      this.#logged.add(`${sensor}: ${reason}`);
      this.#log.info({ sensor, reason }, "sensor not available");
    }
    return { ok: false, reason };
  }

  async #temperatures(): Promise<Temperature[] | null> {
    const zones = await readThermalZones(this.#sysfs);
    if (zones.length > 0) return zones;
    if (!this.#isRealMachine) return null;
    const { main } = await systeminformation.cpuTemperature();
    if (!isNumber(main)) return null;
    return [{ name: "cpu", tempC: main, passiveC: null, criticalC: null }];
  }

  async #gpuLoad(): Promise<number | null> {
    const load = (await readGpuLoad(this.#sysfs)) ?? (await readGpuBusy(this.#sysfs));
    if (load !== null || !this.#isRealMachine || !this.#hasOtherGpu) return load;
    const { controllers } = await systeminformation.graphics();
    const loads = controllers.map(({ utilizationGpu }) => utilizationGpu).filter(isNumber);
    this.#hasOtherGpu = loads.length > 0;
    return this.#hasOtherGpu ? Math.max(...loads) : null;
  }

  async #battery(): Promise<Battery | null> {
    const battery = await readBattery(this.#sysfs);
    if (battery !== null || !this.#isRealMachine || process.platform === "linux") return battery;
    const { hasBattery, percent, isCharging } = await systeminformation.battery();
    return hasBattery && isNumber(percent) ? { percent, charging: isCharging } : null;
  }

  async #memory(): Promise<number | null> {
    const available = await readMemoryAvailable(this.#sysfs);
    if (available !== null || !this.#isRealMachine) return available;
    return (await systeminformation.mem()).available;
  }

  async #disk(): Promise<number> {
    const { bavail, bsize } = await statfs(this.#stationDir);
    return bavail * bsize;
  }
}

function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

function summary(temperatures: Temperature[]) {
  const lowest = (points: (number | null)[]) => {
    const known = points.filter(isNumber);
    return known.length === 0 ? null : Math.min(...known);
  };
  return {
    temperatures,
    hottestC:
      temperatures.length === 0 ? null : Math.max(...temperatures.map(({ tempC }) => tempC)),
    tripC: {
      passive: lowest(temperatures.map(({ passiveC }) => passiveC)),
      critical: lowest(temperatures.map(({ criticalC }) => criticalC)),
    },
    throttling: temperatures
      .filter(({ tempC, passiveC }) => passiveC !== null && tempC >= passiveC)
      .map(({ name }) => name),
  };
}
