/** What `import … from "taco-agent"` gives: a station, one run, and the parts around them. */
export { Agent, type AgentOptions } from "./agent.ts";
export { type Clock, systemClock } from "./clock.ts";
export { loadConfig } from "./config/load.ts";
export { type StationConfig, stationConfigSchema } from "./config/schema.ts";
export { openDataset } from "./data/dataset.ts";
export { AgentError, type ErrorCode } from "./errors.ts";
export { addGeneralist, resolveGeneralist } from "./generalist/add.ts";
export { createLogger, type Logger } from "./log.ts";
export type { ModelManifest, ModelMetrics } from "./model.ts";
export { type MeasureLatency, type RunEvent, specialize } from "./specialize/run.ts";
export type { RunResult, RunSpec } from "./specialize/spec.ts";
export { openStoreReadOnly } from "./store/open.ts";
