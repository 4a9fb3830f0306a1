import { stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { readClassFolders } from "./class-folders.ts";
import { readCocoCameraTraps } from "./coco-camera-traps.ts";
import { byPath, type LabeledPictures, withoutDuplicates } from "./labels.ts";

export interface DatasetOptions {
  /** Largest pause within a burst, where the data give times but no sequences. */
  burstGapSeconds: number;
  /** For class folders: form bursts by EXIF time; default false, every picture its own burst. */
  groupByTime?: boolean;
}

/** Labeled pictures and what was left out, with the format they came in. */
export interface Dataset extends LabeledPictures {
  format: "class-folders" | "coco-camera-traps";
}

const COCO_FILE = "annotations.json";

/**
 * Opens labeled pictures: a folder with `annotations.json` (or the JSON file itself) in the
 * format COCO Camera Traps, else a folder of class folders. Pictures come in the order of their
 * paths, each content once; missing and conflicting ones are among the problems.
 *
 * @throws {AgentError} LABELS_INVALID where there is no such folder, the label file does not fit
 *   its format, or not one picture is left.
 */
export async function openDataset(path: string, options: DatasetOptions): Promise<Dataset> {
  const { burstGapSeconds, groupByTime = false } = options;
  const absolute = resolve(path);
  const kind = await kindOf(absolute);
  if (kind === undefined) {
    throw new AgentError(
      "LABELS_INVALID",
      `${path}: expected a folder of class folders or one with ${COCO_FILE}, got nothing there`,
    );
  }
  const file = kind === "file" ? absolute : join(absolute, COCO_FILE);
  const isCoco = kind === "file" || (await kindOf(file)) === "file";
  const read = isCoco
    ? await readCocoCameraTraps(file, dirname(file), { burstGapSeconds })
    : await readClassFolders(absolute, { burstGapSeconds, groupByTime });
  const unique = await withoutDuplicates(read.pictures);
  const problems = [...read.problems, ...unique.problems].sort(byPath);
  if (unique.pictures.length === 0) {
    const first = problems[0];
    const why = first
      ? `; the first of ${problems.length} problems: ${first.path}: ${first.reason}`
      : "";
    throw new AgentError(
      "LABELS_INVALID",
      `${path}: expected <label>/<picture> or ${COCO_FILE} with pictures, got no usable one${why}`,
    );
  }
  const format = isCoco ? "coco-camera-traps" : "class-folders";
  return { pictures: unique.pictures, problems, format };
}

async function kindOf(path: string): Promise<"file" | "folder" | undefined> {
  try {
    return (await stat(path)).isDirectory() ? "folder" : "file";
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new AgentError("LABELS_INVALID", `${path}: ${messageOf(error)}`, { cause: error });
  }
}
