import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { makeFolder, sha256Of, writeFileAtomic } from '../files/atomic-file.ts';
import { DownpourError, errorText } from '../shared/errors.ts';

/** What a study writes: its record, which a crash must not tear, and its results. */

/**
 * Shows all of the new content or what was there before, whenever the process or machine dies.
 * @throws DownpourError DP_DISK.
 */
export async function writeWhole(path: string, text: string): Promise<void> {
  try {
    await makeFolder(dirname(path));
    await writeFileAtomic(path, (handle) => handle.writeFile(text));
  } catch (cause) {
    if (!(cause instanceof DownpourError)) throw cause;
    throw new DownpourError(cause.code, `${cause.message}; --out names another folder`, { cause });
  }
}

/** JSON sorted by keys: equal values have equal text. */
export function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

interface RecordFile<T> {
  readonly version: 1;
  readonly study: string;
  /** What the study is, as canonical JSON: another one must not go on with this record. */
  readonly signature: string;
  readonly trials: readonly T[];
}

/** The record of a study on disk. */
export interface StudyRecord<T> {
  readonly path: string;
  /** As they stood when the study was last written down; empty for a new one. */
  readonly trials: readonly T[];
  save(trials: readonly T[]): Promise<void>;
}

/**
 * Opens a study's record, or begins one.
 * @throws DownpourError DP_USAGE when it is of a study with other settings or cannot be read.
 */
export async function openRecord<T>(
  folder: string,
  study: string,
  signature: string,
): Promise<StudyRecord<T>> {
  const path = join(folder, 'study.json');
  const save = (trials: readonly T[]) => {
    const file: RecordFile<T> = { version: 1, study, signature, trials };
    return writeWhole(path, withSum(JSON.stringify(file)));
  };
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { path, trials: [], save };
    throw new DownpourError('DP_USAGE', `${path} cannot be read: ${errorText(error)}`, {
      cause: error,
    });
  }
  let file: RecordFile<T>;
  try {
    mustHaveItsSum(text);
    file = JSON.parse(text) as RecordFile<T>;
    if (!Number.isInteger(file?.version) || !Array.isArray(file.trials)) {
      throw new Error('it is no record');
    }
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `${path} is damaged (${errorText(cause)}): take it away; what the server still has is read back from it`,
      { cause },
    );
  }
  if (file.version !== 1) {
    throw new DownpourError(
      'DP_USAGE',
      `${path} is of version ${file.version}, and this release reads version 1: go on with the release that wrote it, or give this study another --name or --out`,
    );
  }
  if (file.study !== study || file.signature !== signature) {
    throw new DownpourError(
      'DP_USAGE',
      `${path} is of a study with other settings: give this one another --name or --out, or write the command as it was`,
    );
  }
  return { path, trials: file.trials, save };
}

// The checksum is the last field, of all that stands before it. A wrong digit in a record would be a wrong result without a word.
const SUM = /,"sha256":"([0-9a-f]{64})"\}\n$/;

const withSum = (json: string) =>
  `${json.slice(0, -1)},"sha256":"${sha256Of(Buffer.from(json))}"}\n`;

/** Records of older releases have none. Throws an Error that says in a few words what is wrong. */
function mustHaveItsSum(text: string): void {
  const [end, sum] = SUM.exec(text) ?? [];
  if (end === undefined) return;
  if (sum !== sha256Of(Buffer.from(`${text.slice(0, -end.length)}}`))) {
    throw new Error('its content does not have the checksum that it carries');
  }
}
