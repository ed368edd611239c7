/**
 * Training from a source against training from memory, with the same examples:
 *
 *     npx tsx bench/sources.ts [steps]     # default: 2000
 *
 * 500,000 pictures of 784 bytes (392 MB) lie in a .npy file. Each training has a process of its own; that of the source
 * may have a heap of 96 MB (`--max-old-space-size`), a quarter of the data. Both take turns, three times; medians.
 */
import { execFile } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { resolveConfig } from '../shared/config.ts';
import { dataOf } from '../worker/data/given.ts';
import { prepareAny } from '../worker/data/prepare-stored.ts';
import { arraySource } from '../worker/data/sources/arrays.ts';
import { openEngine } from '../worker/engine.ts';
import { Minibatches } from '../worker/minibatches.ts';
import { buildModel } from '../worker/model.ts';

export const HEAP_MB = 96;
const COUNT = 500_000;
const SIZE = 784;
const MINIBATCH = 64;

export interface SourceRow {
  readonly from: 'memory' | 'source';
  readonly msPerStep: number;
  readonly prepareSeconds: number;
  /** Beyond what the engine took. */
  readonly moreMegabytes: number;
  readonly loss: number;
}

/** Writes the pictures and their labels. */
export async function writePictures(folder: string): Promise<void> {
  const rows = 10_000;
  const bytes = Uint8Array.from({ length: rows * SIZE }, (_, i) => (i * 7 + (i >> 5)) % 251);
  function* pieces() {
    yield npyHeaderOf('|u1', [COUNT, SIZE]);
    for (let i = 0; i < COUNT; i += rows) yield bytes;
  }
  await pipeline(Readable.from(pieces()), createWriteStream(join(folder, 'inputs.npy')));
  const labels = Int32Array.from({ length: COUNT }, (_, i) => (i % rows) % 10);
  const head = npyHeaderOf('<i4', [COUNT]);
  await writeFile(
    join(folder, 'targets.npy'),
    Buffer.concat([head, new Uint8Array(labels.buffer)]),
  );
}

function npyHeaderOf(descr: string, shape: readonly number[]): Buffer {
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(', ')},), }`;
  const padded = text.padEnd(128 - 10 - 1);
  const head = Buffer.from(`\x93NUMPY\x01\x00\x00\x00${padded}\n`, 'latin1');
  head.writeUInt16LE(padded.length + 1, 8);
  return head;
}

/** One training in a process of its own. */
export async function trainFrom(
  from: SourceRow['from'],
  folder: string,
  steps: number,
  engine: 'auto' | 'cpu' = 'auto',
): Promise<SourceRow> {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [
      ...(from === 'source' ? [`--max-old-space-size=${HEAP_MB}`] : []),
      ...['--import', 'tsx', fileURLToPath(import.meta.url)],
      ...['child', from, folder, String(steps), engine],
    ],
    // What an earlier process has found must not be known.
    { env: { ...process.env, XDG_CACHE_HOME: folder } },
  );
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as SourceRow;
}

async function child(from: string, folder: string, steps: number, engine: string): Promise<void> {
  await openEngine({ engine: engine as 'auto' });
  const before = process.memoryUsage.rss();
  let most = before;
  const look = () => {
    most = Math.max(most, process.memoryUsage.rss());
  };
  const started = performance.now();
  const file = (name: string) => join(folder, `${name}.npy`);
  const train =
    from === 'source'
      ? await arraySource({ inputs: { file: file('inputs') }, targets: { file: file('targets') } })
      : {
          inputs: { values: (await readFile(file('inputs'))).subarray(128), shape: [COUNT, SIZE] },
          targets: {
            values: new Int32Array((await readFile(file('targets'))).buffer.slice(128)),
            shape: [COUNT],
          },
        };
  const prepared = await prepareAny(
    dataOf({ train, classCount: 10 }),
    { seed: 1, validationFraction: 0.1, standardise: 'none', loss: 'softmaxCrossEntropy' },
    { log: look },
  );
  look();
  const prepareSeconds = (performance.now() - started) / 1000;
  const config = resolveConfig({ minibatchSize: MINIBATCH });
  const model = await buildModel(
    {
      data: () => Promise.reject(new Error('it is here already')),
      model: ({ tf, inputShape, classCount }) =>
        tf.sequential({
          layers: [
            tf.layers.dense({ units: 256, activation: 'relu', inputShape }),
            tf.layers.dense({ units: classCount }),
          ],
        }),
      loss: 'softmaxCrossEntropy',
    },
    config,
    prepared,
  );
  model.load((await model.initialise(1)).slice());
  const minibatches = new Minibatches(1, prepared);
  const leaseOf = (id: number) => {
    const start = (id * MINIBATCH) % (prepared.train.count - MINIBATCH);
    return { id, part: 'train', epoch: 0, start, count: MINIBATCH } as const;
  };
  let loss = 0;
  const warm = Math.min(20, Math.floor(steps / 2));
  let begun = 0;
  for (let id = 0; id < steps; id++) {
    if (id === warm) begun = performance.now();
    const minibatch = await minibatches.take(leaseOf(id));
    if (minibatches.areRead) minibatches.prepare(leaseOf(id + 1));
    const step = await model.step(minibatch, id);
    loss += step.loss / steps;
    step.discard();
    if (id % 50 === 0) look();
    // As a worker does between two steps.
    await new Promise((resolve) => setImmediate(resolve));
  }
  const msPerStep = (performance.now() - begun) / (steps - warm);
  look();
  minibatches.close();
  model.dispose();
  const moreMegabytes = (most - before) / 2 ** 20;
  console.log(JSON.stringify({ from, msPerStep, prepareSeconds, moreMegabytes, loss }));
}

async function main(steps: number): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-sources-'));
  try {
    await writePictures(folder);
    const rows: SourceRow[] = [];
    for (let turn = 0; turn < 3; turn++) {
      for (const from of ['memory', 'source'] as const) {
        await rm(join(folder, 'downpour'), { recursive: true, force: true });
        rows.push(await trainFrom(from, folder, steps));
      }
    }
    const median = (from: string, of: 'msPerStep' | 'prepareSeconds' | 'moreMegabytes') =>
      rows
        .filter((row) => row.from === from)
        .map((row) => row[of])
        .sort((a, b) => a - b)[1]!;
    for (const from of ['memory', 'source']) {
      console.log(
        `${from}: ${median(from, 'msPerStep').toFixed(2)} ms a step, ${median(from, 'prepareSeconds').toFixed(1)} s before training, ${median(from, 'moreMegabytes').toFixed(0)} MB more memory`,
      );
    }
  } finally {
    await rm(folder, { recursive: true });
  }
}

const [, file, mode, ...rest] = process.argv;
if (file === fileURLToPath(import.meta.url)) {
  if (mode === 'child') await child(rest[0]!, rest[1]!, Number(rest[2]), rest[3]!);
  else await main(Number(mode ?? 2000));
}
