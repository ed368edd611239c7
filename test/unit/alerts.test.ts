import { describe, expect, test } from 'vitest';
import { type AlertFacts, alertsOf, waitsForWorker } from '../../server/watch/alerts.ts';
import { WorkerHistory } from '../../server/watch/worker-history.ts';
import type { RunSummary, WorkerSummary } from '../../shared/rest.ts';

const run = (changes: object = {}) =>
  ({
    id: 'digits',
    phase: 'training',
    workers: 3,
    seconds: 100,
    validation: { seconds: 90 },
    best: null,
    earlyStopping: { afterStop: 'restore' },
    rollbacks: [],
    hint: null,
    stepsLost: 0,
    step: 90,
    checkpoint: { step: 40 },
    ...changes,
  }) as unknown as RunSummary;
const worker = (name: string, changes: object = {}) =>
  ({
    worker: name,
    incarnation: '1',
    run: 'digits',
    state: 'training',
    pushes: { applied: 50, damped: 0, duplicate: 0, rejected: 0 },
    computeMsRecent: 10,
    examples: 0,
    quarantine: null,
    ...changes,
  }) as unknown as WorkerSummary;
const look = (facts: Partial<AlertFacts>) => {
  const waiting = (facts.runs ?? []).filter(waitsForWorker);
  return alertsOf({
    stateStoreAway: null,
    connections: { bytes: 0, bytesMax: 1e9, closed: 0, closedSecondsAgo: null, moved: 0 },
    shards: null,
    standby: null,
    copies: null,
    certificate: null,
    wallMs: Date.parse('2026-06-01T00:00:00Z'),
    runs: [],
    waiting: { count: waiting.length, one: waiting[0]?.id ?? null },
    workers: [],
    evaluationSeconds: () => 20,
    unwritten: () => null,
    spoilt: () => null,
    leftOut: () => [],
    behind: () => 0,
    missing: () => 0,
    ...facts,
  });
};
const texts = (facts: Partial<AlertFacts>) => look(facts).map(({ text }) => text);

describe('alerts', () => {
  test('none where all is well', () => {
    const workers = ['a', 'b', 'c'].map((name) => worker(name));
    expect(look({ runs: [run()], workers, shards: { count: 2, whole: true, lost: null } })).toEqual(
      [],
    );
  });

  test('a certificate that ends within a week or has ended, and none before', () => {
    const told = (validFrom: string, expiresAt: string) => {
      const certificate = { file: 'server.pem', validFrom, expiresAt };
      return look({ certificate }).map(({ severity, text }) => [severity, text.split(':')[0]]);
    };
    const from = '2026-05-01T00:00:00.000Z';
    expect(told(from, '2026-06-08T00:00:01.000Z')).toEqual([]);
    expect(told(from, '2026-06-08T00:00:00.000Z')).toEqual([
      ['warning', 'the certificate server.pem expires in 7 days, on 2026-06-08T00'],
    ]);
    expect(told(from, '2026-06-02T12:00:00.000Z')).toEqual([
      ['warning', 'the certificate server.pem expires in 1 day, on 2026-06-02T12'],
    ]);
    expect(told(from, '2026-06-01T12:00:00.000Z')).toEqual([
      ['warning', 'the certificate server.pem expires within a day, on 2026-06-01T12'],
    ]);
    expect(told(from, '2026-06-01T00:00:00.000Z')).toEqual([
      ['critical', 'the certificate server.pem has expired on 2026-06-01T00'],
    ]);
    expect(told('2026-06-02T00:00:00.000Z', '2027-06-01T00:00:00.000Z')).toEqual([
      ['critical', 'the certificate server.pem is valid from 2026-06-02T00'],
    ]);
  });

  test('copies that do not arrive, and none where all do', () => {
    const copies = {
      ...{ to: 's3://b/p', waiting: 0, copied: 5, bytes: 9, failed: 3, removed: 1 },
      ...{ away: null, refused: [], runs: [] },
    };
    expect(look({ copies })).toEqual([]);
    expect(look({ copies: { ...copies, waiting: 2 } })).toEqual([]);
    const away = { seconds: 240, why: 'DP_S3_UNAVAILABLE no' };
    expect(texts({ copies: { ...copies, waiting: 2, away } })).toEqual([
      'nothing is copied to s3://b/p for 4 min: 2 checkpoints wait; training continues; DP_S3_UNAVAILABLE no',
    ]);
    const refused = [{ run: 'digits', why: 'DP_RUN_EXISTS other' }];
    expect(look({ copies: { ...copies, refused } })).toMatchObject([
      { severity: 'warning', run: 'digits', text: expect.stringContaining('DP_RUN_EXISTS other') },
    ]);
  });

  test('connections that were closed for what they took, for ten minutes', () => {
    const connections = { bytes: 8e6, bytesMax: 9e8, closed: 3, closedSecondsAgo: 200, moved: 0 };
    expect(look({ connections })).toMatchObject([
      {
        severity: 'warning',
        text: expect.stringMatching(/^3 connections were closed .* 3 min ago; .* 8 of 900 MB now/),
      },
    ]);
    expect(look({ connections: { ...connections, closedSecondsAgo: 601 } })).toEqual([]);
    expect(look({ connections: { ...connections, closedSecondsAgo: null } })).toEqual([]);
  });

  test('a worker that is slower than the median of the others of its run', () => {
    const slow = worker('c', { computeMsRecent: 41 });
    const workers = [worker('a'), worker('b', { computeMsRecent: 12 }), slow];
    expect(look({ runs: [run()], workers })).toEqual([
      {
        severity: 'warning',
        run: 'digits',
        worker: 'c',
        text: 'worker c is 3.7 times slower than the median of digits: 41 ms a gradient beside 11 ms',
      },
    ]);
    // Gradients of a few milliseconds: two equal workers on a busy machine differ so much by chance.
    const small = [worker('a', { computeMsRecent: 1.4 }), worker('b', { computeMsRecent: 2.9 })];
    expect(texts({ workers: small })).toEqual([]);
    const apart = (ms: number) => [
      worker('a', { computeMsRecent: 5 }),
      worker('b', { computeMsRecent: ms }),
    ];
    expect(texts({ workers: apart(14.9) })).toEqual([]);
    expect(texts({ workers: apart(15) })).toHaveLength(1);
    // Another run has another experiment; who has gone or has hardly begun says nothing.
    for (const changes of [
      { run: 'other' },
      { state: 'gone' },
      { pushes: { applied: 3, damped: 0, duplicate: 0, rejected: 0 } },
    ]) {
      expect(
        texts({
          workers: [worker('a'), worker('b'), worker('c', { computeMsRecent: 41, ...changes })],
        }),
      ).toEqual([]);
    }
  });

  test('no evaluation for ten minutes, or for three times as long as usual', () => {
    const late = run({ seconds: 1500, validation: { seconds: 780 } });
    expect(texts({ runs: [late] })).toEqual(['digits: no evaluation for 12 min']);
    expect(texts({ runs: [late], evaluationSeconds: () => 300 })).toEqual([]);
    expect(texts({ runs: [{ ...late, phase: 'finished' }] })).toEqual([]);
    expect(texts({ runs: [run({ seconds: 601, validation: null })] })).toHaveLength(1);
  });

  test('a run that has too few workers to begin', () => {
    const waits = (missing: number, workers: number) =>
      texts({ runs: [run({ phase: 'training', workers })], missing: () => missing });
    expect(waits(2, 1)).toEqual(['digits waits for 2 more workers, as its workersMin says']);
    expect(waits(0, 3)).toEqual([]);
    // One line speaks for all runs that have no worker.
    expect(waits(3, 0)).toEqual(['digits waits for a worker: start one with `downpour work`']);
  });

  test('a worker that failed at its work, until others have made an update', () => {
    const failure = { worker: 'w1', code: 'DP_DATA_CORRUPT', message: 'row 3 is cut: mend it' };
    const of = (changes: object, more: object = {}) =>
      look({
        runs: [
          run({ workerFailure: { ...failure, at: '', step: 90, count: 1, ...more }, ...changes }),
        ],
      }).map(({ severity, text }) => `${severity}: ${text}`);
    expect(of({})).toEqual([
      'warning: digits: worker w1 failed at step 90: DP_DATA_CORRUPT row 3 is cut: mend it',
    ]);
    expect(of({ workers: 0 }, { count: 3 })[0]).toBe(
      'critical: digits: worker w1 failed at step 90 (3 workers did at this step): DP_DATA_CORRUPT row 3 is cut: mend it',
    );
    expect(of({ phase: 'waiting', step: 0 }, { step: 0 })).toHaveLength(1);
    expect(of({ step: 91 })).toEqual([]);
  });

  test('a refit without validation, and what is over, leave no alert behind', () => {
    const refits = (afterStop: string, phase = 'refitting') =>
      texts({ runs: [run({ phase, seconds: 9000, earlyStopping: { afterStop } })] }).length;
    expect([refits('retrain'), refits('continue'), refits('restore', 'testing')]).toEqual([
      0, 1, 0,
    ]);
    const diverged = (best: number) =>
      texts({
        runs: [run({ rollbacks: [{ step: 70, learningRate: 0.1 }], best: { step: best } })],
      }).length;
    expect([diverged(60), diverged(80)]).toEqual([1, 0]);
    expect(texts({ runs: [run({ stepsLost: 9 })] })).toEqual([]);
  });

  test('what is wrong with the server comes first', () => {
    const found = look({
      stateStoreAway: { seconds: 200, records: 12 },
      shards: {
        ...{ count: 4, whole: false },
        lost: { index: 2, url: 'ws://192.0.2.3:7421', why: 'connection lost', seconds: 20 },
      },
      runs: [
        run({ rollbacks: [{ step: 70, learningRate: 0.025 }], stepsLost: 9, hint: 'try less' }),
      ],
      workers: [worker('a', { quarantine: 'five bad pushes in a row' })],
      unwritten: () => 'DP_DISK no space left on device',
      behind: () => 4,
    });
    expect(found.map(({ severity }) => severity)).toEqual([
      'critical',
      'critical',
      'critical',
      'warning',
      'warning',
      'warning',
      'info',
    ]);
    expect(found.map(({ text }) => text).join('\n')).toMatchInlineSnapshot(`
      "shard 2 at ws://192.0.2.3:7421 is lost for 20 s (connection lost): all runs wait until it, or another one, is there; \`downpour shard\` starts one
      digits cannot be written down, trying again: a restart would go back from step 90 to step 40; DP_DISK no space left on device
      worker a is in quarantine: five bad pushes in a row
      Redis is away for 3 min: 12 records wait on disk; training continues
      digits has diverged once, last at step 70; it continues with learning rate 0.025
      digits: try less
      digits has lost 9 steps in crashes of the server, and has 4 of them left to repeat"
    `);
  });

  test('runs that wait for a worker are told in one line', () => {
    const waiting = run({ phase: 'waiting', workers: 0 });
    expect(texts({ runs: [waiting] })[0]).toMatch(/^digits waits for a worker/);
    expect(texts({ runs: [waiting, waiting, run({ phase: 'finished', workers: 0 })] })).toEqual([
      '2 runs wait for a worker: start one with `downpour work`',
    ]);
  });
});

describe('the history of workers', () => {
  test('tells when each state began, for ten minutes', () => {
    const history = new WorkerHistory();
    const states = ['joining', 'training', 'training', 'waiting', 'training'] as const;
    for (const [i, state] of states.entries()) history.note(i * 1000, [worker('a', { state })]);
    expect(history.timeline(5000)).toEqual({
      seconds: 600,
      workers: [
        {
          worker: 'a',
          incarnation: '1',
          states: [
            { state: 'joining', secondsAgo: 5 },
            { state: 'training', secondsAgo: 4 },
            { state: 'waiting', secondsAgo: 2 },
            { state: 'training', secondsAgo: 1 },
          ],
        },
      ],
    });
    for (let s = 5; s <= 600; s++) history.note(s * 1000, [worker('a', { state: 'gone' })]);
    expect(history.timeline(600_000).workers[0]!.states.at(-1)).toEqual({
      state: 'gone',
      secondsAgo: 595,
    });
    for (let s = 601; s < 700; s++) history.note(s * 1000, [worker('a', { state: 'gone' })]);
    expect(history.timeline(700_000).workers).toEqual([]);
  });

  test('measures the speed of the last ten seconds', () => {
    const history = new WorkerHistory();
    for (let s = 0; s <= 60; s++)
      history.note(s * 1000, [worker('a', { examples: s < 30 ? 100 * s : 3000 + 20 * (s - 30) })]);
    expect(history.speed(worker('a'))).toBeCloseTo(20, 6);
    expect(history.speed(worker('b'))).toBeNull();
    history.note(61_000, [worker('a', { examples: 4000, state: 'gone' })]);
    expect(history.speed(worker('a'))).toBe(0);
  });

  test('leaves the first seconds of a worker out, in which it compiles', () => {
    const history = new WorkerHistory();
    const counts = [0, 0, 0, 10, 20, 40, 1_040, 2_040];
    const speeds = counts.map((examples, s) => {
      history.note(s * 1000, [worker('a', { examples })]);
      return history.speed(worker('a'));
    });
    expect(speeds).toEqual([null, 0, 0, null, null, null, 1_000, 1_000]);
  });

  test('stays bounded for one that goes to and fro each second', () => {
    const history = new WorkerHistory();
    for (let s = 0; s < 2000; s++) {
      history.note(s * 1000, [worker('a', { state: s % 2 === 0 ? 'training' : 'waiting' })]);
    }
    expect(history.timeline(2e6).workers[0]!.states.length).toBeLessThanOrEqual(300);
  });
});
