import { existsSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "..", "..", "shared", "bench");

/**
 * Absolute path of something in the bench data, which lies beside the checkout and never in it.
 *
 * @returns undefined where it is absent; the test then skips with {@link BENCH_ABSENT}.
 */
export function benchPath(relative: string): string | undefined {
  const path = join(ROOT, relative);
  return existsSync(path) ? path : undefined;
}

/** Reason for `skip` where the bench data is absent. */
export const BENCH_ABSENT = "the bench data is not beside this checkout (../shared/bench)";
