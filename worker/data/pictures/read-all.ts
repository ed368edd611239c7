import { DownpourError } from '../../../shared/errors.ts';
import { someOf } from './image-files.ts';
import { type Picture, readPicture, type SizeOf } from './pictures.ts';

/** Many files of pictures, some at a time. */

/** The most bytes of all pictures that are decoded at a time. */
const DECODING_BYTES_MAX = 256 * 2 ** 20;
const DECODING_MAX = 8;
const BROKEN_MAX = 10;
const TELL_AFTER_MS = 2_000;
const TELL_EVERY_MS = 5_000;

/**
 * Calls `paint` with each picture, in any order, and tells how far it has come.
 * @param first the first of them. @param like whose size all must have; null: each may have its own.
 * @throws DownpourError naming the files that cannot be read; it looks no further after BROKEN_MAX
 */
export async function readAll(
  files: readonly { readonly path: string }[],
  first: Picture,
  like: SizeOf | null,
  paint: (picture: Picture, i: number) => void,
  log?: (line: string) => void,
): Promise<void> {
  const bytes = first.width * first.height * 4;
  const together = Math.max(1, Math.min(DECODING_MAX, Math.floor(DECODING_BYTES_MAX / bytes)));
  const broken: { path: string; error: DownpourError }[] = [];
  const began = performance.now();
  let told = began + TELL_AFTER_MS - TELL_EVERY_MS;
  paint(first, 0);
  for (let from = 1; from < files.length && broken.length < BROKEN_MAX; from += together) {
    const some = files.slice(from, from + together);
    const read = await Promise.allSettled(
      some.map(({ path }) => readPicture(path, like ?? undefined)),
    );
    for (const [i, result] of read.entries()) {
      if (result.status === 'fulfilled') paint(result.value, from + i);
      else if (result.reason instanceof DownpourError) {
        broken.push({ path: some[i]!.path, error: result.reason });
      } else throw result.reason;
    }
    const now = performance.now();
    if (now - told < TELL_EVERY_MS) continue;
    told = now;
    log?.(`${Math.min(files.length, from + together)} of ${files.length} pictures read`);
  }
  const [worst, ...others] = broken;
  if (worst === undefined) return;
  if (others.length === 0) throw worst.error;
  const { code, message } = worst.error;
  const more = broken.length >= BROKEN_MAX ? 'at least ' : '';
  const names = someOf(others.map(({ path }) => path));
  throw new DownpourError(
    code,
    `${message}. Also refused: ${more}${others.length} other pictures (${names})`,
    { cause: worst.error },
  );
}
