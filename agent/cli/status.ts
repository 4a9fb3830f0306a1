import { Command } from "commander";
import { systemClock } from "../clock.ts";
import { loadConfig } from "../config/load.ts";
import type { Decision } from "../schedule/policy.ts";
import { isRunning } from "./control.ts";
import { print, read } from "./history.ts";
import { duration, percent, table } from "./terminal.ts";

/** `taco status`: where the station stands, and why no run starts now. */
export function statusCommand(): Command {
  return new Command("status")
    .description("where a station stands, and why it does not specialize now")
    .requiredOption("--config <file>", "the station's configuration")
    .option("--json", "print JSON", false)
    .action(({ config, json }: { config: string; json: boolean }) => {
      const { station } = loadConfig(config, process.env);
      const running = isRunning(station.dir);
      const status = read(config, (reports) => ({
        station: station.id,
        agentRunning: running,
        ...reports.summary(systemClock.nowMs()),
        schedule: (reports.stationState("schedule") ?? null) as Decision | null,
        problems: reports
          .listEvents(200)
          .filter(({ kind }) => kind === "problem")
          .slice(0, 5),
      }));
      if (json) return print(JSON.stringify(status, null, 2));
      const { currentModel, probation, lastRun, schedule } = status;
      const progress = lastRun?.progress;
      const whyNot =
        schedule === null
          ? ["no decision yet"]
          : schedule.action === "run"
            ? ["a run starts"]
            : schedule.reasons;
      const rows: [string, string][] = [
        ["agent", running ? "running" : "stopped"],
        [
          "model",
          currentModel ? `${currentModel.name} (${currentModel.sha256.slice(0, 12)})` : "—",
        ],
        ["probation", probation ? `since ${probation.switchedAt ?? probation.startedAt}` : "none"],
        ["predictions", `${status.predictionsToday} today, ${status.predictionsTotal} in all`],
        ["waiting pictures", String(status.waitingPictures)],
        ["labels", `${status.labeledPictures}, ${status.newLabels} of them new`],
        ["quarantine", `${status.quarantinedFiles} files`],
        ["last run", lastRun ? `${lastRun.id}: ${lastRun.state}` : "none"],
        ...(progress
          ? ([
              [
                "run under way",
                `${progress.stage}, ${percent(progress.share)}` +
                  (progress.secondsLeft === null ? "" : `, ${duration(progress.secondsLeft)} left`),
              ],
            ] satisfies [string, string][])
          : []),
        ["last verdict", status.lastVerdict?.reasons.join("\n") ?? "none"],
        ["why no run now", whyNot.join("\n")],
        ["messages", `${status.pendingMessages} waiting, ${status.droppedMessages} dropped`],
        ["problems", status.problems.map(({ at, text }) => `${at} ${text}`).join("\n") || "none"],
      ];
      return print(table([station.id, ""], rows));
    });
}
