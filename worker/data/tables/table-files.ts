import type { Dirent } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { DownpourError, errorText } from '../../../shared/errors.ts';

/** Several files that are one table: a folder of them, or a pattern such as `2026-*.csv`. */

/** Files of a folder that are tables; others in it, such as a README, are left alone. */
export interface TableKind {
  readonly fits: RegExp;
  /** For messages: the endings of their names. */
  readonly endings: string;
  /** For messages: what a file is. Default: a table. */
  readonly what?: string;
}

const TEXT: TableKind = {
  fits: /\.(csv|tsv)(\.gz)?$/i,
  endings: '.csv, .tsv, .csv.gz or .tsv.gz',
};
export const PARQUET: TableKind = { fits: /\.(parquet|pq)$/i, endings: '.parquet or .pq' };
export const TAR: TableKind = { fits: /\.tar$/i, endings: '.tar' };
const FILES_MAX = 10_000;

/** Whether a folder is a table: it has files of tables and no folders, as the folders of classes of pictures are. */
export async function isTableFolder(folder: string): Promise<boolean> {
  const entries = await listed(folder);
  const shown = entries.filter(({ name }) => !name.startsWith('.'));
  const isTable = ({ name }: Dirent) => TEXT.fits.test(name) || PARQUET.fits.test(name);
  return shown.some(isTable) && !shown.some((entry) => entry.isDirectory());
}

/** What a table is written as: a file and a pattern by the ending, a folder by its files; a folder of both is text. */
export async function tableKind(path: string): Promise<TableKind> {
  const found = await stat(path).catch(() => null);
  const names = found?.isDirectory() ? await filesIn(path) : [path];
  const isParquet = names.some((name) => PARQUET.fits.test(name));
  return isParquet && !names.some((name) => TEXT.fits.test(name)) ? PARQUET : TEXT;
}

/**
 * The files that a path names, sorted by name: one file; the tables of a folder (.csv, .tsv, also .gz; not those of its
 * folders); or, where the last part of the path has `*` or `?`, the files that fit.
 * @throws DownpourError DP_DATA_MISSING: there are none; DP_EXPERIMENT_INVALID: there are too many.
 */
export async function tableFiles(path: string, kind: TableKind = TEXT): Promise<string[]> {
  const found = await stat(path).catch(() => null);
  const last = basename(path);
  const isPattern = !found && /[*?]/.test(last);
  if (!found?.isDirectory() && !isPattern) return [path];
  const folder = isPattern ? dirname(path) : path;
  const fits = isPattern ? patternOf(last) : kind.fits;
  const names = (await filesIn(folder)).filter((name) => fits.test(name)).sort();
  if (names.length > FILES_MAX) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${path} names ${names.length} files; at most ${FILES_MAX} are read as one ${kind.what ?? 'table'}: join some of them`,
    );
  }
  if (names.length > 0) return names.map((name) => join(folder, name));
  throw new DownpourError(
    'DP_DATA_MISSING',
    isPattern
      ? `no file in ${folder} fits '${last}'; look at the spelling of the pattern`
      : `${path} has no ${kind.what ?? 'table'}: none of its files ends in ${kind.endings}`,
  );
}

/** Names of regular files that are not hidden. */
async function filesIn(folder: string): Promise<string[]> {
  const entries = await listed(folder);
  const files = entries.filter((entry) => entry.isFile() || entry.isSymbolicLink());
  return files.map(({ name }) => name).filter((name) => !name.startsWith('.'));
}

async function listed(folder: string): Promise<Dirent[]> {
  try {
    return await readdir(folder, { withFileTypes: true });
  } catch (error) {
    throw new DownpourError('DP_DATA_MISSING', `${folder} cannot be listed: ${errorText(error)}`, {
      cause: error,
    });
  }
}

function patternOf(text: string): RegExp {
  const source = text.replace(/[\\^$.|+()[\]{}]/g, '\\$&');
  return new RegExp(`^${source.replaceAll('*', '.*').replaceAll('?', '.')}$`, 'u');
}
