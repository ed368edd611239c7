import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest';
import { random } from '../../shared/random.ts';
import type { Status } from '../../shared/rest.ts';
import { enginesFolder } from '../../worker/engine-folder.ts';
import { sharedData } from '../data-folder.ts';
import { redisMissing } from '../redis-server.ts';
import { type Addresses, createAddresses, namespacesMissing } from '../support/addresses.ts';
import { createAuthority } from '../support/certificates.ts';
import { ROOT } from '../support/deployment.ts';
import { copyDigits, PAGES, STUDY_PAGES } from '../support/pages.ts';
import { until } from '../support/until.ts';

// Every line of every shell block in the documentation is run by bash, one page after the other, in a network of
// its own that has the addresses which the pages name, on a few real digits. What is not run is named in
// support/pages.ts; studies are run by docs-studies.test.ts.

/** What differs because all machines of a page are this one here, or takes too long. */
const INSTEAD: readonly (readonly [RegExp, string])[] = [
  // Two epochs teach as much as thirty.
  [/^(npx downpour train (?:examples|digits\.ts).*)$/, '$1 --epochs 2'],
  // Ports that others have here.
  [/--host 0\.0\.0\.0 (--advertise (\S+))/, '--host $2 $1'],
  [/$(?<=--standby-of \S+|--peer http:\/\/192\.0\.2\.10\S+)/, ' --port 7421 --state second'],
];

/** Goes on until it is ended, and says this when it is there. */
const LASTING: Readonly<Record<string, RegExp>> = {
  serve: /listens on/,
  shard: /listens on/,
  work: /connected to/,
};

/** How long a program may take to begin on a busy machine. */
const PATIENCE = { timeout: 180_000 };

/** Those of studies are run by docs-studies.test.ts. */
const OURS = PAGES.filter(({ page }) => !STUDY_PAGES.includes(page));

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
    beforeEach(async () => {
      const bind = ['--bind', '192.0.2.9', '192.0.2.10', '--protected-mode', 'no', '--save', ''];
      const redis = start('redis-server', [...bind, '--dir', home]);
      await until('Redis answers', () => /Ready to accept connections/.test(redis.text()));
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

    test.each(OURS)('of $page', async ({ lines }) => {
      const variables: NodeJS.ProcessEnv = {};
      let lasting: (ReturnType<typeof start> & { readonly line: string })[] = [];
      let run = '';
      const end = async () => {
        for (const { line, child, code, text } of lasting.reverse()) {
          child.kill('SIGTERM');
          expect(await code, `${line}\n${text()}`).toBe(0);
        }
        lasting = [];
      };
      const last = async (line: string, says: RegExp) => {
        const started = { ...start('bash', ['-c', line], variables), line };
        lasting.push(started);
        const { child, text } = started;
        await expect.poll(() => child.exitCode !== null || says.test(text()), PATIENCE).toBe(true);
        expect(child.exitCode, `${line}\n${text()}`).toBe(null);
      };
      for (const written of lines) {
        const [, exported] = /^export (\w+)=/.exec(written) ?? [];
        if (exported) {
          // The same secret on all machines.
          variables[exported] = 'the-same-secret';
          continue;
        }
        if (/<run>/.test(written) && run === '') {
          run = await endedRun(variables, lasting.length > 0);
        }
        const named = filledIn(written).replaceAll('<run>', run);
        const line = INSTEAD.reduce((changed, [from, to]) => changed.replace(from, to), named);
        const [, command = ''] = /(?:^|\s)npx downpour (\S+)/.exec(line) ?? [];
        const says = LASTING[command];
        // What was started before is on other machines, unless this one goes with it.
        const others = /--standby-of|--peer http:\/\/192\.0\.2\.10|--shards-elsewhere/.test(line)
          ? ''
          : command;
        const first = others === 'shard' && !/downpour shard/.test(lasting.at(-1)?.line ?? '');
        if (others === 'serve' || first) await end();
        if (says) {
          await last(line, says);
          if (command === 'serve') await answers(line);
        } else {
          const { code, text } = start('bash', ['-c', line], variables);
          expect(await code, `${line}\n${text()}`).toBe(0);
          // A page that trains speaks of its own run.
          if (command === 'train') run = /run ([\w-]+)/.exec(text())?.[1] ?? run;
          if (command === 'status' && run !== '') expect(text()).toContain(run);
        }
      }
      await end();
    });

    /** A run that has ended; one is trained, if there is none. */
    async function endedRun(variables: NodeJS.ProcessEnv, isServed: boolean): Promise<string> {
      const outputOf = async (line: string) => {
        const { code, text } = start('bash', ['-c', line], variables);
        expect(await code, `${line}\n${text()}`).toBe(0);
        return text();
      };
      const ended = async () => {
        const { runs } = JSON.parse(await outputOf('npx downpour status --json')) as Status;
        return runs.find(({ phase }) => phase === 'finished')?.id;
      };
      const known = await ended();
      if (known !== undefined) return known;
      const where = isServed ? ' --server http://127.0.0.1:7420' : '';
      await outputOf(`npx downpour train examples/mnist-mlp.ts --epochs 2 --workers 1${where}`);
      return (await ended())!;
    }

    /** A server is there, and says so to whoever asks. */
    async function answers(line: string): Promise<void> {
      if (/--tls-/.test(line)) return;
      const [, host = '127.0.0.1'] = /--host (\S+)/.exec(line) ?? [];
      const [, port = '7420'] = /--port (\d+)/.exec(line) ?? [];
      const ask = `exec 3<>/dev/tcp/${host}/${port} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3`;
      const { code, text } = start('bash', ['-c', ask]);
      expect(await code, `${line}: /health\n${text()}`).toBe(0);
      expect(text(), line).toMatch(/"status":"(ok|standby)"/);
    }
  },
);

/** What somebody has who follows the pages. */
function fill(home: string): void {
  const bin = join(home, 'bin');
  mkdirSync(bin);
  // As installed: of a command that is started again and again, a checkout would read the TypeScript each time.
  const npx = `#!/bin/sh\n[ "$1" = downpour ] || exit 9\nshift\nexec '${process.execPath}' '${inject('program')}' "$@"\n`;
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
    writeFileSync(join(folder, 'new-houses.csv'), 'area,age\n120,30\n75,60\n');
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
