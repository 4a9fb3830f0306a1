import { createHash } from "node:crypto";

/** Which side of the split a picture is on. A held-out one is never trained or calibrated on. */
export type Role = "train" | "heldOut";

/** What the split needs to know of a labeled picture. */
export interface SplitPicture {
  readonly path: string;
  readonly label: string;
  /** Frames of one burst are near-copies of each other: they always share a side. */
  readonly burst: string;
}

/** A labeled picture with the side it was put on. */
export type WithRole<P> = P & { readonly role: Role };

/**
 * Splits a data set for a one-off run, by burst and seeded: each class gives `shots` pictures for
 * training and the rest, at most `heldOutPerClass`, is held out. A class with two bursts or more
 * keeps one of each side, unless it shares them with another class; the frames of a training burst beyond `shots` are left out
 * altogether, since they are near-copies of what was trained on.
 *
 * @param seed the same seed and pictures give the same split in any order of the pictures.
 */
export function splitByShots<P extends SplitPicture>(
  pictures: readonly P[],
  options: { shots: number; heldOutPerClass: number; seed: number },
): WithRole<P>[] {
  const roles = new Map<string, Role>();
  const result: WithRole<P>[] = [];
  for (const [, ofClass] of sortedGroups(pictures, (p) => p.label)) {
    const bursts = sortedGroups(ofClass, (p) => hashKey(`${options.seed}/${p.burst}`));
    const takenTrain: P[] = [];
    const takenHeldOut: P[] = [];
    bursts.forEach(([, frames], index) => {
      const burst = frames[0]!.burst;
      const reserved = index === 0 && bursts.length > 1;
      const wanted: Role = !reserved && takenTrain.length < options.shots ? "train" : "heldOut";
      const role = roles.get(burst) ?? wanted;
      roles.set(burst, role);
      const [taken, limit] =
        role === "train" ? [takenTrain, options.shots] : [takenHeldOut, options.heldOutPerClass];
      const room = Math.max(0, limit - taken.length);
      taken.push(...[...frames].sort((a, b) => compare(a.path, b.path)).slice(0, room));
    });
    for (const picture of takenTrain) result.push({ ...picture, role: "train" });
    for (const picture of takenHeldOut) result.push({ ...picture, role: "heldOut" });
  }
  return result;
}

/**
 * Gives every new burst of a station its side, once and for ever. The first burst of a label
 * trains and the second is held out, so that both sides know the label early; after that the hash
 * of the burst's identity decides, which no later run, seed or order of pictures can change.
 *
 * @param bursts new bursts in the order of their arrival, with their label.
 * @param known roles given before, by burst; they are kept.
 * @param labelCounts bursts already known of each label, by side.
 * @param heldOutShare share of bursts to hold out, in [0, 1).
 */
export function assignRoles(
  bursts: readonly { readonly burst: string; readonly label: string }[],
  known: ReadonlyMap<string, Role>,
  labelCounts: ReadonlyMap<string, { readonly train: number; readonly heldOut: number }>,
  heldOutShare: number,
): Map<string, Role> {
  const given = new Map<string, Role>();
  const counts = new Map([...labelCounts].map(([label, count]) => [label, { ...count }]));
  for (const { burst, label } of bursts) {
    if (known.has(burst) || given.has(burst)) continue;
    const count = counts.get(label) ?? { train: 0, heldOut: 0 };
    const byHash: Role = hashShare(burst) < heldOutShare ? "heldOut" : "train";
    const role: Role = count.train === 0 ? "train" : count.heldOut === 0 ? "heldOut" : byHash;
    count[role] += 1;
    counts.set(label, count);
    given.set(burst, role);
  }
  return given;
}

/**
 * The pictures of a station that a run takes: whole history of held-out bursts, and per class the
 * `shots` training pictures spread over as many bursts as there are (round robin over bursts,
 * newest first), because ten frames of one burst teach little more than one.
 *
 * @param pictures in the order in which they came to the station.
 */
export function takeShots<P extends SplitPicture>(
  pictures: readonly WithRole<P>[],
  options: { shots: number; heldOutPerClass: number },
): WithRole<P>[] {
  const result: WithRole<P>[] = [];
  for (const [, ofClass] of sortedGroups(pictures, (p) => p.label)) {
    for (const role of ["train", "heldOut"] as const) {
      const limit = role === "train" ? options.shots : options.heldOutPerClass;
      const bursts = [
        ...groups(
          ofClass.filter((p) => p.role === role),
          (p) => p.burst,
        ).values(),
      ];
      result.push(...roundRobin(bursts.reverse()).slice(0, limit));
    }
  }
  return result;
}

/**
 * Bursts of the training side that a fine-tuning leaves out, to see by them when to stop: of each
 * class about `share` of the pictures, in whole bursts, and never its only burst.
 *
 * @param seed the same seed and pictures give the same bursts in any order of the pictures.
 */
export function validationBursts(
  pictures: readonly SplitPicture[],
  share: number,
  seed: number,
): Set<string> {
  const chosen = new Set<string>();
  const labels = new Map(
    [...groups(pictures, (p) => p.burst)].map(
      ([burst, frames]) => [burst, new Set(frames.map((p) => p.label)).size] as const,
    ),
  );
  for (const [, ofClass] of sortedGroups(pictures, (p) => p.label)) {
    const own = ofClass.filter(({ burst }) => labels.get(burst) === 1);
    const shared = own.length < ofClass.length;
    const bursts = sortedGroups(own, (p) => hashKey(`validation ${seed}/${p.burst}`));
    let taken = 0;
    // What a class shares with another stays in training, as does one burst of each.
    for (const [, frames] of bursts.slice(shared ? 0 : 1)) {
      if (taken + frames.length > Math.max(1, Math.round(share * ofClass.length))) continue;
      chosen.add(frames[0]!.burst);
      taken += frames.length;
    }
  }
  return chosen;
}

function roundRobin<T>(queues: readonly (readonly T[])[]): T[] {
  const longest = Math.max(0, ...queues.map((queue) => queue.length));
  return Array.from({ length: longest }, (_, turn) =>
    queues.flatMap((queue) => queue.slice(turn, turn + 1)),
  ).flat();
}

/** Groups in the order of their first item. */
function groups<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const result = new Map<string, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = result.get(key);
    if (group) group.push(item);
    else result.set(key, [item]);
  }
  return result;
}

function sortedGroups<T>(items: readonly T[], keyOf: (item: T) => string): [string, T[]][] {
  return [...groups(items, keyOf)].sort(([a], [b]) => compare(a, b));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function hashKey(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** A number in [0, 1) that depends on nothing but the text. */
function hashShare(text: string): number {
  return createHash("sha256").update(text).digest().readUInt32BE(0) / 2 ** 32;
}
