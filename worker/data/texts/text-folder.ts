import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { DownpourError } from '../../../shared/errors.ts';
import type { DataPart } from '../examples.ts';
import { unreadable } from '../files.ts';
import { CONVENTIONAL } from '../pictures/image-parts.ts';
import { checkOptions, checkPath, isText, optional } from '../reader-options.ts';
import { sortNames } from '../tables/cells.ts';
import { isEncoding } from '../tables/strict-text.ts';
import {
  type LabelledTexts,
  TEXT_FIELDS,
  type TextData,
  type TextExampleOptions,
  textExamples,
} from './text-examples.ts';
import { filesUnder, readTextFile } from './text-files.ts';

/** Folders of texts, one folder a class. */

export interface TextFolderOptions extends TextExampleOptions {
  /** A label of TextDecoder, such as 'windows-1252'. Default: UTF-8, or what the byte order mark says. */
  readonly encoding?: string;
}

/** The texts of a folder, by class and part. */
export interface FoundTexts {
  readonly classes: readonly string[];
  readonly parts: Readonly<
    Partial<Record<DataPart, readonly { readonly path: string; readonly label: number }[]>>
  >;
}

/**
 * Reads the texts of `folder/CLASS`, or of `folder/train/CLASS`, `folder/validation/CLASS` and `folder/test/CLASS`. Each file
 * that is not hidden is a text, also in folders inside those of the classes.
 *
 *     data: ({ log }) => loadTextFolder('mails', { length: 200, lowerCase: true, validationFraction: 0.2, log })
 *
 * @throws DownpourError DP_DATA_MISSING: there are fewer than two classes, or a class has no text; DP_DATA_CORRUPT: a file is
 * no text in this encoding; DP_DATA_MISMATCH: a part has a class that the training part lacks; DP_EXPERIMENT_INVALID.
 */
export async function loadTextFolder(
  folder: string,
  options: TextFolderOptions,
): Promise<TextData> {
  checkPath('loadTextFolder', folder);
  checkOptions('loadTextFolder', options, {
    ...TEXT_FIELDS,
    encoding: optional({
      allowed: "the name of an encoding, such as 'windows-1252'",
      test: (value) => isText(value) && isEncoding(value),
    }),
  });
  const { encoding } = options;
  const { classes, parts } = await findTexts(folder);
  const read: Partial<Record<DataPart, LabelledTexts>> = {};
  for (const [part, files] of Object.entries(parts)) {
    const texts: string[] = [];
    for (const { path } of files) texts.push(await readTextFile(path, encoding));
    const values = Int32Array.from(files, ({ label }) => label);
    read[part as DataPart] = { texts, targets: { values, classes } };
  }
  return textExamples(folder, read, options, encoding === undefined ? {} : { encoding });
}

/** @throws DownpourError as `loadTextFolder` does. */
export async function findTexts(folder: string): Promise<FoundTexts> {
  const outer = await foldersIn(folder);
  const named = outer.map((path): [DataPart | undefined, string] => [
    CONVENTIONAL[basename(path).toLowerCase()],
    path,
  ]);
  const hasParts =
    named.length > 0 &&
    named.every(([part]) => part !== undefined) &&
    named.some(([part]) => part === 'train') &&
    new Set(named.map(([part]) => part)).size === named.length;
  const places = hasParts ? (named as [DataPart, string][]) : [['train', folder] as const];
  const ordered = [...places].sort(([a]) => (a === 'train' ? -1 : 1));
  let classes: readonly string[] = [];
  const parts: Partial<Record<DataPart, { path: string; label: number }[]>> = {};
  for (const [part, path] of ordered) {
    const folders = await foldersIn(path);
    const byName = new Map(folders.map((own) => [basename(own).normalize(), own]));
    if (part === 'train') {
      classes = sortNames([...byName.keys()]);
      if (classes.length < 2) throw tooFew(path, classes.length);
    }
    const files: { path: string; label: number }[] = [];
    for (const [name, own] of byName) {
      const label = classes.indexOf(name);
      if (label < 0) {
        throw new DownpourError(
          'DP_DATA_MISMATCH',
          `${own}: the training part has no class '${name}'; it has ${classes.join(', ')}: add texts of this class to it, or remove the folder`,
        );
      }
      const found = await filesUnder(own);
      if (found.length === 0) {
        throw unreadable(own, new Error('the class has no text; add some, or remove the folder'));
      }
      files.push(...found.map((file) => ({ path: file, label })));
    }
    if (files.length === 0) throw unreadable(path, new Error('no class has a text'));
    parts[part] = files;
  }
  return { classes, parts };
}

const tooFew = (path: string, count: number) =>
  unreadable(
    path,
    new Error(
      `it has ${count === 1 ? 'one folder' : 'no folder'}; at least 2 folders are needed, one for each class`,
    ),
  );

async function foldersIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error) => {
    throw unreadable(folder, error);
  });
  return entries
    .filter((entry) => entry.isDirectory() && !entry.name.startsWith('.'))
    .map(({ name }) => join(folder, name))
    .sort();
}
