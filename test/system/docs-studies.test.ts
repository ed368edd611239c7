import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openEngine } from '../../worker/engine.ts';
import { sharedData } from '../data-folder.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';
import { ROOT } from '../support/deployment.ts';
import { copyDigits, PAGES, STUDY_PAGES } from '../support/pages.ts';

// The studies of the documentation, as they are written there but for how much is trained: on a few real digits,
// by two workers that are there already.

/** Few trainings in the place of many: they teach as much. */
const LESS: readonly (readonly [RegExp, string])[] = [
  [/--trials (?!1\b)\d+/, '--trials 4'],
  [/--(epochs|cycle-epochs|repeats) \d+\b(?! --kill)/g, '--$1 1'],
  [/hyperparameters\.count=\d+/, 'hyperparameters.count=1000'],
  [/(seeds|bagging|snapshots):\d+/, '$1:2'],
  [/^(npx downpour lr-find .*)$/, '$1 --steps 60 --probe-steps 20 --seeds 1'],
  [/^(npx downpour (?:stopping|curve|ablate) (?!.*--repeats).*)$/, '$1 --repeats 1'],
  [/^(npx downpour (?:stopping|curve|ensemble) (?!.*--epochs).*)$/, '$1 --epochs 2'],
];

const missing = sharedData() ? '' : ': no MNIST';

describe.skipIf(missing)(`the studies of the documentation${missing}`, { timeout: 600_000 }, () => {
  let home: string;
  let cluster: Cluster;
  /** On another page too. */
  const done = new Set<string>();

  beforeAll(async () => {
    home = mkdtempSync(join(tmpdir(), 'downpour-studies-'));
    const dataFolder = join(home, 'data');
    copyDigits(sharedData()!, dataFolder, { train: 1_000, test: 1_000 });
    vi.stubEnv('DOWNPOUR_DATA', dataFolder);
    cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
    const folders = [join(ROOT, 'examples'), FIXTURES];
    for (const name of ['ada', 'grace'])
      cluster.work('any', name, { run: null, once: false, folders, dataFolder });
    await cluster.joined(2);
  });
  afterAll(async () => {
    await cluster?.close();
    vi.unstubAllEnvs();
    rmSync(home, { recursive: true, force: true });
  });

  /** As bash understands it. */
  const wordsOf = (line: string) =>
    execFileSync('bash', ['-c', `printf '%s\\0' ${line}`], { encoding: 'utf8' })
      .split('\0')
      .slice(0, -1);

  test.each(PAGES.filter(({ page }) => STUDY_PAGES.includes(page)))(
    'of $page',
    async ({ lines }) => {
      for (const line of lines) {
        if (!line.startsWith('npx downpour ')) {
          execFileSync('bash', ['-c', line], { cwd: home });
          continue;
        }
        if (done.has(line)) continue;
        done.add(line);
        const less = LESS.reduce((text, [from, to]) => text.replace(from, to), line);
        const [, , command, ...rest] = wordsOf(await named(less));
        const args = rest.map((word) => (word === 'noise.json' ? join(home, word) : word));
        // It has a server and workers of its own, and makes nothing.
        const own = command === 'check';
        const where = own ? [] : ['--server', cluster.url, '--workers', '0', '--out'];
        const out = join(home, `study-${done.size}`);
        const text = await outputOf(command!, ...args, ...where, ...(own ? [] : [out]));
        expect(text, line).toContain(own ? 'checks' : 'written: ');
      }
    },
  );

  /** With two runs that have ended. */
  async function named(line: string): Promise<string> {
    if (!line.includes('<run>')) return line;
    const { runs } = await cluster.client.status();
    const [one, other] = runs.filter(
      ({ phase, experiment, test }) => phase === 'finished' && experiment === 'mnist-mlp' && !test,
    );
    return line.replace('<run>', one!.id).replace('<another>', other!.id);
  }
});
