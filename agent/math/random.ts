/** A seeded stream of random numbers; the same seed gives the same stream on every machine. */
export interface Random {
  /** Uniform in [0, 1), 53 bits. */
  uniform(): number;
  /** Standard normal. */
  normal(): number;
  /** Uniform integer in [0, limit). @throws {RangeError} unless 1 ≤ limit ≤ 2³². */
  integer(limit: number): number;
  /** Shuffles in place (Fisher–Yates) and returns the same array. */
  shuffle<T>(items: T[]): T[];
  /** `count` different items in random order, or all where there are fewer. */
  sample<T>(items: readonly T[], count: number): T[];
}

/**
 * xoshiro128** (Blackman & Vigna, ACM TOMS 2021), its state filled by splitmix32.
 *
 * @param seed any safe integer; both its halves count.
 */
export function createRandom(seed: number): Random {
  if (!Number.isSafeInteger(seed)) throw new RangeError(`seed: expected an integer, got ${seed}`);
  const state = seedState(seed);
  let spare: number | undefined;

  function next(): number {
    const result = Math.imul(rotate(Math.imul(state[1]!, 5), 7), 9) >>> 0;
    const shifted = state[1]! << 9;
    state[2]! ^= state[0]!;
    state[3]! ^= state[1]!;
    state[1]! ^= state[2]!;
    state[0]! ^= state[3]!;
    state[2]! ^= shifted;
    state[3] = rotate(state[3]!, 11);
    return result;
  }

  function uniform(): number {
    const high = next() >>> 5;
    return (high * 2 ** 26 + (next() >>> 6)) / 2 ** 53;
  }

  /** Marsaglia's polar method; every second call uses the spare of the one before. */
  function normal(): number {
    if (spare !== undefined) {
      const value = spare;
      spare = undefined;
      return value;
    }
    for (;;) {
      const x = 2 * uniform() - 1;
      const y = 2 * uniform() - 1;
      const square = x * x + y * y;
      if (square > 0 && square < 1) {
        const scale = Math.sqrt((-2 * Math.log(square)) / square);
        spare = y * scale;
        return x * scale;
      }
    }
  }

  /** Rejects the last, incomplete round of `limit`, so that no value is favored. */
  function integer(limit: number): number {
    if (!(Number.isInteger(limit) && limit >= 1 && limit <= 2 ** 32)) {
      throw new RangeError(`limit: expected an integer in [1, 2³²], got ${limit}`);
    }
    const whole = 2 ** 32 - (2 ** 32 % limit);
    for (;;) {
      const value = next();
      if (value < whole) return value % limit;
    }
  }

  function shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = integer(i + 1);
      const moved = items[i]!;
      items[i] = items[j]!;
      items[j] = moved;
    }
    return items;
  }

  function sample<T>(items: readonly T[], count: number): T[] {
    return shuffle([...items]).slice(0, count);
  }

  return { uniform, normal, integer, shuffle, sample };
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

function seedState(seed: number): Int32Array {
  const state = splitmix(seed | 0);
  const high = Math.floor(seed / 2 ** 32) | 0;
  if (high !== 0) {
    const more = splitmix(high);
    for (let i = 0; i < 4; i++) state[i]! ^= rotate(more[i]!, 16);
  }
  return state;
}

/** Four numbers of splitmix32. */
function splitmix(seed: number): Int32Array {
  const out = new Int32Array(4);
  let mixed = seed;
  for (let i = 0; i < 4; i++) {
    mixed = (mixed + 0x9e3779b9) | 0;
    let z = mixed ^ (mixed >>> 16);
    z = Math.imul(z, 0x21f0aaad);
    z ^= z >>> 15;
    z = Math.imul(z, 0x735a2d97);
    out[i] = z ^ (z >>> 15);
  }
  return out;
}
