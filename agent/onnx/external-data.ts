import {
  decodeModel,
  encodeModel,
  hasExternalData,
  type ReadExternal,
  resolveExternalData,
} from "./codec.ts";

/**
 * The bytes of a model with everything in them: values that lie in files beside it are taken in.
 * A model without such files comes back as it is.
 *
 * @throws {RangeError} if the bytes are no model, a location leaves the model's folder or a
 *   length does not fit; and whatever `read` throws.
 */
export function withExternalData(bytes: Uint8Array, read: ReadExternal): Uint8Array {
  const model = decodeModel(bytes);
  if (!hasExternalData(model)) return bytes;
  resolveExternalData(model, read);
  return encodeModel(model);
}
