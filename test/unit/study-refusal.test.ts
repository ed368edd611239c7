import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DownpourError } from '../../shared/errors.ts';
import { foldsPlan, foldsReport } from '../../study/folds.ts';
import { conductStudy, isHopeless, type Trial } from '../../study/study.ts';
import { FakeServer } from '../support/fake-server.ts';

// What workers refuse for good: bad data, a model that cannot be built.

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-refusal-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const settings = { folds: 10, stratified: false, repeats: 1, base: [{ epochsMax: 2 }] };
const TOO_FEW = { code: 'DP_EXPERIMENT_INVALID', message: '5 examples are no 10 parts' };

async function conduct(server: FakeServer) {
  const { done, trials } = await conductStudy({
    ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
    ...{ settings: 1, plan: foldsPlan(settings), parallel: 2, pollMs: 0, refusedMs: 1 },
    ...{ signal: new AbortController().signal, onEvent: () => {} },
  });
  expect(done).toBe(true);
  return trials;
}

test('a server that is asked too much says so, and the study waits and goes on', async () => {
  const server = new FakeServer(() => 0.1);
  const { status } = server.client;
  let refused = 0;
  const client = {
    ...server.client,
    status: () => {
      if (refused++ < 3) throw new DownpourError('DP_LIMIT', 'ask again in 4 s, and less often');
      return status();
    },
  };
  const notes: string[] = [];
  const { done } = await conductStudy({
    ...{ client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
    ...{ settings: 1, plan: foldsPlan(settings), parallel: 2, pollMs: 0 },
    signal: new AbortController().signal,
    onEvent(event) {
      if (event.kind === 'note') notes.push(event.text);
    },
  });
  expect(done).toBe(true);
  expect(notes.filter((note) => note.includes('ask again'))).toHaveLength(1);
});

describe('a study whose trials every worker refuses', () => {
  test('is not tried to its end, and fails with what the workers said', async () => {
    const server = new FakeServer(() => 0.1);
    server.refuse = () => TOO_FEW;
    const trials = await conduct(server);
    expect(trials.length).toBeLessThanOrEqual(3);
    expect(trials.map(({ end }) => end)).toEqual(
      trials.map(() => ({
        ...{ kind: 'failed', code: TOO_FEW.code },
        reason: `no worker can do it: ${TOO_FEW.code} ${TOO_FEW.message}`,
      })),
    );
    const { failure, advice } = foldsReport('s', settings, trials, String);
    expect(failure).toMatchObject({ code: 'DP_EXPERIMENT_INVALID' });
    expect(failure!.message).toContain('5 examples are no 10 parts');
    expect(advice).not.toContain('learningRate');
  });

  test('is tried anew when it is called again, since the data may have been put right', async () => {
    const server = new FakeServer(() => 0.1);
    server.refuse = () => TOO_FEW;
    await conduct(server);
    server.refuse = () => null;
    const trials = await conduct(server);
    expect(trials.map(({ end }) => end?.kind)).toEqual(Array(10).fill('finished'));
    expect(new Set(server.created).size).toBe(server.created.length);
  });

  test('goes on where another trial was measured', async () => {
    const server = new FakeServer(() => 0.1);
    server.refuse = ({ validation }) =>
      validation.fold > 0 && validation.fold < 4 ? TOO_FEW : null;
    const trials = await conduct(server);
    expect(trials).toHaveLength(10);
    const { failure, advice } = foldsReport('s', settings, trials, String);
    expect(failure).toBeNull();
    expect(advice).toContain('3 of 10 trials failed');
  });

  test('is told from one whose trials are refused for different reasons', () => {
    const refused = (reason: string) =>
      ({
        evaluations: [],
        end: { kind: 'failed', reason, code: 'DP_DATA_LABEL' },
      }) as unknown as Trial;
    expect(isHopeless([refused('a'), refused('b')])).toBe(false);
    expect(isHopeless([refused('a'), refused('b'), refused('a')])).toBe(true);
  });
});
