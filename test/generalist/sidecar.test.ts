import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { readGeneralist } from "../../agent/generalist/description.ts";
import { parseLabels, parseResize } from "../../agent/generalist/sidecar.ts";
import type { Preprocessing } from "../../agent/model.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  smallClassifier,
  smallSidecar,
  temporaryFolder,
  writeModel,
} from "./small-classifier.helpers.ts";

const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
const HALF = { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };
const BIRD = 128 / 255;
const CROPPED = { mode: "shortSide", size: 256 };

interface Expected {
  classes: number;
  first: [string, string[]];
  classifierInput: string | null;
  preprocessing: Partial<Preprocessing> & object;
}

function imagenet(scale: object, classifierInput: string | null): Expected {
  const first: [string, string[]] = ["tench, Tinca tinca", ["n01440764"]];
  const preprocessing = { height: 224, width: 224, resize: CROPPED, ...scale } as object;
  return { classes: 1000, first, classifierInput, preprocessing };
}

function cifar(): Expected {
  return {
    classes: 10,
    first: ["airplane", []],
    classifierInput: "/Reshape_output_0",
    preprocessing: { height: 32, width: 32, resize: { mode: "stretch" }, ...IMAGENET } as object,
  };
}

const EXPECTED: Record<string, Expected> = {
  cifar_resnet20: cifar(),
  cifar_resnet56: cifar(),
  efficientnet_b0_imagenet1k: imagenet(IMAGENET, "features"),
  "mobilenetv1_0.25_imagenet1k": imagenet(HALF, "features"),
  "mobilenetv2_1.0_imagenet1k": imagenet(HALF, "features"),
  mobilenetv2_inat_bird: {
    classes: 965,
    first: ["Haemorhous cassinii (Cassin's Finch)", []],
    classifierInput: "features",
    preprocessing: {
      height: 224,
      width: 224,
      resize: { mode: "stretch" },
      mean: [BIRD, BIRD, BIRD],
      std: [BIRD, BIRD, BIRD],
    },
  },
  "squeezenet1.1_imagenet1k": imagenet(IMAGENET, null),
  vit_tiny_patch16_224_imagenet1k: imagenet(HALF, "/Gather_1_output_0"),
};

for (const [name, expected] of Object.entries(EXPECTED)) {
  const path = benchPath(`models/${name}.onnx`);
  test(`generalist: ${name} is read with its JSON`, { skip: !path && BENCH_ABSENT }, async () => {
    const description = await readGeneralist(path!);
    assert.equal(description.name, name);
    assert.equal(description.classes.length, expected.classes);
    assert.equal(new Set(description.classes).size, expected.classes, "names differ");
    assert.deepEqual([description.classes[0], description.classAliases[0]], expected.first);
    assert.equal(description.classifierInput, expected.classifierInput);
    const all = { kernel: "cubic", cropTop: 0, cropBottom: 0, ...expected.preprocessing };
    assert.deepEqual(description.preprocessing, all);
    assert.equal(description.inputName, "input");
    assert.equal(description.outputName, "logits");
    assert.ok(description.licence);
  });
}

test("labels: ImageNet's ids become aliases, and a name that comes twice is told apart", () => {
  const lines = ["n02012849 crane", "n01440764 tench, Tinca tinca", "n03126707 crane"];
  assert.deepEqual(parseLabels(lines), {
    classes: ["crane", "tench, Tinca tinca", "crane (n03126707)"],
    classAliases: [["n02012849"], ["n01440764"], ["n03126707"]],
  });
  assert.deepEqual(parseLabels(["fox", "n01440764 x", "fox"]).classes, [
    "fox",
    "n01440764 x",
    "fox (2)",
  ]);
});

test("sidecar: words about resizing that do not fit the input are refused", () => {
  const input = { height: 224, width: 224 };
  const cases: [string, string, RegExp][] = [
    ["short side to 256, aspect kept, bicubic", "none", /crop: expected "centre 224x224"/],
    ["short side to 200, aspect kept, bicubic", "centre 224x224", /smaller than the crop/],
    ["straight to 256x256, aspect not kept, bicubic", "none", /straight to 224x224/],
    ["short side to 256, aspect kept, magic", "centre 224x224", /expected one of bicubic/],
    ["somehow", "none", /expected "short side to N/],
  ];
  for (const [resize, crop, message] of cases) {
    assert.throws(() => parseResize("here", resize, crop, input), {
      code: "GENERALIST_UNAVAILABLE",
      message,
    });
  }
});

const WRONG: Record<string, [object, RegExp]> = {
  "another input name": [
    { input: { name: "x", shape: ["N", 3, 16, 16] } },
    /input "picture" in the model, "x"/,
  ],
  "another size": [
    {
      input: { name: "picture", shape: ["N", 3, 32, 32] },
      preprocessing: { ...smallSidecar.preprocessing, resize: "none", crop: "none" },
    },
    /NCHW 16x16 in the model, NCHW 32x32 in the JSON/,
  ],
  "another class count": [
    { classes: 2, labels: ["a", "b"] },
    /3 classes in the model, 2 in the JSON/,
  ],
  "too few labels": [{ labels: ["a"] }, /expected 3 labels, got 1/],
  "another digest": [{ sha256: "0".repeat(64) }, /expected sha256 0+ by its JSON/],
  "a wrong type": [{ classes: "three" }, /classes: /],
  "channels last": [{ input: { name: "picture", shape: ["N", 16, 16, 3] } }, /input\.shape/],
  "blue first": [
    { preprocessing: { ...smallSidecar.preprocessing, color: "BGR" } },
    /preprocessing\.color/,
  ],
};

for (const [what, [change, message]] of Object.entries(WRONG)) {
  test(`generalist: a sidecar with ${what} is refused`, async (context) => {
    const folder = await temporaryFolder(context);
    const path = await writeModel(folder, smallClassifier(), { ...smallSidecar, ...change });
    await assert.rejects(readGeneralist(path), { code: "GENERALIST_UNAVAILABLE", message });
  });
}

test("generalist: labels may lie in a file beside the JSON, and an empty line is named", async (context) => {
  const folder = await temporaryFolder(context);
  const path = await writeModel(folder, smallClassifier(), { ...smallSidecar, labels: "l.txt" });
  await assert.rejects(readGeneralist(path), /labels cannot be read: the file does not exist/);
  await writeFile(join(folder, "l.txt"), "fox\r\nbadger\r\nempty\r\n");
  assert.deepEqual((await readGeneralist(path)).classes, ["fox", "badger", "empty"]);
  await writeFile(join(folder, "l.txt"), "fox\n\nempty\n");
  await assert.rejects(readGeneralist(path), /line 2 is empty/);
});

test("generalist: a missing model, a missing JSON and a broken model say what to do", async (context) => {
  const folder = await temporaryFolder(context);
  await assert.rejects(readGeneralist(join(folder, "none.onnx")), /the file does not exist/);
  const path = await writeModel(folder, smallClassifier());
  await assert.rejects(readGeneralist(path), /import it with 'taco generalist add/);
  await writeModel(folder, smallClassifier(), smallSidecar);
  await writeFile(path, "no model");
  await assert.rejects(readGeneralist(path), {
    code: "MODEL_INVALID",
    message: /expected an ONNX ModelProto/,
  });
});
