import type { Point } from "./outline.ts";

/** Values of one angle (degrees, 0 = forward, 90 = up) in the three ways to carry a head. */
export interface Carriage {
  alert: number;
  walk: number;
  down: number;
}

/** One pair of legs. Lengths in withers heights, x from the rump forward. */
export interface LegPlan {
  /** Hip or shoulder joint. */
  joint: Point;
  /** Where the foot stands under the joint. */
  footX: number;
  /** Half widths at joint, knee or elbow, hock or wrist, and above the foot. */
  widths: readonly [number, number, number, number];
  /** How far knee and hock leave the straight line, forward positive. */
  bend: readonly [knee: number, hock: number];
  /** Height of the hock or wrist above the ground. */
  hockY: number;
  /** Length and height of the foot; a long one lies flat behind (hare). */
  foot: readonly [length: number, height: number];
}

/**
 * Proportions of a four-legged animal seen from its right side, in withers heights: the ground is
 * y = 0, the rump x = 0, the withers y = 1.
 */
export interface BodyPlan {
  /** From the tail's base along the back to the withers. */
  top: readonly Point[];
  /** From the front of the chest back along the belly to the buttock. */
  bottom: readonly Point[];
  neck: { base: Point; length: number; halfWidth: number; angle: Carriage };
  head: {
    length: number;
    pitch: Carriage;
    /** Profile in head lengths: nape → forehead → nose. */
    upper: readonly Point[];
    /** Profile in head lengths: nose → jaw → throat. */
    lower: readonly Point[];
    eye: Point;
    /** In head lengths. */
    eyeRadius: number;
    noseRadius: number;
  };
  /** Angle in degrees from the head's axis; length and half width in head lengths. */
  ear: { at: Point; length: number; halfWidth: number; angle: number; round: boolean };
  /** Angles (degrees, 180 = backward) and half widths along the tail. */
  tail: { base: Point; length: number; angles: readonly number[]; widths: readonly number[] };
  fore: LegPlan;
  hind: LegPlan;
  /** Length of a step, and how far a foot is lifted. */
  stride: number;
  lift: number;
}

/** Red deer: long legs, long neck, slim head. */
export const DEER: BodyPlan = {
  top: [
    [-0.02, 0.86],
    [0.06, 0.96],
    [0.18, 1.0],
    [0.42, 0.95],
    [0.68, 0.96],
    [0.9, 1.01],
  ],
  bottom: [
    [1.17, 0.74],
    [1.1, 0.57],
    [0.95, 0.49],
    [0.62, 0.5],
    [0.34, 0.56],
    [0.12, 0.62],
    [-0.03, 0.74],
  ],
  neck: {
    base: [1.02, 0.86],
    length: 0.46,
    halfWidth: 0.085,
    angle: { alert: 62, walk: 38, down: -58 },
  },
  head: {
    length: 0.37,
    pitch: { alert: -18, walk: -28, down: -72 },
    upper: [
      [-0.08, 0.14],
      [0.1, 0.27],
      [0.32, 0.26],
      [0.6, 0.16],
      [0.86, 0.11],
      [0.98, 0.06],
    ],
    lower: [
      [1.0, -0.05],
      [0.85, -0.11],
      [0.6, -0.13],
      [0.3, -0.25],
      [0.02, -0.25],
    ],
    eye: [0.34, 0.12],
    eyeRadius: 0.045,
    noseRadius: 0.075,
  },
  ear: { at: [0.04, 0.16], length: 0.55, halfWidth: 0.13, angle: 128, round: false },
  tail: { base: [0.0, 0.9], length: 0.15, angles: [235, 255], widths: [0.035, 0.035, 0.012] },
  fore: {
    joint: [0.98, 0.68],
    footX: 0.98,
    widths: [0.12, 0.055, 0.034, 0.024],
    bend: [-0.02, 0.015],
    hockY: 0.3,
    foot: [0.08, 0.06],
  },
  hind: {
    joint: [0.16, 0.78],
    footX: 0.1,
    widths: [0.17, 0.085, 0.038, 0.026],
    bend: [0.08, -0.06],
    hockY: 0.33,
    foot: [0.08, 0.06],
  },
  stride: 0.5,
  lift: 0.1,
};

/** Red fox: long low body, pointed muzzle, big ears, brush. */
export const FOX: BodyPlan = {
  top: [
    [-0.02, 0.88],
    [0.08, 0.96],
    [0.3, 0.97],
    [0.7, 0.93],
    [1.1, 0.98],
  ],
  bottom: [
    [1.48, 0.72],
    [1.4, 0.52],
    [1.2, 0.46],
    [0.85, 0.5],
    [0.45, 0.56],
    [0.15, 0.6],
    [-0.02, 0.74],
  ],
  neck: {
    base: [1.28, 0.86],
    length: 0.34,
    halfWidth: 0.15,
    angle: { alert: 48, walk: 18, down: -42 },
  },
  head: {
    length: 0.56,
    pitch: { alert: -8, walk: -12, down: -42 },
    upper: [
      [-0.1, 0.2],
      [0.12, 0.31],
      [0.34, 0.24],
      [0.5, 0.13],
      [0.78, 0.09],
      [0.97, 0.06],
    ],
    lower: [
      [1.0, -0.02],
      [0.8, -0.08],
      [0.55, -0.12],
      [0.32, -0.25],
      [0.05, -0.3],
    ],
    eye: [0.42, 0.09],
    eyeRadius: 0.042,
    noseRadius: 0.055,
  },
  ear: { at: [0.1, 0.22], length: 0.42, halfWidth: 0.15, angle: 98, round: false },
  tail: {
    base: [0.0, 0.86],
    length: 1.12,
    angles: [206, 214, 204, 190],
    widths: [0.07, 0.13, 0.16, 0.14, 0.03],
  },
  fore: {
    joint: [1.26, 0.68],
    footX: 1.26,
    widths: [0.15, 0.075, 0.05, 0.042],
    bend: [-0.03, 0.01],
    hockY: 0.2,
    foot: [0.14, 0.07],
  },
  hind: {
    joint: [0.2, 0.76],
    footX: 0.12,
    widths: [0.2, 0.11, 0.05, 0.042],
    bend: [0.12, -0.08],
    hockY: 0.3,
    foot: [0.14, 0.07],
  },
  stride: 0.6,
  lift: 0.12,
};

/** Wild boar: high shoulders, wedge of a head carried low, thin short legs. */
export const BOAR: BodyPlan = {
  top: [
    [-0.03, 0.7],
    [0.08, 0.82],
    [0.3, 0.92],
    [0.6, 0.99],
    [0.85, 1.02],
    [1.05, 0.98],
  ],
  bottom: [
    [1.32, 0.5],
    [1.18, 0.38],
    [0.95, 0.34],
    [0.6, 0.36],
    [0.3, 0.42],
    [0.08, 0.46],
    [-0.04, 0.58],
  ],
  neck: {
    base: [1.14, 0.74],
    length: 0.2,
    halfWidth: 0.23,
    angle: { alert: 5, walk: -18, down: -45 },
  },
  head: {
    length: 0.66,
    pitch: { alert: -16, walk: -30, down: -52 },
    upper: [
      [-0.12, 0.3],
      [0.1, 0.36],
      [0.3, 0.28],
      [0.6, 0.15],
      [0.88, 0.1],
      [0.99, 0.1],
    ],
    lower: [
      [1.02, -0.06],
      [0.9, -0.1],
      [0.62, -0.13],
      [0.35, -0.24],
      [0.0, -0.32],
    ],
    eye: [0.36, 0.13],
    eyeRadius: 0.026,
    noseRadius: 0.07,
  },
  ear: { at: [0.08, 0.28], length: 0.34, halfWidth: 0.11, angle: 112, round: false },
  tail: {
    base: [-0.01, 0.74],
    length: 0.34,
    angles: [252, 266, 272],
    widths: [0.018, 0.014, 0.014, 0.026],
  },
  fore: {
    joint: [1.06, 0.56],
    footX: 1.06,
    widths: [0.17, 0.085, 0.05, 0.038],
    bend: [-0.02, 0.01],
    hockY: 0.2,
    foot: [0.1, 0.07],
  },
  hind: {
    joint: [0.16, 0.62],
    footX: 0.1,
    widths: [0.2, 0.1, 0.05, 0.038],
    bend: [0.06, -0.05],
    hockY: 0.24,
    foot: [0.1, 0.07],
  },
  stride: 0.4,
  lift: 0.08,
};

/** European badger: broad, low, long conical head near the ground. */
export const BADGER: BodyPlan = {
  top: [
    [-0.05, 0.62],
    [0.12, 0.85],
    [0.5, 1.04],
    [1.0, 1.06],
    [1.45, 0.96],
    [1.7, 0.86],
  ],
  bottom: [
    [2.05, 0.46],
    [1.85, 0.28],
    [1.4, 0.2],
    [0.9, 0.18],
    [0.4, 0.2],
    [0.1, 0.28],
    [-0.08, 0.44],
  ],
  neck: {
    base: [1.84, 0.64],
    length: 0.24,
    halfWidth: 0.25,
    angle: { alert: 18, walk: -6, down: -32 },
  },
  head: {
    length: 0.86,
    pitch: { alert: -6, walk: -14, down: -30 },
    upper: [
      [-0.12, 0.27],
      [0.1, 0.32],
      [0.35, 0.27],
      [0.65, 0.16],
      [0.9, 0.1],
      [1.0, 0.05],
    ],
    lower: [
      [1.0, -0.06],
      [0.85, -0.12],
      [0.6, -0.17],
      [0.3, -0.26],
      [0.0, -0.3],
    ],
    eye: [0.56, 0.07],
    eyeRadius: 0.026,
    noseRadius: 0.055,
  },
  ear: { at: [0.12, 0.24], length: 0.17, halfWidth: 0.1, angle: 110, round: true },
  tail: {
    base: [-0.04, 0.62],
    length: 0.55,
    angles: [205, 215, 218],
    widths: [0.1, 0.12, 0.1, 0.03],
  },
  fore: {
    joint: [1.7, 0.46],
    footX: 1.7,
    widths: [0.2, 0.15, 0.11, 0.1],
    bend: [-0.04, 0.02],
    hockY: 0.16,
    foot: [0.28, 0.1],
  },
  hind: {
    joint: [0.35, 0.48],
    footX: 0.28,
    widths: [0.26, 0.17, 0.11, 0.1],
    bend: [0.08, -0.06],
    hockY: 0.16,
    foot: [0.28, 0.1],
  },
  stride: 0.5,
  lift: 0.1,
};

/** Brown hare: arched back, very long ears and hind legs. */
export const HARE: BodyPlan = {
  top: [
    [-0.06, 0.4],
    [-0.02, 0.72],
    [0.16, 1.02],
    [0.46, 1.14],
    [0.8, 1.06],
    [1.08, 0.96],
  ],
  bottom: [
    [1.36, 0.66],
    [1.24, 0.48],
    [1.0, 0.38],
    [0.7, 0.34],
    [0.4, 0.3],
    [0.1, 0.24],
    [-0.06, 0.26],
  ],
  neck: {
    base: [1.2, 0.84],
    length: 0.26,
    halfWidth: 0.17,
    angle: { alert: 66, walk: 38, down: -34 },
  },
  head: {
    length: 0.56,
    pitch: { alert: -12, walk: -18, down: -42 },
    upper: [
      [-0.06, 0.2],
      [0.16, 0.36],
      [0.42, 0.36],
      [0.7, 0.24],
      [0.92, 0.12],
    ],
    lower: [
      [1.0, -0.03],
      [0.9, -0.16],
      [0.65, -0.2],
      [0.35, -0.28],
      [0.04, -0.28],
    ],
    eye: [0.46, 0.15],
    eyeRadius: 0.075,
    noseRadius: 0.045,
  },
  ear: { at: [0.12, 0.26], length: 1.12, halfWidth: 0.14, angle: 116, round: false },
  tail: { base: [-0.04, 0.5], length: 0.26, angles: [160, 120], widths: [0.07, 0.1, 0.04] },
  fore: {
    joint: [1.12, 0.56],
    footX: 1.16,
    widths: [0.14, 0.075, 0.055, 0.05],
    bend: [-0.03, 0.02],
    hockY: 0.16,
    foot: [0.16, 0.08],
  },
  hind: {
    joint: [0.32, 0.62],
    footX: 0.3,
    widths: [0.34, 0.22, 0.07, 0.06],
    bend: [0.22, -0.2],
    hockY: 0.13,
    foot: [0.46, 0.1],
  },
  stride: 0.7,
  lift: 0.16,
};

/** Red squirrel: small, tufted ears, tail as long as the body. */
export const SQUIRREL: BodyPlan = {
  top: [
    [-0.08, 0.4],
    [0.0, 0.72],
    [0.24, 1.04],
    [0.6, 1.1],
    [0.95, 1.0],
    [1.2, 0.94],
  ],
  bottom: [
    [1.5, 0.66],
    [1.38, 0.46],
    [1.1, 0.34],
    [0.75, 0.3],
    [0.4, 0.26],
    [0.1, 0.2],
    [-0.08, 0.26],
  ],
  neck: {
    base: [1.34, 0.82],
    length: 0.22,
    halfWidth: 0.2,
    angle: { alert: 56, walk: 22, down: -30 },
  },
  head: {
    length: 0.62,
    pitch: { alert: -10, walk: -14, down: -38 },
    upper: [
      [-0.08, 0.22],
      [0.16, 0.4],
      [0.44, 0.38],
      [0.72, 0.22],
      [0.94, 0.08],
    ],
    lower: [
      [1.0, -0.06],
      [0.86, -0.18],
      [0.6, -0.24],
      [0.3, -0.3],
      [0.02, -0.3],
    ],
    eye: [0.5, 0.12],
    eyeRadius: 0.085,
    noseRadius: 0.045,
  },
  ear: { at: [0.14, 0.3], length: 0.42, halfWidth: 0.12, angle: 106, round: false },
  tail: {
    base: [-0.02, 0.44],
    length: 2.1,
    angles: [170, 128, 96, 82, 92, 150],
    widths: [0.12, 0.2, 0.26, 0.29, 0.28, 0.22, 0.07],
  },
  fore: {
    joint: [1.24, 0.56],
    footX: 1.3,
    widths: [0.15, 0.085, 0.06, 0.055],
    bend: [-0.05, 0.03],
    hockY: 0.16,
    foot: [0.2, 0.08],
  },
  hind: {
    joint: [0.36, 0.56],
    footX: 0.36,
    widths: [0.34, 0.22, 0.08, 0.07],
    bend: [0.2, -0.18],
    hockY: 0.13,
    foot: [0.42, 0.1],
  },
  stride: 0.7,
  lift: 0.18,
};

/** Raccoon: hunched, higher at the rump, broad face, thick banded tail. */
export const RACCOON: BodyPlan = {
  top: [
    [-0.06, 0.74],
    [0.06, 0.98],
    [0.34, 1.16],
    [0.7, 1.13],
    [1.05, 1.0],
    [1.22, 0.92],
  ],
  bottom: [
    [1.56, 0.56],
    [1.4, 0.4],
    [1.1, 0.32],
    [0.75, 0.33],
    [0.4, 0.38],
    [0.1, 0.44],
    [-0.06, 0.56],
  ],
  neck: {
    base: [1.34, 0.72],
    length: 0.24,
    halfWidth: 0.22,
    angle: { alert: 34, walk: 4, down: -38 },
  },
  head: {
    length: 0.6,
    pitch: { alert: -6, walk: -16, down: -44 },
    upper: [
      [-0.12, 0.3],
      [0.12, 0.42],
      [0.38, 0.36],
      [0.6, 0.17],
      [0.84, 0.1],
      [0.99, 0.06],
    ],
    lower: [
      [1.0, -0.05],
      [0.82, -0.13],
      [0.56, -0.22],
      [0.28, -0.36],
      [0.0, -0.36],
    ],
    eye: [0.48, 0.1],
    eyeRadius: 0.048,
    noseRadius: 0.06,
  },
  ear: { at: [0.06, 0.32], length: 0.3, halfWidth: 0.14, angle: 104, round: true },
  tail: {
    base: [-0.02, 0.8],
    length: 1.05,
    angles: [214, 222, 206, 192],
    widths: [0.1, 0.14, 0.15, 0.13, 0.05],
  },
  fore: {
    joint: [1.28, 0.56],
    footX: 1.28,
    widths: [0.17, 0.1, 0.065, 0.055],
    bend: [-0.04, 0.02],
    hockY: 0.18,
    foot: [0.2, 0.07],
  },
  hind: {
    joint: [0.24, 0.7],
    footX: 0.18,
    widths: [0.27, 0.16, 0.075, 0.065],
    bend: [0.13, -0.1],
    hockY: 0.2,
    foot: [0.28, 0.08],
  },
  stride: 0.5,
  lift: 0.1,
};

/** Eurasian lynx: long legs, higher at the rump, short tail, round head with ruff. */
export const LYNX: BodyPlan = {
  top: [
    [-0.03, 0.9],
    [0.06, 1.01],
    [0.24, 1.04],
    [0.55, 0.97],
    [0.85, 0.99],
    [1.02, 0.99],
  ],
  bottom: [
    [1.3, 0.74],
    [1.2, 0.58],
    [1.02, 0.52],
    [0.7, 0.54],
    [0.36, 0.6],
    [0.12, 0.64],
    [-0.04, 0.76],
  ],
  neck: {
    base: [1.12, 0.87],
    length: 0.26,
    halfWidth: 0.15,
    angle: { alert: 44, walk: 14, down: -36 },
  },
  head: {
    length: 0.36,
    pitch: { alert: -4, walk: -8, down: -34 },
    upper: [
      [-0.18, 0.34],
      [0.12, 0.5],
      [0.46, 0.46],
      [0.68, 0.27],
      [0.9, 0.2],
      [1.0, 0.1],
    ],
    lower: [
      [1.0, -0.08],
      [0.9, -0.2],
      [0.62, -0.28],
      [0.3, -0.48],
      [-0.06, -0.46],
    ],
    eye: [0.62, 0.16],
    eyeRadius: 0.06,
    noseRadius: 0.065,
  },
  ear: { at: [0.1, 0.4], length: 0.46, halfWidth: 0.17, angle: 100, round: false },
  tail: {
    base: [0.0, 0.94],
    length: 0.27,
    angles: [222, 232, 226],
    widths: [0.05, 0.055, 0.05, 0.035],
  },
  fore: {
    joint: [1.1, 0.7],
    footX: 1.1,
    widths: [0.14, 0.08, 0.06, 0.055],
    bend: [-0.03, 0.015],
    hockY: 0.2,
    foot: [0.16, 0.08],
  },
  hind: {
    joint: [0.2, 0.82],
    footX: 0.12,
    widths: [0.2, 0.12, 0.062, 0.056],
    bend: [0.12, -0.09],
    hockY: 0.28,
    foot: [0.17, 0.08],
  },
  stride: 0.5,
  lift: 0.1,
};
