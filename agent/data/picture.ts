import { open } from "node:fs/promises";
import sharp, { type Sharp, type SharpOptions } from "sharp";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import type { Preprocessing } from "../model.ts";
import {
  checkJpegStructure,
  isCutShort,
  type PictureFormat,
  showsLostSector,
  sniffFormat,
} from "./picture-format.ts";

// A daemon decodes each picture once, so libvips' cache of operations would only hold memory.
sharp.cache(false);

/** What a picture may weigh; checked on its header, before anything is decoded. */
export interface PictureLimits {
  /** Millions of pixels (width × height). */
  maxMegapixels: number;
}

/** A part of the upright picture after the banner crop, as fractions in [0, 1]. */
interface PictureWindow {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** How a training view differs from the plain picture. */
export interface PictureView {
  window?: PictureWindow;
  /** Mirror left to right, after everything else. */
  flip?: boolean;
}

/** A picture as the network wants it. */
export interface DecodedPicture {
  /** `3 × height × width`, channels first, `(rgb / 255 − mean) / std`. */
  tensor: Float32Array;
  /** Width of the whole upright picture in its file. */
  widthPx: number;
  /** Height of the whole upright picture in its file. */
  heightPx: number;
  /** Reading, decoding, resizing and scaling together. */
  decodeMs: number;
}

/** What a picture is, once its data were seen to be whole. */
export interface PictureFacts {
  format: PictureFormat;
  widthPx: number;
  heightPx: number;
}

/**
 * Files above this are refused unread: a picture is held in memory while it is checked and
 * decoded, and a 100-megapixel JPEG at best quality is about a third of it.
 */
const MAX_FILE_BYTES = 256 * 1024 * 1024;

/** Resized pixels up to which the whole picture is kept, so that every row of it is decoded. */
const MAX_RESIZED_PIXELS = 4_000_000;

/** What shows through a transparent picture: the middle between black and white. */
const BACKGROUND = { r: 128, g: 128, b: 128 };

/**
 * Decodes a picture into the input of a network, in the order that {@link Preprocessing} gives.
 * EXIF orientation, embedded color profiles (to sRGB), gray, CMYK, 16-bit and transparency are
 * dealt with; of an animation the first frame counts.
 *
 * JPEGs are shrunk while they are decoded (in the DCT domain, by 2, 4 or 8), which leaves at
 * least a factor of 2 to the bicubic kernel: a 20-megapixel picture takes less than half the
 * time, and no top-1 answer on the test pictures changed. Where a banner or window is cut the
 * picture is first brought to a scale at least twice that of the network's input, and the cut is
 * rounded inward to that scale: off by less than half a pixel of the input.
 *
 * The whole picture is decoded even where a part is used, so that damage anywhere is found. Damage
 * that leaves no trace in the codes (a few flipped bits) is beyond any decoder.
 *
 * @throws {AgentError} PICTURE_UNREADABLE; its message ends in the reason.
 * @throws {RangeError} where a window does not lie inside the picture.
 */
export async function readPicture(
  path: string,
  preprocessing: Preprocessing,
  limits: PictureLimits,
  view: PictureView = {},
): Promise<DecodedPicture> {
  const started = performance.now();
  const picture = await openPicture(path, limits);
  const region = regionOf(path, picture, preprocessing, view.window);
  const whole = region.width === picture.widthPx && region.height === picture.heightPx;
  const pixels = await decoding(path, picture, (source) =>
    whole
      ? resizeWhole(source, picture, preprocessing)
      : resizeRegion(source, picture, region, preprocessing),
  );
  return {
    tensor: toTensor(pixels, preprocessing, view.flip ?? false),
    widthPx: picture.widthPx,
    heightPx: picture.heightPx,
    decodeMs: performance.now() - started,
  };
}

/**
 * Decodes a picture only to see that it is whole, as {@link readPicture} does on its way: there
 * is no need to call this before it.
 *
 * @throws {AgentError} PICTURE_UNREADABLE; its message ends in the reason.
 */
export async function inspectPicture(path: string, limits: PictureLimits): Promise<PictureFacts> {
  const picture = await openPicture(path, limits);
  const options = { fit: "fill", kernel: "cubic", fastShrinkOnLoad: false } as const;
  await decoding(path, picture, (source) => rawPixels(source.resize(256, 256, options)));
  return { format: picture.format, widthPx: picture.widthPx, heightPx: picture.heightPx };
}

interface OpenPicture extends PictureFacts {
  bytes: Buffer;
  /** The data look as if a sector was lost; they were then decoded strictly once before. */
  suspicious: boolean;
  options: SharpOptions;
}

/** What the reason of a refusal depends on. */
type Damaged = Pick<OpenPicture, "format" | "suspicious">;

interface Pixels {
  /** `height × width × 3`, rows from the top, RGB. */
  data: Uint8Array;
  width: number;
  height: number;
}

interface Region {
  left: number;
  top: number;
  width: number;
  height: number;
}

async function openPicture(path: string, limits: PictureLimits): Promise<OpenPicture> {
  const bytes = await readBounded(path);
  if (bytes.length === 0) throw unreadable(path, "empty file");
  const format = sniffFormat(bytes);
  if (format === undefined) throw unreadable(path, "not an image, by its first bytes");
  if (format === "apple-double") {
    throw unreadable(path, "not an image: a side file of macOS (AppleDouble)");
  }
  if (format === "bmp") throw unreadable(path, "unsupported format BMP: convert it to JPEG or PNG");
  let suspicious = false;
  if (format === "jpeg") {
    const structure = checkJpegStructure(bytes);
    if (!structure.ok) throw unreadable(path, structure.reason);
    checkPixels(path, structure, limits);
    suspicious = showsLostSector(bytes, structure.dataStart);
  } else if (isCutShort(bytes, format)) {
    throw unreadable(path, `truncated: the ${format.toUpperCase()} ends before its end mark`);
  }
  const options: SharpOptions = {
    failOn: "warning",
    sequentialRead: true,
    limitInputPixels: Math.floor(limits.maxMegapixels * 1e6),
  };
  try {
    const { autoOrient } = await sharp(bytes, options).metadata();
    const size = { widthPx: autoOrient.width, heightPx: autoOrient.height };
    checkPixels(path, size, limits);
    const picture = { bytes, format, options, suspicious, ...size };
    if (suspicious) await decoding(path, picture, (source) => decodeUnshrunk(source, picture));
    return picture;
  } catch (error) {
    throw decodeError(path, { format, suspicious }, error);
  }
}

/**
 * Decodes every row at full size into next to nothing. libjpeg warns of missing data where they
 * end, and libvips looks at the warnings before each strip of 8 rows: of a picture shrunk while
 * it is decoded the last strip is all of the last blocks, and nobody looks any more. A first
 * `extract` keeps sharp from shrinking.
 */
function decodeUnshrunk(source: Sharp, { widthPx, heightPx }: PictureFacts): Promise<Pixels> {
  const all = { left: 0, top: 0, width: widthPx, height: heightPx };
  return rawPixels(source.extract(all).resize(64, 64, { fit: "fill" }));
}

function checkPixels(
  path: string,
  size: { widthPx: number; heightPx: number },
  limits: PictureLimits,
): void {
  const megapixels = (size.widthPx * size.heightPx) / 1e6;
  if (megapixels <= limits.maxMegapixels) return;
  throw unreadable(
    path,
    `too many pixels: ${size.widthPx}x${size.heightPx} is ${megapixels.toFixed(1)} megapixels, ` +
      `intake.maxMegapixels allows ${limits.maxMegapixels}`,
  );
}

async function readBounded(path: string): Promise<Buffer> {
  try {
    const file = await open(path, "r");
    try {
      const { size } = await file.stat();
      if (size > MAX_FILE_BYTES) {
        throw unreadable(path, `file too large: ${size} bytes, at most ${MAX_FILE_BYTES} are read`);
      }
      return await file.readFile();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof AgentError) throw error;
    const code = systemCode(error);
    if (code === "EISDIR") throw unreadable(path, "is a folder", error);
    if (code === "ENOENT") throw unreadable(path, "missing", error);
    // A failing disk or too many open files say nothing of the picture: it is to be tried again.
    throw new AgentError("INFERENCE_FAILED", `${path} cannot be read now: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/** Warnings of libjpeg about files whose pixels are whole all the same. */
const HARMLESS =
  /extraneous bytes before marker 0xd9|Invalid SOS parameters|Unknown Adobe color transform|JFIF major revision/;

/** Runs a decode, once more without minding warnings where there were only harmless ones. */
async function decoding(
  path: string,
  picture: OpenPicture,
  decode: (source: Sharp) => Promise<Pixels>,
): Promise<Pixels> {
  const { bytes, options } = picture;
  try {
    return await decode(sharp(bytes, options).autoOrient());
  } catch (error) {
    const lines = messageOf(error)
      .split("\n")
      .filter((line) => line.trim() !== "");
    if (!lines.every((line) => HARMLESS.test(line))) throw decodeError(path, picture, error);
  }
  try {
    return await decode(sharp(bytes, { ...options, failOn: "error" }).autoOrient());
  } catch (error) {
    throw decodeError(path, picture, error);
  }
}

function decodeError(path: string, picture: Damaged, error: unknown): unknown {
  if (error instanceof AgentError || error instanceof RangeError) return error;
  const message = (messageOf(error).split("\n").at(-1) ?? "").slice(0, 200);
  return unreadable(path, reasonOf(picture, message), error);
}

function reasonOf({ format, suspicious }: Damaged, message: string): string {
  if (format === "heic" || format === "avif") {
    return `unsupported or corrupt ${format.toUpperCase()} (${message})`;
  }
  if (/pixel limit/i.test(message)) return `too many pixels (${message})`;
  // A JPEG with its end marker but too little data for its size: a lost sector puts the codes
  // out of step; without a trace of one, rows are missing.
  if (/premature end of data segment/.test(message)) {
    return suspicious
      ? `corrupt data: the picture data are damaged inside (${message})`
      : `truncated or corrupt data: less picture data than the header promises (${message})`;
  }
  if (/premature end|unexpected end|truncat|read error/i.test(message)) {
    return `truncated (${message})`;
  }
  if (format === "tiff") return `truncated or corrupt data (${message})`;
  return `corrupt data (${message})`;
}

function unreadable(path: string, reason: string, cause?: unknown): AgentError {
  return new AgentError("PICTURE_UNREADABLE", `${path}: ${reason}`, { cause });
}

/** The part of the upright picture that is used, in its pixels. */
function regionOf(
  path: string,
  picture: PictureFacts,
  { cropTop, cropBottom }: Preprocessing,
  window: PictureWindow = { left: 0, top: 0, width: 1, height: 1 },
): Region {
  const height = picture.heightPx - cropTop - cropBottom;
  if (height < 1) {
    const cuts = `cropTop ${cropTop} and cropBottom ${cropBottom}`;
    throw unreadable(path, `too small: ${picture.heightPx} rows leave nothing after ${cuts}`);
  }
  const { left, top } = window;
  const right = left + window.width;
  const bottom = top + window.height;
  const inside = left >= 0 && top >= 0 && right <= 1 + 1e-9 && bottom <= 1 + 1e-9;
  if (!(inside && window.width > 0 && window.height > 0)) {
    throw new RangeError(
      `window: expected a part of [0, 1] x [0, 1], got ${JSON.stringify(window)}`,
    );
  }
  const columns = interval(left, right, picture.widthPx);
  const rows = interval(top, bottom, height);
  return {
    left: columns.start,
    top: cropTop + rows.start,
    width: columns.length,
    height: rows.length,
  };
}

/** Whole pixels nearest to a part of `[0, count)`, at least one. */
export function interval(
  from: number,
  to: number,
  count: number,
): { start: number; length: number } {
  const start = Math.min(count - 1, Math.round(from * count));
  return { start, length: Math.max(1, Math.min(count, Math.round(to * count)) - start) };
}

function resizeWhole(source: Sharp, picture: PictureFacts, p: Preprocessing): Promise<Pixels> {
  const { widthPx, heightPx } = picture;
  const common = { kernel: p.kernel, fastShrinkOnLoad: false };
  if (p.resize.mode === "stretch") {
    return rawPixels(source.resize(p.width, p.height, { ...common, fit: "fill" }));
  }
  const { size } = p.resize;
  const resized = source.resize(size, size, { ...common, fit: "outside" });
  const ratio = Math.max(widthPx, heightPx) / Math.min(widthPx, heightPx);
  if (size * size * ratio <= MAX_RESIZED_PIXELS) return rawPixels(resized);
  // A strip of a picture: the center is cut inside libvips, or a 10x50000 one would fill memory.
  const width = Math.round(size * Math.max(1, widthPx / heightPx));
  const height = Math.round(size * Math.max(1, heightPx / widthPx));
  const cut = {
    left: centered(width, p.width),
    top: centered(height, p.height),
    width: p.width,
    height: p.height,
  };
  return rawPixels(source.resize(width, height, { ...common, fit: "fill" }).extract(cut));
}

async function resizeRegion(
  source: Sharp,
  picture: PictureFacts,
  region: Region,
  p: Preprocessing,
): Promise<Pixels> {
  const { resize } = p;
  const shrink =
    resize.mode === "stretch"
      ? Math.min(region.width / p.width, region.height / p.height)
      : Math.min(region.width, region.height) / resize.size;
  // The largest power of two that leaves at least a factor of 2 to the kernel below.
  const step = shrink < 4 ? 1 : 2 ** Math.floor(Math.log2(shrink / 2));
  const width = Math.ceil(picture.widthPx / step);
  const height = Math.ceil(picture.heightPx / step);
  const options = { fit: "fill", kernel: "cubic", fastShrinkOnLoad: false } as const;
  const { data } = await rawPixels(step === 1 ? source : source.resize(width, height, options));
  const columns = inward(region.left, region.width, width / picture.widthPx);
  const rows = inward(region.top, region.height, height / picture.heightPx);
  const cut = sharp(data, { raw: { width, height, channels: 3 } }).extract({
    left: columns.start,
    top: rows.start,
    width: columns.length,
    height: rows.length,
  });
  return resizeWhole(cut, { format: "png", widthPx: columns.length, heightPx: rows.length }, p);
}

/** A span of pixels in a picture scaled by `scale`, rounded so that nothing outside is in it. */
function inward(start: number, length: number, scale: number): { start: number; length: number } {
  const from = Math.ceil(start * scale - 1e-6);
  const to = Math.floor((start + length) * scale + 1e-6);
  return { start: from, length: Math.max(1, to - from) };
}

async function rawPixels(source: Sharp): Promise<Pixels> {
  const { data, info } = await source
    .flatten({ background: BACKGROUND })
    .toColourspace("srgb")
    .raw({ depth: "uchar" })
    .toBuffer({ resolveWithObject: true });
  if (info.channels !== 3) throw new RangeError(`expected 3 channels, got ${info.channels}`);
  return { data, width: info.width, height: info.height };
}

function centered(available: number, wanted: number): number {
  return Math.round((available - wanted) / 2);
}

/** The center of the pixels as the network's input; one table lookup a value. */
function toTensor(pixels: Pixels, p: Preprocessing, flip: boolean): Float32Array {
  const { width, height } = p;
  const left = centered(pixels.width, width);
  const top = centered(pixels.height, height);
  if (left < 0 || top < 0) {
    const got = `${pixels.width}x${pixels.height}`;
    throw new RangeError(`expected at least ${width}x${height} pixels after resizing, got ${got}`);
  }
  const plane = width * height;
  const tensor = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    const table = new Float32Array(256);
    for (let v = 0; v < 256; v++) table[v] = (v / 255 - p.mean[channel]!) / p.std[channel]!;
    for (let y = 0; y < height; y++) {
      const row = channel * plane + y * width;
      let from = ((top + y) * pixels.width + left + (flip ? width - 1 : 0)) * 3 + channel;
      const step = flip ? -3 : 3;
      for (let x = 0; x < width; x++) {
        tensor[row + x] = table[pixels.data[from]!]!;
        from += step;
      }
    }
  }
  return tensor;
}
