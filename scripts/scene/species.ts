import { drawPheasant } from "./bird.ts";
import {
  BADGER,
  BOAR,
  type BodyPlan,
  DEER,
  FOX,
  HARE,
  LYNX,
  RACCOON,
  SQUIRREL,
} from "./body-plan.ts";
import {
  BADGER_COAT,
  BOAR_COAT,
  type Coat,
  DEER_COAT,
  FOX_COAT,
  HARE_COAT,
  LYNX_COAT,
  RACCOON_COAT,
  SQUIRREL_COAT,
} from "./coat.ts";
import * as marks from "./marks.ts";
import {
  type DrawnAnimal,
  drawQuadruped,
  type Individual,
  type Marks,
  type Pose,
} from "./quadruped.ts";
import type { Random } from "./random.ts";

/** Everything that can be in a burst; the label of its frames. */
export type Species = AnimalSpecies | "empty";

export type AnimalSpecies =
  | "red_deer"
  | "wild_boar"
  | "red_fox"
  | "badger"
  | "brown_hare"
  | "raccoon"
  | "red_squirrel"
  | "pheasant"
  | "lynx";

/** What the renderer knows of one species. */
export interface SpeciesPlan {
  /** Height of the withers (of the back, for a bird) of a grown one, in meters. */
  heightM: number;
  /** Nearest and farthest distance from the camera at which it is drawn, in meters. */
  distanceM: readonly [near: number, far: number];
  /** Meters per second of a walk. */
  speed: number;
  /** Share of its visits that fall into the night. */
  nightShare: number;
  /** How often it comes, relative to the others. */
  weight: number;
  gaits: readonly Pose["gait"][];
  coat: Coat;
  /** Length of one step in meters, by which the walk cycle follows the way made. */
  strideM: number;
  /** Left and right end of the drawn body and its top, in withers heights. */
  box: { left: number; right: number; top: number };
  draw(individual: Individual, pose: Pose, random: Random): DrawnAnimal;
}

/** A four-legged species; `headroom` is what rises above its ears, in withers heights. */
function quadruped(
  plan: BodyPlan,
  extra: Marks,
  {
    headroom = 0.4,
    ...rest
  }: Omit<SpeciesPlan, "draw" | "strideM" | "box"> & { headroom?: number },
): SpeciesPlan {
  const reach = plan.neck.length + plan.head.length;
  const tall = plan.neck.base[1] + reach + plan.head.length * plan.ear.length + headroom;
  return {
    ...rest,
    strideM: plan.stride * rest.heightM * 1.6,
    box: {
      left: -Math.max(0.35, plan.tail.length + 0.25),
      right: plan.neck.base[0] + reach + 0.3,
      top: Math.max(tall, 1.15 + 0.5 * plan.tail.length),
    },
    draw: (individual, pose, random) => drawQuadruped(plan, individual, pose, extra, random),
  };
}

/** The animals of a wood in central Europe, the common ones first. */
export const SPECIES: Readonly<Record<AnimalSpecies, SpeciesPlan>> = {
  red_deer: quadruped(DEER, marks.deerMarks, {
    heightM: 1.15,
    distanceM: [4.2, 8],
    speed: 0.7,
    nightShare: 0.45,
    weight: 30,
    gaits: ["walk", "walk", "stand"],
    coat: DEER_COAT,
    headroom: 0.65,
  }),
  wild_boar: quadruped(BOAR, marks.boarMarks, {
    heightM: 0.82,
    distanceM: [4.2, 7],
    speed: 0.7,
    nightShare: 0.7,
    weight: 22,
    gaits: ["walk", "walk", "stand"],
    coat: BOAR_COAT,
  }),
  red_fox: quadruped(FOX, marks.foxMarks, {
    heightM: 0.4,
    distanceM: [2.2, 4.2],
    speed: 0.6,
    nightShare: 0.6,
    weight: 14,
    gaits: ["walk", "walk", "stand"],
    coat: FOX_COAT,
  }),
  red_squirrel: quadruped(SQUIRREL, marks.squirrelMarks, {
    heightM: 0.14,
    distanceM: [1.6, 2.3],
    speed: 0.15,
    nightShare: 0.05,
    weight: 9,
    gaits: ["sit", "bound", "walk"],
    coat: SQUIRREL_COAT,
  }),
  brown_hare: quadruped(HARE, marks.hareMarks, {
    heightM: 0.3,
    distanceM: [1.8, 3],
    speed: 0.3,
    nightShare: 0.55,
    weight: 8,
    gaits: ["sit", "bound", "walk"],
    coat: HARE_COAT,
  }),
  badger: quadruped(BADGER, marks.badgerMarks, {
    heightM: 0.3,
    distanceM: [2, 3.6],
    speed: 0.45,
    nightShare: 0.85,
    weight: 7,
    gaits: ["walk", "walk", "stand"],
    coat: BADGER_COAT,
  }),
  pheasant: {
    heightM: 0.34,
    distanceM: [2, 3.4],
    speed: 0.3,
    nightShare: 0.05,
    weight: 5,
    gaits: ["walk", "stand"],
    coat: DEER_COAT,
    strideM: 0.3,
    box: { left: -2.3, right: 1.7, top: 1.9 },
    draw: drawPheasant,
  },
  raccoon: quadruped(RACCOON, marks.raccoonMarks, {
    heightM: 0.3,
    distanceM: [1.9, 3.2],
    speed: 0.35,
    nightShare: 0.8,
    weight: 3,
    gaits: ["walk", "walk", "stand"],
    coat: RACCOON_COAT,
  }),
  lynx: quadruped(LYNX, marks.lynxMarks, {
    heightM: 0.64,
    distanceM: [3, 5.4],
    speed: 0.6,
    nightShare: 0.65,
    weight: 2,
    gaits: ["walk", "walk", "stand"],
    coat: LYNX_COAT,
  }),
};

/** All species' names, then `empty`. */
export const LABELS: readonly Species[] = [...(Object.keys(SPECIES) as AnimalSpecies[]), "empty"];
