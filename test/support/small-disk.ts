import { spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A file system of its own, of a few megabytes, which others can fill up. Linux and root only. */
export interface SmallDisk {
  readonly path: string;
  /** Takes all the space that is left. @returns gives it back. */
  fill(): () => void;
  remove(): void;
}

/** @throws where nothing can be mounted. */
export function mountSmallDisk(bytes: number): SmallDisk {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-disk-'));
  const path = join(folder, 'disk');
  mkdirSync(path);
  try {
    command('mount', '-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', path);
  } catch (error) {
    rmSync(folder, { recursive: true });
    throw error;
  }
  return {
    path,
    fill() {
      const others = join(path, 'of-somebody-else');
      const file = openSync(others, 'w');
      for (const piece of [65_536, 4_096, 1]) {
        try {
          for (;;) writeSync(file, new Uint8Array(piece));
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
        }
      }
      closeSync(file);
      return () => rmSync(others, { force: true });
    },
    remove() {
      // Now or when the last process that has a file of it is gone.
      command('umount', '-l', path);
      rmSync(folder, { recursive: true });
    },
  };
}

/** Why nothing can be mounted here, or an empty text. In CI that is a failure, not a skip. */
export function smallDiskMissing(): string {
  try {
    mountSmallDisk(65_536).remove();
    return '';
  } catch (error) {
    const why = `: no file systems can be mounted here (${(error as Error).message.trim()})`;
    if (process.env.CI) throw new Error(`CI needs root${why}`);
    return why;
  }
}

function command(...[name, ...args]: [string, ...string[]]): void {
  const { status, stderr, error } = spawnSync(name, args, { encoding: 'utf8', timeout: 20_000 });
  if (status !== 0) throw new Error(`${name} ${args.join(' ')}: ${stderr || error}`);
}
