/**
 * Resamples values that lie on a grid, as position embeddings do, by separable cubic convolution
 * (a = −1/2) about pixel centers; towards fewer points the kernel is widened so that nothing is
 * skipped (Keys 1981, eq. 15; as `interpolate(mode="bicubic", antialias=True)` of PyTorch, with
 * which timm resizes position embeddings). A constant stays the same constant.
 *
 * @param data `outer × rows × columns × inner`, row-major.
 * @returns `outer × to[0] × to[1] × inner`; equal to `data` where the grid stays the same.
 * @throws {RangeError} if the sizes do not fit.
 */
export function resampleGrid(
  data: Float32Array,
  shape: { readonly outer: number; readonly inner: number },
  from: readonly [number, number],
  to: readonly [number, number],
): Float32Array {
  const { outer, inner } = shape;
  const [rows, columns] = from;
  if (data.length !== outer * rows * columns * inner) {
    throw new RangeError(
      `expected ${outer} × ${rows} × ${columns} × ${inner} values, got ${data.length}`,
    );
  }
  const narrow = resampleAxis(data, outer * rows, columns, inner, to[1]);
  return resampleAxis(narrow, outer, rows, to[1] * inner, to[0]);
}

/** Resamples the middle axis of `outer × size × inner` values. */
function resampleAxis(
  data: Float32Array,
  outer: number,
  size: number,
  inner: number,
  target: number,
): Float32Array {
  if (size === target) return data;
  const result = new Float32Array(outer * target * inner);
  for (let place = 0; place < target; place++) {
    for (const { source, weight } of contributions(place, size, target)) {
      for (let o = 0; o < outer; o++) {
        const into = (o * target + place) * inner;
        const start = (o * size + source) * inner;
        for (let i = 0; i < inner; i++) result[into + i]! += weight * data[start + i]!;
      }
    }
  }
  return result;
}

interface Contribution {
  readonly source: number;
  readonly weight: number;
}

/** Which points make a new one, and by how much; the weights sum to 1. */
function contributions(place: number, size: number, target: number): Contribution[] {
  const scale = size / target;
  const width = Math.max(scale, 1);
  const center = (place + 0.5) * scale - 0.5;
  const first = Math.max(0, Math.ceil(center - 2 * width));
  const last = Math.min(size - 1, Math.floor(center + 2 * width));
  const found: Contribution[] = [];
  for (let source = first; source <= last; source++) {
    found.push({ source, weight: cubic((source - center) / width) });
  }
  const sum = found.reduce((total, { weight }) => total + weight, 0);
  return found.map(({ source, weight }) => ({ source, weight: weight / sum }));
}

function cubic(distance: number): number {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}
