import { open, stat } from "node:fs/promises";
import ExifReader from "exifreader";
import { isoTime } from "../clock.ts";
import { sniffFormat } from "./picture-format.ts";

/**
 * When a picture was taken. By `exif`: camera-local without a zone (`2026-05-01T06:30:00`), or
 * with the camera's offset (`2026-05-01T06:30:00+02:00`). By `file-modified`: UTC with `Z`, the
 * file's time, as the picture itself says nothing.
 */
export interface CaptureTime {
  capturedAt: string;
  source: "exif" | "file-modified";
}

/** How much of a file is read for EXIF: a segment holds 64 KiB, and a few may stand before it. */
export const HEAD_BYTES = 256 * 1024;

/**
 * The capture time of a file, by EXIF where it has one, else by the file, and which of the two.
 * Broken EXIF counts as none.
 *
 * @throws the system's error where the file cannot be read.
 */
export async function readCaptureTime(path: string): Promise<CaptureTime> {
  const exif = captureTimeOf(await readHead(path, HEAD_BYTES));
  if (exif !== undefined) return { capturedAt: exif, source: "exif" };
  return { capturedAt: isoTime((await stat(path)).mtimeMs), source: "file-modified" };
}

/**
 * The EXIF capture time in the first bytes of a picture: DateTimeOriginal, else
 * DateTimeDigitized; never DateTime, which an editor changes.
 *
 * @returns undefined where there is none, or none that is a real date.
 */
export function captureTimeOf(head: Buffer): string | undefined {
  // EXIF is announced by its name in every format but TIFF; searching for it is 20 times quicker
  // than finding out by parsing.
  const announced = head.includes("Exif") || head.includes("eXIf") || sniffFormat(head) === "tiff";
  if (!announced) return undefined;
  const tags = readTags(head);
  return (
    timeOf(tags?.["DateTimeOriginal"], tags?.["OffsetTimeOriginal"]) ??
    timeOf(tags?.["DateTimeDigitized"], tags?.["OffsetTimeDigitized"])
  );
}

async function readHead(path: string, count: number): Promise<Buffer> {
  const file = await open(path, "r");
  try {
    const buffer = Buffer.alloc(Math.min(count, (await file.stat()).size));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

function readTags(head: Buffer): Record<string, unknown> | undefined {
  try {
    return ExifReader.load(head, { includeTags: { exif: TAGS } });
  } catch {
    // Thrown for files without metadata and for broken ones alike; neither has a capture time.
    return undefined;
  }
}

const TAGS = ["DateTimeOriginal", "OffsetTimeOriginal", "DateTimeDigitized", "OffsetTimeDigitized"];

function timeOf(timeTag: unknown, offsetTag: unknown): string | undefined {
  const match = /^(\d{4}):(\d{2}):(\d{2}) (\d{2}):(\d{2}):(\d{2})/.exec(text(timeTag));
  if (!match) return undefined;
  const [, year, month, day, hour, minute, second] = match;
  const local = `${year}-${month}-${day}T${hour}:${minute}:${second}`;
  const read = new Date(`${local}Z`);
  // Refuses 0000-00-00 (a camera whose clock was never set) and dates such as 31 February.
  if (Number.isNaN(read.getTime()) || !isoTime(read.getTime()).startsWith(local)) return undefined;
  const offset = /^(?:Z|[+-]\d{2}:\d{2})$/.exec(text(offsetTag).trim())?.[0] ?? "";
  return local + offset;
}

/** The text of an EXIF tag as exifreader gives it: `value` is a list of one string. */
function text(tag: unknown): string {
  if (typeof tag !== "object" || tag === null || !("value" in tag)) return "";
  const { value } = tag;
  const first: unknown = Array.isArray(value) ? value[0] : value;
  return typeof first === "string" ? first : "";
}
