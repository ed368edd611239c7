import { DownpourError, type ErrorCode } from '../shared/errors.ts';
import { diskError, errnoOf } from './atomic-file.ts';

/** What is wrong with a file of a checkpoint, and who passes it over. */

/** What is wrong with a checkpoint that was passed over. */
export type OnDamaged = (error: DownpourError, stem: string) => void;

const DAMAGED: readonly ErrorCode[] = ['DP_CHECKPOINT_CORRUPT', 'DP_CHECKPOINT_MISSING'];

/** A checkpoint cannot be used, and another one may do instead. */
export function isDamage(error: unknown): error is DownpourError {
  return error instanceof DownpourError && DAMAGED.includes(error.code);
}

/** The result, or null for a damaged checkpoint, which is told. Other errors go on. */
export async function unlessDamaged<T>(
  result: Promise<T>,
  onDamaged: (error: DownpourError) => void,
): Promise<T | null> {
  try {
    return await result;
  } catch (error) {
    if (!isDamage(error)) throw error;
    onDamaged(error);
    return null;
  }
}

/** What a failed system call of reading means. */
export function readError(error: unknown, path: string): unknown {
  if (errnoOf(error) === 'EIO') return checkpointDamage(path, 'the disk cannot read it', NOT_READ);
  if (errnoOf(error) !== 'ENOENT') return diskError(error, path, 'read');
  return new DownpourError(
    'DP_CHECKPOINT_MISSING',
    `there is no checkpoint file ${path}; \`downpour status\` lists those of a run`,
    { cause: error },
  );
}

/** The cause of an error that says nothing of what the file holds. */
export const NOT_READ = 'not read';

export function checkpointDamage(
  path: string,
  what: string,
  cause?: typeof NOT_READ,
): DownpourError {
  return new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `${path} is damaged: ${what}; resume from an older checkpoint`,
    { cause },
  );
}
