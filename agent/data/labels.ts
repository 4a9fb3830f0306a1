import { stat } from "node:fs/promises";
import { systemCode } from "../errors.ts";
import { sha256File } from "../files.ts";

/** `[x, y, width, height]` in pixels of the stored picture, from its top left corner. */
export type Box = [x: number, y: number, width: number, height: number];

/** A picture with what it shows, as every label format gives it. */
export interface LabeledPicture {
  /** Absolute. */
  path: string;
  /** Not empty, trimmed. */
  label: string;
  /** Identity of the burst: frames of one burst are all but the same picture. */
  burst: string;
  /** Where the camera stood, in the words of the label file. */
  location: string | null;
  /** Number of the frame within its burst, as the label file counts. */
  frame: number | null;
  /** Camera-local `2026-05-01T06:30:00`, or with the camera's offset. */
  capturedAt: string | null;
  /** The label is known of the burst, not of this frame: the animal may not be in it. */
  sequenceLevel: boolean;
  boxes: Box[];
}

/** A picture that is left out, or whose label says less than it should, and why. */
export interface LabelProblem {
  path: string;
  reason: string;
}

/** What a label source holds; `pictures` in the order of their paths. */
export interface LabeledPictures {
  pictures: LabeledPicture[];
  problems: LabelProblem[];
}

/**
 * Leaves out pictures that would teach or measure wrongly: of the same content under one label
 * all but the first (its copy could lie on both sides of a split), of the same content under
 * different labels all, as nobody knows which is right. Missing files are left out too.
 *
 * Only files of equal size are read.
 */
export async function withoutDuplicates(pictures: LabeledPicture[]): Promise<LabeledPictures> {
  const problems: LabelProblem[] = [];
  const bySize = new Map<number, LabeledPicture[]>();
  for (const picture of pictures) {
    const size = await sizeOf(picture.path);
    if (size === undefined) problems.push({ path: picture.path, reason: "missing picture" });
    else if (!bySize.get(size)?.push(picture)) bySize.set(size, [picture]);
  }
  const kept: LabeledPicture[] = [];
  for (const group of bySize.values()) {
    for (const same of group.length === 1 ? [group] : await byContent(group)) {
      const [first, ...copies] = same;
      if (!first) continue;
      const labels = [...new Set(same.map((picture) => picture.label))];
      if (labels.length > 1) {
        const reason = `conflict: the same content is labeled ${labels.join(" and ")}; not used`;
        for (const picture of same) problems.push({ path: picture.path, reason });
        continue;
      }
      kept.push(first);
      for (const copy of copies) {
        problems.push({ path: copy.path, reason: `same content as ${first.path}; used once` });
      }
    }
  }
  return { pictures: kept.sort(byPath), problems };
}

/** Order of paths by code unit, the same on every machine. */
export function byPath(a: { path: string }, b: { path: string }): number {
  return a.path < b.path ? -1 : a.path > b.path ? 1 : 0;
}

async function byContent(pictures: LabeledPicture[]): Promise<LabeledPicture[][]> {
  const groups = new Map<string, LabeledPicture[]>();
  for (const picture of [...pictures].sort(byPath)) {
    const hash = await sha256File(picture.path);
    const group = groups.get(hash);
    if (group) group.push(picture);
    else groups.set(hash, [picture]);
  }
  return [...groups.values()];
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    const stats = await stat(path);
    return stats.isFile() ? stats.size : undefined;
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw error;
  }
}
