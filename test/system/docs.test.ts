import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { REST_PAGE, restPage } from '../../cli/docs/rest-page.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { workForAll } from '../support/study.ts';

// Each experiment in the documentation, a block whose first line is `// name.ts`, is trained.

const DOCS = join(import.meta.dirname, '..', '..', 'docs');
const experiments = readdirSync(DOCS)
  .filter((page) => page.endsWith('.md'))
  .flatMap((page) =>
    [
      ...readFileSync(join(DOCS, page), 'utf8').matchAll(/```ts\n\/\/ (\S+\.ts)\n([\s\S]*?)```/g),
    ].map(([, file, source]) => ({ page, file: file!, source: source! })),
  );

/** Inside the project, where vitest finds the package `downpour`. */
const FOLDER = join(import.meta.dirname, '..', 'output', 'docs');

let cluster: Cluster;
beforeAll(async () => {
  await mkdir(FOLDER, { recursive: true });
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(async () => {
  await cluster.close();
  await rm(FOLDER, { recursive: true });
});

test.each(experiments)('$file of docs/$page trains', async ({ file, source }) => {
  const path = join(FOLDER, file);
  await writeFile(path, source);
  const id = file.replace('.ts', '');
  const { config } = await loadExperiment(path);
  await cluster.createRun(id, path, { ...config, stepsMax: 200, evaluateEverySteps: 50 });
  await cluster.work(id, `worker-${id}`, { folders: [FOLDER] }).done;
  const run = await cluster.client.run(id);
  expect(run).toMatchObject({ phase: 'finished', step: 200 });
  const { evaluations } = await cluster.client.metrics(id);
  expect(evaluations.at(-1)!.loss).toBeLessThan(0.7 * evaluations[0]!.loss!);
});

test('the study from TypeScript of docs/methodology.md is conducted', async () => {
  const page = await readFile(join(DOCS, 'methodology.md'), 'utf8');
  const [, source] = /### From TypeScript[\s\S]*?```ts\n([\s\S]*?)```/.exec(page)!;
  const program = join(FOLDER, 'a-search.ts');
  await writeFile(program, source!);
  await workForAll(cluster, 2, [FIXTURES]);
  const cars = join(FIXTURES, 'cars.ts');
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', 'tsx', program, cluster.url, cars],
    { cwd: FOLDER, env: { ...process.env, NO_COLOR: '1' } },
  );
  expect(stdout.match(/^search-cars-\d /gm)).toHaveLength(6);
  expect(stdout).toMatch(/look at the test part once: `downpour train .*cars\.ts`/);
  const report = join(FOLDER, 'studies', 'search-cars', 'report.json');
  expect(JSON.parse(await readFile(report, 'utf8')).trials).toHaveLength(6);
});

test('docs/rest.md is what the server says; `npm run docs` writes it anew', async () => {
  expect(readFileSync(REST_PAGE, 'utf8')).toBe(await restPage());
});

test('there are experiments in the documentation', () => {
  expect(experiments.length).toBeGreaterThanOrEqual(2);
});
