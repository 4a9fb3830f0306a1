import { intAttribute, intsAttribute, type Node, stringAttribute } from "../../agent/onnx/graph.ts";
import { elementCount } from "../../agent/onnx/tensor.ts";
import type { DoubleTensor } from "./double-tensor.helpers.ts";

/** How a window slides over a plane. */
interface Window {
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly dilation: readonly [number, number];
  /** Rows above and columns left of the plane. */
  readonly before: readonly [number, number];
  /** Size of what comes out. */
  readonly out: readonly [number, number];
  /** Rows and columns of the plane with its borders as the attributes state them. */
  readonly padded: readonly [number, number];
}

/** @throws {RangeError} for other than two spatial axes, and a padding by name. */
function windowOf(node: Node, dims: readonly number[], kernel: readonly number[]): Window {
  if (dims.length !== 4) throw new RangeError(`expected [N, C, H, W], got [${dims}]`);
  if (stringAttribute(node, "auto_pad", "NOTSET") !== "NOTSET") {
    throw new RangeError(`${node.opType}: expected stated pads, got auto_pad`);
  }
  const pads = intsAttribute(node, "pads", [0, 0, 0, 0]);
  const stride = intsAttribute(node, "strides", [1, 1]);
  const dilation = intsAttribute(node, "dilations", [1, 1]);
  const up = intAttribute(node, "ceil_mode", 0) !== 0;
  const padded = [0, 1].map((i) => dims[2 + i]! + pads[i]! + pads[i + 2]!);
  const out = [0, 1].map((i) => {
    const steps = (padded[i]! - dilation[i]! * (kernel[i]! - 1) - 1) / stride[i]!;
    const count = (up ? Math.ceil(steps) : Math.floor(steps)) + 1;
    // A window that would start behind the plane and its first border is left out.
    return up && (count - 1) * stride[i]! >= dims[2 + i]! + pads[i]! ? count - 1 : count;
  });
  const pair = (list: readonly number[]) => [list[0]!, list[1]!] as const;
  return {
    kernel: pair(kernel),
    stride: pair(stride),
    dilation: pair(dilation),
    before: pair(pads),
    out: pair(out),
    padded: pair(padded),
  };
}

/** First and last position of the window at which one of its taps lies on the plane. */
function span(window: Window, axis: 0 | 1, tap: number, size: number): [number, number] {
  const shift = tap * window.dilation[axis] - window.before[axis];
  const first = Math.max(0, Math.ceil(-shift / window.stride[axis]));
  const last = Math.min(window.out[axis] - 1, Math.floor((size - 1 - shift) / window.stride[axis]));
  return [first, last];
}

/** Conv: y[n, o] = b[o] + Σ over the channels of o's group of w[o, c] correlated with x[n, c]. */
export function convolved(
  node: Node,
  x: DoubleTensor,
  w: DoubleTensor,
  bias: DoubleTensor | undefined,
): DoubleTensor {
  const window = windowOf(node, x.dims, w.dims.slice(2));
  const [batch, channels, height, width] = x.dims as [number, number, number, number];
  const [outputs, share, rows, columns] = w.dims as [number, number, number, number];
  const perGroup = outputs / intAttribute(node, "group", 1);
  const plane = window.out[0] * window.out[1];
  const dims = [batch, outputs, ...window.out];
  const data = new Float64Array(elementCount(dims));
  for (let n = 0; n < batch; n++) {
    for (let o = 0; o < outputs; o++) {
      const y = data.subarray((n * outputs + o) * plane, (n * outputs + o + 1) * plane);
      if (bias) y.fill(bias.data[o]!);
      for (let c = 0; c < share; c++) {
        const from = n * channels + Math.floor(o / perGroup) * share + c;
        const input = x.data.subarray(from * height * width, (from + 1) * height * width);
        for (let tap = 0; tap < rows * columns; tap++) {
          const weight = w.data[(o * share + c) * rows * columns + tap]!;
          addTap(
            y,
            input,
            weight,
            window,
            [Math.floor(tap / columns), tap % columns],
            [height, width],
          );
        }
      }
    }
  }
  return { dims, data };
}

/** y += weight · the plane, shifted to where one tap of the window lies. */
function addTap(
  y: Float64Array,
  x: Float64Array,
  weight: number,
  window: Window,
  [row, column]: readonly [number, number],
  [height, width]: readonly [number, number],
): void {
  const [top, bottom] = span(window, 0, row, height);
  const [left, right] = span(window, 1, column, width);
  const step = window.stride[1];
  for (let i = top; i <= bottom; i++) {
    const line = i * window.stride[0] + row * window.dilation[0] - window.before[0];
    const from = line * width + column * window.dilation[1] - window.before[1];
    const to = i * window.out[1];
    for (let j = left; j <= right; j++) y[to + j]! += weight * x[from + j * step]!;
  }
}

/** MaxPool or AveragePool, by what makes one number of those under the window. */
function pooled(
  node: Node,
  x: DoubleTensor,
  reduce: (values: readonly number[], cells: number) => number,
): DoubleTensor {
  const window = windowOf(node, x.dims, intsAttribute(node, "kernel_shape", []));
  const [batch, channels, height, width] = x.dims as [number, number, number, number];
  const dims = [batch, channels, ...window.out];
  const data = new Float64Array(elementCount(dims));
  let at = 0;
  for (let p = 0; p < batch * channels; p++) {
    for (let i = 0; i < window.out[0]; i++) {
      for (let j = 0; j < window.out[1]; j++) {
        const lines = taps(window, 0, i);
        const places = taps(window, 1, j);
        const cells =
          lines.filter((line) => line < window.padded[0] - window.before[0]).length *
          places.filter((place) => place < window.padded[1] - window.before[1]).length;
        const values: number[] = [];
        for (const line of lines) {
          for (const place of places) {
            if (line < 0 || line >= height || place < 0 || place >= width) continue;
            values.push(x.data[(p * height + line) * width + place]!);
          }
        }
        data[at++] = reduce(values, cells);
      }
    }
  }
  return { dims, data };
}

/** Where the taps of a window at one position lie along an axis, on the plane or beside it. */
function taps(window: Window, axis: 0 | 1, position: number): number[] {
  const start = position * window.stride[axis] - window.before[axis];
  return Array.from({ length: window.kernel[axis] }, (_, k) => start + k * window.dilation[axis]);
}

/** The largest number under each window. */
export function maxPooled(node: Node, x: DoubleTensor): DoubleTensor {
  return pooled(node, x, (values) => Math.max(...values));
}

/** The mean under each window, of the plane or (count_include_pad) of its stated borders too. */
export function averagePooled(node: Node, x: DoubleTensor): DoubleTensor {
  const borders = intAttribute(node, "count_include_pad", 0) !== 0;
  return pooled(node, x, (values, cells) => {
    const sum = values.reduce((a, b) => a + b, 0);
    return sum / (borders ? cells : values.length);
  });
}
