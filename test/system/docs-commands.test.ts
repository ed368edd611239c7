import { type ChildProcess, spawn } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { gunzipSync, gzipSync } from 'node:zlib';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import type { Status } from '../../shared/rest.ts';
import { MNIST_FILES } from '../../worker/data/mnist.ts';
import { enginesFolder } from '../../worker/engine-folder.ts';
import { sharedData } from '../data-folder.ts';
import { redisMissing } from '../redis-server.ts';
import { type Addresses, createAddresses, namespacesMissing } from '../support/addresses.ts';
import { createAuthority } from '../support/certificates.ts';
import { ROOT } from '../support/deployment.ts';

// Every line of every shell block in the documentation is run by bash, one page after the other, in a network of
// its own that has the addresses which the pages name, on a few real digits. What is not run here is named below.

/** Run by other tests, or by nobody: what such a line begins with, and why. */
const ELSEWHERE: readonly (readonly [RegExp, string])[] = [
  [/^npm start/, 'test/system/newcomer.test.ts'],
  [/^npm test/, 'runs this'],
  [/^npm run bench/, 'test/system/bench.test.ts'],
  [/^npx downpour data mnist/, 'asks the network: test/system/fetch-mnist.test.ts'],
  [/^tensorboard /, 'serves without end: test/system/tensorboard.test.ts reads what it would read'],
  [/^git pull/, 'asks the network'],
  [/^docker /, 'needs an engine: test/system/compose-config.test.ts, test/unit/deployment.test.ts'],
  [/^kubectl /, 'needs a cluster: test/unit/deployment.test.ts'],
];

/** What differs because all machines of a page are this one here, or takes too long. */
const INSTEAD: readonly (readonly [RegExp, string])[] = [
  // Of many trainings few, which teach as much.
  [/^(npx downpour train examples.*)$/, '$1 --epochs 2'],
  [/--trials (?!1\b)\d+/, '--trials 4'],
  [/--(epochs|cycle-epochs|repeats) \d+\b(?! --kill)/g, '--$1 1'],
  [/(seeds|bagging|snapshots):\d+/, '$1:2'],
  [/^(npx downpour lr-find .*)$/, '$1 --steps 60 --probe-steps 20 --seeds 1'],
  [/^(npx downpour (?:stopping|curve|ablate) (?!.*--repeats).*)$/, '$1 --repeats 1'],
  [/^(npx downpour (?:stopping|curve|ensemble) (?!.*--epochs).*)$/, '$1 --epochs 2'],
  // Ports that others have here.
  [/--host 0\.0\.0\.0 (--advertise (\S+))/, '--host $2 $1'],
  [/$(?<=--standby-of \S+)/, ' --port 7421 --state second'],
  // One server and two workers for all studies, which would start and end with each.
  [
    /^(npx downpour (?:lr-find|search|folds|stopping|curve|ablate|ensemble) .*)$/,
    '$1 --server http://127.0.0.1:7420 --workers 0',
  ],
];

/** Goes on until it is ended, and says this when it is there. */
const LASTING: Readonly<Record<string, RegExp>> = {
  serve: /listens on/,
  shard: /listens on/,
  work: /connected to/,
};

interface Page {
  readonly page: string;
  readonly lines: readonly string[];
}

const PAGES: readonly Page[] = [
  'README.md',
  'SECURITY.md',
  ...readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
]
  // Walked through, without a network of its own, by newcomer.test.ts.
  .filter((page) => page !== 'docs/getting-started.md')
  .map((page) => ({ page, lines: linesOf(readFileSync(join(ROOT, page), 'utf8')) }))
  .filter(({ lines }) => lines.length > 0);

function linesOf(markdown: string): string[] {
  return [...markdown.matchAll(/```sh\n([\s\S]*?)```/g)]
    .flatMap(([, block]) => block!.replaceAll(/\\\n\s*/g, '').split('\n'))
    .filter((line) => line.trim() !== '' && !line.startsWith('#'))
    .filter((line) => !ELSEWHERE.some(([start]) => start.test(line)));
}

/** A token of its own for each name. */
const filledIn = (line: string) => line.replaceAll(/(\w+)=…/g, '$1=the-secret-of-$1');

const missing = namespacesMissing() || (redisMissing() ?? '') || (sharedData() ? '' : ': no MNIST');

describe.skipIf(missing)(
  `the commands of the documentation${missing}`,
  {
    timeout: 600_000,
  },
  () => {
    let home: string;
    let addresses: Addresses;
    const children = new Set<ChildProcess>();

    beforeAll(() => {
      home = mkdtempSync(join(tmpdir(), 'downpour-docs-'));
      addresses = createAddresses({
        '192.0.2.9': [],
        '192.0.2.10': ['first-machine', 'trainer'],
        '192.0.2.11': [],
        '192.0.2.12': [],
      });
      fill(home);
    });
    beforeEach(() => {
      const bind = ['--bind', '192.0.2.9', '192.0.2.10', '--protected-mode', 'no', '--save', ''];
      start('redis-server', [...bind, '--dir', home]);
    });
    afterEach(killAll);
    afterAll(() => {
      addresses?.remove();
      rmSync(home, { recursive: true, force: true });
    });

    async function killAll() {
      const gone = [...children].map((child) => new Promise((done) => child.once('close', done)));
      for (const child of children) child.kill('SIGKILL');
      await Promise.all(gone);
    }

    function start(program: string, args: readonly string[], more: NodeJS.ProcessEnv = {}) {
      const [ip, ...inside] = [...addresses.inside, program, ...args];
      // `ip netns exec` and bash become the command: its process is ours to signal.
      const child = spawn(ip!, inside, {
        cwd: home,
        env: {
          PATH: `${join(home, 'bin')}:${process.env.PATH}`,
          ...{ HOME: home, NO_COLOR: '1', DOWNPOUR_DATA: join(home, 'data') },
          ...{ DOWNPOUR_ENGINE_DIR: enginesFolder(), ...more },
        },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      children.add(child);
      const lines: string[] = [];
      for (const stream of [child.stdout, child.stderr]) {
        createInterface({ input: stream }).on('line', (line) => lines.push(line));
      }
      const code = new Promise<number | null>((done) => {
        child.once('close', (exitCode) => {
          children.delete(child);
          done(exitCode);
        });
      });
      return { child, code, text: () => lines.join('\n') };
    }

    test.each(PAGES)('of $page', async ({ page, lines }) => {
      const variables: NodeJS.ProcessEnv = {};
      let lasting: (ReturnType<typeof start> & { readonly line: string })[] = [];
      let run = '';
      let another = '';
      const end = async () => {
        for (const { line, child, code, text } of lasting.reverse()) {
          child.kill('SIGTERM');
          // A training that was stopped has ended by itself.
          if (!/ train /.test(line)) expect(await code, `${line}\n${text()}`).toBe(0);
          else await code;
        }
        lasting = [];
      };
      const last = async (line: string, says: RegExp) => {
        const started = { ...start('bash', ['-c', line], variables), line };
        lasting.push(started);
        const { child, text } = started;
        await expect
          .poll(() => child.exitCode !== null || says.test(text()), { timeout: 60_000 })
          .toBe(true);
        expect(child.exitCode, `${line}\n${text()}`).toBe(null);
        return started;
      };
      const studies = /^docs\/(methodology|results)\.md$/.test(page);
      if (studies) {
        await last('npx downpour serve', LASTING.serve!);
        const folders = '--experiments examples --experiments test/fixtures';
        await last(`npx downpour work --threads 1 ${folders}`, LASTING.work!);
        await last(`npx downpour work --threads 1 ${folders}`, LASTING.work!);
      }
      for (const [i, written] of lines.entries()) {
        const [, exported] = /^export (\w+)=/.exec(written) ?? [];
        if (exported) {
          // The same secret on all machines.
          variables[exported] = 'the-same-secret';
          continue;
        }
        if (/<run>/.test(written) && run === '') {
          [run, another] = await endedRuns(variables, lasting.length > 0);
        }
        const named = filledIn(written).replaceAll('<run>', run).replaceAll('<another>', another);
        const line = INSTEAD.reduce((changed, [from, to]) => changed.replace(from, to), named);
        const [, command = ''] = /(?:^|\s)npx downpour (\S+)/.exec(line) ?? [];
        const says = LASTING[command];
        // What was started before is on other machines, unless this one goes with it.
        const others = /--standby-of|--shards-elsewhere/.test(line) ? '' : command;
        const first = others === 'shard' && !/downpour shard/.test(lasting.at(-1)?.line ?? '');
        if (others === 'serve' || first) await end();
        if (says) {
          await last(line, says);
          if (!/npx downpour (serve|work|shard)/.test(lines[i + 1] ?? '')) {
            await answers(line, variables);
          }
        } else if (command === 'train' && /downpour stop/.test(lines.slice(i).join('\n'))) {
          const training = await last(line, /step [1-9]/);
          run = /run ([\w-]+)/.exec(training.text())![1]!;
        } else {
          const { code, text } = start('bash', ['-c', line], variables);
          expect(await code, `${line}\n${text()}`).toBe(0);
          if (command === 'status' && run !== '') expect(text()).toContain(run);
        }
      }
      await end();
    });

    /** Two runs of one experiment, if there are as many; one is trained, if there is none. */
    async function endedRuns(
      variables: NodeJS.ProcessEnv,
      isServed: boolean,
    ): Promise<[string, string]> {
      const run = async (line: string) => {
        const { code, text } = start('bash', ['-c', line], variables);
        expect(await code, `${line}\n${text()}`).toBe(0);
        return text();
      };
      const ended = async () => {
        const { runs } = JSON.parse(await run('npx downpour status --json')) as Status;
        return runs
          .filter(({ phase, experiment }) => phase === 'finished' && experiment === 'mnist-mlp')
          .map(({ id }) => id);
      };
      const known = await ended();
      if (known.length === 0) {
        const where = isServed ? ' --server http://127.0.0.1:7420' : '';
        await run(`npx downpour train examples/mnist-mlp.ts --epochs 2 --workers 1${where}`);
        known.push(...(await ended()));
      }
      return [known[0]!, known[1] ?? known[0]!];
    }

    /** A server is there, for those who may ask. */
    async function answers(line: string, variables: NodeJS.ProcessEnv): Promise<void> {
      if (/--tls-|--tokens|_TOKEN=/.test(line)) return;
      const { code, text } = start('bash', ['-c', 'npx downpour status'], variables);
      expect(await code, `${line}: status\n${text()}`).toBe(0);
    }
  },
);

/** What somebody has who follows the pages. */
function fill(home: string): void {
  const bin = join(home, 'bin');
  mkdirSync(bin);
  const npx = `#!/bin/sh\n[ "$1" = downpour ] || exit 9\nshift\nexec '${process.execPath}' '${join(ROOT, 'bin/downpour.js')}' "$@"\n`;
  writeFileSync(join(bin, 'npx'), npx, { mode: 0o755 });
  for (const name of ['examples', 'test']) symlinkSync(join(ROOT, name), join(home, name));
  const [, houses] = /```ts\n(import [\s\S]*?houses\.csv[\s\S]*?)```/.exec(
    readFileSync(join(ROOT, 'README.md'), 'utf8'),
  )!;
  const draw = random(1, 1);
  const rows = Array.from({ length: 4_000 }, () => {
    const [area, age] = [40 + 160 * draw.uniform(), 100 * draw.uniform()];
    return `${area},${age},${(3 * area - age + 20 * draw.normal()).toFixed(1)}`;
  });
  for (const folder of [home, join(home, 'my-experiments')]) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'houses.ts'), houses!);
    writeFileSync(join(folder, 'houses.csv'), `area,age,price\n${rows.join('\n')}\n`);
  }
  const [, yours] = /```ts\n\/\/ yours\.ts\n([\s\S]*?)```/.exec(
    readFileSync(join(ROOT, 'docs/join.md'), 'utf8'),
  )!;
  writeFileSync(join(home, 'my-experiments', 'yours.ts'), yours!);
  const tokens = ['operator', 'worker', 'observer'].map((role) => `${role} a-token-of-${role}\n`);
  writeFileSync(join(home, 'tokens.txt'), tokens.join(''));
  writeFileSync(join(home, 'token'), 'the-token-of-a-file\n');
  const authority = createAuthority(home, 'ca', ['trainer']);
  authority.issue('server');
  copyDigits(sharedData()!, join(home, 'data'), { train: 2_000, test: 1_000 });
}

/** The first digits of all. */
function copyDigits(from: string, to: string, count: Record<'train' | 'test', number>): void {
  mkdirSync(join(to, 'mnist'), { recursive: true });
  for (const [kind, name] of Object.entries(MNIST_FILES)) {
    const file = join('mnist', `${name}.gz`);
    const all = gunzipSync(readFileSync(join(from, file)));
    const n = kind.startsWith('train') ? count.train : count.test;
    const [header, bytes] = kind.endsWith('Images') ? [16, 784] : [8, 1];
    const first = Buffer.from(all.subarray(0, header! + n * bytes!));
    first.writeUInt32BE(n, 4);
    writeFileSync(join(to, file), gzipSync(first));
  }
}
