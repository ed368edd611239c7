import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RowTable } from '../../server/core/tables/row-table.ts';
import { resolveConfig } from '../../shared/config.ts';
import { mix, random, STREAMS } from '../../shared/random.ts';
import { decodeRowValues, encodeRows, ROW_ENCODINGS, type RowEncoding } from '../../shared/rows.ts';
import type { TableConfig } from '../../shared/tables.ts';
import { createPlainRowRule } from '../support/row-rules.ts';

/** Kernels of rows beside what they do, in TypeScript. */

const ROWS = 1000;
const SEED = 7;
const tableOf = (config: object, width: number): [RowTable, TableConfig] => {
  const all = resolveConfig({ tables: { word: { rows: ROWS, width, ...config } } });
  const table = all.tables!.word!;
  return [new RowTable('word', table, SEED), table];
};

const everyKey = Uint32Array.from({ length: ROWS }, (_, i) => i);
const read = (table: RowTable, keys = everyKey) => {
  const out = new Float32Array(keys.length * table.width);
  table.read(keys, null, out);
  return out;
};
const valuesOf = (encoding: RowEncoding, width: number, keys: Uint32Array, values: Float32Array) =>
  encodeRows([{ name: 'word', width, keysMax: ROWS }], [{ keys, values }], encoding).subarray(
    4 + 4 * keys.length,
  );

/** Rows with their states, and all that a rule needs to know of them. */
class PlainTable {
  readonly #rule;
  readonly #state: Float32Array;
  readonly #last = new Map<number, { step: number; decay: number }>();
  #decay = 0;
  readonly theta: Float32Array;
  readonly config: TableConfig;

  constructor(theta: Float32Array, config: TableConfig) {
    this.theta = theta;
    this.config = config;
    this.#rule = createPlainRowRule(config.optimizer);
    this.#state = new Float32Array(ROWS * this.#rule.stateSize(config.width));
  }

  apply(keys: Uint32Array, gradients: Float32Array, step: number, rate: number, read: number) {
    const { width, weightDecay, maxNorm } = this.config;
    const size = this.#rule.stateSize(width);
    const { theta } = this;
    if (weightDecay > 0) this.#decay += Math.log(1 - rate * weightDecay);
    for (const [i, key] of keys.entries()) {
      const last = this.#last.get(key);
      const factor = Math.exp(this.#decay - (last?.decay ?? 0));
      for (let j = key * width; j < (key + 1) * width; j++) theta[j] = theta[j]! * factor;
      if (!last) this.#state.fill(this.#rule.initial, key * size, (key + 1) * size);
      const own = rate * scaleOf(Math.max(0, (last?.step ?? 0) - read));
      const gradient = { values: gradients, at: i * width, width };
      const age = last ? step - last.step : 0;
      this.#rule.update(theta, key * width, gradient, this.#state, key * size, {
        ...{ rate: own, step, age },
      });
      const row = theta.subarray(key * width, (key + 1) * width);
      const norm = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0));
      if (maxNorm !== null && norm > maxNorm) {
        for (let j = 0; j < width; j++) row[j] = (row[j]! * maxNorm) / norm;
      }
      this.#last.set(key, { step, decay: this.#decay });
    }
  }

  /** All rows, read now. */
  read(): Float32Array {
    const { width } = this.config;
    return this.theta.map(
      (x, j) => x * Math.exp(this.#decay - (this.#last.get(Math.floor(j / width))?.decay ?? 0)),
    );
  }
}

const scaleOf = (staleness: number) => 1 / (1 + staleness);
/**
 * An update in f32 is off by two roundings, each at most 2⁻²⁴ of the largest number of a row, and this many updates follow
 * each other.
 */
const UPDATES = 6;
const TOLERANCE = 2 * UPDATES * 2 ** -23;

const OPTIMIZERS = [
  { kind: 'sgd' },
  { kind: 'adagrad', initialAccumulator: 0 },
  { kind: 'adagrad' },
  { kind: 'adam', beta1: 0.8, beta2: 0.9, epsilon: 1e-5 },
];
const OTHERS = [{}, { weightDecay: 0.3 }, { maxNorm: 0.4 }, { weightDecay: 0.3, maxNorm: 0.4 }];

describe.each(OPTIMIZERS)('kernels of rows with %o', (optimizer) => {
  test.each(OTHERS)('equal the rule in TypeScript to rounding, with %o', (others) => {
    for (const width of [1, 3, 4, 5, 8, 18, 100]) {
      const initializer = { kind: 'uniform', limit: 1 };
      const [table, config] = tableOf({ optimizer, initializer, ...others }, width);
      const plain = new PlainTable(read(table), config);
      const draw = random(width, 1);
      for (let step = 1; step <= UPDATES; step++) {
        // More than a piece has, where rows are wide; and of some rows several times, of others never.
        const keys = Uint32Array.from(everyKey).filter((key) => draw.uniform() < 0.8 || key < 5);
        const given = Float32Array.from({ length: keys.length * width }, () => draw.normal());
        const encoding = ROW_ENCODINGS[step % 3]!;
        const values = valuesOf(encoding, width, keys, given);
        const gradients = new Float32Array(given.length);
        decodeRowValues(encoding, values, width, gradients);
        const clip = step % 2 === 0 ? { limit: 0.8, factor: 0.5 } : { limit: Infinity, factor: 1 };
        const readStep = Math.max(0, step - 2);
        const clipped = gradients.map(
          (g) => Math.max(-clip.limit, Math.min(clip.limit, g)) * clip.factor,
        );
        plain.apply(keys, clipped, step, 0.1, readStep);
        table.stage({ keys, values }, encoding);
        const squares = gradients.reduce(
          (sum, g) => sum + Math.max(-clip.limit, Math.min(clip.limit, g)) ** 2,
          0,
        );
        expect(table.squares(clip.limit) / squares).toBeCloseTo(1, 5);
        expect(table.apply({ rowStep: step, rate: 0.1, clip, scaleOf, readStep })).toBe(true);
      }
      const [got, expected] = [read(table), plain.read()];
      let worst = 0;
      for (let key = 0; key < ROWS; key++) {
        const row = expected.subarray(key * width, (key + 1) * width);
        const size = Math.max(0.1, ...row.map(Math.abs));
        for (let j = 0; j < width; j++) {
          worst = Math.max(worst, Math.abs(row[j]! - got[key * width + j]!) / size);
        }
      }
      expect(worst, `width ${width}`).toBeLessThan(TOLERANCE);
    }
  });
});

test('an update that is undone leaves rows, state and index as they were, to the bit', () => {
  const bytesOf = ({ buffer }: Float32Array) => Buffer.from(buffer);
  for (const rows of [ROWS, 'hash'] as const) {
    for (const optimizer of OPTIMIZERS) {
      for (const width of [1, 6, 100]) {
        const [table] = tableOf({ rows, rowsMax: 700, optimizer, weightDecay: 0.1 }, width);
        const draw = random(width, 2);
        const push = (step: number) => {
          const keys = Uint32Array.from(everyKey).filter(() => draw.uniform() < 0.4);
          const given = Float32Array.from({ length: keys.length * width }, () => draw.normal());
          table.stage({ keys, values: valuesOf('f32', width, keys, given) }, 'f32');
          const clip = { limit: Infinity, factor: 1 };
          return table.apply({ rowStep: step, rate: 0.1, clip, scaleOf, readStep: step - 1 });
        };
        push(1);
        push(2);
        const all = () => [...Object.values(table.checkpoints.tensors()), read(table)].map(bytesOf);
        const before = all();
        push(3);
        expect(all().every((bytes, i) => bytes.equals(before[i]!))).toBe(false);
        table.undo();
        expect(all().every((bytes, i) => bytes.equals(before[i]!))).toBe(true);
      }
    }
  }
});

test('a row that overflows is seen, whatever its place in the push', () => {
  for (const optimizer of OPTIMIZERS.filter(({ kind }) => kind !== 'adagrad')) {
    for (const width of [1, 3, 4, 9]) {
      for (const at of [0, width - 1, 2 * width, 5 * width - 1]) {
        const [table] = tableOf({ optimizer }, width);
        const keys = Uint32Array.from([1, 2, 3, 8, 9]);
        const given = new Float32Array(5 * width).fill(1);
        const push = (step: number, rate: number) => {
          table.stage({ keys, values: valuesOf('f32', width, keys, given) }, 'f32');
          const clip = { limit: Infinity, factor: 1 };
          return table.apply({ rowStep: step, rate, clip, scaleOf: () => 1, readStep: 0 });
        };
        expect(push(1, 0.1)).toBe(true);
        given[at] = 1e18;
        expect(push(2, 0.1)).toBe(true);
        table.undo();
        given[at] = 3e38;
        expect(push(2, 1e30)).toBe(false);
      }
    }
  }
});

test('squares of gradients that are not finite are NaN, in any piece, whatever the limit', () => {
  const width = 100;
  const [table] = tableOf({}, width);
  for (const bad of [Number.NaN, Infinity, -Infinity]) {
    for (const at of [0, 65_999, ROWS * width - 1]) {
      const given = new Float32Array(ROWS * width).fill(1e-20);
      const values = () => valuesOf('f32', width, everyKey, given);
      table.stage({ keys: everyKey, values: values() }, 'f32');
      expect(table.squares(Infinity) / (given.length * 1e-40)).toBeCloseTo(1, 4);
      given[at] = bad;
      table.stage({ keys: everyKey, values: values() }, 'f32');
      for (const limit of [Infinity, 1]) expect(table.squares(limit)).toBe(Number.NaN);
    }
  }
});

test('initial values are those of the formula in TypeScript, to the bit', () => {
  fc.assert(
    fc.property(
      fc.nat({ max: 2 ** 32 - 1 }),
      fc.integer({ min: 1, max: 19 }),
      fc.double({ min: 1e-6, max: 10, noNaN: true }),
      (seed, width, limit) => {
        const config = resolveConfig({
          tables: { ab: { rows: 50, width, initializer: { kind: 'uniform', limit } } },
        }).tables!.ab!;
        const keys = Uint32Array.from([0, 1, 48, 49]);
        const out = new Float32Array(4 * width);
        new RowTable('ab', config, seed).read(keys, null, out);
        let base = mix(seed, mix(0, STREAMS.rows));
        for (const letter of 'ab') base = mix(base, letter.charCodeAt(0));
        const expected = Array.from(keys).flatMap((key) =>
          Array.from({ length: width }, (_, i) =>
            Math.fround(limit * (2 * (mix(mix(base, key), i) / 2 ** 32) - 1)),
          ),
        );
        expect([...out]).toEqual(expected);
      },
    ),
    { numRuns: 60 },
  );
});

test('rows are sent in bf16 as the reference rounds them, in any number of pieces', () => {
  for (const width of [3, 100]) {
    const [table] = tableOf({}, width);
    const keys = everyKey.filter((key) => key % 7 !== 2);
    const expected = valuesOf('bf16', width, keys, read(table, keys));
    const out = new Uint8Array(expected.length);
    table.write(keys, null, 'bf16', out);
    expect(out).toEqual(expected);
  }
});
