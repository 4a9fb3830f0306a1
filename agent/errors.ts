/**
 * Every stable error code of the agent with what it means; README lists the same table, and
 * `test/errors.test.ts` holds the two together.
 */
export const ERROR_CODES = {
  CONFIG_INVALID: "The configuration file does not fit the schema.",
  CONFIG_UNREADABLE: "The configuration file is missing or no YAML.",
  PICTURE_UNREADABLE: "A picture cannot be used; the message says why.",
  LABELS_INVALID: "A label file does not fit its format.",
  MODEL_INVALID: "An ONNX file is no usable classifier.",
  MODEL_CHECK_FAILED: "A model did not give its known answers.",
  GENERALIST_UNAVAILABLE: "The generalist cannot be fetched, verified or understood.",
  DOWNLOAD_FAILED: "A download did not finish or its digest differs.",
  REGISTRY_INVALID: "The model registry on disk is not in a valid state.",
  STORE_TOO_NEW: "The database was written by a newer version of the agent.",
  STORE_FAILED: "SQLite refused an operation (disk full, damaged file).",
  RUN_FAILED: "A specialize run cannot go on; the message says which stage and why.",
  RUN_ABORTED: "A specialize run was told to stop or its process was killed; it can be resumed.",
  TOO_FEW_LABELS: "There are not enough labeled pictures to specialize.",
  INFERENCE_FAILED: "The inference child could not do what it was asked.",
  STATION_BUSY: "Another process already runs this station.",
  COMMAND_INVALID: "A command from the fleet cannot be understood or is out of date.",
  DISK_FULL: "The disk has no room for what must be written.",
} as const;

/** One of the stable codes of {@link ERROR_CODES}. */
export type ErrorCode = keyof typeof ERROR_CODES;

/**
 * An error of the world outside (a file, a model, a broker, a label), wrapped once at the edge
 * where it is met. The message says what was expected, what came, and what to do.
 */
export class AgentError extends Error {
  override readonly name = "AgentError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** The message of anything thrown, for people; never throws itself. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The system error code (`ENOENT`, `ENOSPC`, …) of anything thrown, if it carries one. */
export function systemCode(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}
