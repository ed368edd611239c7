import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** A network namespace of a test's own, in which one machine has many addresses and all ports. */
export interface Addresses {
  /** What starts a program inside, before its name. */
  readonly inside: readonly string[];
  remove(): void;
}

/** The program of iproute2. @throws with what it said */
export function ip(...args: string[]): void {
  const { status, stderr, error } = spawnSync('ip', args, { encoding: 'utf8', timeout: 20_000 });
  if (status !== 0) throw new Error(`ip ${args.join(' ')}: ${stderr ?? error}`);
}

/** Why there can be no namespaces here, or an empty text. In CI a missing one is a failure, not a skip. */
export function namespacesMissing(): string {
  const name = `dp${process.pid}-try`;
  let why = '';
  try {
    ip('netns', 'add', name);
    ip('netns', 'delete', name);
  } catch (error) {
    why = `: no network namespaces here (${(error as Error).message.trim()})`;
  }
  if (why !== '' && process.env.CI) throw new Error(`CI needs root and iproute2${why}`);
  return why;
}

/** @param hosts addresses, such as those of RFC 5737, and the names that stand for them inside. */
export function createAddresses(hosts: Readonly<Record<string, readonly string[]>>): Addresses {
  const name = `dp${process.pid}-docs`;
  ip('netns', 'add', name);
  // `ip netns exec` mounts this over /etc/hosts.
  const folder = join('/etc/netns', name);
  mkdirSync(folder, { recursive: true });
  const lines = Object.entries(hosts).map(([address, names]) => `${address} ${names.join(' ')}\n`);
  writeFileSync(join(folder, 'hosts'), `127.0.0.1 localhost\n${lines.join('')}`);
  ip('-n', name, 'link', 'set', 'lo', 'up');
  for (const address of Object.keys(hosts)) {
    ip('-n', name, 'address', 'add', `${address}/32`, 'dev', 'lo');
  }
  return {
    inside: ['ip', 'netns', 'exec', name],
    remove() {
      spawnSync('ip', ['netns', 'delete', name], { timeout: 20_000 });
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
