import type { LayerOptions } from "../compress/layer-problem.ts";
import { decode, encode, fitQuantizer } from "../compress/quantizer.ts";
import { storeLayer } from "../compress/store-layer.ts";
import type { Graph } from "../onnx/graph.ts";
import { halveConstants } from "../onnx/half-constants.ts";
import { type PackedWeight, packWeights } from "../onnx/packed-weights.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readWeightMatrix,
  writeWeightMatrix,
} from "../onnx/prunable-layers.ts";
import { compressNetwork, type RoundedLayer } from "./compress-network.ts";
import type { CompressEnvironment, LayerReport, PassResult } from "./environment.ts";
import { type LayerPattern, reasonToLeave } from "./layer-patterns.ts";

/** How {@link storeWeights} works. */
export interface WeightOnlyOptions extends CompressEnvironment {
  /** Bits of a weight in large layers, 2 to 8; see {@link storeWeights}. */
  readonly bits: number;
  /** Zeros to make in the same pass; layers without an entry keep those they have. */
  readonly patterns?: ReadonlyMap<string, LayerPattern>;
  /** Columns that the solver of the zeros decides on at once. */
  readonly blockSize?: number;
}

/** Bits of the weights of layers that few weights are in and all depend on; the most there are. */
const FINE_BITS = 8;

/**
 * Rounds a network's weights to few bits, for a small file; activations, and what ONNX Runtime
 * computes with after it has loaded the model, stay float. Layer by layer from the picture on, as
 * {@link compressNetwork} goes, each weight matrix is pruned (where that is asked for) and rounded
 * by GPTQ on the inputs it really gets, and means and spreads of its outputs are restored.
 *
 * Small layers get more bits: rounding to b bits costs every layer about the same share of its
 * output, and a bit more quarters it, so that the bytes of a file buy most with
 * b + log₄(N̄/N) bits for a layer of N weights (reverse water-filling; Cover & Thomas, 10.3.3). N̄
 * is the size of the layer that a weight is in on average.
 *
 * Layers that hardly have weights (stems, depthwise ones, those of few inputs) get 8 bits, rounded
 * to nearest before all else; weights that several layers share stay float; what is left of floats
 * is stored in float16.
 *
 * @param dense normalized network from the picture to its features or logits; refused below opset 11.
 * @returns the network with packed weights (see {@link packWeights}); a report for each layer.
 */
export async function storeWeights(dense: Graph, options: WeightOnlyOptions): Promise<PassResult> {
  const { bits, patterns } = options;
  if (dense.opset < 11) {
    const reason = `weights of ${bits} bits need opset 11, and its nodes of opset ${dense.opset} cannot be raised`;
    return { graph: dense, reports: [], refused: [{ name: dense.name, reason }] };
  }
  const packed = new Map<string, PackedWeight>();
  const { graph: start, reports: fine } = roundFineLayers(dense, packed, patterns);
  const layers = new Map(fine.map((report) => [report.name, report]));
  const bitsOf = bitsByLayer(dense, bits);
  const result = await compressNetwork(start, {
    ...options,
    patternOf: ({ name, sharedWith }) => {
      const known = patterns?.get(name);
      if (known && known.kind !== "dense") return known;
      if (layers.has(name)) return { kind: "dense", reason: "it is rounded already" };
      return sharedWith.length === 0
        ? { kind: "mask" }
        : { kind: "dense", reason: `its weights serve ${sharedWith.join(", ")} too` };
    },
    round: (layer, problem) => roundLayer(layer, problem, bitsOf.get(layer.name)!, packed),
  });
  const reports = result.reports.map((report) => layers.get(report.name) ?? report);
  const small = halveConstants(result.graph, new Set(packed.keys()));
  const graph = packWeights(small, withFinalScales(result.graph, packed));
  return { graph, reports, refused: [] };
}

function bitsByLayer(dense: Graph, bits: number): Map<string, number> {
  const layers = findPrunableLayers(dense);
  const sizes = layers.map(
    ({ outFeatures, inFeaturesPerGroup }) => outFeatures * inFeaturesPerGroup,
  );
  const weights = sizes.reduce((sum, size) => sum + size, 0);
  const average = sizes.reduce((sum, size) => sum + size * size, 0) / weights;
  return new Map(
    layers.map((layer, i) => {
      const wanted = Math.round(bits + Math.log(average / sizes[i]!) / Math.log(4));
      const small = reasonToLeave(dense, layer) !== null;
      return [layer.name, small ? FINE_BITS : Math.min(FINE_BITS, Math.max(bits, wanted))] as const;
    }),
  );
}

/** Rounds to nearest what gets 8 bits and no zeros. */
function roundFineLayers(
  dense: Graph,
  packed: Map<string, PackedWeight>,
  patterns: WeightOnlyOptions["patterns"],
): { graph: Graph; reports: LayerReport[] } {
  const reports: LayerReport[] = [];
  let graph = dense;
  for (const layer of findPrunableLayers(dense)) {
    const { name, weightName, outFeatures: rows, inFeaturesPerGroup: cols } = layer;
    if (reasonToLeave(dense, layer) === null || layer.sharedWith.length > 0) continue;
    if (patterns?.has(name)) continue;
    const W = Float64Array.from(readWeightMatrix(dense, layer));
    const quantizer = fitQuantizer(W, rows, cols, { bits: FINE_BITS, narrow: false });
    const codes = Int8Array.from(W, (w, i) => encode(quantizer, Math.floor(i / cols), w));
    const rounded = Float32Array.from(codes, (code, i) =>
      decode(quantizer, Math.floor(i / cols), code),
    );
    graph = writeWeightMatrix(graph, layer, rounded);
    const { scale, zero } = quantizer;
    packed.set(weightName, packedOf(layer, FINE_BITS, { codes, scale, zero, gridSize: cols }));
    reports.push({
      name,
      method: `int${FINE_BITS} weights`,
      sparsity: zeros(rounded),
      relativeLoss: null,
    });
  }
  return { graph, reports };
}

async function roundLayer(
  layer: PrunableLayer,
  problem: LayerOptions,
  bits: number,
  packed: Map<string, PackedWeight>,
): Promise<RoundedLayer> {
  const stored = await storeLayer({ ...problem, bits });
  packed.set(layer.weightName, packedOf(layer, bits, stored));
  const grid = stored.gridSize === problem.cols ? "a row" : `${stored.gridSize}`;
  const zero = stored.zero.some((code) => code !== 0) ? ", asymmetric" : "";
  return { ...stored, method: `int${bits} weights, a scale for ${grid}${zero}` };
}

function packedOf(
  { outFeatures: rows, inFeaturesPerGroup: cols, weightOrder: order }: PrunableLayer,
  bits: number,
  stored: { codes: Int8Array; scale: Float32Array; zero: Int8Array; gridSize: number },
): PackedWeight {
  const { scale, gridSize: blockSize } = stored;
  const unsigned = (codes: Int8Array) => Uint8Array.from(codes, (code) => code + 2 ** (bits - 1));
  const [codes, zero] = [unsigned(stored.codes), unsigned(stored.zero)];
  return { bits, codes, rows, cols, blockSize, scale, zero, order };
}

/** The scales after the correction of outputs, which multiplied whole rows. */
function withFinalScales(
  graph: Graph,
  packed: ReadonlyMap<string, PackedWeight>,
): Map<string, PackedWeight> {
  const layers = new Map(findPrunableLayers(graph).map((layer) => [layer.weightName, layer]));
  return new Map(
    [...packed].map(([name, weight]) => {
      const W = readWeightMatrix(graph, layers.get(name)!);
      return [name, { ...weight, scale: scalesOf(W, weight) }] as const;
    }),
  );
}

/** Each scale from the weight of its block with the largest code, which says it most exactly. */
function scalesOf(W: Float32Array, { codes, zero, blockSize, scale }: PackedWeight): Float32Array {
  return scale.map((old, block) => {
    let largest = 0;
    let wanted = old;
    for (let i = block * blockSize; i < (block + 1) * blockSize; i++) {
      const steps = codes[i]! - zero[block]!;
      if (Math.abs(steps) <= largest) continue;
      largest = Math.abs(steps);
      wanted = W[i]! / steps;
    }
    return wanted;
  });
}

function zeros(weights: Float32Array): number {
  return weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0) / weights.length;
}
