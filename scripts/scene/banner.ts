import { BANNER_HEIGHT, HEIGHT, WIDTH } from "./camera.ts";

/** Rows of 5 bits, top to bottom: a font of our own, so that no machine's fonts change a frame. */
const GLYPHS: Readonly<Record<string, readonly number[]>> = {
  "0": [14, 17, 19, 21, 25, 17, 14],
  "1": [4, 12, 4, 4, 4, 4, 14],
  "2": [14, 17, 1, 2, 4, 8, 31],
  "3": [31, 2, 4, 2, 1, 17, 14],
  "4": [2, 6, 10, 18, 31, 2, 2],
  "5": [31, 16, 30, 1, 1, 17, 14],
  "6": [6, 8, 16, 30, 17, 17, 14],
  "7": [31, 1, 2, 4, 8, 8, 8],
  "8": [14, 17, 17, 14, 17, 17, 14],
  "9": [14, 17, 17, 15, 1, 2, 12],
  A: [14, 17, 17, 31, 17, 17, 17],
  B: [30, 17, 17, 30, 17, 17, 30],
  C: [14, 17, 16, 16, 16, 17, 14],
  D: [28, 18, 17, 17, 17, 18, 28],
  E: [31, 16, 16, 30, 16, 16, 31],
  F: [31, 16, 16, 30, 16, 16, 16],
  G: [14, 17, 16, 23, 17, 17, 15],
  H: [17, 17, 17, 31, 17, 17, 17],
  I: [14, 4, 4, 4, 4, 4, 14],
  J: [7, 2, 2, 2, 2, 18, 12],
  K: [17, 18, 20, 24, 20, 18, 17],
  L: [16, 16, 16, 16, 16, 16, 31],
  M: [17, 27, 21, 21, 17, 17, 17],
  N: [17, 17, 25, 21, 19, 17, 17],
  O: [14, 17, 17, 17, 17, 17, 14],
  P: [30, 17, 17, 30, 16, 16, 16],
  Q: [14, 17, 17, 17, 21, 18, 13],
  R: [30, 17, 17, 30, 20, 18, 17],
  S: [15, 16, 16, 14, 1, 1, 30],
  T: [31, 4, 4, 4, 4, 4, 4],
  U: [17, 17, 17, 17, 17, 17, 14],
  V: [17, 17, 17, 17, 17, 10, 4],
  W: [17, 17, 17, 21, 21, 21, 10],
  X: [17, 17, 10, 4, 10, 17, 17],
  Y: [17, 17, 17, 10, 4, 4, 4],
  Z: [31, 1, 2, 4, 8, 16, 31],
  "-": [0, 0, 0, 31, 0, 0, 0],
  ":": [0, 12, 12, 0, 12, 12, 0],
  "/": [0, 1, 2, 4, 8, 16, 0],
  "°": [12, 18, 18, 12, 0, 0, 0],
  ".": [0, 0, 0, 0, 0, 12, 12],
  _: [0, 0, 0, 0, 0, 0, 31],
};
/** Any other character of a station's name. */
const UNKNOWN = [31, 17, 17, 17, 17, 17, 31];

const CELL = 12;

/** What the banner says. */
export interface BannerText {
  station: string;
  /** `YYYY-MM-DDTHH:MM:SS`, camera-local. */
  capturedAt: string;
  frameNumber: number;
  frames: number;
  tempC: number;
}

/**
 * Writes the banner into the last rows of a frame: that it is a drawn scene, station, date, time,
 * place in the burst, temperature and the moon's phase.
 *
 * @param frame `HEIGHT × WIDTH × 3`; its last {@link BANNER_HEIGHT} rows are overwritten.
 */
export function drawBanner(frame: Uint8ClampedArray, text: BannerText): void {
  frame.fill(0, (HEIGHT - BANNER_HEIGHT) * WIDTH * 3);
  const time = text.capturedAt.replace("T", " ");
  const name = text.station.toUpperCase().slice(0, 16);
  write(frame, 10, `DRAWN SCENE  ${name}`);
  write(frame, 400, `${time}  ${text.frameNumber}/${text.frames}`);
  const temperature = `${text.tempC}°C`;
  write(frame, WIDTH - 12 - temperature.length * CELL, temperature);
  drawMoon(frame, WIDTH - 112, moonPhase(text.capturedAt));
}

function write(frame: Uint8ClampedArray, left: number, text: string): void {
  const top = HEIGHT - BANNER_HEIGHT + 6;
  for (const [index, character] of [...text].entries()) {
    if (character === " ") continue;
    const rows = GLYPHS[character] ?? UNKNOWN;
    for (let y = 0; y < 21; y++) {
      const bits = rows[Math.floor(y / 3)]!;
      for (let x = 0; x < 10; x++) {
        if (((bits >> (4 - (x >> 1))) & 1) === 1) white(frame, left + index * CELL + x, top + y);
      }
    }
  }
}

function drawMoon(frame: Uint8ClampedArray, centerX: number, phase: number): void {
  const centerY = HEIGHT - BANNER_HEIGHT / 2;
  // The edge between light and dark is half an ellipse; it grows from the right, then shrinks.
  const edge = Math.cos(2 * Math.PI * phase);
  for (let y = -9; y <= 9; y++) {
    const half = Math.sqrt(81 - y * y);
    for (let x = -9; x <= 9; x++) {
      const inside = Math.abs(x) <= half;
      const rim = inside && x * x + y * y > 60;
      const lit = phase < 0.5 ? x > edge * half : x < -edge * half;
      if (rim || (inside && lit)) white(frame, centerX + x, centerY + y);
    }
  }
}

/** Share of the synodic month since new moon, in [0, 1), by the mean month from 2000-01-06. */
export function moonPhase(capturedAt: string): number {
  const days = (Date.parse(`${capturedAt}Z`) - Date.parse("2000-01-06T18:14:00Z")) / 86_400_000;
  const phase = (days / 29.530588) % 1;
  return phase < 0 ? phase + 1 : phase;
}

function white(frame: Uint8ClampedArray, x: number, y: number): void {
  if (x < 0 || x >= WIDTH) return;
  frame.fill(245, (y * WIDTH + x) * 3, (y * WIDTH + x) * 3 + 3);
}
