/** A seeded source of numbers; the same seed gives the same numbers on every machine. */
export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
  /** Uniform in [low, high). */
  range(low: number, high: number): number;
  /** Uniform integer in [low, high]. */
  integer(low: number, high: number): number;
  /** Normal with the given mean and standard deviation, cut at three deviations. */
  normal(mean: number, deviation: number): number;
  chance(probability: number): boolean;
  /** @throws {RangeError} if there is nothing to pick from. */
  pick<T>(items: readonly T[]): T;
}

/**
 * A generator seeded by any mix of numbers and words, so that each part of a picture can have its
 * own stream and none shifts another's: sfc32 (Doty-Humphrey, PractRand) seeded by FNV-1a.
 */
export function createRandom(...seed: readonly (number | string)[]): Random {
  let [a, b, c] = [hash(`a ${seed.join("|")}`), hash(`b ${seed.join("|")}`), 0x9e3779b9];
  let counter = 1;
  const next = () => {
    const sum = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum;
    c |= 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) next();
  const range = (low: number, high: number) => low + (high - low) * next();
  return {
    next,
    range,
    integer: (low, high) => low + Math.floor((high - low + 1) * next()),
    normal(mean, deviation) {
      // Box and Muller; 1 − u keeps the logarithm finite.
      const z = Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
      return mean + deviation * Math.max(-3, Math.min(3, z));
    },
    chance: (probability) => next() < probability,
    pick(items) {
      if (items.length === 0) throw new RangeError("items: expected at least one, got none");
      return items[Math.floor(next() * items.length)]!;
    },
  };
}

/** FNV-1a of a text, 32 bits. */
function hash(text: string): number {
  let state = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    state = Math.imul(state ^ text.charCodeAt(i), 0x01000193);
  }
  return state | 0;
}

/**
 * A tile of smooth noise that repeats in both directions.
 *
 * @returns `size × size` values in [0, 1], row-major, mean near 0.5.
 * @param size a power of two.
 * @param octaves each twice as fine and half as strong as the one before.
 */
export function noiseTile(random: Random, size: number, cells: number, octaves: number) {
  const tile = new Float32Array(size * size);
  let weight = 1;
  let total = 0;
  for (let octave = 0; octave < octaves; octave++) {
    addOctave(tile, size, Math.min(cells * 2 ** octave, size), weight, random);
    total += weight;
    weight /= 2;
  }
  for (let i = 0; i < tile.length; i++) tile[i] = tile[i]! / total;
  return tile;
}

function addOctave(
  tile: Float32Array,
  size: number,
  cells: number,
  weight: number,
  random: Random,
): void {
  const lattice = Float32Array.from({ length: cells * cells }, () => random.next());
  const step = cells / size;
  for (let y = 0; y < size; y++) {
    const row = Math.floor(y * step);
    const v = ease(y * step - row);
    const top = row * cells;
    const bottom = ((row + 1) % cells) * cells;
    for (let x = 0; x < size; x++) {
      const column = Math.floor(x * step);
      const right = (column + 1) % cells;
      const u = ease(x * step - column);
      const above = lattice[top + column]! * (1 - u) + lattice[top + right]! * u;
      const below = lattice[bottom + column]! * (1 - u) + lattice[bottom + right]! * u;
      tile[y * size + x]! += weight * (above * (1 - v) + below * v);
    }
  }
}

const ease = (t: number) => t * t * (3 - 2 * t);
