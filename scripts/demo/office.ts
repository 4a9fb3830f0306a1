import { connectAsync, type IClientOptions, type MqttClient } from "mqtt";
import { AgentError, messageOf } from "../../agent/errors.ts";
import { createTally, type EmbeddedBroker, startBroker } from "../broker.ts";

/** The far end of the station's messages: counts what comes, and sends commands. */
export interface FleetOffice {
  /** Address of the broker, without credentials. */
  readonly url: string;
  readonly embedded: boolean;
  readonly protocolVersion: 4 | 5;
  readonly username: string | null;
  readonly password: string | null;
  /** Why the connection broke last; null where it held. */
  problem(): string | null;
  /** Messages of this station by kind, retained ones of earlier times left out. */
  seen(): { kind: string; count: number }[];
  /** Sends a command to the station. */
  send(op: string, id: string, payload: unknown): Promise<void>;
  stop(): Promise<void>;
}

/**
 * Connects to a broker, or starts one inside this process.
 *
 * @param url of a broker, credentials in it allowed; null for the embedded one.
 * @param prefix of the station's topics: `taco/<fleet>/<station>`.
 * @throws {AgentError} CONFIG_INVALID where the broker cannot be reached.
 */
export async function openOffice(url: string | null, prefix: string): Promise<FleetOffice> {
  const broker = url === null ? await startBroker() : null;
  const { address, username, password } = withoutCredentials(broker?.url ?? url ?? "");
  const { client, protocolVersion } = await connect(address, {
    ...(username === null ? {} : { username }),
    ...(password === null ? {} : { password }),
    // The embedded one and some others speak 3.1.1 only; the station's default is 5.
    versions: broker ? [4] : [5, 4],
  }).catch(async (error: unknown) => {
    await broker?.stop();
    throw error;
  });
  const tally = createTally();
  let problem: string | null = null;
  client.on("error", (error) => {
    problem = error.message;
  });
  client.on("message", (topic, payload, packet) => {
    if (!packet.retain) tally.note(topic, payload);
  });
  await client.subscribeAsync(`${prefix}/#`, { qos: 1 });
  return {
    url: address,
    embedded: broker !== null,
    protocolVersion,
    username,
    password,
    problem: () => problem,
    seen: tally.seen,
    async send(op, id, payload) {
      await client.publishAsync(`${prefix}/cmd/${op}/${id}`, JSON.stringify(payload), { qos: 1 });
    },
    stop: () => close(client, broker),
  };
}

async function close(client: MqttClient, broker: EmbeddedBroker | null): Promise<void> {
  await client.endAsync(true);
  await broker?.stop();
}

async function connect(
  url: string,
  { versions, ...options }: IClientOptions & { versions: readonly (4 | 5)[] },
): Promise<{ client: MqttClient; protocolVersion: 4 | 5 }> {
  let reason = "";
  for (const protocolVersion of versions) {
    try {
      // connectAsync goes on trying for ever unless it is told that the first try counts.
      const limits = { connectTimeout: 10_000, reconnectPeriod: 0 };
      const client = await connectAsync(url, { ...options, ...limits, protocolVersion }, false);
      client.options.reconnectPeriod = 1000;
      return { client, protocolVersion };
    } catch (error) {
      reason = messageOf(error);
    }
  }
  throw new AgentError(
    "CONFIG_INVALID",
    `no MQTT broker answers at ${url} (${reason}): start it, correct --mqtt, or leave --mqtt out for an embedded one`,
  );
}

/** Configurations and screens never hold a password. */
function withoutCredentials(url: string) {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch (error) {
    throw new AgentError("CONFIG_INVALID", `--mqtt: expected mqtt://host:port, got "${url}"`, {
      cause: error,
    });
  }
  const text = (value: string) => (value === "" ? null : decodeURIComponent(value));
  const username = text(parsed.username);
  const password = text(parsed.password);
  parsed.username = "";
  parsed.password = "";
  return { address: parsed.href, username, password };
}
