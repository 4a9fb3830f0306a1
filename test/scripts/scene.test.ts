import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import ExifReader from "exifreader";
import sharp from "sharp";
import { moonPhase } from "../../scripts/scene/banner.ts";
import { drawBurst, frameName } from "../../scripts/scene/burst.ts";
import { BANNER_HEIGHT, HEIGHT, WIDTH } from "../../scripts/scene/camera.ts";
import { planBursts } from "../../scripts/scene/plan.ts";
import { createRandom } from "../../scripts/scene/random.ts";
import { type AnimalSpecies, LABELS, SPECIES } from "../../scripts/scene/species.ts";
import { createStation } from "../../scripts/scene/station.ts";

const station = await createStation({ seed: 2, name: "HV0406" });
const DAY = "2026-05-01T10:30:00";
const NIGHT = "2026-05-01T23:15:00";

/** RGB of the rows [top, top + height) of a frame. */
function pixels(jpeg: Buffer, top = 0, height = HEIGHT - BANNER_HEIGHT): Promise<Buffer> {
  return sharp(jpeg).extract({ left: 0, top, width: WIDTH, height }).raw().toBuffer();
}

/** Mean absolute difference of two pictures, in gray levels. */
function difference(a: Buffer, b: Buffer): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i]! - b[i]!);
  return sum / a.length;
}

test("burst: the same seed gives the same bytes, another seed others", async () => {
  const options = { species: "red_fox", startTime: DAY, frames: 3 } as const;
  const again = await createStation({ seed: 2, name: "HV0406" });
  const one = await drawBurst({ ...options, station, seed: 5 });
  const two = await drawBurst({ ...options, station: again, seed: 5 });
  const three = await drawBurst({ ...options, station, seed: 6 });
  for (const [i, frame] of one.entries())
    assert.ok(frame.jpeg.equals(two[i]!.jpeg), `frame ${i} differs`);
  assert.ok(!one[0]!.jpeg.equals(three[0]!.jpeg), "another seed gave the same frame");
  assert.notEqual(one[0]!.burstId, three[0]!.burstId);
});

test("burst: an animal moves from frame to frame, by more than grass and noise do", async () => {
  const options = { station, startTime: DAY, frames: 3 } as const;
  const moved = async (species: "wild_boar" | "empty", seed: number) => {
    const frames = await drawBurst({ ...options, species, seed });
    return difference(await pixels(frames[0]!.jpeg), await pixels(frames[2]!.jpeg));
  };
  const walking = Math.max(
    ...(await Promise.all([1, 2, 3].map((seed) => moved("wild_boar", seed)))),
  );
  const still = await moved("empty", 1);
  assert.ok(still > 0.2, `the frames of an empty burst differ by only ${still}`);
  assert.ok(walking > 1.5 * still, `walking ${walking}, empty ${still}`);
});

test("frame: EXIF says when, and that it is drawn", async () => {
  const frames = await drawBurst({ station, species: "empty", seed: 1, startTime: DAY, frames: 4 });
  assert.deepEqual(
    frames.map((frame) => frame.capturedAt),
    [0, 1, 2, 3].map((second) => `2026-05-01T10:30:0${second}`),
  );
  const tags = ExifReader.load(frames[2]!.jpeg);
  assert.equal(tags["DateTimeOriginal"]?.description, "2026:05:01 10:30:02");
  assert.equal(tags["Make"]?.description, "TACO");
  assert.match(String(tags["ImageDescription"]?.description), /^Drawn, not photographed/);
  assert.match(String(tags["Software"]?.description), /taco-agent scene renderer/);
  assert.equal(
    frameName(station, frames[2]!),
    `HV0406_20260501-103002_${frames[2]!.burstId}_3.jpg`,
  );
});

for (const species of LABELS) {
  test(`species: ${species} is drawn by day in color and by night in gray`, async () => {
    const options = { station, species, seed: 4, frames: 1 };
    const [day] = await drawBurst({ ...options, startTime: DAY });
    const [night] = await drawBurst({ ...options, startTime: NIGHT });
    assert.deepEqual([day!.night, night!.night], [false, true]);
    assert.equal(day!.animals > 0, species !== "empty");
    const chroma = async (jpeg: Buffer) => {
      const { channels } = await sharp(await pixels(jpeg), {
        raw: { width: WIDTH, height: HEIGHT - BANNER_HEIGHT, channels: 3 },
      }).stats();
      return Math.abs(channels[0]!.mean - channels[2]!.mean);
    };
    assert.ok((await chroma(night!.jpeg)) < 1, "a night frame has color");
    assert.ok((await chroma(day!.jpeg)) > 4, "a day frame has none");
  });
}

for (const species of Object.keys(SPECIES) as AnimalSpecies[]) {
  test(`species: ${species} lies within its box in every pose, and its head is in front`, async () => {
    const { box, coat, draw } = SPECIES[species];
    const scale = 60;
    const [width, height] = [(box.right - box.left) * scale, (box.top + 0.1) * scale];
    const far = [0.1, 0.05] as const;
    for (const gait of ["stand", "walk", "bound", "sit"] as const) {
      for (const head of [0, 0.5, 1]) {
        const individual = { coat, girth: 1, male: true, seed: 1 };
        const animal = draw(individual, { gait, phase: 0.3, head, farShift: far }, createRandom(1));
        const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"><g transform="translate(${-box.left * scale} ${box.top * scale}) scale(${scale} ${-scale})">${animal.svg}</g></svg>`;
        const { data, info } = await sharp(Buffer.from(svg))
          .ensureAlpha()
          .raw()
          .toBuffer({ resolveWithObject: true });
        let drawn = 0;
        const atEdge: string[] = [];
        for (let y = 0; y < info.height; y++) {
          for (let x = 0; x < info.width; x++) {
            if (data[(y * info.width + x) * 4 + 3]! < 128) continue;
            drawn++;
            if (x === 0 || y === 0 || x === info.width - 1) atEdge.push(`${x},${y}`);
          }
        }
        assert.ok(drawn > 0.08 * info.width * info.height, `${gait}: ${drawn} pixels`);
        assert.deepEqual(atEdge, [], `${gait} with head ${head} is cut by its box`);
        assert.ok(animal.eyes[0]!.at[0] > 0.6, `${gait}: the eye is not in front`);
      }
    }
  });
}

test("species: animals come from both sides", async () => {
  // A fox's white tail tip and dark ears tell its ends apart; here the way it moves is enough.
  const centers = await Promise.all(
    [1, 2, 3, 4, 5, 6, 7, 8].map(async (seed) => {
      const frames = await drawBurst({
        station,
        species: "red_fox",
        seed,
        startTime: DAY,
        frames: 3,
      });
      const [a, b] = [await pixels(frames[0]!.jpeg), await pixels(frames[2]!.jpeg)];
      return redCenter(b) - redCenter(a);
    }),
  );
  assert.ok(centers.some((way) => way > 20) && centers.some((way) => way < -20), String(centers));
});

/** Mean column of strongly red pixels: a fox's coat. */
function redCenter(rgb: Buffer): number {
  let sum = 0;
  let count = 1e-9;
  for (let i = 0; i < rgb.length; i += 3) {
    if (rgb[i]! < 1.9 * rgb[i + 1]! || rgb[i]! < 70) continue;
    sum += (i / 3) % WIDTH;
    count++;
  }
  return sum / count;
}

test("banner: stands at the bottom, names the drawn scene, and is all gray", async () => {
  const options = { station, species: "empty", seed: 1, startTime: DAY, frames: 1 } as const;
  const [frame] = await drawBurst(options);
  const other = await createStation({ seed: 2, name: "GIG-03" });
  const [elsewhere] = await drawBurst({ ...options, station: other });
  const top = HEIGHT - BANNER_HEIGHT;
  const banner = await pixels(frame!.jpeg, top, BANNER_HEIGHT);
  const lit = (rgb: Buffer, from: number, to: number) => {
    let count = 0;
    for (let i = 0; i < rgb.length; i += 3) {
      const x = (i / 3) % WIDTH;
      if (x >= from && x < to && rgb[i]! > 180) count++;
    }
    return count;
  };
  // "DRAWN SCENE" is the first 11 cells of 12 pixels; the same at every station.
  const words = lit(banner, 10, 142);
  assert.ok(words > 500, `${words} white pixels`);
  const second = await pixels(elsewhere!.jpeg, top, BANNER_HEIGHT);
  assert.ok(Math.abs(lit(second, 10, 142) - words) < 0.05 * words, "the words differ");
  assert.notEqual(lit(second, 160, 360), lit(banner, 160, 360));
});

test("banner: the moon is full and new when it was", () => {
  const full = moonPhase("2026-05-01T17:00:00");
  // The true moon runs up to 0.6 days before or behind the mean one.
  assert.ok(Math.abs(full - 0.5) < 0.03, `full moon at ${full}`);
  const phase = moonPhase("2026-08-12T17:00:00");
  assert.ok(Math.min(phase, 1 - phase) < 0.03, `new moon at ${phase}`);
});

test("plan: is long-tailed, keeps the minimum, and leaves five minutes between bursts", () => {
  const plan = planBursts({ seed: 3, bursts: 300, atLeast: 2 });
  const counts = LABELS.map((name) => plan.filter(({ species }) => species === name).length);
  assert.equal(plan.length, 300);
  assert.ok(Math.min(...counts) >= 2, String(counts));
  assert.ok(Math.max(...counts) > 8 * Math.min(...counts), String(counts));
  for (const [i, { startTime }] of plan.entries()) {
    const before = plan[i - 1]?.startTime ?? "2026-04-30T00:00:00";
    assert.ok(Date.parse(`${startTime}Z`) - Date.parse(`${before}Z`) >= 300_000);
  }
  assert.throws(() => planBursts({ seed: 1, bursts: 3, atLeast: 1 }), /at least 10, got 3/);
});

test("burst: refuses a time that is none", async () => {
  const options = { station, species: "empty", seed: 1 } as const;
  await assert.rejects(drawBurst({ ...options, startTime: "yesterday" }), /got "yesterday"/);
  await assert.rejects(drawBurst({ ...options, startTime: DAY, frames: 0 }), /got 0/);
});

test("command line: writes labeled folders", async () => {
  const out = await mkdtemp(join(tmpdir(), "scene-"));
  try {
    const run = promisify(execFile);
    const main = join(import.meta.dirname, "../../scripts/scene/main.ts");
    const flags = ["--bursts", "2", "--species", "lynx,empty", "--at-least", "1", "--labeled"];
    await run(process.execPath, ["--import", "tsx", main, "--out", out, ...flags]);
    assert.deepEqual((await readdir(out)).sort(), ["empty", "lynx"]);
    assert.ok((await readdir(join(out, "lynx"))).every((name) => name.endsWith(".jpg")));
  } finally {
    await rm(out, { recursive: true });
  }
});
