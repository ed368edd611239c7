import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { Counted, PushCounts } from '../../server/watch/counts.ts';
import { exposition, type PrometheusFacts } from '../../server/watch/prometheus.ts';
import type { Push } from '../../shared/protocol.ts';
import type { RunSummary, WorkerSummary } from '../../shared/rest.ts';
import { createRun } from '../support/regression.ts';

function facts(more: Partial<PrometheusFacts> = {}): PrometheusFacts {
  return {
    server: {
      version: '1.2.3',
      startedAt: '',
      stateStore: 'files',
      stateStoreAway: null,
      connections: { bytes: 0, bytesMax: 1e9, closed: 0, closedSecondsAgo: null, moved: 0 },
      memoryBytes: { rss: 3e8, heap: 1e8, arrayBuffers: 1 },
      shards: null,
      standby: null,
      copies: null,
      alerts: [],
      studiesVersion: 0,
    },
    phases: new Map(),
    runs: [],
    workers: [],
    errors: new Map(),
    unasked: { messages: 7, throttles: 3, throttled: 1 },
    process: { startedSeconds: 1e9, cpuSeconds: 1.5, lag: new Counted([0.5, 1]), busySeconds: 1 },
    ...more,
  };
}

test('a histogram counts all at most each bound, and all', () => {
  const lag = new Counted([0.5, 1]);
  for (const seconds of [0.5, 0.75, 1, 7]) lag.add(seconds);
  const page = exposition(facts({ process: { ...facts().process, lag } }));
  expect(page.split('\n').filter((line) => line.startsWith('downpour_event_loop_lag'))).toEqual([
    'downpour_event_loop_lag_seconds_bucket{le="0.5"} 1',
    'downpour_event_loop_lag_seconds_bucket{le="1"} 3',
    'downpour_event_loop_lag_seconds_bucket{le="+Inf"} 4',
    'downpour_event_loop_lag_seconds_sum 9.25',
    'downpour_event_loop_lag_seconds_count 4',
  ]);
});

test('a label may hold anything: quotes, backslashes and ends of lines are written as Prometheus reads them', () => {
  const worker: WorkerSummary = {
    ...{ worker: 'w', incarnation: '', run: null, engine: 'a"b\\c\nd', device: '' },
    ...{
      connectedAt: '',
      lastSeenSecondsAgo: 0,
      leases: 0,
      stalenessMean: 0,
      computeMsMean: 0,
      computeMsRecent: 0,
    },
    ...{ examples: 0, examplesPerSecond: 0, lastError: null, quarantine: null },
    pushes: { applied: 0, damped: 0, duplicate: 0, rejected: 0 },
    bytes: { received: 0, sent: 0 },
    state: 'idle',
    transport: 'tcp',
  };
  const gone: WorkerSummary = { ...worker, worker: 'has-left', state: 'gone' };
  const page = exposition(facts({ workers: [worker, gone] }));
  expect(page).toContain(
    'downpour_worker_info{worker="w",run="",engine="a\\"b\\\\c\\nd",device="",transport="tcp"} 1\n',
  );
  expect(page).not.toContain('has-left');
});

test('a push that was not applied counts as answered, not in staleness', () => {
  const counts = new PushCounts();
  const push = { computeMs: 500 } as Push;
  const answer = { sequence: 1, staleness: 3, code: null, message: null };
  counts.answered(push, { ...answer, outcome: 'applied' }, 0.001);
  counts.answered(push, { ...answer, outcome: 'rejected' }, 0.001);
  expect(counts.outcomes).toEqual({ applied: 1, damped: 0, duplicate: 0, rejected: 1 });
  expect([counts.staleness.sum, counts.gradientSeconds.sum]).toEqual([3, 0.5]);
  expect(counts.applySeconds.counts.reduce((a, b) => a + b)).toBe(2);
});

test('docs/operations.md describes each metric in the words of the page that Prometheus reads', () => {
  const page = exposition(facts());
  const help = new Map(
    [...page.matchAll(/^# HELP (\w+) (.+)$/gm)].map(([, name, text]) => [name!, text!]),
  );
  const operations = readFileSync(new URL('../../docs/operations.md', import.meta.url), 'utf8');
  const rows = [
    ...operations.matchAll(/^\| `((?:downpour|process)_\w+)` \|[^|]*\|[^|]*\| (.+) \|$/gm),
  ].map(([, name, text]) => [name!, text!] as const);
  expect(help.size).toBeGreaterThan(70);
  expect(rows.filter(([name, text]) => help.get(name) !== text)).toEqual([]);
  // A description is a sentence of its own: it needs no name before it.
  expect([...help.values()].filter((text) => !/^[A-Z01].*\.$/.test(text))).toEqual([]);
  expect(
    [...help.values()].filter((text) => /^(Of|That|Since|From|To|Until)\b/.test(text)),
  ).toEqual([]);
});

test('metrics of the last evaluation have their names as labels, such as the losses of outputs', () => {
  const validation = {
    ...{ step: 1, epoch: 0, seconds: 1, at: '', part: 'validation', examples: 9 },
    ...{ loss: 1, error: 1, metrics: { 'price/loss': 0.5, 'size/error': null } },
  } as unknown as RunSummary['validation'];
  const own = createRun({}).summary(0);
  const summary = { ...own, validation, checkpoint: null };
  const pushes = new PushCounts();
  const run = { summary, pushes, writes: null, checkpointBytes: null, unwritten: null };
  const lines = exposition(facts({ runs: [run] })).split('\n');
  expect(lines.filter((line) => line.startsWith('downpour_run_validation_metric'))).toEqual([
    `downpour_run_validation_metric{run="${own.id}",metric="price/loss"} 0.5`,
  ]);
});
