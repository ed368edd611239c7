import { decode, decodeLongPath, decodePax } from 'tar-stream/headers.js';
import { errorText } from '../../../shared/errors.ts';
import { ByteWindow, WINDOW_BYTES } from '../byte-window.ts';
import { HEAD_BYTES, refuseOtherKind } from '../file-kinds.ts';
import { corrupt } from '../files.ts';
import type { PositionedFile } from '../positioned-file.ts';

/** The members of a tar archive: names, and where their bytes are. Headers are read by position; most bytes of members are not. */

export interface TarMember {
  readonly name: string;
  /** The byte of the archive that is its first one: a multiple of 512. */
  readonly start: number;
  readonly size: number;
  /** `file`, `directory`, `link` and the like; null: of a kind that is not known. */
  readonly type: string | null;
}

export const TAR_BLOCK_BYTES = 512;
/** Names and other facts that do not fit in a header. */
const EXTENSION_BYTES_MAX = 2 ** 20;
const EXTENSIONS = ['pax-header', 'pax-global-header', 'gnu-long-path', 'gnu-long-link-path'];

/**
 * All members in their order; archives of POSIX (ustar and pax), GNU and version 7.
 * @throws DownpourError DP_DATA_CORRUPT: it is no tar archive, cut off or damaged, or another archive follows it.
 */
export async function* tarMembers(file: PositionedFile): AsyncGenerator<TarMember, void> {
  const { path, size } = file;
  if (size === 0) throw corrupt(path, 'it is empty: it has 0 bytes');
  const bytes = new ByteWindow(file);
  let pax: Readonly<Record<string, string>> = {};
  let longName: string | null = null;
  let last: string | null = null;
  for (let at = 0; ; ) {
    const behind = last === null ? '' : `, behind member '${last}'`;
    if (at + TAR_BLOCK_BYTES > size) throw endless(path, at, behind);
    const block = await bytes.at(at, TAR_BLOCK_BYTES);
    const header = await headerOf(file, block, at, behind);
    at += TAR_BLOCK_BYTES;
    if (header === null) {
      await mustBeZero(file, bytes, at);
      return;
    }
    const length = pax.size === undefined ? header.size : Number(pax.size);
    const name = pax.path ?? longName ?? header.name;
    if (!(Number.isSafeInteger(length) && length >= 0)) {
      throw corrupt(path, `member '${name}' is said to have ${length} bytes: the file is damaged`);
    }
    if (at + length > size) {
      throw corrupt(
        path,
        `member '${name}' is at bytes ${at} to ${at + length}, but the file has ${size}: it is truncated; fetch it again`,
      );
    }
    if (header.type !== null && EXTENSIONS.includes(header.type)) {
      if (length > EXTENSION_BYTES_MAX) {
        throw corrupt(
          path,
          `the header at byte ${at - TAR_BLOCK_BYTES} has an extension of ${length} bytes; allowed: ${EXTENSION_BYTES_MAX}. The file is damaged`,
        );
      }
      const own = await bytes.at(at, length);
      // A global header is about the archive (git puts a commit there); names and sizes are never in it.
      if (header.type === 'pax-header') pax = decodePax(own);
      else if (header.type === 'gnu-long-path') longName = decodeLongPath(own, 'utf8');
    } else {
      // A sparse file is stored in pieces, which are no bytes of the file.
      const isSparse = Object.keys(pax).some((key) => key.startsWith('GNU.sparse'));
      yield { name, start: at, size: length, type: isSparse ? null : header.type };
      last = name;
      pax = {};
      longName = null;
    }
    at += TAR_BLOCK_BYTES * Math.ceil(length / TAR_BLOCK_BYTES);
  }
}

async function headerOf(file: PositionedFile, block: Uint8Array, at: number, behind: string) {
  try {
    return decode(block, 'utf8', true);
  } catch (error) {
    if (at === 0) {
      refuseOtherKind(await file.head(HEAD_BYTES), file.path, 'a tar archive');
      throw corrupt(file.path, 'it is not a tar archive: its first 512 bytes are no header', error);
    }
    throw corrupt(
      file.path,
      `byte ${at}${behind} is no header (${errorText(error)}): the file is damaged; fetch it again`,
      error,
    );
  }
}

const endless = (path: string, at: number, behind: string) =>
  corrupt(
    path,
    `it ends at byte ${at}${behind}, without the empty blocks that end a tar archive: it is truncated; fetch it again`,
  );

/** @throws DownpourError DP_DATA_CORRUPT: another archive follows, which would be passed over. */
async function mustBeZero(file: PositionedFile, bytes: ByteWindow, from: number): Promise<void> {
  for (let at = from; at < file.size; ) {
    const length = Math.min(WINDOW_BYTES, file.size - at);
    const piece = await bytes.at(at, length);
    const other = piece.findIndex((byte) => byte !== 0);
    if (other >= 0) {
      throw corrupt(
        file.path,
        `something follows the end of the archive, at byte ${at + other}: archives that were joined are not read. Give them as several shards, or join them with tar --concatenate`,
      );
    }
    at += length;
  }
}
