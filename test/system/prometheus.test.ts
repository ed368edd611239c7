import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse } from 'yaml';
import { openEngine } from '../../worker/engine.ts';
import { freePort } from '../redis-server.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { until } from '../support/until.ts';

/** `/metrics` of a real training, as a real Prometheus reads it, and what is made of it in Grafana. */

const ROOT = join(import.meta.dirname, '..', '..');
const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');
const installed = spawnSync('prometheus', ['--version']).status === 0;
const promTest = test.skipIf(!installed && !process.env.CI);

/** Names of ours and of the process in a text, without what a histogram adds to its name. */
const namesIn = (text: string) =>
  new Set(
    [...text.matchAll(/\b(?:downpour|process)_[a-z_]*[a-z]\b(?![(-])/g)].map(([name]) =>
      name.replace(/_(?:bucket|sum|count)$/, ''),
    ),
  );

const dashboard = JSON.parse(read('deploy/grafana/downpour.json')) as {
  panels: { title: string; targets?: { expr: string }[] }[];
  templating: { list: { name: string; query: string | { query: string } }[] };
};
const expressions = dashboard.panels.flatMap(({ title, targets = [] }) =>
  targets.map(({ expr }) => ({ title, expr })),
);

const folder = mkdtempSync(join(tmpdir(), 'downpour-prometheus-'));
let cluster: Cluster;
let page: string;
let names: Set<string>;
const STEPS = 120;

async function scrape(): Promise<string> {
  const headers = { authorization: 'Bearer observer' };
  const response = await fetch(`${cluster.url}/metrics`, { headers });
  expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  return response.text();
}

/** The value of a sample, as it stands on the page. */
function sampleOf(sample: string): number {
  const line = page.split('\n').find((each) => each.startsWith(`${sample} `));
  return line === undefined ? Number.NaN : Number(line.slice(sample.length + 1));
}

beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'cpu' }), {
    token: 'operator',
    observerToken: 'observer',
  });
  const config = { stepsMax: STEPS, evaluateEverySteps: 40, checkpoint: { everySteps: 40 } };
  await cluster.createRun('cars', join(FIXTURES, 'cars.ts'), config);
  await cluster.work('cars', 'first').done;
  // It has nothing to do, and stays.
  const waiting = cluster.work('cars', 'waiting', { once: false, run: null });
  waiting.done.catch(() => {});
  await until('one worker has gone and the other one waits', async () => {
    const { workers } = await cluster.client.status();
    const connected = workers.filter(({ state }) => state !== 'gone');
    return connected.length === 1 && connected[0]!.state === 'idle';
  });
  await until('all is written', async () =>
    (await cluster.client.checkpoints('cars')).some(({ kind }) => kind === 'final'),
  );
  page = await scrape();
  names = new Set([...page.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name!));
});
afterAll(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('tells what REST tells of the same run, and counts each push once', async () => {
  const run = await cluster.client.run('cars');
  const ofRun = (name: string) => sampleOf(`downpour_run_${name}{run="cars"}`);
  expect(ofRun('step')).toBe(STEPS);
  expect(ofRun('examples')).toBe(run.examples);
  expect(ofRun('validation_loss')).toBe(run.validation!.loss);
  expect(ofRun('best_validation_loss')).toBe(run.best!.loss);
  expect(ofRun('learning_rate')).toBe(run.learningRate);
  expect(ofRun('parameters')).toBe(run.parameters);
  expect(ofRun('checkpoint_step')).toBe(run.checkpoint!.step);
  expect(ofRun('checkpoint_timestamp_seconds')).toBe(Date.parse(run.checkpoint!.at) / 1000);
  const last = (await cluster.client.checkpoints('cars')).findLast(({ kind }) => kind === 'last')!;
  expect(ofRun('checkpoint_bytes')).toBe(last.bytes);
  expect(sampleOf('downpour_runs{phase="finished"}')).toBe(1);
  expect(sampleOf('downpour_runs{phase="failed"}')).toBe(0);
  for (const [outcome, count] of Object.entries(run.pushes)) {
    expect(sampleOf(`downpour_pushes_total{run="cars",outcome="${outcome}"}`)).toBe(count);
  }
  const { stalenessHistogram } = await cluster.client.metrics('cars');
  expect(sampleOf('downpour_push_staleness_steps_count{run="cars"}')).toBe(STEPS);
  expect(sampleOf('downpour_push_staleness_steps_bucket{run="cars",le="0"}')).toBe(
    stalenessHistogram[0],
  );
  expect(sampleOf('downpour_gradient_seconds_count{run="cars"}')).toBe(STEPS);
  expect(sampleOf('downpour_gradient_seconds_sum{run="cars"}')).toBeGreaterThan(0);
  expect(sampleOf('downpour_checkpoint_write_seconds_count{run="cars"}')).toBeGreaterThan(0);
  expect(sampleOf('downpour_write_failures_total{run="cars"}')).toBe(0);
  expect(sampleOf('process_resident_memory_bytes')).toBeGreaterThan(1e7);
  expect(sampleOf('process_start_time_seconds')).toBeGreaterThan(1.6e9);
});

test('tells of connected workers alone', () => {
  expect(sampleOf('downpour_workers{state="idle"}')).toBe(1);
  expect(sampleOf('downpour_worker_leases{worker="waiting"}')).toBe(0);
  expect(page).not.toContain('worker="first"');
});

test('Grafana, the alerts and the documentation name what there is, and the documentation all of it', () => {
  const missing = (text: string) => [...namesIn(text)].filter((name) => !names.has(name));
  expect(expressions.length).toBeGreaterThan(30);
  expect(missing(expressions.map(({ expr }) => expr).join('\n'))).toEqual([]);
  const queries = dashboard.templating.list.map(({ query }) =>
    typeof query === 'string' ? query : query.query,
  );
  expect(missing(queries.join('\n'))).toEqual([]);
  expect(missing(read('deploy/prometheus/alerts.yml'))).toEqual([]);
  const told = [...read('docs/operations.md').matchAll(/^\| `((?:downpour|process)_\w+)`/gm)];
  expect(told.map(([, name]) => name!).sort()).toEqual([...names].sort());
});

promTest('promtool finds nothing to complain of, in the page and in the alerts', () => {
  const lint = spawnSync('promtool', ['check', 'metrics'], { input: page, encoding: 'utf8' });
  expect([lint.status, lint.stdout, lint.stderr]).toEqual([0, '', '']);
  writeFileSync(join(folder, 'downpour-token'), 'observer');
  const rules = spawnSync('promtool', [
    'check',
    'rules',
    join(ROOT, 'deploy/prometheus/alerts.yml'),
  ]);
  expect(rules.status, String(rules.stderr)).toBe(0);
});

promTest('a real Prometheus scrapes it, and answers every query of the dashboard', async () => {
  const settings = parse(read('deploy/prometheus/prometheus.yml'));
  const [job] = settings.scrape_configs;
  writeFileSync(join(folder, 'token'), 'observer');
  job.authorization.credentials_file = join(folder, 'token');
  job.static_configs[0].targets = [new URL(cluster.url).host];
  settings.global.scrape_interval = '1s';
  settings.rule_files = [join(ROOT, 'deploy/prometheus/alerts.yml')];
  const config = join(folder, 'prometheus.json');
  writeFileSync(config, JSON.stringify(settings));
  const address = `127.0.0.1:${await freePort()}`;
  const prometheus: ChildProcess = spawn(
    'prometheus',
    [
      `--config.file=${config}`,
      `--storage.tsdb.path=${join(folder, 'tsdb')}`,
      `--web.listen-address=${address}`,
    ],
    { stdio: 'ignore' },
  );
  const ended = once(prometheus, 'exit');
  try {
    const query = async (expr: string) => {
      const url = `http://${address}/api/v1/query?query=${encodeURIComponent(expr)}`;
      return (await (await fetch(url)).json()) as {
        status: string;
        error?: string;
        data: { result: { metric: object; value: [number, string] }[] };
      };
    };
    // Speeds are known of what trains: the worker that waits gets something to do.
    const endless = { stepsMax: 1_000_000, epochsMax: null, earlyStopping: { enabled: false } };
    await cluster.createRun('more', join(FIXTURES, 'cars.ts'), endless);
    const scrapes = async () => {
      const speeds = 'count_over_time(downpour_worker_examples_per_second[1m])';
      const { data } = await query(speeds).catch(() => ({ data: { result: [] } }));
      return Number(data.result[0]?.value[1] ?? 0);
    };
    // Rates need two points.
    await expect.poll(scrapes, { timeout: 60_000, interval: 250 }).toBeGreaterThanOrEqual(3);
    expect((await query('downpour_run_step{run="cars"}')).data.result).toMatchObject([
      { metric: { run: 'cars', job: 'downpour' }, value: [expect.anything(), String(STEPS)] },
    ]);
    const empty: string[] = [];
    for (const { title, expr } of expressions) {
      const filled = expr.replaceAll('$__rate_interval', '1m').replace(/\$\w+/g, '.*');
      const { status, error, data } = await query(filled);
      expect([title, status, error]).toEqual([title, 'success', undefined]);
      // A comparison keeps what must be looked at, and there is nothing.
      if (data.result.length === 0 && !/ > \d+$/.test(expr)) empty.push(title);
    }
    expect(empty).toEqual([]);
  } finally {
    prometheus.kill('SIGTERM');
    await ended;
  }
});
