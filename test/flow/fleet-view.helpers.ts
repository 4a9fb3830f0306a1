import { connectAsync, type MqttClient } from "mqtt";
import { eventually } from "./station.helpers.ts";

/** A message as the fleet reads it. */
export type FleetMessage = Record<string, unknown> & { readonly id: string };

const PREFIX = "taco/default/test-station";

/** What a fleet sees of the test's station at the broker, in order, and what it asks for. */
export class FleetView {
  readonly #client: MqttClient;
  readonly #seen: { topic: string; retained: boolean; message: FleetMessage }[] = [];

  private constructor(client: MqttClient) {
    this.#client = client;
    client.on("error", () => undefined);
    client.on("message", (topic, payload, { retain }) => {
      if (payload.length === 0 || /\/cmd\/[^/]+\/[^/]+$/.test(topic)) return;
      const message = JSON.parse(payload.toString()) as FleetMessage;
      this.#seen.push({ topic: topic.slice(PREFIX.length + 1), retained: retain, message });
    });
  }

  static async connect(url: string): Promise<FleetView> {
    const client = await connectAsync(url, { protocolVersion: 5, reconnectPeriod: 0 });
    const view = new FleetView(client);
    await client.subscribeAsync(`${PREFIX}/#`, { qos: 1 });
    return view;
  }

  /** Messages of a topic below the station's, oldest first. */
  of(topic: string): FleetMessage[] {
    return this.#seen.flatMap((one) => (one.topic === topic ? [one.message] : []));
  }

  last(topic: string): FleetMessage | undefined {
    return this.of(topic).at(-1);
  }

  /** Every message whose topic begins so. */
  under(start: string): { topic: string; message: FleetMessage }[] {
    return this.#seen.filter(({ topic }) => topic.startsWith(start));
  }

  /** Whether the broker had kept the topic's first message when this view subscribed. */
  wasRetained(topic: string): boolean {
    return this.#seen.find((one) => one.topic === topic)?.retained ?? false;
  }

  /** Sends a command to the station; its end is told on `cmd/<op>/<id>/state`. */
  async command(op: string, id: string, payload: string): Promise<void> {
    await this.#client.publishAsync(`${PREFIX}/cmd/${op}/${id}`, payload, { qos: 1 });
  }

  /** Waits for the end of a command. @returns the message that tells it. */
  async end(op: string, id: string): Promise<FleetMessage> {
    const state = () => this.last(`cmd/${op}/${id}/state`);
    const isOver = () => (state()?.["state"] ?? "executing") !== "executing";
    await eventually(`the end of ${op} ${id}`, isOver);
    return state()!;
  }

  async close(): Promise<void> {
    await this.#client.endAsync(true);
  }
}
