import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { whenInterrupted } from '../containers/shell.ts';
import { saveImages } from './images.ts';
import { keepHost, runInside } from './inside.ts';
import { PROGRAMS, prepare } from './programs.ts';

// `npm run kubernetes`: deploy/kubernetes on a real cluster with one node, on this machine, as root. Kubernetes is built
// from its modules, the image as `npm run containers` builds it. `-- prepare` only builds the API server, which
// test/system/kubernetes-api.test.ts asks.

/** The part of the time of CI that preparing may take. */
const PREPARE_MS = 1_200_000;

const started = performance.now();
const log = (line: string) => {
  const seconds = ((performance.now() - started) / 1000).toFixed(0).padStart(3);
  console.log(`kubernetes ${seconds} s: ${line}`);
};

async function main(words: readonly string[]): Promise<void> {
  const unknown = words.find((word) => word !== 'prepare');
  if (unknown !== undefined) throw new Error(`no '${unknown}': npm run kubernetes [-- prepare]`);
  const ends: (() => Promise<void> | void)[] = [];
  const end = async () => {
    for (const each of ends.reverse().splice(0)) await each();
  };
  whenInterrupted(() => {
    log('ending');
    return end();
  });
  try {
    if (words.includes('prepare')) return await prepare(['kube-apiserver'], log, PREPARE_MS);
    const lacking = whatIsLacking();
    if (lacking.length > 0) throw new Error(`npm run kubernetes needs ${lacking.join(', ')}`);
    await prepare(PROGRAMS, log);
    const folder = mkdtempSync(join(tmpdir(), 'downpour-kubernetes-'));
    ends.push(() => rmSync(folder, { recursive: true, force: true }));
    await saveImages(join(folder, 'images.tar'), log, (stop) => ends.push(stop));
    ends.push(await keepHost());
    const code = await runInside(folder);
    if (code === 0) log('done');
    else process.exitCode = 1;
  } finally {
    await end();
  }
}

function whatIsLacking(): string[] {
  if (process.getuid?.() !== 0) return ['root'];
  const packages = {
    etcd: 'etcd-server',
    containerd: 'containerd',
    iptables: 'iptables',
    gcc: 'gcc',
  };
  const path = process.env.PATH!.split(':');
  const lacking = Object.entries(packages)
    .filter(([program]) => !path.some((folder) => existsSync(join(folder, program))))
    .map(([, name]) => name);
  if (!existsSync('/usr/lib/cni/ptp')) lacking.push('containernetworking-plugins');
  return lacking;
}

main(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});
