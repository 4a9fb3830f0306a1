import { extname } from "node:path";

/** Extensions of files that are meant to be pictures; what they are is decided by content. */
const EXTENSIONS = new Set([
  ".jpg",
  ".jpeg",
  ".jpe",
  ".jfif",
  ".png",
  ".webp",
  ".gif",
  ".tif",
  ".tiff",
  ".heic",
  ".heif",
  ".avif",
  ".bmp",
]);

/**
 * Whether a name is one that a program still writes under or that hides: dotfiles (also the
 * `._` side files of macOS), backups ending in `~`, and partial downloads or copies.
 */
export function isTemporaryName(name: string): boolean {
  return /^[.~]|~$|\.(part|partial|tmp|temp|crdownload|filepart|swp)$/i.test(name);
}

/**
 * Whether a file of this name is meant to be a picture. Videos, label files and notes that lie
 * beside pictures are left where they are.
 */
export function hasPictureName(name: string): boolean {
  return !isTemporaryName(name) && EXTENSIONS.has(extname(name).toLowerCase());
}

/**
 * A label as it is compared everywhere: trimmed, accents in composed form (macOS names folders
 * in decomposed form, so that the same word would make two classes).
 *
 * @returns undefined where nothing is left.
 */
export function normalizeLabel(label: string): string | undefined {
  const trimmed = label.trim().normalize("NFC");
  return trimmed === "" ? undefined : trimmed;
}
