import { opendir, stat } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { assignBursts } from "./bursts.ts";
import { readCaptureTime } from "./capture-time.ts";
import type { LabeledPicture, LabeledPictures, LabelProblem } from "./labels.ts";
import { hasPictureName, isTemporaryName, normalizeLabel } from "./picture-names.ts";

/**
 * Reads a folder of class folders: `<label>/…/<picture>`, any depth below the label. Without
 * `groupByTime` every picture is a burst of its own. With it pictures whose EXIF times are at
 * most `burstGapSeconds` apart share one, within the same folder *below* the label: frames of one
 * visit that were sorted under two labels (the animal, then the empty scene) stay together.
 *
 * Links to class folders and to pictures are followed, links to folders below are not.
 */
export async function readClassFolders(
  folder: string,
  { burstGapSeconds, groupByTime }: { burstGapSeconds: number; groupByTime: boolean },
): Promise<LabeledPictures> {
  const problems: LabelProblem[] = [];
  const pictures: LabeledPicture[] = [];
  const members: { id: string; folder: string; capturedAt: string | null }[] = [];
  for await (const entry of await opendir(folder)) {
    const classFolder = join(folder, entry.name);
    const label = normalizeLabel(entry.name);
    if (isTemporaryName(entry.name) || label === undefined) continue;
    if (!entry.isDirectory() && !(entry.isSymbolicLink() && (await isFolder(classFolder)))) {
      problems.push({ path: classFolder, reason: "no class folder; pictures lie in one by label" });
      continue;
    }
    for (const path of await picturesBelow(classFolder, problems)) {
      const capturedAt = groupByTime ? await exifTime(path) : null;
      members.push({ id: path, folder: dirname(relative(classFolder, path)), capturedAt });
      pictures.push({
        path,
        label,
        burst: path,
        location: null,
        frame: null,
        capturedAt,
        sequenceLevel: false,
        boxes: [],
      });
    }
  }
  const bursts = assignBursts(members, burstGapSeconds);
  for (const picture of pictures) {
    const burst = bursts.get(picture.path) ?? picture.path;
    // A picture alone is named by where it lies in the data set, wherever that lies.
    picture.burst = burst === picture.path ? relative(folder, picture.path) : burst;
  }
  return { pictures, problems };
}

/** The pictures below a folder, found folder by folder; what is no picture is a problem. */
async function picturesBelow(top: string, problems: LabelProblem[]): Promise<string[]> {
  const found: string[] = [];
  const folders = [top];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    for await (const entry of await opendir(folder)) {
      const path = join(folder, entry.name);
      if (isTemporaryName(entry.name)) continue;
      if (entry.isDirectory()) folders.push(path);
      else if (hasPictureName(entry.name) && !(await isFolder(path))) found.push(path);
      else problems.push({ path, reason: "not a picture by its name, or a linked folder" });
    }
  }
  return found;
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch {
    // A link that leads nowhere: found missing when it is opened.
    return false;
  }
}

async function exifTime(path: string): Promise<string | null> {
  try {
    const time = await readCaptureTime(path);
    return time.source === "exif" ? time.capturedAt : null;
  } catch {
    // An unreadable picture is reported when it is opened as a picture.
    return null;
  }
}
