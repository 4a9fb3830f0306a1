import { AgentError } from "../errors.ts";
import type { Preprocessing } from "../model.ts";
import type { RunSpec } from "./spec.ts";
import type { SplitPicture, WithRole } from "./split.ts";

/** The pictures of a run, and the classes that were left out of it with the reason. */
export interface ChosenClasses<P> {
  readonly classes: readonly string[];
  readonly pictures: readonly WithRole<P>[];
  readonly problems: readonly { readonly subject: string; readonly reason: string }[];
}

/**
 * Chooses the classes that a model can be made for: those with enough training pictures.
 *
 * @throws {AgentError} TOO_FEW_LABELS where fewer than two classes are left, or nothing is held
 *   out to prove a model on.
 */
export function chooseClasses<P extends SplitPicture>(
  pictures: readonly WithRole<P>[],
  minLabelsPerClass: number,
): ChosenClasses<P> {
  const training = countBy(pictures, "train");
  const labels = [...new Set(pictures.map((p) => p.label))].sort();
  const classes = labels.filter((label) => (training.get(label) ?? 0) >= minLabelsPerClass);
  const problems = labels
    .filter((label) => !classes.includes(label))
    .map((label) => ({
      subject: `class ${label}`,
      reason: `${training.get(label) ?? 0} training pictures, at least ${minLabelsPerClass} are needed`,
    }));
  if (classes.length < 2) {
    throw new AgentError(
      "TOO_FEW_LABELS",
      `expected at least two classes with ${minLabelsPerClass} training pictures each, got ${classes.length}` +
        ` (${labels.map((l) => `${l}: ${training.get(l) ?? 0}`).join(", ") || "no labels at all"}): label more pictures`,
    );
  }
  const chosen = new Set(classes);
  const kept = pictures.filter((p) => chosen.has(p.label));
  const heldOut = countBy(kept, "heldOut");
  if (heldOut.size === 0) {
    throw new AgentError(
      "TOO_FEW_LABELS",
      "no picture is held out, so a new model could not be proved: label pictures of more bursts",
    );
  }
  for (const label of classes) {
    if (heldOut.has(label)) continue;
    problems.push({
      subject: `class ${label}`,
      reason: "no burst of it is held out: its recall cannot be measured yet",
    });
  }
  return { classes, pictures: kept, problems };
}

function countBy<P extends SplitPicture>(
  pictures: readonly WithRole<P>[],
  role: "train" | "heldOut",
): Map<string, number> {
  const counts = new Map<string, number>();
  for (const picture of pictures) {
    if (picture.role === role) counts.set(picture.label, (counts.get(picture.label) ?? 0) + 1);
  }
  return counts;
}

/** What a run's spec is put together from. */
export interface SpecParts extends Pick<RunSpec, "id" | "createdAt" | "softwareVersion"> {
  readonly generalist: {
    readonly name: string;
    readonly sha256: string;
    readonly modelPath: string;
    readonly classes: readonly string[];
    readonly classAliases: readonly (readonly string[])[];
    readonly preprocessing: Preprocessing;
  };
  /** Pixels of the camera's banner. */
  readonly crop: { readonly cropTop: number; readonly cropBottom: number };
  readonly incumbentDir: string | null;
  readonly pictures: readonly WithRole<SplitPicture>[];
  readonly problems: readonly { readonly subject: string; readonly reason: string }[];
  readonly labelMap: Readonly<Record<string, string>>;
  readonly options: RunSpec["options"];
  readonly gate: RunSpec["gate"];
}

/** The spec of a run, holding nothing but what {@link RunSpec} names. */
export function makeSpec(parts: SpecParts): RunSpec {
  const { generalist, crop, options, gate } = parts;
  return {
    formatVersion: 1,
    id: parts.id,
    createdAt: parts.createdAt,
    softwareVersion: parts.softwareVersion,
    generalist: {
      name: generalist.name,
      sha256: generalist.sha256,
      modelPath: generalist.modelPath,
      classes: [...generalist.classes],
      classAliases: generalist.classAliases.map((aliases) => [...aliases]),
      preprocessing: {
        ...generalist.preprocessing,
        cropTop: crop.cropTop,
        cropBottom: crop.cropBottom,
      },
    },
    incumbentDir: parts.incumbentDir,
    pictures: parts.pictures.map(({ path, label, burst, role }) => ({ path, label, burst, role })),
    problems: parts.problems.map(({ subject, reason }) => ({ subject, reason })),
    labelMap: { ...parts.labelMap },
    options: {
      method: options.method,
      aim: { ...options.aim },
      searchSeconds: options.searchSeconds,
      latencyTablePath: options.latencyTablePath,
      blockSize: options.blockSize,
      damping: options.damping,
      calibrationPictures: options.calibrationPictures,
      batchSize: options.batchSize,
      seed: options.seed,
      executionProviders: [...options.executionProviders],
      intraOpThreads: options.intraOpThreads,
      maxMegapixels: options.maxMegapixels,
      fineTune: options.fineTune && { ...options.fineTune },
    },
    gate: { ...gate },
  };
}
