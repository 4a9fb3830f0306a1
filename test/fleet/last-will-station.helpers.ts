import { pino } from "pino";
import { systemClock } from "../../agent/clock.ts";
import { FleetConnection } from "../../agent/fleet/connection.ts";

/** A process that is only a connected station, to be killed: `<url> <4|5> <will delay in s>`. */
const [url, version, willDelay] = process.argv.slice(2);
const connection = new FleetConnection({
  fleet: "default",
  station: "creek-3",
  url: url ?? "",
  protocolVersion: version === "4" ? 4 : 5,
  keepaliveSeconds: 30,
  softwareVersion: "1.2.3",
  clock: systemClock,
  random: Math.random,
  newId: () => `${process.pid}-${process.hrtime.bigint()}`,
  logger: pino({ level: "silent" }),
  onMessage: () => undefined,
  willDelaySeconds: Number(willDelay),
});
connection.start();
