/**
 * Lets the event loop do what is waiting, between two blocks of a long computation.
 *
 * @throws the signal's reason, when aborted.
 */
export async function pause(signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve) => {
    setImmediate(resolve);
  });
  signal?.throwIfAborted();
}
