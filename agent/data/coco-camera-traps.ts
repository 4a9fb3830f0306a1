import { readFile, stat } from "node:fs/promises";
import { join, posix } from "node:path";
import * as v from "valibot";
import { AgentError, messageOf } from "../errors.ts";
import { assignBursts } from "./bursts.ts";
import type { Box, LabeledPicture, LabeledPictures, LabelProblem } from "./labels.ts";
import { normalizeLabel } from "./picture-names.ts";

/** Files in the wild write ids and stations as texts and as numbers. */
const id = v.pipe(v.union([v.string(), v.number()]), v.transform(String));
const integer = v.pipe(v.number(), v.integer());
const optional = <S extends v.GenericSchema>(schema: S) => v.optional(v.nullable(schema), null);
const finite = v.pipe(v.number(), v.finite());
const box = v.tuple([finite, finite, finite, finite]);

/**
 * COCO Camera Traps (github.com/agentmorris/MegaDetector, "COCO CameraTraps format"). Fields that
 * are not named here are allowed, as data sets add their own.
 */
const schema = v.object({
  images: v.array(
    v.object({
      id,
      file_name: v.pipe(v.string(), v.minLength(1)),
      width: optional(finite),
      height: optional(finite),
      seq_id: optional(id),
      frame_num: optional(integer),
      location: optional(id),
      datetime: optional(v.string()),
      corrupt: optional(v.boolean()),
    }),
  ),
  categories: v.array(v.object({ id: integer, name: v.string() })),
  annotations: v.array(
    v.object({
      image_id: id,
      category_id: integer,
      bbox: optional(box),
      bbox_relative: optional(box),
      sequence_level_annotation: optional(v.boolean()),
    }),
  ),
});

type CocoFile = v.InferOutput<typeof schema>;
type CocoImage = CocoFile["images"][number];
type CocoAnnotation = CocoFile["annotations"][number];

/**
 * Reads a COCO Camera Traps file. Pictures lie at `file_name` below `folder`, or below its
 * `images/`. A frame with several species, one marked corrupt, one without a label and one whose
 * picture is missing are left out with the reason. Where a frame has labels of its own and of
 * its sequence, its own count.
 *
 * @param file the JSON file.
 * @throws {AgentError} LABELS_INVALID naming file, JSON path, what was expected and what came.
 */
export async function readCocoCameraTraps(
  file: string,
  folder: string,
  { burstGapSeconds }: { burstGapSeconds: number },
): Promise<LabeledPictures> {
  const coco = await parse(file);
  const names = categoryNames(file, coco);
  const annotations = annotationsByImage(file, coco, names);
  const problems: LabelProblem[] = [];
  const found: { picture: LabeledPicture; image: CocoImage }[] = [];
  for (const [index, image] of coco.images.entries()) {
    const relative = safePath(file, `images[${index}].file_name`, image.file_name);
    const path = await locate(folder, relative);
    const frame = readFrame(image, annotations.get(image.id) ?? [], names);
    if (typeof frame === "string") problems.push({ path, reason: frame });
    else {
      const { boxProblem, ...labeled } = frame;
      found.push({ picture: { path, ...labeled }, image });
      if (boxProblem !== undefined) problems.push({ path, reason: boxProblem });
    }
  }
  const bursts = assignBursts(
    found.map(({ picture, image }) => ({
      id: image.id,
      folder: `${picture.location ?? ""}/${posix.dirname(image.file_name)}`,
      capturedAt: picture.capturedAt,
      sequence: image.seq_id,
    })),
    burstGapSeconds,
  );
  const pictures = found.map(({ picture, image }) => {
    return { ...picture, burst: bursts.get(image.id) ?? image.id };
  });
  return { pictures, problems };
}

async function parse(file: string): Promise<CocoFile> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, "utf8"));
  } catch (error) {
    throw new AgentError("LABELS_INVALID", `${file} is no readable JSON: ${messageOf(error)}`, {
      cause: error,
    });
  }
  const result = v.safeParse(schema, value, { abortEarly: true });
  if (result.success) return result.output;
  const [issue] = result.issues;
  throw invalid(file, jsonPath(issue), `expected ${issue.expected}, got ${issue.received}`);
}

/** `images[3].file_name`. */
function jsonPath(issue: v.BaseIssue<unknown>): string {
  let path = "";
  for (const { key } of issue.path ?? []) {
    path += typeof key === "number" ? `[${key}]` : `${path === "" ? "" : "."}${String(key)}`;
  }
  return path === "" ? "the top level" : path;
}

function invalid(file: string, at: string, what: string): AgentError {
  return new AgentError("LABELS_INVALID", `${file}: ${at}: ${what}`);
}

function categoryNames(file: string, { categories }: CocoFile): Map<number, string> {
  const names = new Map<number, string>();
  for (const [index, category] of categories.entries()) {
    const at = `categories[${index}]`;
    const name = normalizeLabel(category.name);
    if (name === undefined) throw invalid(file, `${at}.name`, "expected a name, got an empty text");
    if (names.has(category.id)) {
      throw invalid(file, `${at}.id`, `expected a new id, got ${category.id} for a second time`);
    }
    names.set(category.id, name);
  }
  return names;
}

function annotationsByImage(
  file: string,
  { images, annotations }: CocoFile,
  names: Map<number, string>,
): Map<string, CocoAnnotation[]> {
  const byImage = new Map<string, CocoAnnotation[]>();
  for (const [index, image] of images.entries()) {
    if (byImage.has(image.id)) {
      const what = `expected a new id, got "${image.id}" for a second time`;
      throw invalid(file, `images[${index}].id`, what);
    }
    byImage.set(image.id, []);
  }
  for (const [index, annotation] of annotations.entries()) {
    const at = `annotations[${index}]`;
    const { category_id: category, image_id: image } = annotation;
    if (!names.has(category)) {
      const declared = [...names.keys()].join(", ");
      const what = `expected an id of categories (${declared}), got ${category}`;
      throw invalid(file, `${at}.category_id`, what);
    }
    const list = byImage.get(image);
    if (!list) throw invalid(file, `${at}.image_id`, `expected an id of images, got "${image}"`);
    if (annotation.bbox && annotation.bbox_relative) {
      throw invalid(file, at, "expected bbox or bbox_relative, got both");
    }
    list.push(annotation);
  }
  return byImage;
}

/** The path with `/`; refuses what leads out of the folder. */
function safePath(file: string, at: string, name: string): string {
  const path = posix.normalize(name.replaceAll("\\", "/"));
  if (
    posix.isAbsolute(path) ||
    /^[A-Za-z]:/.test(path) ||
    path === ".." ||
    path.startsWith("../")
  ) {
    throw invalid(file, at, `expected a path inside the folder, got "${name}"`);
  }
  if (path.includes("\0")) throw invalid(file, at, "expected a file name, got a NUL character");
  return path;
}

async function locate(folder: string, relative: string): Promise<string> {
  const below = join(folder, "images", relative);
  try {
    await stat(below);
    return below;
  } catch {
    // Whether it lies directly in the folder, or is missing, is seen by whoever opens it.
    return join(folder, relative);
  }
}

type Frame = Omit<LabeledPicture, "path"> & { boxProblem?: string };

/** A frame's label and boxes, or why it is left out. */
function readFrame(
  image: CocoImage,
  annotations: readonly CocoAnnotation[],
  names: Map<number, string>,
): Frame | string {
  if (image.corrupt === true) return "marked corrupt in the label file";
  const own = annotations.filter((a) => a.sequence_level_annotation !== true);
  const used = own.length > 0 ? own : annotations;
  const labels = [...new Set(used.map((a) => names.get(a.category_id) ?? ""))];
  const [label] = labels;
  if (label === undefined) return "no label in the label file";
  if (labels.length > 1) return `several species in one frame: ${labels.join(", ")}`;
  const boxes: Box[] = [];
  let boxProblem: string | undefined;
  for (const annotation of used) {
    const found = boxOf(image, annotation);
    if (typeof found === "string") boxProblem = found;
    else if (found) boxes.push(found);
  }
  return {
    label,
    burst: "",
    location: image.location,
    frame: image.frame_num,
    capturedAt: readDatetime(image.datetime),
    sequenceLevel: own.length === 0,
    boxes,
    ...(boxProblem === undefined ? {} : { boxProblem }),
  };
}

function boxOf(image: CocoImage, annotation: CocoAnnotation): Box | string | undefined {
  const { bbox, bbox_relative: relative } = annotation;
  let found = bbox;
  if (relative) {
    const { width, height } = image;
    if (width === null || height === null) {
      return "bbox_relative without width and height of the picture; the box is left out";
    }
    found = [relative[0] * width, relative[1] * height, relative[2] * width, relative[3] * height];
  }
  if (!found) return undefined;
  if (found[2] > 0 && found[3] > 0) return found;
  return `box without an area (${found.join(", ")}); the box is left out`;
}

/** `2026-05-01 06:30:00` as a camera-local ISO time; null for anything that is no such date. */
function readDatetime(text: string | null): string | null {
  const match = /^(\d{4}-\d{2}-\d{2})[ T](\d{2}:\d{2}:\d{2})(?:\.\d+)?$/.exec(text?.trim() ?? "");
  if (!match) return null;
  const local = `${match[1]}T${match[2]}`;
  const ms = Date.parse(`${local}Z`);
  return Number.isNaN(ms) || !new Date(ms).toISOString().startsWith(local) ? null : local;
}
