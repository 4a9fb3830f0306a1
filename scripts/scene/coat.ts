import type { Random } from "./random.ts";

/** Colors of an animal, `#rrggbb`, as seen in flat daylight. */
export interface Coat {
  back: string;
  flank: string;
  belly: string;
  leg: string;
  foot: string;
  head: string;
  muzzle: string;
  throat: string;
  ear: string;
  earInside: string;
  tail: string;
  tailTip: string;
  nose: string;
  /** Share of the flank's height that the belly color reaches up, in [0, 1]. */
  bellyHeight: number;
  /** Length of the hairs at the outline, in withers heights. */
  hair: number;
  /** How much single hairs differ from their neighbors, in [0, 1] (grizzled coats are high). */
  grizzle: number;
}

export const DEER_COAT: Coat = {
  back: "#6d4a2f",
  flank: "#8f6440",
  belly: "#b08e68",
  leg: "#7b573a",
  foot: "#2a221c",
  head: "#84603f",
  muzzle: "#5a463a",
  throat: "#a08262",
  ear: "#7d5f45",
  earInside: "#cbb9a2",
  tail: "#a67b52",
  tailTip: "#c9a77d",
  nose: "#1d1815",
  bellyHeight: 0.16,
  hair: 0.018,
  grizzle: 0.22,
};

export const FOX_COAT: Coat = {
  back: "#97481a",
  flank: "#bf6626",
  belly: "#d9cdbd",
  leg: "#4a2c1c",
  foot: "#241a16",
  head: "#bb6225",
  muzzle: "#e8dfd2",
  throat: "#eae3d8",
  ear: "#2b211c",
  earInside: "#d9c5ae",
  tail: "#a9571f",
  tailTip: "#f1ece3",
  nose: "#171312",
  bellyHeight: 0.2,
  hair: 0.035,
  grizzle: 0.25,
};

export const BOAR_COAT: Coat = {
  back: "#2b2520",
  flank: "#4b4138",
  belly: "#3a322b",
  leg: "#29231f",
  foot: "#1a1613",
  head: "#4f453b",
  muzzle: "#6a5b4e",
  throat: "#463c33",
  ear: "#2c2520",
  earInside: "#4b3f36",
  tail: "#352d27",
  tailTip: "#15110f",
  nose: "#57463f",
  bellyHeight: 0.12,
  hair: 0.05,
  grizzle: 0.5,
};

export const BADGER_COAT: Coat = {
  back: "#8d8a84",
  flank: "#8a857d",
  belly: "#2a2725",
  leg: "#1e1b1a",
  foot: "#1b1918",
  head: "#eceae4",
  muzzle: "#e6e3dc",
  throat: "#1f1c1b",
  ear: "#1f1c1b",
  earInside: "#f2f0ea",
  tail: "#a9a59c",
  tailTip: "#cbc7bd",
  nose: "#141212",
  bellyHeight: 0.3,
  hair: 0.06,
  grizzle: 0.5,
};

export const HARE_COAT: Coat = {
  back: "#7a6141",
  flank: "#a1865c",
  belly: "#e0d6c4",
  leg: "#a5895f",
  foot: "#b39a72",
  head: "#957a53",
  muzzle: "#c3ad8a",
  throat: "#b79a6d",
  ear: "#96805e",
  earInside: "#c8b393",
  tail: "#e9e3d8",
  tailTip: "#efeae1",
  nose: "#6a5444",
  bellyHeight: 0.24,
  hair: 0.035,
  grizzle: 0.55,
};

export const SQUIRREL_COAT: Coat = {
  back: "#7d3216",
  flank: "#a34a20",
  belly: "#efe6d8",
  leg: "#a04c22",
  foot: "#8f4a29",
  head: "#983f1b",
  muzzle: "#b9754a",
  throat: "#efe6d8",
  ear: "#6f2c14",
  earInside: "#b9764c",
  tail: "#8a3514",
  tailTip: "#a7481d",
  nose: "#3b2219",
  bellyHeight: 0.38,
  hair: 0.06,
  grizzle: 0.2,
};

export const RACCOON_COAT: Coat = {
  back: "#4f4942",
  flank: "#837a6c",
  belly: "#a59c8d",
  leg: "#5f574d",
  foot: "#37312c",
  head: "#8d8477",
  muzzle: "#e4dfd5",
  throat: "#8b8377",
  ear: "#5b534a",
  earInside: "#dcd5c8",
  tail: "#8c8272",
  tailTip: "#1d1a18",
  nose: "#161313",
  bellyHeight: 0.2,
  hair: 0.06,
  grizzle: 0.5,
};

export const LYNX_COAT: Coat = {
  back: "#8c6a45",
  flank: "#ae8d63",
  belly: "#e2d6c3",
  leg: "#b3946c",
  foot: "#a48a66",
  head: "#ad8d66",
  muzzle: "#e6dccb",
  throat: "#ddd0bb",
  ear: "#3a3028",
  earInside: "#d2c2a8",
  tail: "#a98a62",
  tailTip: "#161311",
  nose: "#6d4a42",
  bellyHeight: 0.26,
  hair: 0.03,
  grizzle: 0.3,
};

/** A coat of another individual: every color a little lighter or darker, warmer or cooler. */
export function varyCoat(coat: Coat, random: Random): Coat {
  const light = random.normal(1, 0.08);
  const warm = random.normal(0, 0.03);
  const varied = { ...coat };
  for (const [part, value] of Object.entries(coat) as [keyof Coat, string | number][]) {
    if (typeof value === "string") Object.assign(varied, { [part]: mix(value, light, warm) });
  }
  return varied;
}

/** A color times a brightness, its red and blue moved apart by a share (positive is warmer). */
export function mix(color: string, light: number, warm = 0): string {
  const [r, g, b] = channels(color);
  return hex([r * light * (1 + warm), g * light, b * light * (1 - warm)]);
}

/** The color at share `t` of the way from `a` to `b`. */
export function blend(a: string, b: string, t: number): string {
  const [from, to] = [channels(a), channels(b)];
  return hex(from.map((value, i) => value + (to[i]! - value) * t));
}

/** Red, green and blue in [0, 255] of `#rrggbb`. */
export function channels(color: string): [number, number, number] {
  const value = Number.parseInt(color.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

function hex(rgb: readonly number[]): string {
  const clamp = (value: number) => Math.max(0, Math.min(255, Math.round(value)));
  return `#${rgb.map((value) => clamp(value).toString(16).padStart(2, "0")).join("")}`;
}
