import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { serve } from '../../server/main.ts';
import type { RunDetail } from '../../shared/rest.ts';
import { findBrowser, runInBrowser } from '../support/browser.ts';

const SIZE = 300_000;

test.skipIf(findBrowser() === null && !process.env.CI)(
  "a web page takes part in a run by the browser's own WebSocket",
  async () => {
    const state = await mkdtemp(join(tmpdir(), 'downpour-'));
    const controller = new AbortController();
    const { signal } = controller;
    const serving = await serve({ host: '127.0.0.1', port: 0, state, signal });
    try {
      const config = { minibatchSize: 2, learningRate: 0.1, epochsMax: 2, testAtEnd: false };
      const created = await fetch(`${serving.url}/runs`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ experiment: 'quadratic', experimentHash: 'hash', config }),
      });
      const { id } = (await created.json()) as { id: string };
      const url = `${serving.url.replace('http', 'ws')}/ws`;
      const entry = join(import.meta.dirname, '../fixtures/browser-worker.ts');
      const reported = (await runInBrowser(entry, { url, size: SIZE })) as { ends: number[] };
      expect(reported).toMatchObject({ phase: 'finished', pushes: 40 });
      // θ after n steps is 1 − 0.9ⁿ; the last parameters it was sent were those to be evaluated.
      for (const value of reported.ends) expect(value).toBeCloseTo(1 - 0.9 ** 40, 5);
      const run = (await (await fetch(`${serving.url}/runs/${id}`)).json()) as RunDetail;
      expect(run.pushes).toEqual({ applied: 40, damped: 0, duplicate: 0, rejected: 0 });

      // Two in one page wait for each other: an update is the mean of a push of each.
      const rounds = { ...config, workersMin: 2, consistency: { mode: 'synchronous' } };
      const second = await fetch(`${serving.url}/runs`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({
          ...{ experiment: 'quadratic', experimentHash: 'hash', config: rounds },
        }),
      });
      const { id: other } = (await second.json()) as { id: string };
      const both = (await runInBrowser(entry, { url, size: SIZE, workers: 2 })) as {
        phase: string;
        pushes: number;
      }[];
      expect(both.map(({ phase, pushes }) => [phase, pushes])).toEqual([
        ['finished', 20],
        ['finished', 20],
      ]);
      const waited = (await (await fetch(`${serving.url}/runs/${other}`)).json()) as RunDetail;
      expect(waited.step).toBe(20);
      expect(waited.staleness).toEqual({ p50: 0, p95: 0, max: 0 });
      expect(waited.validation!.loss).toBeCloseTo(0.9 ** 40 / 2, 6);
    } finally {
      controller.abort();
      await serving.closed;
      await rm(state, { recursive: true, force: true });
    }
  },
);
