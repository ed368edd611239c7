import { expect, test } from 'vitest';
import { RunLog } from '../../server/watch/run-log.ts';
import { LIMITS } from '../../shared/limits.ts';

const textsOf = (log: RunLog, run: string, limit?: number) =>
  log.of(run, limit).lines.map(({ text }) => text);

test('what is written about a run is kept for its page, and still written', () => {
  const written: string[] = [];
  const runLog = new RunLog();
  const log = runLog.beside((line) => written.push(line));
  log('run a begins', { run: 'a', step: 3 });
  log('a worker connected', { worker: 'ada' });
  log('run b failed', { run: 'b', level: 'error', code: 'DP_DIVERGED', worker: 'ada' });
  expect(written).toEqual(['run a begins', 'a worker connected', 'run b failed']);
  expect(textsOf(runLog, 'a')).toEqual(['run a begins']);
  expect(runLog.of('b').lines[0]).toMatchObject({
    ...{ level: 'error', code: 'DP_DIVERGED', worker: 'ada', step: null, repeated: 0 },
  });
  expect(runLog.of('c')).toEqual({ lines: [], dropped: 0 });
});

test('lines of one kind that follow one another are one, with their number', () => {
  const log = new RunLog();
  for (let i = 0; i < 5; i++) log.note('a', `push ${i} rejected`, { kind: 'rejected' });
  log.note('a', 'training → finished');
  log.note('a', 'push 9 rejected', { kind: 'rejected' });
  expect(log.of('a').lines.map(({ text, repeated }) => [text, repeated])).toEqual([
    ['push 4 rejected', 4],
    ['training → finished', 0],
    ['push 9 rejected', 0],
  ]);
});

test('a run keeps its newest lines, and says how many are gone', () => {
  const log = new RunLog();
  const most = LIMITS.runLogLinesMax;
  for (let i = 0; i < most; i++) log.note('a', `line ${i}`);
  expect(log.of('a')).toMatchObject({ dropped: 0 });
  expect(log.of('a').lines).toHaveLength(most);
  log.note('a', 'one more');
  expect(log.of('a').dropped).toBe(1);
  expect(textsOf(log, 'a', 2)).toEqual([`line ${most - 1}`, 'one more']);
  expect(log.of('a', 2).dropped).toBe(most - 1);
});

test('a long line is cut, and all runs together keep a limited number of characters', () => {
  const log = new RunLog();
  const long = 'x'.repeat(LIMITS.runLogCharactersMax);
  log.note('a', long);
  log.note('a', `${long}y`);
  expect(log.of('a').lines).toEqual([expect.objectContaining({ text: long, repeated: 1 })]);
  const lines = LIMITS.runLogsCharactersMax / LIMITS.runLogCharactersMax;
  const runs = Math.ceil(lines / LIMITS.runLogLinesMax);
  for (let run = 0; run < runs; run++) {
    for (let i = 0; i < LIMITS.runLogLinesMax; i++) {
      log.note(`r${run}`, `${i} ${long}`.slice(0, LIMITS.runLogCharactersMax));
    }
  }
  // The run that nothing was written about for the longest time gave way.
  expect(log.of('a').lines).toEqual([]);
  expect(log.of('r1').lines).toHaveLength(LIMITS.runLogLinesMax);
  log.forget('r1');
  expect(log.of('r1').lines).toEqual([]);
});
