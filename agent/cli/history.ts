import { join } from "node:path";
import { Command } from "commander";
import { loadConfig } from "../config/load.ts";
import { openStoreReadOnly } from "../store/open.ts";
import type { Reports } from "../store/reports.ts";
import { count, megabytes, percent, table } from "./terminal.ts";

/** `taco runs`: what was tried, and what came of it. */
export function runsCommand(): Command {
  return new Command("runs")
    .description("the runs of a station and their verdicts")
    .requiredOption("--config <file>", "the station's configuration")
    .option("--json", "print JSON", false)
    .action(({ config, json }: { config: string; json: boolean }) => {
      const runs = read(config, (reports) => reports.listRuns());
      if (json) return print(JSON.stringify(runs, null, 2));
      const rows = runs.map((run) => [
        run.id,
        run.kind,
        run.state,
        run.verdict === null ? "" : run.verdict.accepted ? "accepted" : "refused",
        run.stages.reduce((sum, { seconds }) => sum + (seconds ?? 0), 0).toFixed(0),
        run.verdict?.reasons.join("\n") ?? run.reason ?? "",
      ]);
      return print(table(["run", "kind", "state", "verdict", "seconds", "reasons"], rows));
    });
}

/** `taco models`: what is on the disk, and which one serves. */
export function modelsCommand(): Command {
  return new Command("models")
    .description("the models of a station")
    .requiredOption("--config <file>", "the station's configuration")
    .option("--json", "print JSON", false)
    .action(({ config, json }: { config: string; json: boolean }) => {
      const models = read(config, (reports) => reports.listModels());
      if (json) return print(JSON.stringify(models, null, 2));
      const rows = models.map((model) => [
        `${model.current ? "▶ " : ""}${model.sha256.slice(0, 12)}`,
        model.name,
        model.accuracy === null ? "" : percent(model.accuracy),
        model.nonzero === null ? "" : count(model.nonzero),
        model.sizeBytes === null ? "" : megabytes(model.sizeBytes),
        model.latencyMsP50 === null ? "" : `${model.latencyMsP50.toFixed(1)} ms`,
        model.present ? "" : "removed",
      ]);
      const head = ["model", "name", "accuracy", "non-zero", "size", "latency p50", ""];
      return print(table(head, rows));
    });
}

/** Reads a station's database, running or not. */
export function read<T>(configPath: string, question: (reports: Reports) => T): T {
  const { station } = loadConfig(configPath, process.env);
  const store = openStoreReadOnly(join(station.dir, "taco.db"));
  try {
    return question(store.reports);
  } finally {
    store.close();
  }
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
