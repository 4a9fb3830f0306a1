import type { Clock } from "../clock.ts";
import type { Hardware } from "../device/hardware.ts";
import type { Sensors } from "../device/sensors.ts";
import type { BuildMessage, MessageFields } from "../fleet/messages.ts";
import type { InferenceStatus } from "../serve/inference.ts";
import type { Answer } from "../serve/protocol.ts";

/** Times kept for a window's percentiles: the newest of a busy window. */
const MAX_SAMPLES = 10_000;

/** Figures of the inference loop since the last report; bounded however busy the station is. */
export class InferenceWindow {
  readonly #clock: Clock;
  #startMs: number;
  #frames = 0;
  #errors = 0;
  readonly #runMs: number[] = [];
  readonly #decodeMs: number[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#startMs = clock.monotonicMs();
  }

  add(answer: Answer): void {
    if (answer.kind === "inspected") return;
    if (answer.kind === "failed") {
      this.#errors += 1;
      return;
    }
    this.#frames += 1;
    if (this.#runMs.length >= MAX_SAMPLES) {
      this.#runMs.shift();
      this.#decodeMs.shift();
    }
    this.#runMs.push(answer.runMs);
    this.#decodeMs.push(answer.decodeMs);
  }

  /** The window's figures; begins a new window. */
  take(status: InferenceStatus | null): MessageFields<"m/inference"> {
    const nowMs = this.#clock.monotonicMs();
    const fields = {
      windowSeconds: (nowMs - this.#startMs) / 1000,
      frames: this.#frames,
      errors: this.#errors,
      runMsP50: percentile(this.#runMs, 0.5),
      runMsP99: percentile(this.#runMs, 0.99),
      decodeMsP50: percentile(this.#decodeMs, 0.5),
      queueLength: (status?.waiting ?? 0) + (status?.inFlight ?? 0),
      memoryBytes: status?.health?.rssBytes ?? null,
      restarts: status?.restarts ?? 0,
    };
    this.#startMs = nowMs;
    this.#frames = 0;
    this.#errors = 0;
    this.#runMs.length = 0;
    this.#decodeMs.length = 0;
    return fields;
  }
}

/** Value below which a share of the sorted values lies; null for none. */
function percentile(values: readonly number[], share: number): number | null {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? null;
}

/** `m/device` of one reading. */
export function deviceFields(
  sensors: Sensors,
  totalBytes: number,
  cpuLoadPercent: number,
): MessageFields<"m/device"> {
  const free = sensors.memoryFreeBytes;
  return {
    tempC: sensors.hottestC,
    powerWatts: sensors.powerWatts,
    batteryPercent: sensors.battery?.percent ?? null,
    cpuLoadPercent,
    gpuLoadPercent: sensors.gpuLoadPercent,
    memoryUsedBytes: free === null ? null : Math.max(0, totalBytes - free),
    memoryTotalBytes: totalBytes,
    diskFreeBytes: sensors.diskFreeBytes,
  };
}

/** The retained `twin/hardware`. */
export function hardwareMessage(
  build: BuildMessage,
  hardware: Hardware,
  status: InferenceStatus | null,
) {
  const reasons = status?.fallbacks.map(({ provider, reason }) => `${provider}: ${reason}`) ?? [];
  return build("twin/hardware", {
    board: hardware.model,
    cpu: hardware.cpuModel || null,
    cpuCores: hardware.cpuCores,
    memoryBytes: hardware.memoryBytes,
    operatingSystem: hardware.os || null,
    kernel: hardware.kernel || null,
    nodeVersion: hardware.nodeVersion,
    executionProvider: status?.provider ?? null,
    executionProviderReason: reasons.join("; ") || null,
  });
}
