import { node } from "../onnx/builder.ts";
import type { Graph } from "../onnx/graph.ts";
import { findPrunableLayers, type PrunableLayer } from "../onnx/prunable-layers.ts";
import { freeName } from "../onnx/query.ts";
import { dropBlock, findResidualBlocks, type ResidualBlock } from "../onnx/residual-blocks.ts";
import { withOnlyOutputs } from "../onnx/subgraph.ts";
import { int64Tensor, type Tensor } from "../onnx/tensor.ts";
import { floats, measureShapes, pictureBorder, sweep } from "./border.ts";
import type { CompressEnvironment, LayerReport, PassResult } from "./environment.ts";
import { refitNetwork } from "./refit-network.ts";

/** What leaving out one residual block costs. */
export interface BlockTable {
  readonly block: ResidualBlock;
  /**
   * Σ_c Var(y_c − a_c·x_c) / Σ_c Var(y_c) over channels c of x and y = x + f(x), with the best
   * factor a_c for each: what is lost of the stream when the block goes and every channel is
   * scaled and shifted as well as can be. 0 to 1.
   */
  readonly loss: number;
  /** Weights of the layers inside. */
  readonly weights: number;
}

/**
 * Measures what every residual block adds to its stream, in one pass of the dense network over
 * the pictures.
 *
 * @returns one table a block, in the order of the network.
 */
export async function measureBlocks(
  dense: Graph,
  environment: CompressEnvironment,
): Promise<BlockTable[]> {
  const blocks = findResidualBlocks(dense);
  if (blocks.length === 0) return [];
  const outputs = blocks.map(({ output }) => output);
  const { engine, calibration } = environment;
  const shapes = await measureShapes(dense, outputs, engine, calibration);
  const tapped = withBlockSums(dense, blocks, shapes);
  const sums = new Map<string, Float64Array>();
  let pictures = 0;
  await sweep(tapped.graph, pictureBorder(dense), environment, (_, values) => {
    pictures += floats(values, tapped.countName).data[0]!;
    for (const name of tapped.sumNames.flat()) {
      const { data } = floats(values, name);
      const total = sums.get(name) ?? new Float64Array(data.length);
      for (let i = 0; i < data.length; i++) total[i]! += data[i]!;
      sums.set(name, total);
    }
  });
  const weights = new Map(
    findPrunableLayers(dense).map((l) => [l.name, l.outFeatures * l.inFeaturesPerGroup]),
  );
  return blocks.map((block, i) => {
    const dims = shapes.get(block.output)!;
    const size = dims.reduce((product, dim) => product * dim, 1);
    const own = tapped.sumNames[i]!.map((name) => sums.get(name)!);
    const count = (pictures * size) / own[0]!.length;
    return {
      block,
      loss: lossOf(own, count),
      weights: block.layers.reduce((sum, name) => sum + (weights.get(name) ?? 0), 0),
    };
  });
}

/** @param sums Σ x, Σ y, Σ x², Σ y² and Σ x·y, one value a channel each. */
function lossOf(sums: readonly Float64Array[], count: number): number {
  let lost = 0;
  let all = 0;
  for (let c = 0; c < sums[0]!.length; c++) {
    const [x, y, xx, yy, xy] = sums.map((sum) => sum[c]! / count) as [
      number,
      number,
      number,
      number,
      number,
    ];
    const spread = Math.max(0, xx - x * x);
    const wanted = Math.max(0, yy - y * y);
    all += wanted;
    lost += Math.max(0, wanted - (spread > 0 ? (xy - x * y) ** 2 / spread : 0));
  }
  return all > 0 ? Math.min(1, lost / all) : 0;
}

/** The network with nothing handed out but sums over all axes except the channels. */
function withBlockSums(
  dense: Graph,
  blocks: readonly ResidualBlock[],
  shapes: ReadonlyMap<string, readonly number[]>,
): { graph: Graph; sumNames: string[][]; countName: string } {
  const base = freeName(dense, "taco_block");
  const nodes = [...dense.nodes];
  const initializers = new Map<string, Tensor>(dense.initializers);
  const sum = (from: string, axes: readonly number[], to: string): string => {
    if (dense.opset < 13) nodes.push(node("ReduceSum", [from], [to], { axes, keepdims: 0 }));
    else {
      initializers.set(`${to}_axes`, int64Tensor([axes.length], axes));
      nodes.push(node("ReduceSum", [from, `${to}_axes`], [to], { keepdims: 0 }));
    }
    return to;
  };
  const sumNames = blocks.map(({ input, output }, i) => {
    // [N, C, h, w] of a convolution, [N, tokens, C] and [N, C] of everything else.
    const rank = shapes.get(output)!.length;
    const axes = Array.from({ length: rank }, (_, a) => a).filter(
      (axis) => axis !== (rank === 4 ? 1 : rank - 1),
    );
    const product = (a: string, b: string, to: string): string => {
      nodes.push(node("Mul", [a, b], [to]));
      return to;
    };
    const name = `${base}_${i}`;
    const values = [
      input,
      output,
      product(input, input, `${name}_xx`),
      product(output, output, `${name}_yy`),
      product(input, output, `${name}_xy`),
    ];
    return values.map((value, k) => sum(value, axes, `${name}_sum${k}`));
  });
  const countName = `${base}_count`;
  nodes.push(node("Shape", [dense.inputs[0]!.name], [`${base}_shape`]));
  initializers.set(`${base}_first`, int64Tensor([], [0]));
  nodes.push(node("Gather", [`${base}_shape`, `${base}_first`], [`${base}_pictures`]));
  nodes.push(node("Cast", [`${base}_pictures`], [countName], { to: 1 }));
  const graph = withOnlyOutputs({ ...dense, nodes, initializers }, [...sumNames.flat(), countName]);
  return { graph, sumNames, countName };
}

/**
 * Leaves residual blocks out, and fits every layer behind the first of them to the dense network
 * ({@link refitNetwork}): the last layer of each block that stays aims at the dense stream, so it
 * takes over what the missing ones added, as far as a linear layer can; scaling and shifting of
 * channels is a special case of that.
 *
 * @param dense normalized network from the picture to its features or logits.
 * @throws {RangeError} for a name that is no residual block of the network.
 */
export async function dropBlocks(
  dense: Graph,
  options: CompressEnvironment & { readonly blocks: readonly string[] },
): Promise<PassResult> {
  const names = new Set(options.blocks);
  const reports: LayerReport[] = [];
  let dropped = dense;
  let first = Number.POSITIVE_INFINITY;
  const layers = findPrunableLayers(dense);
  for (const name of names) {
    // Those before it may have given its input another name.
    const block = findResidualBlocks(dropped).find((found) => found.name === name);
    if (!block) throw new RangeError(`"${name}" is no residual block of the network`);
    dropped = dropBlock(dropped, block);
    const place = layers.findIndex((layer) => layer.name === block.layers[0]);
    first = Math.min(first, place);
    for (const layer of block.layers) {
      const method = `dropped with block "${name}"`;
      reports.push({ name: layer, method, sparsity: 1, relativeLoss: null });
    }
  }
  if (names.size === 0) return { graph: dense, reports, refused: [] };
  const behind = new Set(layers.slice(first).map((layer) => layer.name));
  const { graph, losses } = await refitNetwork(dense, dropped, {
    ...options,
    places: new Map(),
    stream: true,
    correct: false,
    // A depthwise filter sees one channel: there is nothing to make up for with.
    include: (layer: PrunableLayer) => behind.has(layer.name) && layer.groups === 1,
  });
  for (const [name, relativeLoss] of losses) {
    reports.push({ name, method: "refitted", sparsity: 0, relativeLoss });
  }
  const order = new Map(layers.map(({ name }, index) => [name, index]));
  reports.sort((a, b) => order.get(a.name)! - order.get(b.name)!);
  return { graph, reports, refused: [] };
}
