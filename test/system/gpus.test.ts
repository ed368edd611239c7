import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, inject, test, vi } from 'vitest';
import { chooseGpus } from '../../cli/workers/gpus.ts';
import { openEngine } from '../../worker/engine.ts';
import { listGpus } from '../../worker/engine-nvidia.ts';
import { Cluster } from '../support/cluster.ts';

// `downpour work --gpus` on a machine whose driver says that it has two; the engine is another one.

const SMI = `0, GPU-11111111-aaaa, NVIDIA H200
1, GPU-22222222-bbbb, NVIDIA H200
`;

let cluster: Cluster;
let child: ChildProcess | null = null;
beforeEach(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'cpu' }));
});
afterEach(async () => {
  child?.kill('SIGKILL');
  await cluster.close();
});

/** @param driver what nvidia-smi runs; undefined: there is none. */
function work(gpus: string, driver?: string) {
  const bin = join(cluster.folder, 'bin');
  mkdirSync(bin, { recursive: true });
  if (driver !== undefined) {
    writeFileSync(join(bin, 'nvidia-smi'), `#!/bin/sh\n${driver}\n`);
    chmodSync(join(bin, 'nvidia-smi'), 0o755);
  }
  const server = ['--server', cluster.url.replace('http', 'ws'), '--engine', 'cpu'];
  const alive = ['--alive-file', join(cluster.folder, 'alive')];
  child = spawn(
    process.execPath,
    [inject('program'), 'work', '--gpus', gpus, '--name', 'host', ...server, ...alive],
    { env: { ...process.env, PATH: `${bin}:/usr/bin:/bin` }, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let text = '';
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
  }
  return { code: once(child, 'close').then(([code]) => code as number | null), text: () => text };
}

/** Children of ours, with what CUDA lets each see. */
function processes(): { readonly pid: number; readonly sees: string }[] {
  const pids = readFileSync(`/proc/${child!.pid}/task/${child!.pid}/children`, 'utf8');
  return pids
    .trim()
    .split(' ')
    .filter(Boolean)
    .flatMap((pid) => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
        const env = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
        const sees = env.find((each) => each.startsWith('CUDA_VISIBLE_DEVICES='))?.slice(21) ?? '';
        return words.includes('work') ? [{ pid: Number(pid), sees }] : [];
      } catch {
        // It has ended meanwhile.
        return [];
      }
    });
}

const idle = () =>
  vi.waitUntil(
    async () => {
      const { workers } = await cluster.client.status();
      const names = workers.filter(({ state }) => state === 'idle').map(({ worker }) => worker);
      return names.sort().join() === 'host-gpu0,host-gpu1';
    },
    { timeout: 170_000 },
  );

test.runIf(process.platform === 'linux')(
  'each GPU has a worker, which is started again alone',
  { timeout: 600_000 },
  async () => {
    const { code, text } = work('all', `printf '${SMI.replaceAll('\n', '\\n')}'`);
    await idle();
    // Each says for itself that it lives.
    const alive = () => readdirSync(cluster.folder).filter((name) => name.startsWith('alive'));
    expect(alive().sort()).toEqual(['alive', 'alive.gpu0', 'alive.gpu1']);
    const before = processes();
    expect(before.map(({ sees }) => sees).sort()).toEqual([
      'GPU-11111111-aaaa',
      'GPU-22222222-bbbb',
    ]);
    const [victim, other] = before;
    process.kill(victim!.pid, 'SIGKILL');
    await vi.waitUntil(
      () => processes().some(({ pid, sees }) => sees === victim!.sees && pid !== victim!.pid),
      { timeout: 170_000 },
    );
    await idle();
    expect(processes()).toContainEqual(other);
    await expect.poll(text).toMatch(/host-gpu\d was ended by SIGKILL.*; starting it again in 1 s/);
    child!.kill('SIGTERM');
    expect(await code, text()).toBe(0);
    expect(alive()).toEqual([]);
    const states = async () => (await cluster.client.status()).workers.map(({ state }) => state);
    await expect.poll(states).not.toContain('idle');
  },
);

test('without a driver, or with other GPUs, it says what there is', async () => {
  const { code, text } = work('all', "echo 'NVIDIA-SMI has failed'; exit 9");
  expect(await code).toBe(1);
  expect(text()).toMatch(
    /error DP_ENGINE_UNAVAILABLE: no GPU is found here: NVIDIA-SMI has failed/,
  );
  const present = await listGpus(async () => SMI);
  expect(present.map(({ index, name }) => [index, name])).toEqual([
    [0, 'NVIDIA H200'],
    [1, 'NVIDIA H200'],
  ]);
  expect(chooseGpus('1', present)).toEqual([present[1]]);
  expect(chooseGpus(' 1, 0 ', present)).toEqual(present);
  for (const wrong of ['2', '0,2', 'both', '', '0-1', '-1', '1.0']) {
    expect(() => chooseGpus(wrong, present)).toThrow(/--gpus .* write all, or some of 0, 1 with/);
  }
  expect(await listGpus(async () => 'No devices were found\n')).toEqual([]);
  expect(() => chooseGpus('all', [])).toThrow(/nvidia-smi lists none/);
});
