/** Size of every frame in pixels; the banner takes the last rows. */
export const WIDTH = 960;
export const HEIGHT = 720;
export const BANNER_HEIGHT = 32;

/** Focal length in pixels: a horizontal field of view of 45°, as camera traps have. */
export const FOCAL_PX = WIDTH / 2 / Math.tan((45 * Math.PI) / 360);

/** How a station's camera stands over a flat ground. */
export interface Camera {
  /** Row of the horizon. */
  horizonY: number;
  heightM: number;
}

/** Row at which the ground lies `distanceM` meters away. */
export function groundRow(camera: Camera, distanceM: number): number {
  return camera.horizonY + (FOCAL_PX * camera.heightM) / distanceM;
}

/** Distance in meters of the ground in row `y`; infinite at and above the horizon. */
export function groundDistance(camera: Camera, y: number): number {
  return y <= camera.horizonY ? Infinity : (FOCAL_PX * camera.heightM) / (y - camera.horizonY);
}

const NEAREST_M = 0.6;
const FARTHEST_M = 80;
const LOG_SPAN = Math.log(FARTHEST_M / NEAREST_M);

/** A distance as one byte: logarithmic, 0 at 0.6 m, 254 at 80 m, 255 for the sky. */
export function depthCode(distanceM: number): number {
  if (distanceM === Infinity) return 255;
  const share = Math.log(Math.max(NEAREST_M, distanceM) / NEAREST_M) / LOG_SPAN;
  return Math.round(254 * Math.min(1, share));
}

/** Distance in meters of a byte of {@link depthCode}; the sky is farthest. */
export function codeDistance(code: number): number {
  return code === 255 ? Infinity : NEAREST_M * Math.exp((code / 254) * LOG_SPAN);
}
