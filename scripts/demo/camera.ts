import { readdir, readFile } from "node:fs/promises";
import { basename } from "node:path";
import sharp from "sharp";
import { readClassFolders } from "../../agent/data/class-folders.ts";
import { AgentError, messageOf } from "../../agent/errors.ts";
import { sha256 } from "../../agent/files.ts";
import { drawBurst, frameName } from "../scene/burst.ts";
import { BANNER_HEIGHT } from "../scene/camera.ts";
import { type PlannedBurst, planBursts } from "../scene/plan.ts";
import { createRandom } from "../scene/random.ts";
import { LABELS, type Species } from "../scene/species.ts";
import { createStation } from "../scene/station.ts";

/** A picture on its way to the inbox, with what only the demo knows about it. */
export interface Shot {
  /** File name; no two shots share one. */
  readonly name: string;
  readonly bytes: Uint8Array;
  /** What it shows. */
  readonly label: string;
  /** Before which run a person labels it; null for one that stays unlabeled. */
  readonly labeledFor: 1 | 2 | null;
}

/** Where the demo's pictures come from. */
export interface Camera {
  /** Lines about the pictures, for the first screen. */
  readonly about: readonly string[];
  readonly labels: readonly string[];
  /** Pixels of the banner below every picture. */
  readonly cropBottom: number;
  /** Labeled pictures before the first run, and before the second. */
  readonly labeledFor: readonly [first: number, second: number];
  /** Those to label first, those to label later, then unlabeled ones without end. */
  shots(): AsyncGenerator<Shot>;
}

/** Bursts of each species that a person labels; three tell a class, nine hold some out. */
const FIRST_BURSTS = 3;
const LABELED_BURSTS = 9;
/** Near-copies teach little: the shortest bursts that the camera makes. */
const FRAMES_A_BURST = 3;
/** Unlabeled bursts planned at a time. */
const PLANNED_BURSTS = 200;
const DAY_MS = 86_400_000;

/** A camera in a drawn wood: every species and empty frames, by day and by night. */
export async function drawnCamera(name: string, seed: number): Promise<Camera> {
  const station = await createStation({ seed, name });
  const plan = planBursts({
    seed,
    bursts: LABELED_BURSTS * LABELS.length,
    atLeast: LABELED_BURSTS,
  });
  const rounds = inTurn(LABELS.map((label) => plan.filter(({ species }) => species === label)));
  const first = FIRST_BURSTS * LABELS.length;
  const draw = async function* (burst: PlannedBurst, labeledFor: Shot["labeledFor"]) {
    for (const frame of await drawBurst({ station, ...burst, frames: FRAMES_A_BURST })) {
      const shown: Species = frame.species;
      yield { name: frameName(station, frame), bytes: frame.jpeg, label: shown, labeledFor };
    }
  };
  return {
    about: [
      `pictures: a drawn wood, seed ${seed}; ${LABELS.length - 1} species and empty frames, by day and by night`,
      "(every frame says that it is drawn; give --images to use photographs)",
    ],
    labels: LABELS,
    cropBottom: BANNER_HEIGHT,
    labeledFor: [FRAMES_A_BURST * first, FRAMES_A_BURST * (rounds.length - first)],
    async *shots() {
      for (const [i, burst] of rounds.entries()) yield* draw(burst, i < first ? 1 : 2);
      let day = Date.parse(plan.at(-1)!.startTime.slice(0, 10));
      for (let part = 1; ; part++) {
        const firstDay = new Date(day + 2 * DAY_MS).toISOString().slice(0, 10);
        const later = planBursts({ seed: seed + part, bursts: PLANNED_BURSTS, firstDay });
        for (const burst of later) yield* draw(burst, null);
        day = Date.parse(later.at(-1)!.startTime.slice(0, 10));
      }
    },
  };
}

/** Fewer pictures cannot be split into training, proof and an inbox. */
const MIN_PICTURES = 12;
/** More would only make the demo longer. */
const MAX_CLASSES = 12;
const MAX_LABELED = 30;
const MAX_PICTURES = 60;
const FIRST_PICTURES = 8;

/**
 * The visitor's own pictures: folders named by what their pictures show. Three quarters of a
 * class, at most 30, are labeled; the others come unlabeled, and come again cut a little
 * differently when they are used up, so that the inbox never dries out.
 *
 * @throws {AgentError} LABELS_INVALID where there are too few pictures, saying what is needed.
 */
export async function folderCamera(folder: string, seed: number): Promise<Camera> {
  const byLabel = await readPictures(folder, seed);
  const enough = [...byLabel].filter(([, paths]) => paths.length >= MIN_PICTURES);
  const chosen = enough.sort((a, b) => b[1].length - a[1].length).slice(0, MAX_CLASSES);
  if (chosen.length < 2) {
    throw new AgentError(
      "LABELS_INVALID",
      `${folder}: expected at least two folders, each named by what it shows and with ${MIN_PICTURES} pictures or more, ` +
        `found ${[...byLabel].map(([label, { length }]) => `${label} (${length})`).join(", ") || "none"}`,
    );
  }
  const first = inTurn(chosen.map(([label, paths]) => of(label, paths.slice(0, FIRST_PICTURES))));
  const split = (paths: readonly string[]) =>
    Math.min(MAX_LABELED, Math.floor(0.75 * paths.length));
  const second = inTurn(
    chosen.map(([label, paths]) => of(label, paths.slice(FIRST_PICTURES, split(paths)))),
  );
  const rest = inTurn(chosen.map(([label, paths]) => of(label, paths.slice(split(paths)))));
  const leftOut = byLabel.size - chosen.length;
  return {
    about: [
      `pictures: ${folder}; ${chosen.length} classes, ${first.length + second.length} to be labeled, ${rest.length} for the inbox alone`,
      "(when those are used up they come again, cut and lit a little differently)",
      ...(leftOut > 0
        ? [
            `(${leftOut} folders are left out: fewer than ${MIN_PICTURES} pictures, or beyond ${MAX_CLASSES} classes)`,
          ]
        : []),
    ],
    labels: chosen.map(([label]) => label),
    cropBottom: 0,
    labeledFor: [first.length, second.length],
    async *shots() {
      let number = 0;
      const name = (path: string) => `${String(number++).padStart(5, "0")}-${basename(path)}`;
      for (const [i, { path, label }] of [...first, ...second, ...rest].entries()) {
        const labeledFor = i < first.length ? 1 : i < first.length + second.length ? 2 : null;
        yield { name: name(path), bytes: await readFile(path), label, labeledFor };
      }
      for (let round = 1; ; round++) {
        for (const { path, label } of rest) {
          const bytes = await cutAgain(path, createRandom(seed, path, round));
          yield { name: `${name(path).replace(/\.\w+$/, "")}.jpg`, bytes, label, labeledFor: null };
        }
      }
    },
  };
}

function of(label: string, paths: readonly string[]): { label: string; path: string }[] {
  return paths.map((path) => ({ label, path }));
}

/** Pictures that can be opened, by label, each content once, in an order set by the seed. */
async function readPictures(folder: string, seed: number): Promise<Map<string, string[]>> {
  await readdir(folder).catch((error: unknown) => {
    throw new AgentError("LABELS_INVALID", `--images: ${messageOf(error)}`, { cause: error });
  });
  const found = await readClassFolders(folder, { burstGapSeconds: 0, groupByTime: false });
  const random = createRandom(seed, "order");
  const shuffled = found.pictures
    .sort((a, b) => (a.path < b.path ? -1 : 1))
    .map((picture) => ({ ...picture, key: random.next() }))
    .sort((a, b) => a.key - b.key);
  const seen = new Set<string>();
  const byLabel = new Map<string, string[]>();
  for (const { path, label } of shuffled) {
    if ((byLabel.get(label)?.length ?? 0) >= MAX_PICTURES) continue;
    const digest = sha256(await readFile(path));
    if (seen.has(digest) || !(await isReadable(path))) continue;
    seen.add(digest);
    byLabel.set(label, [...(byLabel.get(label) ?? []), path]);
  }
  return byLabel;
}

/** Only the header is looked at; what is broken further on is the station's to set aside. */
async function isReadable(path: string): Promise<boolean> {
  const size = await sharp(path, { failOn: "none" })
    .metadata()
    .catch(() => null);
  return size !== null && Math.min(size.width, size.height) >= 16;
}

/** Cut by up to a tenth, mirrored and lit otherwise by lot: another picture of the same scene. */
async function cutAgain(
  path: string,
  random: ReturnType<typeof createRandom>,
): Promise<Uint8Array> {
  const { data, info } = await sharp(path, { failOn: "none" })
    .autoOrient()
    .toColorspace("srgb")
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  const width = Math.ceil(info.width * random.range(0.9, 0.999));
  const height = Math.ceil(info.height * random.range(0.9, 0.999));
  const left = random.integer(0, info.width - width);
  const top = random.integer(0, info.height - height);
  const raw = { width: info.width, height: info.height, channels: info.channels };
  return sharp(data, { raw })
    .extract({ left, top, width, height })
    .flop(random.chance(0.5))
    .modulate({ brightness: random.range(0.85, 1.15) })
    .jpeg({ quality: 90 })
    .toBuffer();
}

/** First of each list, second of each list, and so on. */
function inTurn<T>(lists: readonly (readonly T[])[]): T[] {
  const longest = Math.max(0, ...lists.map(({ length }) => length));
  return Array.from({ length: longest }, (_, turn) =>
    lists.flatMap((list) => list.slice(turn, turn + 1)),
  ).flat();
}
