import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { corrupt, readDataFile, unreadable } from '../files.ts';
import { StrictText } from '../tables/strict-text.ts';

/** Files that are a text each. */

/** Files of one folder with all folders in it. */
const FILES_MAX = 1_000_000;
/** Bytes of one text. */
const TEXT_BYTES_MAX = 2 ** 26;

/** @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT with the line that is not in this encoding. */
export async function readTextFile(path: string, encoding?: string): Promise<string> {
  const bytes = await readDataFile(path, { bytesMax: TEXT_BYTES_MAX });
  return new StrictText(path, encoding).push(bytes, true, () => 0);
}

/** All files of a folder and of those in it that are not hidden, sorted by their paths. @throws DownpourError DP_DATA_MISSING */
export async function filesUnder(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error) => {
    throw unreadable(folder, error);
  });
  const files: string[] = [];
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name.startsWith('.')) continue;
    const path = join(folder, entry.name);
    if (entry.isDirectory()) files.push(...(await filesUnder(path)));
    else if (entry.isFile() || entry.isSymbolicLink()) files.push(path);
    if (files.length > FILES_MAX) {
      throw corrupt(folder, `it has more than ${FILES_MAX} files; join some of them`);
    }
  }
  return files;
}
