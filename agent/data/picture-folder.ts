import { opendir } from "node:fs/promises";
import { join } from "node:path";
import { AgentError, messageOf } from "../errors.ts";
import { hasPictureName, isTemporaryName } from "./picture-names.ts";

/**
 * Paths of all pictures below a folder, by name alone and at any depth, in the order of their
 * names; links to folders are not followed.
 *
 * @throws {AgentError} PICTURE_UNREADABLE where the folder cannot be read.
 */
export async function listPictures(folder: string): Promise<string[]> {
  const found: string[] = [];
  const folders = [folder];
  try {
    for (let at = folders.pop(); at !== undefined; at = folders.pop()) {
      for await (const entry of await opendir(at)) {
        const path = join(at, entry.name);
        if (isTemporaryName(entry.name)) continue;
        if (entry.isDirectory()) folders.push(path);
        else if (hasPictureName(entry.name)) found.push(path);
      }
    }
  } catch (error) {
    throw new AgentError(
      "PICTURE_UNREADABLE",
      `${folder}: expected a folder of pictures: ${messageOf(error)}`,
      { cause: error },
    );
  }
  return found.sort();
}
