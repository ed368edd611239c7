import { readFile, readlink } from 'node:fs/promises';
import { hostname } from 'node:os';
import { errnoOf } from '../../files/atomic-file.ts';

// Who has left a file: a process is known by its number, by when it started, and by where that number has a meaning.

export interface ProcessIdentity {
  readonly pid: number;
  /** Where `pid` has a meaning: boot and process namespace; empty if unknown. */
  readonly place: string;
  /** Tells a process from a later one with the same number; empty if unknown. */
  readonly processStart: string;
}

export async function thisProcess(): Promise<ProcessIdentity & { readonly host: string }> {
  const [boot, namespace] = await Promise.all([
    readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => ''),
    readlink('/proc/self/ns/pid').catch(() => ''),
  ]);
  const onLinux = boot !== '' && namespace !== '' ? `${boot.trim()} ${namespace}` : '';
  const host = hostname();
  return {
    pid: process.pid,
    host,
    place: process.platform === 'linux' ? onLinux : host,
    processStart: await startOf(process.pid),
  };
}

/** Whether a process is known to have ended. False: it lives, or nobody can tell from here. */
export async function isGone(known: ProcessIdentity): Promise<boolean> {
  const { place } = await thisProcess();
  if (place === '' || place !== known.place) return false;
  try {
    process.kill(known.pid, 0);
  } catch (error) {
    return errnoOf(error) === 'ESRCH';
  }
  const start = await startOf(known.pid);
  return start !== '' && start !== known.processStart;
}

/** When a process started, in ticks since boot; 'ended' for one that nobody has waited for yet. */
async function startOf(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // The name, in parentheses, may hold anything; state and start follow it (proc(5)).
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z' || fields[0] === 'X') return 'ended';
  return fields[19] ?? '';
}
