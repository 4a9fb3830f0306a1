import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** Writes files into a new folder that stands for `/`; call `remove` when done. */
export function sysfsTree(files: Readonly<Record<string, string>>): {
  root: string;
  write: (path: string, text: string) => void;
  remove: () => void;
} {
  const root = mkdtempSync(join(tmpdir(), "taco-sysfs-"));
  const write = (path: string, text: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  };
  for (const [path, text] of Object.entries(files)) write(path, text);
  return { root, write, remove: () => rmSync(root, { recursive: true, force: true }) };
}

const INA = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1";

/** Jetson Orin Nano, JetPack 6: hwmon rails, one zone that is off, load in thousandths. */
export const ORIN: Readonly<Record<string, string>> = {
  "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
  "proc/meminfo": "MemTotal:        7800000 kB\nMemFree:  100 kB\nMemAvailable:    4000000 kB\n",
  "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\nKERNEL: nope\n",
  "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
  "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
  "sys/class/thermal/thermal_zone0/temp": "51250\n",
  "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
  "sys/class/thermal/thermal_zone0/trip_point_0_temp": "104500\n",
  "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
  "sys/class/thermal/thermal_zone0/trip_point_1_temp": "99000\n",
  "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
  "sys/class/thermal/thermal_zone1/temp": "53500\n",
  "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive\n",
  "sys/class/thermal/thermal_zone1/trip_point_0_temp": "53000\n",
  "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
  "sys/class/thermal/thermal_zone2/temp": "-256000\n",
  "sys/class/thermal/thermal_zone10/type": "tj-thermal\n",
  "sys/class/thermal/thermal_zone10/temp": "\n",
  [`${INA}/name`]: "ina3221\n",
  [`${INA}/in1_label`]: "VDD_IN\n",
  [`${INA}/in1_input`]: "5000\n",
  [`${INA}/curr1_input`]: "1400\n",
  [`${INA}/curr1_crit_alarm`]: "0\n",
  [`${INA}/in2_label`]: "VDD_CPU_GPU_CV\n",
  [`${INA}/in2_input`]: "5000\n",
  [`${INA}/curr2_input`]: "400\n",
  [`${INA}/curr2_crit_alarm`]: "1\n",
  [`${INA}/in3_label`]: "NC\n",
  [`${INA}/in7_label`]: "Sum of shunt voltages\n",
  [`${INA}/in7_input`]: "9\n",
  "sys/devices/platform/bus@0/17000000.gpu/load": "625\n",
};

const IIO = "sys/bus/i2c/devices/7-0040/iio:device0";

/** Jetson Xavier NX, JetPack 4: iio rails in milliwatts, the old place of the GPU load. */
export const XAVIER: Readonly<Record<string, string>> = {
  "proc/device-tree/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
  "sys/class/thermal/thermal_zone0/type": "GPU-therm\n",
  "sys/class/thermal/thermal_zone0/temp": "40000\n",
  [`${IIO}/rail_name_0`]: "VDD_CPU_GPU_CV\n",
  [`${IIO}/in_power0_input`]: "900\n",
  [`${IIO}/rail_name_1`]: "POM_5V_IN\n",
  [`${IIO}/in_power1_input`]: "5210\n",
  "sys/devices/gpu.0/load": "1000\n",
};

/** A laptop: two batteries beside that of a mouse, an AMD GPU, no power monitor. */
export const LAPTOP: Readonly<Record<string, string>> = {
  "sys/class/dmi/id/product_name": "ThinkPad T14\n",
  "proc/meminfo": "MemAvailable:    1000 kB\n",
  "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
  "sys/class/thermal/thermal_zone0/temp": "62000\n",
  "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
  "sys/class/thermal/thermal_zone0/trip_point_0_temp": "-274000\n",
  "sys/class/power_supply/AC/type": "Mains\n",
  "sys/class/power_supply/BAT0/type": "Battery\n",
  "sys/class/power_supply/BAT0/capacity": "80\n",
  "sys/class/power_supply/BAT0/status": "Not charging\n",
  "sys/class/power_supply/BAT1/type": "Battery\n",
  "sys/class/power_supply/BAT1/energy_now": "20000000\n",
  "sys/class/power_supply/BAT1/energy_full": "40000000\n",
  "sys/class/power_supply/BAT1/status": "Charging\n",
  "sys/class/power_supply/hid-mouse/type": "Battery\n",
  "sys/class/power_supply/hid-mouse/scope": "Device\n",
  "sys/class/power_supply/hid-mouse/capacity": "3\n",
  "sys/class/drm/card0/device/gpu_busy_percent": "12\n",
  "sys/class/drm/card0-HDMI-A-1/status": "connected\n",
};
