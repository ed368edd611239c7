import { createRequire, syncBuiltinESMExports } from 'node:module';
import type { Random } from '../../shared/random.ts';
import type { Enter, VirtualWorld } from './virtual-network.ts';

/**
 * The disk of a simulated server, in memory: the server's own code writes and reads it by the functions of `node:fs`, which
 * lead here for paths below `ROOT` while a cluster is simulated. It fills up. What was not forced to it is lost when the
 * machine dies. Files are cut, flipped and removed. Only what is forced to it takes time: the rest is done at once.
 */

const ROOT = '/simulated';

/** What is in a file. Bytes are never written over: what is known of them stays so. */
export interface Inode {
  bytes: Uint8Array;
  /** What the machine would find after its death; null: nothing was forced to the disk. */
  synced: Uint8Array | null;
  /** A fault has changed it. */
  spoilt: boolean;
  /** The machine has lost some of it. */
  isCut: boolean;
}

const NOTHING = new Uint8Array();

/** As a failed system call tells it. */
function failed(code: string, syscall: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${syscall} '${path}'`), { code, syscall, path });
}

const parentOf = (path: string) => path.slice(0, path.lastIndexOf('/'));
const nameOf = (path: string) => path.slice(path.lastIndexOf('/') + 1);
const isWithin = (path: string, folder: string) => path.startsWith(`${folder}/`);

/** Names and what they lead to; a folder leads to null. */
type Tree = Map<string, Inode | null>;
type Change = (tree: Tree) => void;

export class SimulatedDisk {
  readonly #world: VirtualWorld;
  /** Has a stream of its own. */
  readonly #draw: Random;
  #tree: Tree = new Map([['', null]]);
  /** What the machine would find after its death, but for the changes since. */
  #durable: Tree = new Map([['', null]]);
  #changes: Change[] = [];
  /** Bytes that there is room for. */
  #left = Number.POSITIVE_INFINITY;
  /** Files were found to have no room so often. */
  refusals = 0;
  /** Told of each file that is made. */
  made: (path: string) => void = () => {};

  constructor(world: VirtualWorld, draw: Random) {
    this.#world = world;
    this.#draw = draw;
  }

  // What a server does.

  /** A process that has the disk. @param enter of it. @returns the path where it finds it, and what ends it. */
  mount(enter: Enter): { readonly path: string; end(): void } {
    const path = `${ROOT}/${++mounted}`;
    const process: Process = { disk: this, enter, path, alive: true, waiting: new Set() };
    processes.set(path, process);
    return {
      path,
      end() {
        process.alive = false;
        processes.delete(path);
        for (const reject of process.waiting) reject();
      },
    };
  }

  find(path: string, syscall: string): Inode {
    const found = this.#tree.get(path);
    if (found === undefined) throw failed('ENOENT', syscall, path);
    if (found === null) throw failed('EISDIR', syscall, path);
    return found;
  }

  isFolder(path: string): boolean {
    return this.#tree.get(path) === null;
  }

  has(path: string): boolean {
    return this.#tree.has(path);
  }

  #change(change: Change): void {
    change(this.#tree);
    this.#changes.push(change);
  }

  make(path: string): Inode {
    if (!this.isFolder(parentOf(path))) throw failed('ENOENT', 'open', path);
    if (this.has(path)) throw failed('EEXIST', 'open', path);
    if (this.#left === 0) throw this.#full('open', path);
    const inode: Inode = { bytes: NOTHING, synced: null, spoilt: false, isCut: false };
    this.#change((tree) => tree.set(path, inode));
    this.made(path);
    return inode;
  }

  /** @returns the first folder that was made; undefined: all were there. */
  makeFolders(path: string): string | undefined {
    if (this.has(path)) return undefined;
    if (this.#left === 0) throw this.#full('mkdir', path);
    const first = this.makeFolders(parentOf(path)) ?? path;
    this.#change((tree) => tree.set(path, null));
    return first;
  }

  #full(syscall: string, path: string): Error {
    this.refusals++;
    return failed('ENOSPC', syscall, path);
  }

  /** @returns bytes that there was room for. */
  append(inode: Inode, bytes: Uint8Array, path: string): number {
    const count = Math.min(bytes.length, this.#left);
    if (count === 0 && bytes.length > 0) throw this.#full('write', path);
    this.#left -= count;
    const all = new Uint8Array(inode.bytes.length + count);
    all.set(inode.bytes);
    all.set(bytes.subarray(0, count), inode.bytes.length);
    inode.bytes = all;
    return count;
  }

  rename(from: string, to: string): void {
    if (!this.has(from)) throw failed('ENOENT', 'rename', from);
    if (!this.isFolder(parentOf(to))) throw failed('ENOENT', 'rename', to);
    this.#change((tree) => {
      for (const [path, inode] of [...tree]) {
        if (path !== from && !isWithin(path, from)) continue;
        tree.delete(path);
        tree.set(to + path.slice(from.length), inode);
      }
    });
  }

  remove(path: string): void {
    const gone = [...this.#tree].filter(([each]) => each === path || isWithin(each, path));
    for (const [, inode] of gone) this.#left += inode?.bytes.length ?? 0;
    this.#change((tree) => {
      for (const [each] of gone) tree.delete(each);
    });
  }

  /** Names in a folder. Their order is that of nothing. */
  names(path: string, syscall = 'scandir'): string[] {
    if (!this.has(path)) throw failed('ENOENT', syscall, path);
    if (!this.isFolder(path)) throw failed('ENOTDIR', syscall, path);
    return [...this.#tree.keys()]
      .filter((each) => each !== '' && parentOf(each) === path)
      .map(nameOf);
  }

  /** Takes a while. Then what a file holds, or all that has happened to names, outlives the machine. */
  async sync(process: Process, inode: Inode | null, path: string): Promise<void> {
    const bytes = inode?.bytes ?? null;
    const changes = this.#changes.length;
    await new Promise<void>((resolve, reject) => {
      const end = () => reject(failed('EIO', 'fsync', path));
      process.waiting.add(end);
      this.#world.at(this.#world.delayMs(8), () =>
        process.enter(() => {
          process.waiting.delete(end);
          resolve();
        }),
      );
    });
    if (inode) inode.synced = bytes;
    else for (const change of this.#changes.splice(0, changes)) change(this.#durable);
  }

  /** Whether a name leads to this file, and the file is what the server has written. */
  isAsWritten(path: string, inode: Inode): boolean {
    return this.#tree.get(path) === inode && !inode.spoilt && !inode.isCut;
  }

  // Faults.

  /** There is room for so many bytes more, until `clear`. */
  fill(left: number): void {
    this.#left = left;
  }

  clear(): void {
    this.#left = Number.POSITIVE_INFINITY;
  }

  /** The machine dies: of what was not forced to the disk some is lost. */
  loseUnsynced(): void {
    const kept = this.#draw.below(this.#changes.length + 1);
    for (const change of this.#changes.slice(0, kept)) change(this.#durable);
    this.#changes = [];
    this.#tree = new Map(this.#durable);
    for (const inode of this.#tree.values()) {
      if (!inode || inode.synced === inode.bytes) continue;
      const least = inode.synced?.length ?? 0;
      const length = least + this.#draw.below(inode.bytes.length - least + 1);
      inode.isCut = true;
      inode.bytes = inode.bytes.slice(0, length);
      inode.synced = inode.bytes;
    }
  }

  /** Paths of files, the latest ones last. */
  filesIn(folder: string): string[] {
    return [...this.#tree.keys()].filter((path) => this.#tree.get(path) && isWithin(path, folder));
  }

  /** A file is cut, has a bit flipped, or is removed by somebody. It stays so. */
  spoil(path: string): void {
    const inode = this.find(path, 'spoil');
    const { length } = inode.bytes;
    inode.spoilt = true;
    const fault = this.#draw.below(3);
    if (fault === 0 || length === 0) {
      this.#tree.delete(path);
      this.#durable.delete(path);
    } else if (fault === 1) inode.bytes = inode.bytes.slice(0, this.#draw.below(length));
    else {
      inode.bytes = inode.bytes.slice();
      inode.bytes[this.#draw.below(length)]! ^= 1 << this.#draw.below(8);
    }
    inode.synced = inode.bytes;
  }
}

/** A process that has a disk. */
interface Process {
  readonly disk: SimulatedDisk;
  readonly enter: Enter;
  readonly path: string;
  alive: boolean;
  /** Fail when it ends. */
  readonly waiting: Set<() => void>;
}

let mounted = 0;
const processes = new Map<string, Process>();

/** Whose path this is, and the path on its disk. Nothing a dead process does is done. */
function placeOf(path: unknown, syscall: string): { process: Process; at: string } | null {
  if (typeof path !== 'string' || !isWithin(path, ROOT)) return null;
  const [mount = ''] = path.slice(ROOT.length + 1).split('/');
  const process = processes.get(`${ROOT}/${mount}`);
  if (!process) throw failed('EIO', syscall, path);
  return { process, at: path.slice(process.path.length).replace(/\/+$/, '') };
}

/** A file that is open, as far as the server uses one. */
function openFile({ process, at }: { process: Process; at: string }, flags: string): object {
  const { disk } = process;
  const mustLive = (syscall: string) => {
    if (!process.alive) throw failed('EIO', syscall, at);
  };
  const isFolder = disk.isFolder(at);
  const inode = isFolder ? null : flags === 'wx' ? disk.make(at) : disk.find(at, 'open');
  let place = 0;
  return {
    async write(bytes: Uint8Array, start: number, length: number) {
      mustLive('write');
      return { bytesWritten: disk.append(inode!, bytes.subarray(start, start + length), at) };
    },
    async read(into: Uint8Array, start: number, length: number, position: number | null) {
      mustLive('read');
      const from = position ?? place;
      const got = inode!.bytes.subarray(from, from + length);
      into.set(got, start);
      if (position === null) place += got.length;
      return { bytesRead: got.length };
    },
    async stat() {
      mustLive('fstat');
      return { size: inode?.bytes.length ?? 0, isFile: () => !isFolder };
    },
    async sync() {
      mustLive('fsync');
      await disk.sync(process, inode, at);
    },
    async close() {},
  };
}

/** Writes a whole file anew, without forcing it to the disk. */
function put({ process: { disk }, at }: { process: Process; at: string }, text: string): void {
  if (disk.has(at)) disk.remove(at);
  const bytes = Buffer.from(text);
  if (disk.append(disk.make(at), bytes, at) < bytes.length) throw failed('ENOSPC', 'write', at);
}

type Place = NonNullable<ReturnType<typeof placeOf>>;
type Operation = (place: Place, ...rest: never[]) => unknown;

/** What the functions do on a simulated disk. */
const OPERATIONS: Readonly<Record<string, Operation>> = {
  open: (place, flags: string) => openFile(place, flags),
  mkdir: ({ process, at }) => {
    const made = process.disk.makeFolders(at);
    return made === undefined ? undefined : process.path + made;
  },
  readdir: ({ process: { disk }, at }, options?: { withFileTypes?: boolean }) => {
    const names = disk.names(at);
    if (!options?.withFileTypes) return names;
    return names.map((name) => {
      const isDirectory = () => disk.isFolder(`${at}/${name}`);
      return { name, isDirectory, isSymbolicLink: () => false };
    });
  },
  rename: ({ process, at }, to: string) => process.disk.rename(at, placeOf(to, 'rename')!.at),
  rm: ({ process: { disk }, at }, options?: { force?: boolean }) => {
    if (disk.has(at)) disk.remove(at);
    else if (!options?.force) throw failed('ENOENT', 'rm', at);
  },
  stat: ({ process: { disk }, at }) => {
    if (disk.isFolder(at)) return { size: 0, isFile: () => false };
    return { size: disk.find(at, 'stat').bytes.length, isFile: () => true };
  },
  readFile: ({ process: { disk }, at }) => Buffer.from(disk.find(at, 'open').bytes),
  writeFile: (place, text: string) => put(place, text),
};

const require = createRequire(import.meta.url);
const inPromises = require('node:fs/promises') as Record<string, unknown>;
const inCallers = require('node:fs') as Record<string, unknown>;

/** Leads the functions of `node:fs` to simulated disks, for paths that are there. @returns ends it. */
export function simulateDisks(): () => void {
  const before: (() => void)[] = [];
  const lead = (module: Record<string, unknown>, name: string, operation: Operation) => {
    const real = module[name] as (...all: unknown[]) => unknown;
    const isAsync = module === inPromises;
    const led = (path: unknown, ...rest: never[]) => {
      const act = () => {
        const place = placeOf(path, name);
        return place ? operation(place, ...rest) : real(path, ...rest);
      };
      return isAsync ? (async () => act())() : act();
    };
    module[name] = led;
    before.push(() => {
      module[name] = real;
    });
  };
  for (const [name, operation] of Object.entries(OPERATIONS)) lead(inPromises, name, operation);
  for (const name of ['mkdir', 'rename', 'writeFile']) {
    lead(inCallers, `${name}Sync`, OPERATIONS[name]!);
  }
  syncBuiltinESMExports();
  return () => {
    for (const restore of before) restore();
    syncBuiltinESMExports();
  };
}
