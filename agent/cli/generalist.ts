import { Command } from "commander";
import { AgentError } from "../errors.ts";
import { addGeneralist, type ImportFlags } from "../generalist/add.ts";
import { CATALOG } from "../generalist/catalog.ts";
import { createLogger } from "../log.ts";
import { generalistCache } from "./specialize.ts";
import { megabytes, table } from "./terminal.ts";

interface Flags {
  dir?: string;
  name?: string;
  mean?: string;
  std?: string;
  resize?: string;
  crop?: string;
  labels?: string;
  layout?: string;
  sha256?: string;
  confirm: boolean;
}

/** `taco generalist add` and `taco generalist list`. */
export function generalistCommand(): Command {
  const command = new Command("generalist").description("models that specialized ones start from");
  command
    .command("add <source>")
    .description("import an ONNX classifier: a name, an .onnx file or a URL")
    .option("--dir <folder>", "cache to put it into; a station's is station.dir/generalists")
    .option("--name <name>", "name in the cache")
    .option("--mean <r,g,b>", "mean of the preprocessing, of values in 0…1")
    .option("--std <r,g,b>", "standard deviation of the preprocessing")
    .option("--resize <text>", 'as "short side to 256, aspect kept, bicubic"')
    .option("--crop <text>", 'as "centre 224x224", or "none"')
    .option("--labels <file>", "class names, one a line, in the order of the output")
    .option("--layout <NCHW|NHWC>", "layout of the input where its shape does not tell")
    .option("--sha256 <digest>", "digest that the file must have; needed for a URL")
    .option("--confirm", "go on with what was guessed from the graph", false)
    .action(async (source: string, flags: Flags) => {
      const added = await addGeneralist({
        source,
        dir: flags.dir ?? generalistCache(),
        flags: importFlags(flags),
        confirm: flags.confirm,
        log: createLogger("info"),
        onProgress: ({ stage, doneBytes, totalBytes }) => {
          const bytes = doneBytes === undefined ? "" : ` ${megabytes(doneBytes)}`;
          const of = totalBytes ? ` of ${megabytes(totalBytes)}` : "";
          if (process.stderr.isTTY) process.stderr.write(`\r${stage}${bytes}${of}   `);
        },
      });
      const { name, modelPath, description } = added;
      process.stdout.write(`${name}: ${description.classes.length} classes, ${modelPath}\n`);
    });
  command
    .command("list")
    .description("the names that can be fetched")
    .action(() => {
      const rows = CATALOG.map(({ name, url }) => [name, url]);
      process.stdout.write(`${table(["name", "source"], rows)}\n`);
    });
  return command;
}

function importFlags(flags: Flags): ImportFlags {
  const { name, mean, std, resize, crop, labels, layout, sha256 } = flags;
  return {
    ...(name === undefined ? {} : { name }),
    ...(mean === undefined ? {} : { mean: triple("--mean", mean) }),
    ...(std === undefined ? {} : { std: triple("--std", std) }),
    ...(resize === undefined ? {} : { resize }),
    ...(crop === undefined ? {} : { crop }),
    ...(labels === undefined ? {} : { labelsPath: labels }),
    ...(layout === "NCHW" || layout === "NHWC" ? { layout } : {}),
    ...(sha256 === undefined ? {} : { sha256 }),
  };
}

function triple(flag: string, text: string): [number, number, number] {
  const [r, g, b, ...rest] = text.split(",").map(Number);
  const values = [r, g, b];
  if (rest.length === 0 && values.every((value) => Number.isFinite(value))) {
    return [r!, g!, b!];
  }
  throw new AgentError(
    "GENERALIST_UNAVAILABLE",
    `${flag}: expected three numbers with commas, as 0.485,0.456,0.406, got "${text}"`,
  );
}
