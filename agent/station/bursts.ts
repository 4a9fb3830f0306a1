import { dirname } from "node:path";
import { assignBursts } from "../data/bursts.ts";
import type { FoundPicture } from "../data/intake.ts";

/** What the burst of a new picture is found among. */
export interface KnownPictures {
  capturedBetween(
    from: string,
    to: string,
  ): readonly { readonly path: string; readonly burstId: string; readonly capturedAt: string }[];
}

/** Where a picture lay, whatever label it has: pictures of one camera share it. */
export type CameraFolder = (path: string) => string;

/**
 * The burst that a new picture belongs to, by the rule of {@link assignBursts}: what was taken in
 * the same folder within `gapSeconds` decides; a burst once given is never changed by pictures
 * that come later.
 *
 * A picture whose time is only that of its file is a burst of its own: copying a card gives
 * thousands of files one time.
 */
export function burstOf(
  found: Pick<FoundPicture, "path" | "sha256" | "capturedAt" | "captureTimeSource">,
  known: KnownPictures,
  folderOf: CameraFolder,
  gapSeconds: number,
): string {
  const { path, sha256, capturedAt, captureTimeSource } = found;
  const id = `picture ${sha256.slice(0, 16)}`;
  if (captureTimeSource !== "exif") return id;
  const folder = folderOf(path);
  const atMs = Date.parse(`${capturedAt.slice(0, 19)}Z`);
  const gapMs = gapSeconds * 1000;
  const near = known
    .capturedBetween(cameraTime(atMs - gapMs), cameraTime(atMs + gapMs, "~"))
    .filter((other) => folderOf(other.path) === folder)
    .map((other, i) => ({ id: `known ${i}`, folder, ...other, burst: other.burstId }));
  return assignBursts([...near, { id, folder, capturedAt }], gapSeconds).get(id) ?? id;
}

/** Folder below `inbox/`, or below the label's folder in `labeled/`: "" at the top. */
export function cameraFolder(inboxDir: string, labeledDir: string): CameraFolder {
  return (path) => {
    const folder = dirname(path);
    if (folder === inboxDir || folder === labeledDir) return "";
    if (folder.startsWith(`${inboxDir}/`)) return folder.slice(inboxDir.length + 1);
    if (!folder.startsWith(`${labeledDir}/`)) return folder;
    return folder
      .slice(labeledDir.length + 1)
      .split("/")
      .slice(1)
      .join("/");
  };
}

/** As the camera writes it, so that texts compare; `end` sorts after any offset. */
function cameraTime(ms: number, end = ""): string {
  return new Date(ms).toISOString().slice(0, 19) + end;
}
