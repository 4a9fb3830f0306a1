import type { LayerGram } from "./hessian.ts";
import type { LayerOptions } from "./layer-problem.ts";
import { type QuantizedLayer, quantizeLayer } from "./quantize-layer.ts";
import { decode, encode, fitQuantizer, type QuantizerOptions } from "./quantizer.ts";

/** A layer whose weights are to take few bits. */
export interface StoreLayerOptions extends LayerOptions {
  /** 2 to 8. */
  readonly bits: number;
}

/** A layer in few bits: Ŵ = scale·(codes − zero), a scale for every `gridSize` neighbors. */
export interface StoredLayer extends QuantizedLayer {
  readonly gridSize: number;
}

/** Neighbors that share a scale, about, where a row has more than one. */
const GRID = 32;
/** Bits of a scale, and of a zero where it is not the middle code. */
const SCALE_BITS = 16;
const ZERO_BITS = 8;
/** Rows that forms are compared on, about. */
const ROWS_TRIED = 64;
/** From this share of zeros on they are left out of the file, which needs one code for all. */
const MANY_ZEROS = 0.25;

/**
 * Quantizes the weights of one layer for storage by {@link quantizeLayer}. The form of the grid,
 * one scale a row or one for about 32 neighbors, symmetric or not, is the one that makes the least
 * error·4^bits with all bits of a weight counted: a bit more quarters the squared error of any
 * uniform grid, so a form pays if it does better than that. Errors are those of rounding, each
 * input weighed by its variance.
 *
 * @throws {RangeError} if a size, an option or a statistic does not fit.
 * @throws the signal's reason, when aborted.
 */
export async function storeLayer(options: StoreLayerOptions): Promise<StoredLayer> {
  const { cols } = options;
  const quantizer = bestForm(options);
  const stored = await quantizeLayer({ ...options, quantizer, descents: DESCENTS });
  return { ...stored, gridSize: quantizer.gridSize ?? cols };
}

/** Few bits leave more to put right than eight do. */
const DESCENTS = 6;

function bestForm(options: StoreLayerOptions): QuantizerOptions {
  const { weights, cols, bits } = options;
  const zeros = weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0);
  const forms: QuantizerOptions[] = [];
  for (const symmetric of zeros >= MANY_ZEROS * weights.length ? [true] : [true, false]) {
    for (const gridSize of new Set([cols, divisorNear(cols, GRID)])) {
      forms.push({ bits, symmetric, narrow: false, gridSize });
    }
  }
  const costs = forms.map((form) => costOf(form, options));
  return forms[costs.indexOf(Math.min(...costs))]!;
}

/** The divisor of `cols` nearest to a number, by ratio; `cols` itself where none is within 2. */
function divisorNear(cols: number, wanted: number): number {
  let best = cols;
  for (let d = Math.ceil(wanted / 2); d <= 2 * wanted && d < cols; d++) {
    if (cols % d !== 0) continue;
    const off = Math.abs(Math.log(d / wanted));
    if (best === cols || off < Math.abs(Math.log(best / wanted))) best = d;
  }
  return best;
}

/** Squared rounding error · 4^(bits a weight). */
function costOf(form: QuantizerOptions, options: StoreLayerOptions): number {
  const { rows, cols, gram } = options;
  const { gridSize = cols, symmetric, bits } = form;
  const count = rows / gram.groups;
  const step = Math.ceil(rows / ROWS_TRIED);
  let error = 0;
  for (let g = 0; g < gram.groups; g++) {
    const importance = variances(options, gram, g);
    const tried = Array.from({ length: Math.ceil(count / step) }, (_, i) => g * count + i * step);
    const W = new Float64Array(tried.length * cols);
    for (const [i, r] of tried.entries()) {
      W.set(options.weights.subarray(r * cols, (r + 1) * cols), i * cols);
    }
    const quantizer = fitQuantizer(W, tried.length, cols, { ...form, importance });
    for (let i = 0; i < W.length; i++) {
      const [r, j] = [Math.floor(i / cols), i % cols];
      const q = decode(quantizer, r, encode(quantizer, r, W[i]!, j), j);
      error += importance[j]! * (W[i]! - q) ** 2;
    }
  }
  const bitsAWeight = bits + (SCALE_BITS + (symmetric ? 0 : ZERO_BITS)) / gridSize;
  return error * 4 ** bitsAWeight;
}

/** What an error in each column of a group weighs: diag H, of centered inputs where biases move. */
function variances({ centered = true }: LayerOptions, gram: LayerGram, g: number): Float64Array {
  const { cols } = gram;
  const mean = gram.mean.subarray(g * cols, (g + 1) * cols);
  return Float64Array.from({ length: cols }, (_, j) => {
    const raw = gram.H[(g * cols + j) * cols + j]!;
    return Math.max(0, centered ? raw - 2 * mean[j]! ** 2 : raw);
  });
}
