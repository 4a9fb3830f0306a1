import * as v from "valibot";
import type { Clock } from "../clock.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { IncomingMessage } from "./connection.ts";
import {
  type BuildMessage,
  COMMANDS,
  type CommandOp,
  type CommandPayload,
  type CommandState,
  type OutboxMessage,
} from "./messages.ts";
import { parseCommandTopic } from "./topics.ts";

/** Longest payload of a command in bytes. */
const MAX_PAYLOAD_BYTES = 16 * 1024;

/** Commands of one operation that may wait for the one before, at most. */
const MAX_WAITING = 16;

/** A command whose payload was checked. */
export type Command = {
  [O in CommandOp]: { readonly id: string; readonly op: O; readonly payload: CommandPayload<O> };
}[CommandOp];

/** How a command ended. */
export type CommandResult =
  | { readonly state: "successful"; readonly reason?: string }
  | { readonly state: "failed"; readonly reason: string };

/** Remembers every command for good, so that none is carried out twice. */
export interface CommandJournal {
  /** Records a command as executing; "new", or where it stands if it was recorded before. */
  begin(
    id: string,
    op: string,
    payload: string,
  ): "new" | { readonly state: CommandState; readonly reason: string | null };
  /** Records how a command ended. */
  finish(id: string, state: "successful" | "failed", reason: string | null): void;
}

/** What the commands need. */
export interface CommandRunnerOptions {
  readonly journal: CommandJournal;
  /** Puts a message into the outbox. */
  readonly enqueue: (message: OutboxMessage) => void;
  readonly build: BuildMessage;
  /** Carries out a command; what it throws becomes the reason of the failure. */
  readonly onCommand: (command: Command) => Promise<CommandResult>;
  /** Runs a change of the journal and its message in one transaction; plainly by default. */
  readonly transaction?: (work: () => void) => void;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** A command that the journal still has as executing. */
export interface UnfinishedCommand {
  readonly id: string;
  readonly op: string;
}

type Parsed = { readonly command: Command } | { readonly problem: string };

/**
 * Carries out the commands of the fleet, each once. The fleet publishes `cmd/<op>/<id>` (QoS 1;
 * retained if it shall reach a station that is away for longer than its session) and reads the
 * retained `cmd/<op>/<id>/state`: executing, then successful or failed with a reason. When it
 * has seen the end, it clears both topics by empty retained payloads; a station clears neither.
 * The same id again, at whatever time, only repeats the state.
 *
 * Commands of one operation run one after the other; those of different operations do not wait
 * for each other, so that a rollback need not wait for a run.
 */
export class CommandRunner {
  readonly #options: CommandRunnerOptions;
  /** Ids of commands that this process works on. */
  readonly #active = new Set<string>();
  /** The last command of each operation, to append to. */
  readonly #queues = new Map<CommandOp, { tail: Promise<void>; waiting: number }>();

  constructor(options: CommandRunnerOptions) {
    this.#options = options;
  }

  /** Takes a message from the broker. Returns when the journal has it; never throws. */
  receive(message: IncomingMessage): void {
    const { logger } = this.#options;
    const topic = parseCommandTopic(message.topic);
    if (topic === undefined) {
      logger.warn({ topic: message.topic.slice(0, 300) }, "ignored a message: no command's topic");
      return;
    }
    // The fleet clears a retained command by an empty payload.
    if (message.payload.length === 0) return;
    try {
      this.#take(topic.op, topic.id, message);
    } catch (error) {
      logger.error(
        { ...topic, error: messageOf(error) },
        "a command could not be recorded and was not begun; send it again when the disk is well",
      );
    }
  }

  /** Tells the fleet that commands failed which were executing when the process died. */
  recover(executing: readonly UnfinishedCommand[]): void {
    for (const { id, op } of executing) {
      this.#finish(id, op, {
        state: "failed",
        reason: "the agent was interrupted; send a new one",
      });
    }
  }

  /** Resolves when no command is being carried out or waits. */
  async idle(): Promise<void> {
    while (this.#queues.size > 0) {
      await Promise.all([...this.#queues.values()].map(({ tail }) => tail));
    }
  }

  #take(op: string, id: string, message: IncomingMessage): void {
    if (this.#active.has(id)) return;
    const { journal, clock, logger } = this.#options;
    const tooLong = message.payload.length > MAX_PAYLOAD_BYTES;
    const text = tooLong ? "" : message.payload.toString("utf8");
    const known = journal.begin(id, op, text);
    if (known !== "new") {
      if (known.state === "executing") this.recover([{ id, op }]);
      else this.#tell(id, op, known.state, known.reason);
      return;
    }
    logger.info({ op, id }, "command received");
    const parsed: Parsed = tooLong
      ? { problem: `expected at most ${MAX_PAYLOAD_BYTES} bytes, got ${message.payload.length}` }
      : parseCommand(op, id, text);
    if ("problem" in parsed) {
      this.#finish(id, op, { state: "failed", reason: parsed.problem });
      return;
    }
    const deadline = (): string | undefined => expiryOf(parsed.command, message, clock);
    this.#append(parsed.command, deadline);
  }

  #append(command: Command, expired: () => string | undefined): void {
    const queue = this.#queues.get(command.op) ?? { tail: Promise.resolve(), waiting: 0 };
    if (queue.waiting >= MAX_WAITING) {
      const reason = `${MAX_WAITING} commands "${command.op}" are waiting already; send it later`;
      this.#finish(command.id, command.op, { state: "failed", reason });
      return;
    }
    queue.waiting += 1;
    this.#active.add(command.id);
    this.#queues.set(command.op, queue);
    queue.tail = queue.tail.then(async () => {
      await this.#execute(command, expired());
      this.#active.delete(command.id);
      queue.waiting -= 1;
      if (queue.waiting === 0) this.#queues.delete(command.op);
    });
  }

  /** Never rejects: what the disk refuses is logged, and reported as interrupted at next start. */
  async #execute(command: Command, expired: string | undefined): Promise<void> {
    const { onCommand, logger } = this.#options;
    const { id, op } = command;
    let result: CommandResult;
    try {
      if (expired !== undefined) {
        result = { state: "failed", reason: expired };
      } else {
        this.#tell(id, op, "executing", null);
        result = await onCommand(command);
      }
    } catch (error) {
      result = { state: "failed", reason: messageOf(error) || "unknown error" };
    }
    try {
      this.#finish(id, op, result);
    } catch (error) {
      logger.error({ op, id, error: messageOf(error) }, "the end of a command was not recorded");
    }
  }

  #finish(id: string, op: string, result: CommandResult): void {
    const { journal, logger, transaction } = this.#options;
    const { state } = result;
    const reason = result.reason ?? null;
    const work = (): void => {
      journal.finish(id, state, reason);
      this.#tell(id, op, state, reason);
    };
    if (transaction === undefined) work();
    else transaction(work);
    logger[state === "failed" ? "warn" : "info"]({ op, id, state, reason }, "command ended");
  }

  #tell(id: string, op: string, state: CommandState, reason: string | null): void {
    const { enqueue, build } = this.#options;
    // The schema wants null where there is nothing to say.
    const said = reason === "" ? null : reason;
    enqueue(build("cmd/+/+/state", { command: id, op, state, reason: said }, { op, id }));
  }
}

function parseCommand(op: string, id: string, text: string): Parsed {
  if (!isCommandOp(op)) {
    return { problem: `expected one of ${Object.keys(COMMANDS).join(", ")}, got "${op}"` };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { problem: `the payload is no JSON: ${messageOf(error)}; send at least {}` };
  }
  // To valibot an empty array is an empty object.
  if (Array.isArray(value)) return { problem: "payload: expected an object, got an array" };
  const result = v.safeParse(COMMANDS[op], value);
  if (result.success) return { command: { id, op, payload: result.output } as Command };
  const [issue] = result.issues;
  const field = issue === undefined ? null : v.getDotPath(issue);
  return { problem: `${field ?? "payload"}: ${issue?.message ?? "does not fit"}` };
}

function isCommandOp(op: string): op is CommandOp {
  return Object.hasOwn(COMMANDS, op);
}

/** Why a command no longer holds; undefined where it does. */
function expiryOf(command: Command, message: IncomingMessage, clock: Clock): string | undefined {
  const { expiresAt } = command.payload;
  const { expiresMonotonicMs } = message;
  const overByBroker = expiresMonotonicMs !== undefined && clock.monotonicMs() > expiresMonotonicMs;
  if (!overByBroker && (expiresAt === undefined || Date.parse(expiresAt) > clock.nowMs())) {
    return undefined;
  }
  const when = overByBroker ? "its message expiry is over" : `it held until ${expiresAt}`;
  return `the command is out of date: ${when}; send a new one`;
}
