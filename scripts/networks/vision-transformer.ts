import type { Graph } from "../../agent/onnx/graph.ts";
import { classifier, Draft, gelu, layerNorm, linear, type NetworkOptions } from "./draft.ts";

/** Sizes of a vision transformer (Dosovitskiy et al. 2021, table 1). */
export interface VisionTransformerShape extends NetworkOptions {
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  /** Height and width of a patch in pixels; default 16. */
  readonly patch?: number;
}

/** A vision transformer as timm writes it: one fused qkv, a class token, GELU through Erf. */
export function visionTransformer(name: string, shape: VisionTransformerShape): Graph {
  const draft = new Draft(shape);
  const { width, depth, heads, patch = 16, classes = 1000 } = shape;
  const side = draft.size / patch;
  const tokens = side * side + 1;
  let x = embed(draft, { width, patch, tokens });
  for (let block = 0; block < depth; block++) {
    const label = `blocks.${block}`;
    const seen = layerNorm(draft, x, `${label}.norm1`, width);
    const attended = attention(draft, seen, `${label}.attn`, { width, heads, tokens });
    const between = draft.add("Add", [x, attended], `${label}.add1`);
    const hidden = layerNorm(draft, between, `${label}.norm2`, width);
    const wide = gelu(
      draft,
      linear(draft, hidden, `${label}.mlp.fc1`, [width, 4 * width]),
      `${label}.mlp.act`,
    );
    x = draft.add(
      "Add",
      [between, linear(draft, wide, `${label}.mlp.fc2`, [4 * width, width])],
      `${label}.add2`,
    );
  }
  const normal = layerNorm(draft, x, "norm", width);
  const first = draft.constant("first_token", {
    dims: [],
    dataType: 7,
    data: new BigInt64Array(1),
  });
  classifier(draft, draft.add("Gather", [normal, first], "pooled", { axis: 1 }), width, classes);
  return draft.finish(name, classes);
}

function embed(
  draft: Draft,
  { width, patch, tokens }: { width: number; patch: number; tokens: number },
): string {
  const weight = draft.weight("patch_embed.weight", [width, 3, patch, patch], 3 * patch * patch);
  const bias = draft.uniform("patch_embed.bias", [width], 0, 0.02);
  const patches = draft.add("Conv", ["input", weight, bias], "patch_embed", {
    kernel_shape: [patch, patch],
    strides: [patch, patch],
    pads: [0, 0, 0, 0],
    dilations: [1, 1],
    group: 1,
  });
  const target = draft.integers([draft.anyBatch, width, tokens - 1]);
  const flat = draft.add("Reshape", [patches, target], "patch_embed/flat");
  const turned = draft.add("Transpose", [flat], "patch_embed/tokens", { perm: [0, 2, 1] });
  const token = draft.uniform("cls_token", [1, 1, width], 0, 0.5);
  const all = draft.add("Concat", [classToken(draft, token, turned), turned], "tokens", {
    axis: 1,
  });
  const places = draft.uniform("pos_embed", [1, tokens, width], 0, 0.5);
  return draft.add("Add", [all, places], "embedded");
}

/** The class token once a picture; written for one picture, it is there already. */
function classToken(draft: Draft, token: string, patches: string): string {
  if (draft.batch === "one") return token;
  const shape = draft.add("Shape", [patches], "cls_token/shape");
  const zero = draft.constant("zero", { dims: [], dataType: 7, data: new BigInt64Array(1) });
  const batch = draft.add("Gather", [shape, zero], "cls_token/batch", { axis: 0 });
  const list = draft.addOverAxes("Unsqueeze", batch, "cls_token/list", [0]);
  const rest = draft.integers([1, 1]);
  const target = draft.add("Concat", [list, rest], "cls_token/target", { axis: 0 });
  return draft.add("Expand", [token, target], "cls_token/expanded");
}

function attention(
  draft: Draft,
  input: string,
  name: string,
  { width, heads, tokens }: { width: number; heads: number; tokens: number },
): string {
  const each = width / heads;
  const batch = draft.anyBatch;
  const qkv = linear(draft, input, `${name}.qkv`, [width, 3 * width]);
  const split = draft.integers([batch, tokens, 3, heads, each]);
  const apart = draft.add("Reshape", [qkv, split], `${name}/apart`);
  const turned = draft.add("Transpose", [apart], `${name}/turned`, { perm: [2, 0, 3, 1, 4] });
  const [q, k, v] = draft
    .addSplit(turned, `${name}/split`, 0, [1, 1, 1])
    .map((part, i) => draft.addOverAxes("Squeeze", part, `${name}/${"qkv"[i]}`, [0]));
  const scale = draft.scalar(`scale_${each}`, each ** -0.5);
  const scaled = draft.add("Mul", [q!, scale], `${name}/scaled`);
  const keys = draft.add("Transpose", [k!], `${name}/keys`, { perm: [0, 1, 3, 2] });
  const scores = draft.add("MatMul", [scaled, keys], `${name}/scores`);
  const weights = draft.add("Softmax", [scores], `${name}/weights`, { axis: -1 });
  const mixed = draft.add("MatMul", [weights, v!], `${name}/mixed`);
  const back = draft.add("Transpose", [mixed], `${name}/back`, { perm: [0, 2, 1, 3] });
  const target = draft.integers([batch, tokens, width]);
  const joined = draft.add("Reshape", [back, target], `${name}/joined`);
  return linear(draft, joined, `${name}.proj`, [width, width]);
}
