import * as v from "valibot";
import { frontPointSchema } from "./front.ts";

const count = v.pipe(v.number(), v.integer());

const modelEvaluationSchema = v.strictObject({
  classes: v.array(v.string()),
  /** False for the bare generalist, whose classes are not the station's. */
  specialized: v.boolean(),
  scores: v.strictObject({
    accuracy: v.number(),
    macroF1: v.number(),
    recall: v.record(v.string(), v.number()),
    calibrationError: v.number(),
    burstAccuracy: v.number(),
  }),
  parameters: count,
  nonzero: count,
  bytes: count,
  frames: v.array(
    v.strictObject({
      burst: v.string(),
      truth: v.string(),
      predicted: v.string(),
      finite: v.boolean(),
    }),
  ),
});

/** One model on the held-out frames. */
export type ModelEvaluation = v.InferOutput<typeof modelEvaluationSchema>;

/** `runs/<id>/evaluation.json`: what the specialize child hands to the verdict. */
export const evaluationSchema = v.strictObject({
  dense: modelEvaluationSchema,
  incumbent: v.nullable(modelEvaluationSchema),
  candidate: modelEvaluationSchema,
  heldOut: v.strictObject({ frames: count, bursts: count }),
  training: v.strictObject({ pictures: count, classes: v.array(v.string()) }),
  /** All parameters of the generalist, which reductions are counted from. */
  generalistParameters: count,
  /** The point of the front that became the candidate. */
  chosen: frontPointSchema,
  /** What could not be done to the candidate's network, and why. */
  refused: v.array(v.strictObject({ name: v.string(), reason: v.string() })),
  problems: v.array(v.strictObject({ subject: v.string(), reason: v.string() })),
});

/** See {@link evaluationSchema}. */
export type Evaluation = v.InferOutput<typeof evaluationSchema>;
