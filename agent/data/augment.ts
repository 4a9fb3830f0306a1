import sharp from "sharp";
import type { Preprocessing } from "../model.ts";
import { interval } from "./picture.ts";

/** How training views of a picture may differ from the plain one. */
export interface Augmentation {
  /**
   * Random resized crops (Szegedy et al. 2015): at least `minArea` of the kept picture, in (0, 1],
   * and at most `maxStretch` ≥ 1 wider or narrower than the network's input. Null: the plain view.
   */
  readonly crop: { readonly minArea: number; readonly maxStretch: number } | null;
  /** Probability of a mirror image, left to right. */
  readonly flip: number;
  /** Factors of brightness, contrast and saturation lie in [1 − x, 1 + x], x in [0, 1]. */
  readonly brightness: number;
  readonly contrast: number;
  readonly saturation: number;
  /** Probability of a gray picture, as cameras take them by infrared light. */
  readonly grayscale: number;
  /** Gaussian blur: its probability, and its largest σ as a share of the view's width. */
  readonly blur: { readonly probability: number; readonly maxSigma: number };
  /** Noise of the sensor: its probability, and its largest σ as a share of white. */
  readonly noise: { readonly probability: number; readonly maxSigma: number };
}

/** What an animal at a camera trap may look like on another day. */
export const FIELD_AUGMENTATION: Augmentation = {
  crop: { minArea: 0.45, maxStretch: 4 / 3 },
  flip: 0.5,
  brightness: 0.3,
  contrast: 0.3,
  saturation: 0.3,
  grayscale: 0.1,
  blur: { probability: 0.1, maxSigma: 0.007 },
  noise: { probability: 0.15, maxSigma: 0.04 },
};

/** A part of the kept picture, as fractions in [0, 1]. */
interface Window {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

/** One view, drawn: what is left to do has no chance in it. */
export interface DrawnView {
  /** Null: the view that the station itself would take. */
  readonly window: Window | null;
  readonly flip: boolean;
  /** Factors; 1 changes nothing. */
  readonly brightness: number;
  readonly contrast: number;
  /** 0 is gray. */
  readonly saturation: number;
  /** As a share of the view's width, so that networks of other sizes see the same; 0: none. */
  readonly blurSigma: number;
  /** As a share of white; 0: none. */
  readonly noiseSigma: number;
  /** Seed of the noise, an integer in [0, 2³²). */
  readonly noiseSeed: number;
}

/** The view of a picture as it is. */
export const PLAIN_VIEW: DrawnView = {
  window: null,
  flip: false,
  brightness: 1,
  contrast: 1,
  saturation: 1,
  blurSigma: 0,
  noiseSigma: 0,
  noiseSeed: 0,
};

/**
 * Draws one view. It always takes 14 random numbers, so that one setting does not move what the
 * others draw.
 *
 * @param uniform random numbers in [0, 1).
 */
export function drawView(augmentation: Augmentation, uniform: () => number): DrawnView {
  const { crop, flip, brightness, contrast, saturation, grayscale, blur, noise } = augmentation;
  const [area, stretch, left, top] = [uniform(), uniform(), uniform(), uniform()];
  const factor = (x: number): number => 1 + x * (2 * uniform() - 1);
  const happens = (probability: number): boolean => uniform() < probability;
  const flipped = happens(flip);
  const [brighter, starker] = [factor(brightness), factor(contrast)];
  const [gray, purer] = [happens(grayscale), factor(saturation)];
  const [blurred, blurShare] = [happens(blur.probability), 1 - uniform()];
  const [noisy, noiseShare] = [happens(noise.probability), 1 - uniform()];
  return {
    window: crop && windowOf(crop, area, stretch, left, top),
    flip: flipped,
    brightness: brighter,
    contrast: starker,
    saturation: gray ? 0 : purer,
    blurSigma: blurred ? blurShare * blur.maxSigma : 0,
    noiseSigma: noisy ? noiseShare * noise.maxSigma : 0,
    noiseSeed: Math.floor(uniform() * 2 ** 32),
  };
}

/** A crop of exactly the area that is drawn; its shape gives way where it would not fit. */
function windowOf(
  { minArea, maxStretch }: { readonly minArea: number; readonly maxStretch: number },
  ...[area, stretch, left, top]: [number, number, number, number]
): Window {
  const share = minArea + (1 - minArea) * area;
  const drawn = maxStretch ** (2 * stretch - 1);
  const aspect = Math.min(1 / share, Math.max(share, drawn));
  const width = Math.min(1, Math.sqrt(share * aspect));
  const height = Math.min(1, Math.sqrt(share / aspect));
  return { left: left * (1 - width), top: top * (1 - height), width, height };
}

/** How much larger than the network's input a picture is kept for training. */
const MARGIN = 1.15;

/**
 * The preprocessing by which a picture is decoded once, to take many views of it: a little larger
 * than the network's input, with some of what the plain view cuts off around it. Where the plain
 * view is itself the center of a larger picture that scale is kept, and it loses nothing.
 */
export function keptPreprocessing(network: Preprocessing): Preprocessing {
  const { resize } = network;
  const height = Math.round(network.height * MARGIN);
  const width = Math.round(network.width * MARGIN);
  if (resize.mode === "stretch") return { ...network, height, width };
  const longest = Math.max(network.height, network.width);
  const roomy = resize.size >= 1.1 * longest;
  const size = roomy ? resize.size : Math.round(longest * MARGIN);
  return {
    ...network,
    height: Math.min(size, height),
    width: Math.min(size, width),
    resize: { mode: "shortSide", size },
  };
}

/**
 * Views of kept pictures as a network's input. The same views of the same pictures give the same
 * bits, in whatever order the threads of libvips get to them.
 *
 * @param pictures each `3 × kept.height × kept.width`, channels first, RGB bytes.
 * @param kept by which they were decoded; see {@link keptPreprocessing}.
 * @param network of the network's input.
 * @param views one a picture.
 * @returns `pictures.length × 3 × network.height × network.width`, `(rgb / 255 − mean) / std`.
 * @throws {RangeError} where a size does not fit.
 */
export async function augmentBatch(
  pictures: readonly Uint8Array[],
  kept: Preprocessing,
  network: Preprocessing,
  views: readonly DrawnView[],
): Promise<Float32Array> {
  if (views.length !== pictures.length) {
    throw new RangeError(`expected ${pictures.length} views, got ${views.length}`);
  }
  const size = 3 * kept.height * kept.width;
  const wrong = pictures.find(({ length }) => length !== size);
  if (wrong) throw new RangeError(`expected pictures of ${size} bytes, got ${wrong.length}`);
  if (kept.resize.mode !== network.resize.mode) {
    throw new RangeError(`expected pictures kept by ${network.resize.mode}`);
  }
  const row = 3 * network.height * network.width;
  const batch = new Float32Array(pictures.length * row);
  await Promise.all(
    pictures.map(async (picture, i) => {
      const view = views[i]!;
      const pixels = await seen(picture, kept, network, view);
      develop(pixels, network, view, batch.subarray(i * row, (i + 1) * row));
    }),
  );
  return batch;
}

/** The part of a picture that a view sees, `height × width × 3`, at the network's size. */
function seen(
  picture: Uint8Array,
  kept: Preprocessing,
  network: Preprocessing,
  view: DrawnView,
): Uint8Array | Promise<Uint8Array> {
  const { height, width, kernel } = network;
  const [columns, rows] = spansOf(kept, network, view);
  const cut = interleaved(picture, kept, columns, rows);
  const fits = columns.length === width && rows.length === height;
  const sigmaPx = view.blurSigma * width;
  if (fits && sigmaPx < LEAST_SIGMA_PX) return cut;
  const raw = { width: columns.length, height: rows.length, channels: 3 } as const;
  let image = sharp(cut, { raw });
  if (!fits) image = image.resize(width, height, { fit: "fill", kernel });
  if (sigmaPx >= LEAST_SIGMA_PX) image = image.blur(sigmaPx);
  return image.raw().toBuffer();
}

/** The least blur that sharp knows; less is not to be seen. */
const LEAST_SIGMA_PX = 0.3;

type Span = ReturnType<typeof interval>;

/** Where a view lies in a kept picture, in its pixels. */
function spansOf(kept: Preprocessing, network: Preprocessing, { window }: DrawnView): [Span, Span] {
  if (window !== null) {
    const { left, top, width, height } = window;
    const columns = interval(left, left + width, kept.width);
    return [columns, interval(top, top + height, kept.height)];
  }
  if (network.resize.mode === "stretch" || kept.resize.mode === "stretch") {
    return [
      { start: 0, length: kept.width },
      { start: 0, length: kept.height },
    ];
  }
  const scale = kept.resize.size / network.resize.size;
  const center = (wanted: number, available: number): Span => {
    const length = Math.min(available, Math.round(wanted * scale));
    return { start: Math.round((available - length) / 2), length };
  };
  return [center(network.width, kept.width), center(network.height, kept.height)];
}

/** A part of a picture, its channels brought together for libvips. */
function interleaved(
  picture: Uint8Array,
  { height, width }: Preprocessing,
  columns: Span,
  rows: Span,
): Uint8Array {
  const plane = height * width;
  const pixels = new Uint8Array(3 * columns.length * rows.length);
  let to = 0;
  for (let y = rows.start; y < rows.start + rows.length; y++) {
    let from = y * width + columns.start;
    for (let x = 0; x < columns.length; x++, from++) {
      pixels[to++] = picture[from]!;
      pixels[to++] = picture[plane + from]!;
      pixels[to++] = picture[2 * plane + from]!;
    }
  }
  return pixels;
}

/** Luma of ITU-R BT.601, as in sRGB pictures' gray. */
const LUMA = [0.299, 0.587, 0.114] as const;

/**
 * Color, mirror image, noise and scale in one pass. With Y the luma of a pixel, Ȳ its mean, b, c, s
 * the factors of brightness, contrast and saturation: v ← b·c·(s·v + (1−s)·Y) + (1−c)·b·Ȳ, cut to
 * [0, 255] once, at the end.
 */
function develop(
  pixels: Uint8Array,
  { height, width, mean, std }: Preprocessing,
  view: DrawnView,
  out: Float32Array,
): void {
  const { brightness, contrast, saturation, flip, noiseSigma } = view;
  const plane = height * width;
  const lift = contrast === 1 ? 0 : (1 - contrast) * brightness * meanLuma(pixels);
  const own = brightness * contrast * saturation;
  const shared = brightness * contrast * (1 - saturation);
  const noise = noiseFrom(view.noiseSeed);
  const sigma = 255 * noiseSigma;
  for (let y = 0; y < height; y++) {
    let from = y * width * 3;
    let to = y * width + (flip ? width - 1 : 0);
    for (let x = 0; x < width; x++) {
      const r = pixels[from]!;
      const g = pixels[from + 1]!;
      const b = pixels[from + 2]!;
      const luma = shared * (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b) + lift;
      // A gray picture has gray noise: its sensor sees one color.
      const first = sigma === 0 ? 0 : sigma * noise();
      const second = sigma === 0 || saturation === 0 ? first : sigma * noise();
      const third = sigma === 0 || saturation === 0 ? first : sigma * noise();
      out[to] = (level(own * r + luma + first) / 255 - mean[0]) / std[0];
      out[plane + to] = (level(own * g + luma + second) / 255 - mean[1]) / std[1];
      out[2 * plane + to] = (level(own * b + luma + third) / 255 - mean[2]) / std[2];
      from += 3;
      to += flip ? -1 : 1;
    }
  }
}

function level(value: number): number {
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

function meanLuma(pixels: Uint8Array): number {
  const sums: [number, number, number] = [0, 0, 0];
  for (let i = 0; i < pixels.length; i += 3) {
    sums[0] += pixels[i]!;
    sums[1] += pixels[i + 1]!;
    sums[2] += pixels[i + 2]!;
  }
  const total = LUMA[0] * sums[0] + LUMA[1] * sums[1] + LUMA[2] * sums[2];
  return total / (pixels.length / 3);
}

/**
 * Noise of mean 0 and variance 1, near enough to normal for a sensor: the sum of the four bytes of
 * a 32-bit number from xorshift32 (Marsaglia 2003). One value takes a few operations, where an
 * exact normal would take as long as all the rest of the view.
 */
function noiseFrom(seed: number): () => number {
  let state = seed | 0 || 0x9e3779b9;
  // The mean and the standard deviation of four uniform bytes.
  const middle = 4 * 127.5;
  const scale = 1 / Math.sqrt((4 * (256 ** 2 - 1)) / 12);
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    const sum = (state & 255) + ((state >>> 8) & 255) + ((state >>> 16) & 255) + (state >>> 24);
    return (sum - middle) * scale;
  };
}

/** Which rows of a batch are mixed, and by how much. */
export interface Mixing {
  /** The other row of each row; its own where it is left alone. */
  readonly partners: readonly number[];
  /** Share of the row itself, in [½, 1]; the same for both of a pair. */
  readonly shares: readonly number[];
}

/**
 * Draws a mixup (Zhang et al. 2018, arXiv:1710.09412): the first row with the last, the second with
 * the last but one, and so on, the share from Beta(α, α). The larger share is the row's own, which
 * changes nothing in the pairs and lets each row keep a label of its own.
 *
 * @param count rows of the batch. @param alpha in (0, 4]; small: rows stay nearly as they are.
 * @param uniform random numbers in [0, 1).
 */
export function drawMixing(count: number, alpha: number, uniform: () => number): Mixing {
  if (!(alpha > 0 && alpha <= 4)) throw new RangeError(`alpha: expected (0, 4], got ${alpha}`);
  const partners = Array.from({ length: count }, (_, row) => count - 1 - row);
  const shares = new Array<number>(count).fill(1);
  for (let row = 0; row < count - 1 - row; row++) {
    const share = beta(alpha, uniform);
    shares[row] = Math.max(share, 1 - share);
    shares[count - 1 - row] = shares[row]!;
  }
  return { partners, shares };
}

/** Beta(α, α) by Jöhnk's method (Devroye 1986, IX.3.5). */
function beta(alpha: number, uniform: () => number): number {
  for (;;) {
    const x = uniform() ** (1 / alpha);
    const y = uniform() ** (1 / alpha);
    if (x + y > 0 && x + y <= 1) return x / (x + y);
  }
}

/**
 * Mixes the rows of a batch in place: pictures, or their soft labels. Each row becomes
 * share·row + (1 − share)·partner.
 *
 * @param values `mixing.partners.length` rows of one length.
 * @throws {RangeError} where the rows are not of one length.
 */
export function mixRows(values: Float32Array, { partners, shares }: Mixing): void {
  const length = values.length / partners.length;
  if (!Number.isInteger(length)) {
    throw new RangeError(`expected ${partners.length} equal rows, got ${values.length} values`);
  }
  for (const [row, partner] of partners.entries()) {
    if (partner <= row) continue;
    const share = shares[row]!;
    const first = values.subarray(row * length, (row + 1) * length);
    const second = values.subarray(partner * length, (partner + 1) * length);
    for (let i = 0; i < length; i++) {
      const a = first[i]!;
      const b = second[i]!;
      first[i] = share * a + (1 - share) * b;
      second[i] = share * b + (1 - share) * a;
    }
  }
}
