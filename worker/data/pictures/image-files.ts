import type { Dirent, Stats } from 'node:fs';
import { open, readdir, realpath, stat } from 'node:fs/promises';
import { extname, join, relative, sep } from 'node:path';
import { corrupt, unreadable } from '../files.ts';
import { beginsAsPicture, CONVERT, OTHER_PICTURE_ENDINGS, PICTURE_ENDINGS } from './pictures.ts';

/**
 * The files of a folder of pictures, with all folders in it. Every file is a picture, or is counted
 * and named as passed over, or is refused.
 */

export interface Folder {
  readonly name: string;
  readonly path: string;
  /** Paths of the pictures right in it, by name. */
  readonly pictures: readonly string[];
  readonly folders: readonly Folder[];
}

/** What one and several of them are called. */
const KINDS = {
  system: ['hidden or system file', 'hidden or system files'],
  other: ['file that is not a picture', 'files that are not pictures'],
  misnamed: [
    'picture without the file extension of a picture; rename it if it is to be read',
    'pictures without the file extension of a picture; rename them if they are to be read',
  ],
  beside: ['picture outside the class folders', 'pictures outside the class folders'],
  circle: ['link to a folder that contains it', 'links to a folder that contains them'],
  device: ['device or socket', 'devices or sockets'],
} as const;
type PassedOverKind = keyof typeof KINDS;

/** What is passed over, by kind. */
export class PassedOver {
  private readonly paths = new Map<PassedOverKind, string[]>();

  add(kind: PassedOverKind, path: string): void {
    const paths = this.paths.get(kind);
    if (paths) paths.push(path);
    else this.paths.set(kind, [path]);
  }

  /** `skipped: 2 hidden or system files (…)`; null: nothing was. @param root names are told from there */
  text(root: string): string | null {
    const parts = [...this.paths].map(([kind, paths]) => {
      const names = paths.map((path) => relative(root, path) || path);
      return `${paths.length} ${KINDS[kind][paths.length === 1 ? 0 : 1]} (${someOf(names)})`;
    });
    return parts.length === 0 ? null : `skipped: ${parts.join(', ')}`;
  }
}

const NAMES_MAX = 5;

/** The first few, and that there are more. */
export function someOf(names: readonly string[]): string {
  // A name with a line break would look like two.
  const isPlain = (name: string) => !/\p{Cc}/u.test(name);
  const shown = names
    .slice(0, NAMES_MAX)
    .map((name) => (isPlain(name) ? name : JSON.stringify(name)))
    .join(', ');
  return names.length > NAMES_MAX ? `${shown}, … ${names.length} in all` : shown;
}

/** Files and folders that systems and their programs leave behind. */
const SYSTEM = /^(\..*|thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|__macosx|@eadir|lost\+found)$/i;

/**
 * @param passed takes what is passed over
 * @throws DownpourError DP_DATA_MISSING: a folder or link that cannot be read; DP_DATA_CORRUPT: files
 * that are pictures by their ending, of a kind that is not read.
 */
export async function readFolder(path: string, passed: PassedOver): Promise<Folder> {
  const refused: string[] = [];
  const real = await realpath(path).catch((error) => {
    throw unreadable(path, error);
  });
  if (!(await stat(real)).isDirectory()) {
    throw unreadable(
      path,
      new Error('it is a file; a folder with a folder for each class is needed'),
    );
  }
  const folder = await read(path, [real], passed, refused);
  if (refused.length > 0) {
    const names = refused.map((file) => relative(path, file));
    const one = refused.length === 1;
    throw corrupt(
      path,
      `${one ? 'a picture is' : `${refused.length} pictures are`} in a format that is not read: ${someOf(names)}. These are read: ${PICTURE_ENDINGS.join(', ')}. To fix this, ${CONVERT}, or move ${one ? 'it' : 'them'} elsewhere`,
    );
  }
  return folder;
}

/** @param route true paths of the folders that lead here, itself the last: links may not lead back to one */
async function read(
  path: string,
  route: readonly string[],
  passed: PassedOver,
  refused: string[],
): Promise<Folder> {
  const entries = await readdir(path, { withFileTypes: true }).catch((error) => {
    throw unreadable(path, error);
  });
  entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  const pictures: string[] = [];
  const folders: Folder[] = [];
  for (const entry of entries) {
    const own = join(path, entry.name);
    if (SYSTEM.test(entry.name)) {
      passed.add('system', own);
      continue;
    }
    const kind = await kindOfEntry(entry, own);
    if (kind.isDirectory()) {
      const real = entry.isSymbolicLink() ? await realpath(own) : join(route.at(-1)!, entry.name);
      if (route.some((above) => above === real || above.startsWith(real + sep))) {
        passed.add('circle', own);
      } else {
        folders.push(await read(own, [...route, real], passed, refused));
      }
    } else if (!kind.isFile()) {
      passed.add('device', own);
    } else {
      const role = await roleOf(own);
      if (role === 'picture') pictures.push(own);
      else if (role === 'refused') refused.push(own);
      else passed.add(role, own);
    }
  }
  return { name: path.slice(path.lastIndexOf(sep) + 1), path, pictures, folders };
}

async function kindOfEntry(entry: Dirent, path: string): Promise<Dirent | Stats> {
  if (!entry.isSymbolicLink()) return entry;
  return stat(path).catch((error) => {
    throw unreadable(`${path}, a link,`, error);
  });
}

/** A picture, one that is refused, or why it is passed over. */
async function roleOf(path: string): Promise<'picture' | 'refused' | 'misnamed' | 'other'> {
  const ending = extname(path).slice(1).toLowerCase();
  if (PICTURE_ENDINGS.includes(ending)) return 'picture';
  if (OTHER_PICTURE_ENDINGS.includes(ending)) return 'refused';
  if (!beginsAsPicture(await firstBytes(path))) return 'other';
  return ending === '' ? 'picture' : 'misnamed';
}

async function firstBytes(path: string): Promise<Buffer> {
  try {
    const file = await open(path);
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(256), 0, 256, 0);
      return buffer.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw unreadable(path, error);
  }
}

/** All pictures of a folder and of those in it, in the order of the tree. */
export function allPictures({ pictures, folders }: Folder): string[] {
  return [...pictures, ...folders.flatMap(allPictures)];
}
