import { fork } from "node:child_process";

/**
 * Measures in a process of its own, whose peak of memory is then that of the measurement alone.
 *
 * @param file script that sends its figures as its only message. @param args of the script.
 * @throws {Error} where it ends without figures.
 */
export function measureApart<Figures>(file: string, args: readonly string[]): Promise<Figures> {
  return new Promise((resolve, reject) => {
    const child = fork(file, args);
    child.once("error", reject);
    child.once("message", (figures) => {
      resolve(figures as Figures);
    });
    child.once("exit", (code, signal) => {
      reject(new Error(`${args.join(" ")}: its process ended with ${code ?? signal}`));
    });
  });
}
