import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { IS_BUILT, ROOT } from '../../shared/own-files.ts';
import { VERSION } from '../../shared/version.ts';

/**
 * The code that a server shares with its shards and its standby. They apply the same pushes, each by itself, so a difference of one
 * line can give them other parameters, and nothing would tell. A number of a release is the same for all commits between two.
 */

/** In the built package, made by `scripts/build.ts`. */
export const CODE_FILE = 'dist/code.txt';

/** All that they run on the way from a message to a parameter. */
const FOLDERS = ['server', 'shared', 'wire', 'files'];

let known: string | null = null;

/** The release and twelve digits of the code, such as `0.1.0+1f8a02c39b7e`: the same in a checkout and in the package that is built of it. */
export function codeVersion(): string {
  known ??= `${VERSION}+${IS_BUILT ? readFileSync(new URL(CODE_FILE, ROOT), 'utf8').trim() : codeHash(ROOT)}`;
  return known;
}

/** @param root folder of a checkout, with a slash at its end. */
export function codeHash(root: URL): string {
  const hash = createHash('sha256');
  for (const folder of FOLDERS) {
    const files = readdirSync(new URL(`${folder}/`, root), { recursive: true, encoding: 'utf8' });
    const names = files
      .map((file) => file.replaceAll('\\', '/'))
      .filter((file) => /\.[jt]s$/.test(file));
    for (const name of names.sort()) {
      // A checkout of Windows may have other ends of lines.
      const text = readFileSync(new URL(`${folder}/${name}`, root), 'utf8').replaceAll(
        '\r\n',
        '\n',
      );
      hash.update(`${folder}/${name}\n${text.length}\n${text}`);
    }
  }
  return hash.digest('hex').slice(0, 12);
}

/** What is wrong with the other side, which sent this version; null: nothing. Short enough for the reason of a close. */
export function codeProblem(version: string, who: string): string | null {
  if (version === codeVersion()) return null;
  return `${who} runs ${version}, this side ${codeVersion()}: run the same release or commit on both`;
}
