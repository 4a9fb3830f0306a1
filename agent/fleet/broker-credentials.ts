import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { AgentError, messageOf, systemCode } from "../errors.ts";

/** Where the secrets of the connection lie. */
export interface CredentialFiles {
  /**
   * File with the password, or the name of a systemd credential: a bare name is looked for in
   * `$CREDENTIALS_DIRECTORY` first (systemd.exec(5), LoadCredential=).
   */
  readonly passwordFile?: string | undefined;
  /** PEM file with the certificates to trust instead of the system's. Found like a password. */
  readonly caFile?: string | undefined;
}

/** Secrets as they were read; read anew for every connection, so that they may be exchanged. */
export interface Credentials {
  readonly password: string | undefined;
  readonly ca: Buffer | undefined;
}

/**
 * Reads the secrets of a connection. One line break at the end of a password is not part of it.
 *
 * @throws {AgentError} CONFIG_UNREADABLE naming the file and the setting.
 */
export async function readCredentials(
  files: CredentialFiles,
  environment: NodeJS.ProcessEnv,
): Promise<Credentials> {
  const password = await readSecret("mqtt.passwordFile", files.passwordFile, environment);
  const ca = await readSecret("mqtt.caFile", files.caFile, environment);
  return { password: password?.toString("utf8").replace(/\r?\n$/, ""), ca };
}

async function readSecret(
  setting: string,
  file: string | undefined,
  environment: NodeJS.ProcessEnv,
): Promise<Buffer | undefined> {
  if (file === undefined) return undefined;
  const path = await findSecret(file, environment["CREDENTIALS_DIRECTORY"]);
  try {
    return await readFile(path);
  } catch (error) {
    throw new AgentError(
      "CONFIG_UNREADABLE",
      `${setting}: ${path} cannot be read (${systemCode(error) ?? messageOf(error)}): ` +
        "create it, or let the station's user read it",
      { cause: error },
    );
  }
}

async function findSecret(file: string, folder: string | undefined): Promise<string> {
  if (folder === undefined || file.includes("/")) return file;
  const path = join(folder, file);
  try {
    await access(path);
    return path;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return file;
    throw error;
  }
}
