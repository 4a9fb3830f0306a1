/** What the first bytes of a file say it is; `apple-double` is the side file macOS leaves. */
export type PictureFormat =
  | "jpeg"
  | "png"
  | "webp"
  | "gif"
  | "tiff"
  | "avif"
  | "heic"
  | "bmp"
  | "apple-double";

/** HEIF brands coded in HEVC or older codecs, which the prebuilt libvips cannot decode. */
const HEIC_BRANDS = new Set(["heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"]);

/** The format by the first bytes, never by the name; undefined where they are of no picture. */
export function sniffFormat(head: Buffer): PictureFormat | undefined {
  if (head.length >= 2 && head[0] === 0xff && head[1] === 0xd8) return "jpeg";
  const ascii = head.toString("latin1", 0, 12);
  if (ascii.startsWith("\x89PNG\r\n\x1a\n")) return "png";
  if (ascii.startsWith("RIFF") && ascii.slice(8, 12) === "WEBP") return "webp";
  if (ascii.startsWith("GIF87a") || ascii.startsWith("GIF89a")) return "gif";
  if (/^(II[*+]\0|MM\0[*+])/.test(ascii)) return "tiff";
  if (ascii.slice(4, 8) === "ftyp") {
    const brand = ascii.slice(8, 12);
    if (brand === "avif" || brand === "avis") return "avif";
    return HEIC_BRANDS.has(brand) ? "heic" : undefined;
  }
  if (ascii.startsWith("\x00\x05\x16\x07")) return "apple-double";
  if (ascii.startsWith("BM") && head.length >= 18 && head.readUInt32LE(14) <= 124) return "bmp";
  return undefined;
}

/** A JPEG whose markers are in order, or why they are not. */
export type JpegStructure =
  | {
      ok: true;
      widthPx: number;
      heightPx: number /** Byte where the first scan's data start. */;
      dataStart: number;
    }
  | { ok: false; reason: string };

const SOI = 0xd8;
const EOI = 0xd9;
const SOS = 0xda;
const TEM = 0x01;

function isRestart(marker: number): boolean {
  return marker >= 0xd0 && marker <= 0xd7;
}

/** SOF0 to SOF15 without the three codes of that range that mean something else (T.81, B.1). */
function isFrameHeader(marker: number): boolean {
  return marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
}

/**
 * Walks the markers of a JPEG (ITU T.81, annex B) without decoding: a cut file, a size of zero
 * and a stray marker inside the picture data are found for about a millisecond a megabyte, even
 * where a decoder is asked for a part of the picture only. Bytes after the end marker are
 * allowed: phones and cameras append their own.
 */
export function checkJpegStructure(bytes: Buffer): JpegStructure {
  let at = 2;
  let dataStart = 0;
  let size: { widthPx: number; heightPx: number } | undefined;
  for (;;) {
    const marker = markerAt(bytes, at);
    if (marker === undefined) {
      const ended = at >= bytes.length - 1;
      return ended ? cut(bytes.length) : corrupt(`no marker at byte ${at}`);
    }
    at = marker.next;
    if (marker.code === EOI) {
      return size && dataStart > 0
        ? { ok: true, ...size, dataStart }
        : corrupt("end marker before any picture data");
    }
    if (marker.code === SOI || marker.code === TEM || isRestart(marker.code)) continue;
    if (at + 2 > bytes.length) return cut(bytes.length);
    const length = bytes.readUInt16BE(at);
    if (length < 2) return corrupt(`a segment of ${length} bytes at byte ${at}`);
    if (at + length > bytes.length) return cut(bytes.length);
    if (isFrameHeader(marker.code)) {
      if (length < 8) return corrupt("frame header too short");
      size = { heightPx: bytes.readUInt16BE(at + 3), widthPx: bytes.readUInt16BE(at + 5) };
      if (size.widthPx === 0 || size.heightPx === 0) {
        return corrupt(`header says ${size.widthPx}x${size.heightPx}`);
      }
    }
    at += length;
    if (marker.code !== SOS) continue;
    if (!size) return corrupt("picture data before the frame header");
    if (dataStart === 0) dataStart = at;
    const end = endOfScan(bytes, at);
    if (end === undefined) return cut(bytes.length);
    at = end;
  }
}

/** The marker at a byte, fill bytes (0xFF) skipped. */
function markerAt(bytes: Buffer, start: number): { code: number; next: number } | undefined {
  if (bytes[start] !== 0xff) return undefined;
  let at = start + 1;
  while (bytes[at] === 0xff) at += 1;
  const code = bytes[at];
  return code === undefined || code === 0 ? undefined : { code, next: at + 1 };
}

/** First byte of the marker that ends the entropy-coded data; undefined where the file ends. */
function endOfScan(bytes: Buffer, start: number): number | undefined {
  let at = start;
  for (;;) {
    at = bytes.indexOf(0xff, at);
    if (at === -1 || at + 1 >= bytes.length) return undefined;
    const next = bytes[at + 1]!;
    if (next === 0xff) at += 1;
    else if (next === 0 || isRestart(next)) at += 2;
    else return at;
  }
}

function cut(length: number): JpegStructure {
  return { ok: false, reason: `truncated: the file ends after ${length} bytes, no end marker` };
}

function corrupt(what: string): JpegStructure {
  return { ok: false, reason: `corrupt data: ${what}` };
}

/** Length of a run of one byte that coded picture data rarely hold, except for blank areas. */
const LOST_SECTOR_BYTES = 64;

/**
 * Whether the picture data of a JPEG hold a long run of one byte, as a lost sector of a memory
 * card leaves it. A suspicion only: well-packed blank areas can look the same. Looks at every
 * 32nd byte first, so it costs a tenth of a millisecond a megabyte.
 *
 * @param start where the picture data start, of {@link checkJpegStructure}.
 */
export function showsLostSector(bytes: Buffer, start: number): boolean {
  const stride = LOST_SECTOR_BYTES / 2;
  for (let i = start + stride; i < bytes.length; i += stride) {
    const value = bytes[i];
    if (value !== bytes[i - stride]) continue;
    let from = i;
    while (from > start && bytes[from - 1] === value) from -= 1;
    let to = i + 1;
    while (to < bytes.length && bytes[to] === value) to += 1;
    if (to - from >= LOST_SECTOR_BYTES) return true;
  }
  return false;
}

/** Whether the length that a PNG, WebP or GIF declares, or its last chunk, is in the file. */
export function isCutShort(bytes: Buffer, format: PictureFormat): boolean {
  if (format === "png") return !pngHasEnd(bytes);
  if (format === "webp") return bytes.length < 8 || bytes.readUInt32LE(4) + 8 > bytes.length;
  if (format === "gif") return !gifHasEnd(bytes);
  return false;
}

function pngHasEnd(bytes: Buffer): boolean {
  let at = 8;
  while (at + 12 <= bytes.length) {
    const end = at + 12 + bytes.readUInt32BE(at);
    if (end > bytes.length) return false;
    if (bytes.toString("latin1", at + 4, at + 8) === "IEND") return true;
    at = end;
  }
  return false;
}

/** The trailer (0x3B) is the last byte but for padding by zeros. */
function gifHasEnd(bytes: Buffer): boolean {
  let at = bytes.length - 1;
  while (at > 0 && bytes[at] === 0) at -= 1;
  return bytes[at] === 0x3b;
}

/**
 * Whether the end of a file looks as if its writer had finished, from its first and last bytes:
 * only a hint for how long to wait, as the decoder has the last word.
 *
 * @param head first bytes, at least 12 where the file has them.
 * @param tail last bytes; may overlap `head`.
 */
export function looksComplete(head: Buffer, tail: Buffer, sizeBytes: number): boolean {
  if (sizeBytes === 0) return false;
  const format = sniffFormat(head);
  if (format === "jpeg") return tail.includes(Buffer.from([0xff, EOI]));
  if (format === "png") return tail.includes("IEND");
  if (format === "webp") return head.length >= 8 && head.readUInt32LE(4) + 8 <= sizeBytes;
  if (format === "gif") return tail.at(-1) === 0x3b;
  return true;
}
