import { dirname } from "node:path";
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
 * The burst that a picture belongs to: that of the nearest picture of the same folder taken within
 * `gapSeconds`, else one of its own, named after its folder and time. Frames may come in any order
 * and at any time; a burst once given is never changed by pictures that come later.
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
  if (captureTimeSource !== "exif") return `picture ${sha256.slice(0, 16)}`;
  const folder = folderOf(path);
  const atMs = cameraMs(capturedAt);
  const near = known
    .capturedBetween(
      cameraTime(atMs - gapSeconds * 1000),
      cameraTime(atMs + gapSeconds * 1000, "~"),
    )
    .filter((other) => folderOf(other.path) === folder)
    .map((other) => ({ ...other, distance: Math.abs(cameraMs(other.capturedAt) - atMs) }))
    .filter(({ distance }) => distance <= gapSeconds * 1000)
    .sort((a, b) => a.distance - b.distance);
  return near[0]?.burstId ?? `${folder === "" ? "" : `${folder} `}${capturedAt}`;
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

/** A camera-local time as if it were UTC: only differences are used. */
function cameraMs(capturedAt: string): number {
  return Date.parse(`${capturedAt.slice(0, 19)}Z`);
}

/** As the camera writes it, so that texts compare; `end` sorts after any offset. */
function cameraTime(ms: number, end = ""): string {
  return new Date(ms).toISOString().slice(0, 19) + end;
}
