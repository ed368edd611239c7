import { realpath } from 'node:fs/promises';
import { DownpourError } from '../../../shared/errors.ts';
import { nearest } from '../../../shared/spelling.ts';
import { DATA_PARTS, type DataPart } from '../examples.ts';
import { unreadable } from '../files.ts';
import { sortNames } from '../tables/cells.ts';
import { allPictures, type Folder, type PassedOver, readFolder, someOf } from './image-files.ts';

/** Which folders are parts, which are classes, and one list of classes for all parts. */

/** A folder for each part, each with a folder for each class. */
export interface ImageParts {
  readonly train: string;
  readonly validation?: string;
  readonly test?: string;
}

export interface LabelledFile {
  readonly path: string;
  readonly label: number;
}

export interface FoundImages {
  readonly classes: readonly string[];
  /** Those that there are, training first. */
  readonly parts: readonly { readonly name: DataPart; readonly files: readonly LabelledFile[] }[];
  /** Pictures in folders within the folder of a class. */
  readonly nested: number;
  /** Sentences that the user should read. */
  readonly notes: readonly string[];
}

/** Names that folders of parts have. */
export const CONVENTIONAL: Readonly<Record<string, DataPart>> = {
  ...{ train: 'train', training: 'train' },
  ...{ validation: 'validation', valid: 'validation', val: 'validation' },
  ...{ test: 'test', testing: 'test' },
};

/**
 * The pictures of a folder, or of one folder a part.
 * @param given classes in the order that they are to have; else the names of all parts' folders, sorted
 * @throws DownpourError DP_DATA_MISSING: too few classes, a class or part without pictures;
 * DP_DATA_MISMATCH: a folder that `given` lacks; DP_DATA_CORRUPT: what the layout means cannot be told
 */
export async function findImages(
  source: string | ImageParts,
  given: readonly string[] | undefined,
  passed: PassedOver,
): Promise<FoundImages> {
  const parts: [DataPart, Folder][] = [];
  if (typeof source === 'string') {
    const root = await readFolder(source, passed);
    parts.push(...(partsOf(root, given) ?? ([['train', root]] as const)));
    if (parts[0]![1] !== root) for (const path of root.pictures) passed.add('beside', path);
  } else {
    await mustDiffer(source);
    for (const name of DATA_PARTS) {
      const folder = source[name];
      if (folder !== undefined) parts.push([name, await readFolder(folder, passed)]);
    }
  }
  for (const [, folder] of parts) {
    mustHoldClasses(folder, given);
    for (const path of folder.pictures) passed.add('beside', path);
  }
  return labelled(parts, given);
}

function labelled(
  parts: readonly [DataPart, Folder][],
  given: readonly string[] | undefined,
): FoundImages {
  const classes = classesOf(parts, given);
  const number = new Map(classes.map((name, label) => [name, label]));
  let nested = 0;
  const labelledParts = parts.map(([name, folder]) => {
    const byName = new Map(folder.folders.map((own) => [own.name, own]));
    const files = sortNames([...byName.keys()]).flatMap((own) => {
      const pictures = allPictures(byName.get(own)!);
      nested += pictures.length - byName.get(own)!.pictures.length;
      return pictures.map((path) => ({ path, label: number.get(own.normalize())! }));
    });
    if (files.length === 0) throw unreadable(folder.path, new Error('no class has a picture'));
    return { name, files };
  });
  return { classes, parts: labelledParts, nested, notes: missingClasses(classes, labelledParts) };
}

/** The classes of all parts; a class that has no picture anywhere is an error. */
function classesOf(
  parts: readonly [DataPart, Folder][],
  given: readonly string[] | undefined,
): readonly string[] {
  const where = new Map<string, Folder[]>();
  for (const [, { path, folders }] of parts) {
    for (const folder of folders) {
      // The same letters, however the system that made the folder writes their accents.
      const name = folder.name.normalize();
      const others = where.get(name) ?? [];
      if (others.some((other) => folders.includes(other))) {
        throw unreadable(path, new Error(`it has two folders '${name}'; merge them`));
      }
      where.set(name, [...others, folder]);
    }
  }
  const names = sortNames([...where.keys()]);
  if (given) mustBeAmong(given, names, where);
  for (const folders of where.values()) {
    if (folders.some((folder) => allPictures(folder).length > 0)) continue;
    throw unreadable(
      folders[0]!.path,
      new Error('the class has no picture; add some, or remove the folder'),
    );
  }
  if (!given) mustBeUnlike(names, where, parts);
  const classes = given?.map((name) => name.normalize()) ?? names;
  if (classes.length < 2) throw tooFew(parts[0]![1]);
  return classes;
}

/**
 * Names that only look different are one class: `1` and `01`, and `Cat` and `cat` where no part has
 * both. As two classes, all pictures of one would be wrong.
 */
function mustBeUnlike(
  names: readonly string[],
  where: ReadonlyMap<string, readonly Folder[]>,
  parts: readonly [DataPart, Folder][],
): void {
  const seen = new Map<string, string>();
  for (const name of names) {
    const isNumber = /^\d+$/.test(name);
    const like = isNumber ? String(BigInt(name)) : name.toLowerCase().trim();
    const other = seen.get(like);
    seen.set(like, name);
    if (other === undefined) continue;
    const [one, two] = [where.get(other)!, where.get(name)!];
    const areApart = !parts.some(([, { folders }]) =>
      [one, two].every((own) => own.some((folder) => folders.includes(folder))),
    );
    if (!isNumber && !areApart) continue;
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `the folders ${one[0]!.path} and ${two[0]!.path} ${isNumber ? 'are the same number' : 'differ only in case or spaces'}; rename one, or, if they are two classes, list them: { classes: ${listOf(names)} }`,
    );
  }
}

function mustBeAmong(
  given: readonly string[],
  names: readonly string[],
  where: ReadonlyMap<string, readonly Folder[]>,
): void {
  const known = given.map((name) => name.normalize());
  const unknown = names.find((name) => !known.includes(name));
  if (unknown === undefined) return;
  const near = nearest(unknown, given);
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `${where.get(unknown)![0]!.path}: the list of classes has no '${unknown}'${near ? `; did you mean '${near}'?` : '.'} It has ${someOf(given)}; add the name to classes, or move the folder elsewhere`,
  );
}

/** What is to be said of classes that a part lacks: training cannot learn what it never sees. */
function missingClasses(
  classes: readonly string[],
  parts: readonly { readonly name: DataPart; readonly files: readonly LabelledFile[] }[],
): string[] {
  return parts.flatMap(({ name, files }) => {
    const has = new Set(files.map(({ label }) => label));
    const missing = classes.filter((_, label) => !has.has(label));
    if (missing.length === 0) return [];
    const what = missing.length === 1 ? 'class' : 'classes';
    return [`the ${name} part has no picture of the ${what} ${someOf(missing)}`];
  });
}

// Layouts.

/** Parts by the names of the folders: `train/CLASS`, `test/CLASS`. Null: the folders are classes. */
function partsOf(root: Folder, given: readonly string[] | undefined): [DataPart, Folder][] | null {
  // With a list of classes, the folders are what it names.
  if (
    given?.some((name) =>
      root.folders.some((folder) => folder.name.normalize() === name.normalize()),
    )
  ) {
    return null;
  }
  const found: [DataPart, Folder][] = [];
  for (const folder of root.folders) {
    const part = CONVENTIONAL[folder.name.toLowerCase()];
    if (part !== undefined && holdsClasses(folder)) found.push([part, folder]);
  }
  const isTwice = found.some(([part], i) => found.findIndex(([other]) => other === part) < i);
  if (
    found.length === root.folders.length &&
    !isTwice &&
    found.some(([part]) => part === 'train')
  ) {
    return DATA_PARTS.flatMap((name) => found.filter(([part]) => part === name));
  }
  return null;
}

/** Folders with pictures, and no picture beside them. */
const holdsClasses = ({ pictures, folders }: Folder): boolean =>
  pictures.length === 0 && folders.some((folder) => allPictures(folder).length > 0);

/** A part by a word within a folder's name: `training_set`, `seg_test`. */
function partIn(name: string): DataPart | undefined {
  for (const word of name.toLowerCase().split(/[^a-z]+/)) {
    const part = CONVENTIONAL[word];
    if (part !== undefined) return part;
  }
  return undefined;
}

/** @throws DownpourError DP_DATA_MISSING, DP_DATA_CORRUPT where the folders in it are no classes */
function mustHoldClasses(folder: Folder, given: readonly string[] | undefined): void {
  if (folder.folders.length === 0) throw tooFew(folder);
  if (given) return;
  const outer = folder.folders.filter(holdsClasses);
  const parts = folder.folders.filter(({ name }) => partIn(name) !== undefined);
  const isSplit = parts.some(({ name }) => partIn(name) === 'train') && parts.length > 1;
  if (isSplit) throw isOfParts(folder, parts);
  // The same folders in several: what is the class, the outer one or the inner one?
  const seen = new Map<string, string>();
  const twice: string[] = [];
  for (const { name, folders } of outer) {
    for (const inner of folders) {
      if (allPictures(inner).length === 0) continue;
      if (seen.has(inner.name)) twice.push(inner.name);
      else seen.set(inner.name, name);
    }
  }
  const names = [...new Set(twice)];
  if (names.length < 2) return;
  throw unclear(
    folder,
    `${someOf(outer.map(({ name }) => `'${name}'`))} have folders with the same names (${someOf(names)}), so either level can be the classes. If the outer folders are the classes, list them: { classes: ${listOf(folder.folders.map(({ name }) => name))} }. If the inner folders are the classes, move all pictures of a class into one folder, or read parts with loadImageFolder({ train: '…', test: '…' })`,
  );
}

function isOfParts(folder: Folder, parts: readonly Folder[]): DownpourError {
  const call = parts.flatMap((part) => {
    let inner = part;
    while (inner.folders.length === 1 && holdsClasses(inner.folders[0]!)) inner = inner.folders[0]!;
    return holdsClasses(inner) ? [`${partIn(part.name)}: ${JSON.stringify(inner.path)}`] : [];
  });
  const others = folder.folders.filter((each) => !parts.includes(each));
  const flat = parts.filter((part) => part.pictures.length > 0);
  const reasons = [
    `${someOf(parts.map(({ name }) => `'${name}'`))} have the names of parts, not of classes`,
    ...(flat.length > 0
      ? [
          `${someOf(flat.map(({ name }) => `'${name}'`))} has pictures of its own, but a folder for each class is needed`,
        ]
      : []),
    ...(others.length > 0
      ? [`beside them there is ${someOf(others.map(({ name }) => `'${name}'`))}`]
      : []),
  ];
  const todo =
    call.length > 0
      ? `Name the parts: loadImageFolder({ ${call.join(', ')} })`
      : `If they are classes, list them: { classes: ${listOf(folder.folders.map(({ name }) => name))} }`;
  return unclear(folder, `${reasons.join('; ')}. ${todo}`);
}

/** As code; of long lists the beginning. */
function listOf(names: readonly string[]): string {
  const shown = names.slice(0, 12).map((name) => JSON.stringify(name));
  return `[${shown.join(', ')}${names.length > shown.length ? ', …' : ''}]`;
}

const unclear = ({ path }: Folder, what: string): DownpourError =>
  new DownpourError('DP_DATA_CORRUPT', `${path}: ${what}`);

/** Why a folder has fewer than two classes, as far as it can be seen. */
function tooFew(folder: Folder): DownpourError {
  const { path, pictures, folders } = folder;
  const only = folders[0];
  const has =
    only === undefined
      ? pictures.length > 0
        ? `it has ${pictures.length} pictures and no folder; put the pictures of each class into a folder of its own`
        : 'it has no folder and no picture'
      : only.folders.length > 1 && only.pictures.length === 0
        ? `it has one folder, '${only.name}', which has ${only.folders.length} folders; did you mean ${only.path}?`
        : `it has one folder, '${only.name}': with one class there is nothing to learn`;
  return unreadable(path, new Error(`${has}; at least 2 folders are needed, one for each class`));
}

async function mustDiffer(source: ImageParts): Promise<void> {
  const seen = new Map<string, DataPart>();
  for (const name of DATA_PARTS) {
    const folder = source[name];
    if (folder === undefined) continue;
    const real = await realpath(folder).catch((error) => {
      throw unreadable(folder, error);
    });
    const other = seen.get(real);
    if (other !== undefined) {
      throw new DownpourError(
        'DP_EXPERIMENT_INVALID',
        `loadImageFolder: ${other} and ${name} are the same folder, ${folder}: the model would be measured on its training examples; give each part its own folder`,
      );
    }
    seen.set(real, name);
  }
}
