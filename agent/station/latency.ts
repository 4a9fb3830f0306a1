/** Rounds of a latency measurement: each runs every model once, so the median settles. */
export const LATENCY_ROUNDS = 40;
