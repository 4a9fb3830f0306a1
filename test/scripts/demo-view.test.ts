import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import {
  formatBytes,
  printComparison,
  printMessages,
  printTitle,
  startProgress,
  startRunView,
} from "../../scripts/demo-view.ts";

/** What `print` writes to a screen that is no terminal. */
function written(print: (screen: PassThrough) => void): string {
  const screen = new PassThrough();
  print(screen);
  return String(screen.read() ?? "");
}

test("comparison: every row has dense, compressed and a ratio, without color off a terminal", () => {
  const dense = {
    accuracy: 0.9,
    macroF1: 0.8,
    parameters: 4e6,
    nonzero: 4_000_000,
    bytes: 16_000_000,
    latencyMsP50: 20,
  };
  const text = written((screen) =>
    printComparison(screen, dense, { ...dense, accuracy: 0.81, nonzero: 2_000_000 }),
  );
  assert.match(text, /accuracy\s*│\s*90\.0 %\s*│\s*81\.0 %\s*│\s*90\.0 %/);
  assert.match(text, /non-zero parameters\s*│\s*4,000,000\s*│\s*2,000,000\s*│\s*2\.00×/);
  assert.ok(!text.includes("\x1b"));
});

test("progress: off a terminal writes one line a quarter", () => {
  const text = written((screen) => {
    const line = startProgress(screen, "frames", 100);
    for (let done = 1; done <= 100; done++) line.update(done);
    line.stop();
  });
  assert.deepEqual(
    text
      .trim()
      .split("\n")
      .map((row) => row.slice(0, row.indexOf(" after"))),
    ["frames: 25/100", "frames: 50/100", "frames: 75/100", "frames: 100/100"],
  );
});

test("progress: on a terminal draws the time left and ends its line", () => {
  const text = written((stream) => {
    const screen = Object.assign(stream, { isTTY: true, columns: 120 });
    const line = startProgress(screen, "hessians", 3);
    line.update(3, "done");
    line.stop();
  });
  assert.match(text, /hessians .*3\/3 {2}in \S+ s {2}done/);
});

test("run view: shows each stage's time and, on a terminal, what is left of the run", () => {
  const show = (stream: PassThrough) => {
    const view = startRunView(stream);
    view.stageEnded("pictures", 3.14);
    view.update("compress", 0.4, 61, "7 frames");
    view.stop();
  };
  assert.match(written(show), /^ {2}pictures +3\.1 s\n$/);
  const drawn = written((stream) => show(Object.assign(stream, { isTTY: true, columns: 120 })));
  assert.match(drawn, /pictures +3\.1 s\n/);
  assert.match(drawn, /compress .* 40 % {2}61 s left {2}7 frames/);
});

test("comparison: shows the model of before beside them where it is given", () => {
  const model = {
    accuracy: 0.5,
    macroF1: 0.4,
    parameters: 8,
    nonzero: 8,
    bytes: 32,
    latencyMsP50: 2,
  };
  const text = written((screen) => printComparison(screen, model, model, { ...model, nonzero: 9 }));
  assert.match(text, /served before/);
  assert.match(text, /non-zero parameters\s*│\s*9\s*│\s*8\s*│\s*8\s*│\s*1\.00×/);
});

test("screen: titles, messages and sizes read well", () => {
  assert.equal(
    written((screen) => printTitle(screen, "Swap")),
    "\nSwap\n────\n",
  );
  assert.match(
    written((screen) => printMessages(screen, [{ kind: "e/prediction", count: 1234 }])),
    /e\/prediction\s*│\s*1,234/,
  );
  assert.equal(
    written((screen) => printMessages(screen, [])),
    "no message was seen\n",
  );
  assert.deepEqual([0, 1023, 1536, 21 * 2 ** 20].map(formatBytes), [
    "0 B",
    "1023 B",
    "1.50 KiB",
    "21.0 MiB",
  ]);
});
