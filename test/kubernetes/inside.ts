import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { attempt } from '../containers/shell.ts';
import { ROOT } from '../support/deployment.ts';

// A cluster changes much of its machine: networks, rules, mounts, processes. Here these are a cluster's own, and end with
// it; what cannot be its own is put back.

const TESTS_MS = 2_400_000;

/** Runs the test where network, processes, mounts, /run and /var are its own, and end with it. @returns its exit code */
export async function runInside(folder: string): Promise<number | null> {
  const own = ['/run', '/var/lib', '/var/log'];
  const mounts = own.map((path) => {
    const ours = join(folder, path.replaceAll('/', '-').slice(1));
    mkdirSync(ours);
    return `mount --bind ${ours} ${path}`;
  });
  const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs');
  const test = [
    process.execPath,
    vitest,
    'run',
    '--project',
    'kubernetes',
    '--bail=1',
    '--reporter=verbose',
  ];
  const { code } = await attempt(
    [
      // Whatever ends us ends the first process in there, and the kernel all the others.
      ...['setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', '--net', '--pid', '--fork'],
      ...['--kill-child', '--mount-proc', 'bash', '-c', `${mounts.join(' && ')} && "$@"; exit $?`],
      ...['kubernetes', ...test],
    ],
    {
      cwd: ROOT,
      env: { ...process.env, DOWNPOUR_KUBERNETES: folder },
      timeoutMs: TESTS_MS,
      show: true,
    },
  );
  return code;
}

/** What the kubelet changes of the whole machine. */
const SETTINGS = [
  ...['vm/overcommit_memory', 'vm/panic_on_oom', 'kernel/panic', 'kernel/panic_on_oops'],
  ...['kernel/keys/root_maxkeys', 'kernel/keys/root_maxbytes'],
].map((name) => join('/proc/sys', name));
const CGROUPS = '/sys/fs/cgroup';
const KUBELET_CGROUP = 'kubepods';
const CGROUP_ATTEMPTS = 200;

/**
 * @returns what puts the machine back as it is now.
 * @throws Error where a kubelet is at work.
 */
export async function keepHost(): Promise<() => Promise<void>> {
  const values = SETTINGS.map((file) => readFileSync(file, 'utf8'));
  const cgroups = [CGROUPS, ...readdirSync(CGROUPS).map((name) => join(CGROUPS, name))].map(
    (folder) => join(folder, KUBELET_CGROUP),
  );
  for (const folder of cgroups) {
    // A run that was killed may have left one; one with processes stays.
    await removeCgroup(folder, 1).catch(() => {
      throw new Error(`a kubelet runs on this machine, ${folder} has its pods: end it first`);
    });
  }
  return async () => {
    for (const [i, file] of SETTINGS.entries()) {
      if (readFileSync(file, 'utf8') !== values[i]) writeFileSync(file, values[i]!);
    }
    for (const folder of cgroups) await removeCgroup(folder);
  };
}

/** A cgroup goes when it is empty, from the innermost; the kernel may still be ending its processes. */
async function removeCgroup(folder: string, attemptsMax = CGROUP_ATTEMPTS): Promise<void> {
  if (!existsSync(folder)) return;
  for (const each of readdirSync(folder, { withFileTypes: true })) {
    if (each.isDirectory()) await removeCgroup(join(folder, each.name), attemptsMax);
  }
  for (let attempts = 1; ; attempts++) {
    try {
      rmdirSync(folder);
      return;
    } catch (error) {
      if (attempts >= attemptsMax) throw error;
      await wait(100);
    }
  }
}
