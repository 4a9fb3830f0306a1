/** A published classifier that can be fetched by name. */
export interface CatalogEntry {
  readonly name: string;
  readonly url: string;
  /** SHA-256 of the file, as its publisher states it. */
  readonly sha256: string;
  readonly bytes: number;
  readonly resize: string;
  readonly crop: string;
  readonly mean: [number, number, number];
  readonly std: [number, number, number];
  readonly licence: string;
}

/** Name of the generalist that comes through npm and needs no other source. */
export const DEFAULT_GENERALIST = "efficientnet_b0";

const ONNX_MODELS = "https://github.com/onnx/models/raw/main/validated/vision/classification";

const IMAGENET = {
  resize: "short side to 256, aspect kept, bilinear",
  crop: "centre 224x224",
  mean: [0.485, 0.456, 0.406] as [number, number, number],
  std: [0.229, 0.224, 0.225] as [number, number, number],
  licence: "Apache-2.0 (LICENSE of github.com/onnx/models)",
};

/**
 * Classifiers of github.com/onnx/models over the 1,000 ImageNet classes, in ImageNet's order.
 * Digests and sizes are those of the repository: `resnet18-v2-7.onnx` from its Git-LFS pointer,
 * `mobilenetv2-12.onnx` from `ONNX_HUB_MANIFEST.json`; preprocessing from the READMEs beside them.
 */
export const CATALOG: readonly CatalogEntry[] = [
  {
    name: "mobilenetv2",
    url: `${ONNX_MODELS}/mobilenet/model/mobilenetv2-12.onnx`,
    sha256: "c0c3f76d93fa3fd6580652a45618618a220fced18babf65774ed169de0432ad5",
    bytes: 13_964_571,
    ...IMAGENET,
  },
  {
    name: "resnet18_v2",
    url: `${ONNX_MODELS}/resnet/model/resnet18-v2-7.onnx`,
    sha256: "3b4d048057854022232aa20bf68262e31718ab7119a17f920b8a2dc1433f824b",
    bytes: 46_806_737,
    ...IMAGENET,
  },
];
