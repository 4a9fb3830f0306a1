import assert from "node:assert/strict";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { LessonStore } from "../../agent/specialize/lesson-store.ts";
import type { Lesson } from "../../agent/specialize/training-step.ts";

const PICTURES = 64;
const DIMS = [
  [PICTURES, 2],
  [PICTURES, 3],
  [PICTURES, 3],
];
const LESSON_BYTES = 4 * PICTURES * 8;

function lessonOf(value: number): Lesson {
  const [border, targets, teacherLogits] = DIMS.map((dims) => ({
    data: new Float32Array(dims[0]! * dims[1]!).fill(value),
    dims,
  }));
  return { border: border!, targets: targets!, teacherLogits: teacherLogits!, teacherFeatures: [] };
}

test("lesson store: lessons come three times, then new ones take their places in the file", async () => {
  const folder = await mkdtemp(join(tmpdir(), "taco-lessons-"));
  const path = join(folder, "lessons.f32");
  const [parts, kept, steps] = [2, 7, 50];
  const store = new LessonStore(path, parts * kept * LESSON_BYTES + 5, DIMS, parts);
  try {
    const given = new Map<number, number>();
    let made = 0;
    for (let step = 0; step < steps; step++) {
      const lesson = store.lessonsOf(step);
      given.set(lesson, (given.get(lesson) ?? 0) + 1);
      for (let place = 0; place < parts; place++) {
        const read = await store.read(lesson, place);
        const value = 10 * lesson + place;
        if (read === undefined) {
          made++;
          await store.write(lesson, place, lessonOf(value));
        } else {
          assert.deepEqual(read, lessonOf(value), `step ${step}`);
        }
      }
    }
    const whole = [...given].filter(([lesson]) => lesson < 2 * kept);
    assert.ok(whole.every(([, times]) => times === 3));
    assert.equal(given.size, 2 * kept + kept, "21 steps, 21 steps, and 8 of the third lot");
    assert.equal(made, parts * given.size, "each lesson is made once");
    assert.equal((await stat(path)).size, parts * kept * LESSON_BYTES);
  } finally {
    await store.dispose();
    await rm(folder, { recursive: true });
  }
});

test("lesson store: where too few views fit nothing is kept", async () => {
  const path = join(tmpdir(), "taco-no-lessons.f32");
  const store = new LessonStore(path, 11 * LESSON_BYTES, DIMS, 1);
  await store.write(0, 0, lessonOf(1));
  assert.equal(await store.read(0, 0), undefined);
  assert.equal(store.lessonsOf(100), 100);
  await store.dispose();
});
