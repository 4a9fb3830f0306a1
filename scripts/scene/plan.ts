import { createRandom, type Random } from "./random.ts";
import { type AnimalSpecies, LABELS, SPECIES, type Species } from "./species.ts";

/** One burst to be drawn; fits `drawBurst` together with a station. */
export interface PlannedBurst {
  species: Species;
  seed: number;
  /** Camera-local, `YYYY-MM-DDTHH:MM:SS`. */
  startTime: string;
}

/** What a station's camera will see. */
export interface PlanOptions {
  seed: number;
  bursts: number;
  /** First day, `YYYY-MM-DD`; 2026-05-01 when left out. */
  firstDay?: string;
  /** Species that may come; all and empty when left out. */
  species?: readonly Species[];
  /** Bursts that every species has at least; 0 when left out. */
  atLeast?: number;
  /** Share of empty bursts, if `empty` may come; 0.2 when left out. */
  emptyShare?: number;
}

const BURSTS_A_DAY = 8;

/**
 * Plans the visits of a station: a long-tailed mix of species, each at its own hours, in the
 * order of time and at least five minutes apart, so that no two bursts run together.
 *
 * @throws {RangeError} if `bursts` is too small for `atLeast` bursts of each species.
 */
export function planBursts(options: PlanOptions): PlannedBurst[] {
  const { seed, bursts, atLeast = 0, species = LABELS } = options;
  if (!Number.isInteger(bursts) || bursts < 1 || bursts < atLeast * species.length) {
    throw new RangeError(
      `bursts: expected an integer of at least ${Math.max(1, atLeast * species.length)}, got ${bursts}`,
    );
  }
  const random = createRandom(seed, "plan");
  const visits = species.flatMap((name) => Array<Species>(atLeast).fill(name));
  while (visits.length < bursts)
    visits.push(pickSpecies(species, options.emptyShare ?? 0.2, random));
  const firstMs = Date.parse(`${options.firstDay ?? "2026-05-01"}T00:00:00Z`);
  if (Number.isNaN(firstMs)) {
    throw new RangeError(`firstDay: expected YYYY-MM-DD, got "${options.firstDay}"`);
  }
  const days = Math.ceil(bursts / BURSTS_A_DAY);
  const timed = visits.map((name) => ({
    name,
    ms: firstMs + random.integer(0, days - 1) * 86_400_000 + secondOfDay(name, random) * 1000,
  }));
  timed.sort((a, b) => a.ms - b.ms);
  let earliest = firstMs;
  return timed.map(({ name, ms }) => {
    const at = Math.max(ms, earliest);
    earliest = at + 300_000;
    return {
      species: name,
      seed: random.integer(0, 2 ** 31 - 1),
      startTime: new Date(at).toISOString().slice(0, 19),
    };
  });
}

function pickSpecies(species: readonly Species[], emptyShare: number, random: Random): Species {
  const animals = species.filter((name): name is AnimalSpecies => name !== "empty");
  if (animals.length === 0 || (species.includes("empty") && random.chance(emptyShare))) {
    return "empty";
  }
  let ticket = random.range(
    0,
    animals.reduce((sum, name) => sum + SPECIES[name].weight, 0),
  );
  for (const name of animals) {
    ticket -= SPECIES[name].weight;
    if (ticket < 0) return name;
  }
  return animals.at(-1)!;
}

/** A second of the day in the light or in the dark as the species likes it; night is 20 to 6. */
function secondOfDay(name: Species, random: Random): number {
  const nightShare = name === "empty" ? 0.35 : SPECIES[name].nightShare;
  const hour = random.chance(nightShare) ? random.range(20, 30) % 24 : random.range(6, 20);
  return Math.floor(hour * 3600);
}
