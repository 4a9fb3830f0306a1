import type { Sysfs } from "./sysfs.ts";

/** Power of one supply rail. */
export interface Rail {
  name: string;
  watts: number;
}

/** What the power monitors of a Jetson say. */
export interface RailReading {
  /** Every rail that could be read, in the order of the bus. */
  rails: Rail[];
  /** Whether an over-current alarm is on; null where no rail has one. */
  overCurrent: boolean | null;
}

const I2C = "sys/bus/i2c/devices";

/**
 * Rails of the INA3221 monitors: hwmon from JetPack 5 on (`inN_label`, millivolts × milliamperes),
 * iio on JetPack 4 (`rail_name_N`, milliwatts). Nodes appear late at boot, so each reading looks
 * for them anew.
 */
export async function readRails(sysfs: Sysfs): Promise<RailReading> {
  const rails: Rail[] = [];
  const alarms: number[] = [];
  for (const device of await sysfs.names(I2C)) {
    const folder = `${I2C}/${device}`;
    for (const monitor of await sysfs.names(`${folder}/hwmon`, /^hwmon\d+$/)) {
      await readHwmon(sysfs, `${folder}/hwmon/${monitor}`, rails, alarms);
    }
    for (const monitor of await sysfs.names(folder, /^iio:device\d+$/)) {
      await readIio(sysfs, `${folder}/${monitor}`, rails);
    }
  }
  return { rails, overCurrent: alarms.length === 0 ? null : alarms.some((alarm) => alarm !== 0) };
}

/** The chip has three channels; higher `in` numbers are its shunt voltages, without a current. */
async function readHwmon(sysfs: Sysfs, folder: string, rails: Rail[], alarms: number[]) {
  for (const channel of [1, 2, 3]) {
    const name = await sysfs.text(`${folder}/in${channel}_label`);
    if (name === null || name === "" || name === "NC") continue;
    const millivolts = await sysfs.number(`${folder}/in${channel}_input`);
    const milliamperes = await sysfs.number(`${folder}/curr${channel}_input`);
    if (millivolts === null || milliamperes === null) continue;
    rails.push({ name, watts: (millivolts * milliamperes) / 1e6 });
    const alarm = await sysfs.number(`${folder}/curr${channel}_crit_alarm`);
    if (alarm !== null) alarms.push(alarm);
  }
}

async function readIio(sysfs: Sysfs, folder: string, rails: Rail[]) {
  for (const channel of [0, 1, 2]) {
    const name = await sysfs.text(`${folder}/rail_name_${channel}`);
    const milliwatts = await sysfs.number(`${folder}/in_power${channel}_input`);
    if (name === null || name === "" || milliwatts === null) continue;
    rails.push({ name, watts: milliwatts / 1000 });
  }
}

/** Rails that carry all that the board draws, by generation. */
const TOTAL_RAILS = ["VDD_IN", "POM_5V_IN", "VIN"];

/**
 * What the board draws: the rail that carries everything, else (Jetson AGX Orin has none) the sum
 * of all rails; null where there are no rails. `from` says which it is.
 */
export function totalPower(rails: readonly Rail[]): { watts: number; from: string } | null {
  const total = rails.find(({ name }) => TOTAL_RAILS.includes(name));
  if (total !== undefined) return { watts: total.watts, from: total.name };
  if (rails.length === 0) return null;
  const watts = rails.reduce((sum, rail) => sum + rail.watts, 0);
  return { watts, from: `sum of ${rails.map(({ name }) => name).join(", ")}` };
}

/** Places of the GPU load in thousandths, newest kernel first. */
const GPU_LOADS = [
  "sys/devices/platform/bus@0/17000000.gpu/load",
  "sys/devices/platform/gpu.0/load",
  "sys/devices/platform/17000000.gpu/load",
  "sys/devices/gpu.0/load",
];

/** GPU load in percent, or null where the kernel shows none. */
export async function readGpuLoad(sysfs: Sysfs): Promise<number | null> {
  for (const path of GPU_LOADS) {
    const thousandths = await sysfs.number(path);
    if (thousandths !== null) return thousandths / 10;
  }
  return null;
}
