import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { RunCall } from '../../server/core/run/calls.ts';
import { Run } from '../../server/core/run.ts';
import type { PartialConfig } from '../../shared/config.ts';
import {
  type DataFacts,
  dataDifference,
  decodeFacts,
  encodeFacts,
  packDoubles,
  packTransform,
  type Transform,
  unpackTransform,
} from '../../shared/data-facts.ts';
import { errorCode } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { DataSummary } from '../../shared/protocol.ts';
import { dataSummary, examplesLike, factsOf, mustBeDataOf } from '../../worker/data/facts.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { createProblem, createRun, TENSORS, VirtualWorker } from '../support/regression.ts';

const problem = createProblem();
const summary: DataSummary = { ...problem.summary, rawFingerprint: 'raw', depends: [] };

const transform = (size: number): fc.Arbitrary<Transform> => {
  const any = fc.double({ noNaN: true, noDefaultInfinity: true });
  const above = any.filter((value) => value > 0);
  return fc.constantFrom(...(['none', 'global', 'feature', 'zca'] as const)).chain((kind) => {
    const length = kind === 'none' ? 0 : kind === 'global' ? 1 : size;
    const of = (values: fc.Arbitrary<number>) =>
      fc.array(values, { minLength: length, maxLength: length });
    // 0, as transforms are made; −0 is another number for `toEqual` alone.
    const mean = of(any.map((value) => value + 0));
    const triangle = { minLength: (size * (size + 1)) / 2, maxLength: (size * (size + 1)) / 2 };
    return fc.record({
      ...{ kind: fc.constant(kind), scale: fc.constantFrom(1, 1 / 255), mean },
      deviation: of(above),
      ...(kind === 'zca'
        ? { epsilon: above, matrix: fc.array(any, triangle).map(packDoubles) }
        : {}),
    });
  });
};
const names = (length: number) =>
  fc.option(fc.array(fc.string({ unit: 'binary' }), { minLength: length, maxLength: length }));
const facts: fc.Arbitrary<{ facts: DataFacts; transform: Transform }> = fc
  .tuple(fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 3 }), fc.nat(4))
  .chain(([shape, classCount]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return fc
      .tuple(transform(size), names(size), names(1), names(classCount))
      .map(([own, inputNames, targetNames, classes]) => ({
        transform: own,
        facts: {
          transform: packTransform(own),
          inputs: { kind: 'float64' as const, shape },
          targets: { kind: 'int32' as const, shape: [] },
          ...{ classCount, classes, inputNames, targetNames },
        },
      }));
  });

/** A run that a worker with these facts has joined. */
function joined(of: DataFacts | null, config: PartialConfig = {}, data = summary): Run {
  const run = createRun(config);
  join(run, of, data);
  return run;
}

function join(run: Run, of: DataFacts | null, data: DataSummary = summary, worker = 'w/1'): void {
  const own = { experimentHash: 'hash', tensors: TENSORS, data };
  if (of)
    run.call({ call: 'join', worker, join: { ...own, facts: 'json' }, now: 0 }, encodeFacts(of));
  else run.call({ call: 'join', worker, join: own, now: 0 });
}

const throughDisk = (run: Run) =>
  Run.restore(JSON.parse(JSON.stringify(run.state(0))), run.tensors());
const codeOf = (act: () => unknown): string => {
  try {
    act();
    return 'done';
  } catch (error) {
    return errorCode(error);
  }
};
const forked = (source: Run, data?: 'same' | 'other') =>
  Run.fork(
    {
      ...source.options,
      id: 'f',
      fork: { run: 'r', step: 0, checkpoint: 'x', ...(data && { data }) },
    },
    source.state(0),
    source.tensors(),
  );

test('facts of whitening that contradict themselves are refused', () => {
  const whitened = (changes: object) =>
    encodeFacts({
      transform: {
        ...packTransform({ kind: 'zca', scale: 1, mean: [0, 0], deviation: [1, 1] }),
        ...{ epsilon: 0.1, matrix: packDoubles([1, 0, 1]), ...changes },
      },
      inputs: { kind: 'float64', shape: [2] },
      targets: { kind: 'int32', shape: [] },
      ...{ classCount: null, classes: null, inputNames: null, targetNames: null },
    } as DataFacts);
  expect(decodeFacts(whitened({})).transform.matrix).toBe(packDoubles([1, 0, 1]));
  for (const [changes, message] of [
    [{ matrix: packDoubles([1, 0]) }, /matrix of 2 numbers; 'zca' of 2 inputs needs 3/],
    [{ matrix: undefined }, /matrix of 0 numbers/],
    [{ matrix: packDoubles([1, Number.NaN, 1]) }, /matrix that is not finite/],
    [{ epsilon: 0 }, /have the epsilon 0; 'zca' needs one above 0/],
    [{ kind: 'feature' }, /have a matrix or an epsilon, which 'feature' has not/],
  ] as const) {
    expect(() => decodeFacts(whitened(changes))).toThrow(message);
  }
});

test('any facts survive join, checkpoint, standby, fork and export, to the bit', () => {
  fc.assert(
    fc.property(facts, ({ facts: given, transform: own }) => {
      const calls: { call: RunCall; payload: Uint8Array }[] = [];
      const run = createRun({});
      const replica = Run.replicate(run.replica(), new Map());
      run.follow((call, payload) =>
        calls.push({ call: structuredClone(call), payload: payload.slice() }),
      );
      join(run, given);
      for (const { call, payload } of calls) replica.call(call, payload);
      const restored = throughDisk(throughDisk(run));
      new VirtualWorker(run, problem, 'old/1', null).train(() => run.step > 0);
      for (const one of [run, replica, restored, forked(run), throughDisk(forked(run))]) {
        expect(one.facts).toEqual(given);
        const out = unpackTransform(one.facts!.transform);
        expect(out).toEqual(own);
        // As `downpour.json` has it.
        expect(JSON.parse(JSON.stringify(out))).toEqual(own);
      }
      expect(decodeFacts(encodeFacts(forked(run).givenFacts!))).toEqual(given);
      expect(run.givenFacts).toBeNull();
    }),
    { numRuns: 20 },
  );
});

const plain: DataFacts = {
  transform: packTransform({ kind: 'feature', scale: 1, mean: [1, 2], deviation: [3, 4] }),
  inputs: { kind: 'float32', shape: [2] },
  targets: { kind: 'int32', shape: [] },
  classCount: 2,
  ...{ classes: ['no', 'yes'], inputNames: ['a', 'b'], targetNames: null },
};

describe('workers of a run', () => {
  test('must agree on names and classes, too', () => {
    const run = joined(plain);
    join(run, plain, summary, 'w/2');
    for (const other of [
      { ...plain, classes: ['yes', 'no'] },
      { ...plain, classes: null },
      { ...plain, inputNames: ['b', 'a'] },
      { ...plain, targetNames: ['c'] },
      { ...plain, targets: { kind: 'float32' as const, shape: [] } },
    ]) {
      expect(codeOf(() => join(run, other, summary, 'w/3'))).toBe('DP_DATA_MISMATCH');
    }
    expect(() => join(run, { ...plain, classes: ['no', 'maybe'] }, summary, 'w/3')).toThrow(
      /"maybe" as number 1 of the names of classes, but the run has "yes"/,
    );
  });

  test('of an older release join, and one of this release brings what they did not know', () => {
    const { rawFingerprint: _, depends: __, ...older } = summary;
    const run = joined(null, {}, { ...older, fingerprint: 'made otherwise' });
    expect(run.facts).toBeNull();
    const later = throughDisk(run);
    const changed = { ...summary, trainCount: summary.trainCount + 1 };
    expect(codeOf(() => join(later, plain, changed))).toBe('DP_DATA_MISMATCH');
    join(later, plain);
    expect(later.facts).toEqual(plain);
    expect(later.data).toEqual(summary);
    // From now on the fingerprint counts.
    const other = { ...summary, fingerprint: 'other' };
    expect(codeOf(() => join(later, plain, other, 'w/2'))).toBe('DP_DATA_MISMATCH');
    expect(
      Run.restore({ ...JSON.parse(JSON.stringify(run.state(0))), facts: undefined }, []).facts,
    ).toBeNull();
  });

  test('that send something else are refused', () => {
    const bad: unknown[] = [
      7,
      {},
      { ...plain, more: 1 },
      { ...plain, transform: { ...plain.transform, mean: 'AAAA' } },
      {
        ...plain,
        transform: { ...plain.transform, deviation: plain.transform.mean.replace(/./g, 'A') },
      },
      { ...plain, inputNames: ['a'] },
      { ...plain, classes: ['a', 'b', 'c'] },
      Array(101).fill([]),
    ];
    for (const each of bad) {
      const run = createRun({});
      expect(
        codeOf(() => join(run, each as DataFacts)),
        JSON.stringify(each),
      ).toBe('DP_FRAME_MALFORMED');
      expect(run.facts).toBeNull();
    }
    expect(codeOf(() => decodeFacts(Uint8Array.of(0x7b, 0xff, 0x7d, 0x20)))).toBe(
      'DP_FRAME_MALFORMED',
    );
  });
});

describe('a fork', () => {
  const source = joined(plain);
  new VirtualWorker(source, problem, 'old/1', null).train(() => source.step > 2);

  test('goes on with the data of the run that it began with', () => {
    expect(codeOf(() => join(forked(source), plain))).toBe('done');
    const grown = { ...summary, trainCount: 99, rawFingerprint: 'grown', fingerprint: 'g' };
    for (const run of [forked(source), throughDisk(forked(source))]) {
      expect(() => join(run, plain, grown)).toThrow(
        /a fork needs the data of run 'r', but this worker has different data: 1\d\d examples .* data: 'other'/,
      );
    }
    const seeded = joined(plain, {}, { ...summary, depends: ['seed'] });
    new VirtualWorker(seeded, problem, 'old/1', null).train(() => seeded.step > 0);
    expect(() => join(forked(seeded), plain, grown)).toThrow(/data\(\) depends on seed/);
  });

  test('takes others on purpose, of the same names and classes, and says what that means', () => {
    const run = throughDisk(forked(source, 'other'));
    const grown = { ...summary, trainCount: 99, rawFingerprint: 'grown', fingerprint: 'g' };
    const renamed = { ...plain, classes: ['yes', 'no'] };
    expect(codeOf(() => join(run, renamed, grown))).toBe('DP_DATA_MISMATCH');
    expect(run.detail(0).dataNote).toBeNull();
    join(run, plain, grown);
    expect(run.data).toEqual(grown);
    expect(run.facts).toEqual(plain);
    expect(run.detail(0).dataNote).toMatch(/its validation examples may include examples/);
  });

  test('that splits otherwise is told, one that splits alike is not', () => {
    const alike = forked(source);
    join(alike, plain);
    expect(alike.detail(0).dataNote).toBeNull();
    const otherwise = forked(source);
    join(otherwise, plain, { ...summary, fingerprint: 'other split' });
    expect(otherwise.detail(0).dataNote).toMatch(/splits the data differently/);
    expect(source.detail(0).dataNote).toBeNull();
  });
});

describe('from data and back', () => {
  const rows = [1e12, 1, 3e12, 5, 2e12, 4, 7e12, 2, 5e12, 9];
  const data = (values: number[]) => ({
    train: {
      count: values.length / 2,
      inputs: {
        values: Float64Array.from(values),
        shape: [values.length / 2, 2],
        names: ['t', 'x'],
      },
      targets: {
        values: Int32Array.from({ length: values.length / 2 }, (_, i) => i % 2),
        shape: [values.length / 2],
      },
    },
    ...{ classCount: 2, classes: ['no', 'yes'], source: 'rows' },
  });
  const options = { seed: 1, validationFraction: 0.4, standardise: 'feature' } as const;

  test('data that grew are refused, by both counts and what to do', () => {
    const before = prepareData(data(rows), options);
    const known = { run: 'r', summary: dataSummary(before, []), facts: factsOf(before) };
    mustBeDataOf(known, prepareData(data(rows), options));
    const grown = [...rows, 1e15, 1e9];
    expect(() => mustBeDataOf(known, prepareData(data(grown), options))).toThrow(
      /have changed since run r was trained: they have 4 training, 2 validation .* the run has 3 training, 2 validation/,
    );
    const renamed = { ...data(rows), classes: ['yes', 'no'] };
    expect(codeOf(() => mustBeDataOf(known, prepareData(renamed, options)))).toBe(
      'DP_DATA_MISMATCH',
    );
  });

  test('inputs are standardised by the facts, not by the data at hand', () => {
    const before = prepareData(data(rows), options);
    const after = prepareData(data([...rows, 1e15, 1e9]), { ...options, facts: factsOf(before) });
    expect(after.transform).toEqual(before.transform);
    expect(prepareData(data([...rows, 1e15, 1e9]), options).transform).not.toEqual(
      before.transform,
    );
    const narrow = { ...factsOf(before), inputs: { kind: 'float64' as const, shape: [3] } };
    expect(codeOf(() => prepareData(data(rows), { ...options, facts: narrow }))).toBe(
      'DP_DATA_MISMATCH',
    );
  });

  test('a model needs the facts alone', () => {
    const before = prepareData(data(rows), options);
    const { train, classCount } = examplesLike(factsOf(before));
    expect(classCount).toBe(2);
    expect(train.inputs).toEqual({ values: new Float64Array(), shape: [0, 2] });
    expect(train.targets).toEqual({ values: new Int32Array(), shape: [0] });
  });

  test('an image network standardised by feature fits; what does not is refused in words', () => {
    const size = 224 * 224 * 3;
    const wide = (length: number): DataFacts => ({
      ...plain,
      transform: packTransform({
        ...{ kind: 'feature', scale: 1 / 255 },
        mean: Array.from({ length }, (_, i) => i / 7),
        deviation: Array.from({ length }, (_, i) => 1 + i / 3),
      }),
      inputs: { kind: 'uint8', shape: [length] },
      inputNames: null,
    });
    const run = joined(wide(size));
    expect(throughDisk(run).facts).toEqual(wide(size));
    const tooMany = { ...wide(2), classes: ['no'.repeat(LIMITS.factsBytesMax / 2), 'yes'] };
    expect(() => encodeFacts(tooMany)).toThrow(/at most 67108864 are allowed/);
    expect(codeOf(() => encodeFacts(tooMany))).toBe('DP_EXPERIMENT_INVALID');
  });
});

test('texts that became other tokens are other data, wherever the file of the tokenizer lies', () => {
  const facts = plain;
  const own = { kind: 'text', tokens: 'words', size: 3, vocabulary: ['', '', 'a'], unknown: 1 };
  const tokenizer = { file: '/one/tokenizer.json', sha256: 'a'.repeat(64) };
  const differs = (a: object, b: object) => {
    const [run, other] = [a, b].map((more) => ({
      data: summary,
      facts: {
        ...facts,
        reading: JSON.stringify({ ...own, length: 4, as: 'next', ...more }),
      },
    }));
    return dataDifference(run!, other!);
  };
  const another = 'another vocabulary or tokenizer of the texts than the run';
  expect(differs({}, {})).toBeNull();
  expect(differs({}, { vocabulary: ['', '', 'b'] })).toBe(another);
  expect(differs({}, { lowerCase: true })).toBe(another);
  expect(differs({ tokenizer }, { tokenizer: { ...tokenizer, file: '/two.json' } })).toBeNull();
  expect(differs({ tokenizer }, { tokenizer: { ...tokenizer, sha256: 'b'.repeat(64) } })).toBe(
    another,
  );
  // A newer release wrote it, or it is no JSON.
  expect(differs({}, { kind: 'sound' })).toBeNull();
  expect(
    dataDifference({ data: summary, facts }, { data: summary, facts: { ...facts, reading: 'x' } }),
  ).toBeNull();
});
