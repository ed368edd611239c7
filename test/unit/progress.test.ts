import { describe, expect, test } from 'vitest';
import {
  bar,
  clockText,
  createProgress,
  fourDigits,
  groups,
  runFacts,
  runLine,
  sparkLine,
  table,
} from '../../cli/output/progress.ts';
import type { RunSummary, WorkerSummary } from '../../shared/rest.ts';
import { percent } from '../../shared/text.ts';

const RUN: RunSummary = {
  id: 'mnist-1',
  experiment: 'mnist-mlp',
  study: null,
  phase: 'training',
  reason: '',
  createdAt: '2026-01-01T00:00:00.000Z',
  step: 12_345,
  epoch: 3,
  examples: 790_080,
  stepsMax: null,
  workers: 2,
  parameters: 25_450,
  learningRate: 0.05,
  momentum: null,
  examplesPerSecond: 8_123.4,
  secondsLeft: 125,
  seconds: 97,
  trainingLoss: 0.123456,
  validation: {
    step: 12_000,
    epoch: 3,
    seconds: 90,
    part: 'validation',
    loss: 0.0987,
    error: 0.0312,
    examples: 2000,
    metrics: {},
    learningRate: 0.05,
    trainingLoss: 0.13,
  },
  best: null,
  test: null,
  testedAt: null,
  earlyStopping: {
    enabled: true,
    metric: 'loss',
    patience: 5,
    patienceLeft: 4,
    afterStop: 'restore',
    stoppedAt: null,
    target: null,
    refitSteps: null,
  },
  staleness: { p50: 1, p95: 3, max: 7 },
  hint: null,
  gradientNorm: 1.5,
  pushes: { applied: 12_345, damped: 0, duplicate: 0, rejected: 2 },
  checkpoint: null,
  rollbacks: [],
  stepsLost: 0,
  sparkline: [0.9, 0.4, 0.13],
  data: null,
  errorMeasure: 'misclassification',
  dataNote: null,
};

const WORKER: WorkerSummary = {
  worker: 'worker-1',
  incarnation: '0123456789abcdef',
  run: 'mnist-1',
  state: 'training',
  engine: 'wasm',
  device: 'cpu',
  connectedAt: '2026-01-01T00:00:00.000Z',
  transport: 'tcp',
  lastSeenSecondsAgo: 0,
  leases: 2,
  pushes: { applied: 6000, damped: 0, duplicate: 0, rejected: 2 },
  stalenessMean: 1.1,
  examplesPerSecond: 700,
  bytes: { received: 1, sent: 2 },
  computeMsMean: 4.25,
  computeMsRecent: 4.25,
  examples: 384_000,
  lastError: null,
  quarantine: null,
};

const ESCAPE = '\x1b';

/** A terminal that remembers, and understands the two codes that progress uses. */
function terminal(columns = 200, rows = 10) {
  const written: string[] = [];
  return {
    isTTY: true,
    columns,
    rows,
    written,
    write: (text: string) => written.push(text),
    /** What stands on it. */
    lines(): string[] {
      let lines: string[] = [];
      for (const text of written) {
        const up = new RegExp(`^${ESCAPE}\\[(\\d+)A\\r${ESCAPE}\\[J`).exec(text);
        if (up) lines = lines.slice(0, lines.length - Number(up[1]));
        const rest = text.slice(up?.[0].length ?? 0);
        lines.push(...rest.split('\n').slice(0, -1));
      }
      return lines;
    },
  };
}

describe('the live lines of a terminal', () => {
  test('stand in one place: one for the run, one for each worker', () => {
    const screen = terminal();
    let time = 0;
    const progress = createProgress({ screen, mode: 'lines', now: () => time, color: false });
    for (const step of [1, 2, 3]) {
      progress.update({ ...RUN, step }, [WORKER, { ...WORKER, worker: 'worker-2' }]);
      time += 500;
    }
    expect(screen.lines()).toHaveLength(3);
    expect(screen.lines()[0]).toContain('step 3 ');
    expect(screen.lines()[2]).toContain('worker-2');
  });

  test('are drawn at most ten times a second', () => {
    const screen = terminal();
    let time = 0;
    const progress = createProgress({ screen, mode: 'lines', now: () => time, color: false });
    for (; time < 1000; time += 1) progress.update({ ...RUN, step: time }, []);
    expect(screen.written.length).toBeLessThanOrEqual(10);
  });

  test('show all of the run on a narrow terminal, in more lines', () => {
    const screen = terminal(60);
    const progress = createProgress({ screen, mode: 'lines', now: () => 0, color: false });
    progress.update(RUN, [WORKER]);
    const [...lines] = screen.lines();
    expect(lines.length).toBeGreaterThan(3);
    for (const line of lines) expect(line.length).toBeLessThan(60);
    const all = lines.join('\n');
    for (const part of runLine(RUN).split('  ')) expect(all).toContain(part);
  });

  test('fit the terminal: cut at its width, no more rows than it has', () => {
    const screen = terminal(40, 4);
    const progress = createProgress({ screen, mode: 'lines', now: () => 0, color: false });
    progress.update(
      RUN,
      Array.from({ length: 20 }, () => WORKER),
    );
    expect(screen.lines()).toHaveLength(3);
    for (const line of screen.lines()) expect(line.length).toBeLessThan(40);
  });

  test('stay below a note, and go at the end', () => {
    const screen = terminal();
    let time = 0;
    const progress = createProgress({ screen, mode: 'lines', now: () => time, color: false });
    progress.update(RUN, [WORKER]);
    progress.note('worker-2 crashed');
    time += 1;
    progress.update(RUN, [WORKER]);
    expect(screen.lines()[0]).toBe('worker-2 crashed');
    expect(screen.lines()).toHaveLength(3);
    progress.end();
    expect(screen.lines()).toEqual(['worker-2 crashed']);
  });

  test('have bars of what is done, and the curve of the loss', () => {
    const screen = terminal(240);
    let time = 0;
    const progress = createProgress({ screen, mode: 'lines', now: () => time, color: false });
    const other = { ...WORKER, worker: 'slow', pushes: { ...WORKER.pushes, applied: 3000 } };
    for (let step = 1; step <= 400; step++) {
      progress.update({ ...RUN, step, stepsMax: 800, trainingLoss: 400 / step }, [WORKER, other]);
      time += 200;
    }
    const [run, first, second] = screen.lines();
    expect(run).toContain('██████████░░░░░░░░░░ 50 %');
    expect(run).toMatch(/loss █[▁▂▃▄▅▆▇█]{20,28}▁/);
    expect(first).toMatch(/^ {2}████████ {2}worker-1/);
    expect(second).toMatch(/^ {2}████░░░░ {2}slow/);
  });

  test('have colours only where they are wanted', () => {
    for (const color of [true, false]) {
      const screen = terminal();
      createProgress({ screen, mode: 'lines', now: () => 0, color }).update(RUN, []);
      expect(screen.written.join('').includes('\x1b[1m')).toBe(color);
    }
  });
});

describe('without a terminal', () => {
  test('a line comes every few seconds, and at once for a new phase or evaluation', () => {
    const written: string[] = [];
    let time = 0;
    const screen = { write: (text: string) => written.push(text) };
    const progress = createProgress({ screen, mode: 'lines', now: () => time });
    for (; time < 20_000; time += 500) progress.update(RUN, [WORKER]);
    expect(written.length).toBe(4);
    progress.update({ ...RUN, phase: 'testing' }, [WORKER]);
    expect(written.length).toBe(5);
    expect(written.join('')).not.toContain('\x1b');
  });

  test('--quiet prints nothing, --json one object a line', () => {
    for (const mode of ['quiet', 'json'] as const) {
      const written: string[] = [];
      const screen = { write: (text: string) => written.push(text) };
      const progress = createProgress({ screen, mode, now: () => 0 });
      progress.event('started', { run: 'mnist-1' });
      progress.update(RUN, [WORKER]);
      progress.note('hello');
      progress.end();
      const events = written.map((line) => JSON.parse(line) as { event: string });
      expect(events.map(({ event }) => event)).toEqual(
        mode === 'quiet' ? [] : ['started', 'progress', 'note'],
      );
      for (const line of written) expect(line.endsWith('\n')).toBe(true);
    }
  });
});

test('the line of a run has all that one watches', () => {
  const line = runLine(RUN);
  for (const part of [
    'step 12,345',
    'epoch 3',
    '8,123 examples/s',
    'loss 0.1235',
    'validation 0.0987, error 3.12 %',
    'patience 4/5',
    'staleness 1/3',
    'rate 0.05',
    'left ≤ 2:05',
  ]) {
    expect(line).toContain(part);
  }
});

test('what is not known yet is a dash, never NaN or null', () => {
  const young = { ...RUN, validation: null, trainingLoss: null, secondsLeft: null };
  for (const text of [runLine(young), ...runFacts(young)]) {
    expect(text).not.toMatch(/NaN|null|undefined/);
  }
  expect(runLine({ ...young, phase: 'waiting', workers: 0 })).toBe('mnist-1  waiting for a worker');
});

test('a spark line has the form of its curve', () => {
  expect(sparkLine([0, 1, 2, 3, 4, 5, 6, 7])).toBe('▁▂▃▄▅▆▇█');
  expect(sparkLine([3, 3, 3])).toBe('▁▁▁');
  expect(sparkLine([1, null, Number.NaN, Infinity, 2])).toBe('▁█');
  expect(sparkLine([])).toBe('');
  const long = sparkLine(Array.from({ length: 1000 }, (_, i) => i));
  expect(long).toHaveLength(30);
  expect([...long].sort().join('')).toBe(long);
  expect([bar(0, 4), bar(0.5, 4), bar(1.7, 4)]).toEqual(['░░░░', '██░░', '████']);
});

test.each([
  ['misclassification', 'error 3.12 %'],
  ['loss', 'error 0.0312'],
  ['own', 'error 0.0312'],
  [null, 'error 3.12 %'],
] as const)('an error that is %s is told as what it is', (errorMeasure, told) => {
  for (const line of [runLine({ ...RUN, errorMeasure }), ...runFacts({ ...RUN, errorMeasure })]) {
    if (line.includes('error')) expect(line).toContain(told);
  }
});

test('an error above 1 is no share, whoever has said nothing', () => {
  const validation = { ...RUN.validation!, error: 850.7 };
  expect(runLine({ ...RUN, errorMeasure: null, validation })).toContain('error 850.7  ');
});

test('numbers are short and exact enough', () => {
  expect(groups(1_234_567)).toBe('1,234,567');
  expect(groups(999)).toBe('999');
  expect(fourDigits(0.000123456)).toBe('0.0001235');
  expect(fourDigits(null)).toBe('–');
  expect(percent(0.01984)).toBe('1.98 %');
  expect(clockText(59.4)).toBe('59 s');
  expect(clockText(185)).toBe('3:05');
  expect(clockText(7385)).toBe('2:03:05');
});

test('a table has columns as wide as their widest cell', () => {
  expect(table(['run', 'step'], [['a-long-name', '1']])).toEqual([
    'run          step',
    'a-long-name  1',
  ]);
});

test('status shows how far the next update of several pushes is, and nothing where each push is one', () => {
  const lines = (collecting: RunSummary['collecting']) =>
    runFacts({ ...RUN, ...(collecting === undefined ? {} : { collecting }) }).filter((line) =>
      line.includes('next update'),
    );
  expect(lines({ pushes: 5, of: 16, secondsLeft: null })).toEqual([
    '  next update    5 of 16 pushes',
  ]);
  expect(lines({ pushes: 3, of: 3, secondsLeft: 0.42 })).toEqual([
    '  next update    3 of 3 pushes, made in 0.4 s at the latest',
  ]);
  expect(lines({ pushes: 1, of: null, secondsLeft: null })).toEqual(['  next update    1 push']);
  expect(lines(null)).toEqual([]);
  expect(lines(undefined)).toEqual([]);
});

test('the speed of a run that is over is its mean, as far as the server knows it', () => {
  const over: RunSummary = { ...RUN, phase: 'finished', examplesPerSecond: null };
  const speed = (run: RunSummary) => runFacts(run).find((line) => line.startsWith('  speed'));
  expect(speed({ ...over, examplesPerSecondMean: 9_004.4 })).toContain(
    '9,004 examples/s on average',
  );
  // The seconds of an older server have the warm-up in them.
  expect(speed(over)).toMatch(/speed +–, /);
});
