import { join } from 'node:path';
import Type from 'typebox';
import { writeSealed } from '../../files/atomic-file.ts';
import { checkOf, readSealed } from '../../files/records.ts';
import { errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import { isGone } from './alive.ts';
import { newestToken, OWNER_FOLDER, readHolder } from './folder-lock.ts';

/** Where the server of a state folder listens: a file beside its lock, so that commands in the same folder find it. */

const FILE = 'address.json';

const AddressSchema = Type.Object({
  /** The token of the owner that listens there. */
  token: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
  /** Null: it is the app of a program, and listens where that program says. */
  url: Type.Union([Type.String({ pattern: '^https?://', maxLength: 500 }), Type.Null()]),
  /** The server belongs to a command such as `train`, and ends with it. */
  endsWithCommand: Type.Boolean(),
});
export type OwnerAddress = Type.Static<typeof AddressSchema>;
const checkAddress = checkOf<OwnerAddress>(AddressSchema);

/** A disk that does not take it is told: the server works, and commands have to be told its address. */
export async function noteAddress(state: string, address: OwnerAddress, log: Log): Promise<void> {
  try {
    await writeSealed(join(state, OWNER_FOLDER), FILE, address);
  } catch (error) {
    if (address.url === null) return;
    log(
      `commands in ${state} do not find this server by themselves, name it by --server ${address.url}: ${errorText(error)}`,
      { level: 'warn', code: errorCode(error) },
    );
  }
}

/**
 * Who owns a state folder now. `free`: nobody, or a process of this machine that has ended. `held` without an address: its
 * server does not listen yet, or is of an older release.
 */
export async function ownerOf(state: string): Promise<
  | { readonly kind: 'free' }
  | {
      readonly kind: 'held';
      readonly address: OwnerAddress | null;
      readonly by: string;
    }
> {
  const folder = join(state, OWNER_FOLDER);
  const token = await newestToken(folder);
  if (token === 0) return { kind: 'free' };
  const holder = await readHolder(folder, token);
  if (!holder || holder.released || (await isGone(holder))) return { kind: 'free' };
  const path = join(folder, FILE);
  // What is damaged says nothing.
  const value = await readSealed(path, LIMITS.recordBytesMax).catch(() => undefined);
  let address: OwnerAddress | null = null;
  try {
    if (value !== undefined) address = checkAddress(path, value);
  } catch {
    address = null;
  }
  const by = `process ${holder.pid} on ${holder.host}`;
  return { kind: 'held', address: address?.token === token ? address : null, by };
}
