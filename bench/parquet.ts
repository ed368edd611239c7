/**
 * The memory that 1 GB of Parquet takes, with large and with small row groups:
 *
 *     DOWNPOUR_PYTHON_TOOLS=FOLDER npx tsx bench/parquet.ts [megabytes]     # default: 1000
 *
 * pyarrow writes the file: eleven columns of float64, some with gaps, and one of classes. Three readings, each in a process of
 * its own: `open` (the first pass), `order` (all rows in their order, as the passes before training and `spooled` do), and
 * `minibatches` (10 minibatches of 64 rows from anywhere).
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { readSourceRows } from '../worker/data/source.ts';
import { parquetSource } from '../worker/data/sources/parquet.ts';

const READINGS = ['open', 'order', 'minibatches'] as const;
type ParquetReading = (typeof READINGS)[number];

interface ParquetRow {
  readonly reading: ParquetReading;
  /** Resident memory at most, less that before the file was opened. */
  readonly moreMegabytes: number;
  readonly seconds: number;
}

const WRITER = `
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
path, rows, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(1)
writer = None
for start in range(0, rows, group):
    count = min(group, rows - start)
    columns = {f'x{i}': random.normal(size=count) for i in range(10)}
    columns['gaps'] = pa.array(random.normal(size=count), mask=random.random(count) < 0.01)
    columns['kind'] = random.choice(['red', 'green', 'blue'], size=count)
    table = pa.table(columns)
    writer = writer or pq.ParquetWriter(path, table.schema)
    writer.write_table(table, row_group_size=group)
writer.close()
`;

/** Writes a table of about so many bytes. @param groupRows rows of a row group */
async function writeParquet(path: string, bytes: number, groupRows: number): Promise<void> {
  const rows = Math.max(groupRows, Math.floor(bytes / (8 * 11)));
  const env = { ...process.env, PYTHONPATH: process.env.DOWNPOUR_PYTHON_TOOLS ?? '' };
  await promisify(execFile)('python3', ['-c', WRITER, path, String(rows), String(groupRows)], {
    env,
  });
}

/** One reading in a process of its own. */
async function readParquet(path: string, reading: ParquetReading): Promise<ParquetRow> {
  const { stdout } = await promisify(execFile)(process.execPath, [
    ...['--import', 'tsx', fileURLToPath(import.meta.url), 'child', path, reading],
  ]);
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as ParquetRow;
}

async function child(path: string, reading: ParquetReading): Promise<void> {
  const before = process.memoryUsage.rss();
  let most = before;
  const look = () => {
    most = Math.max(most, process.memoryUsage.rss());
  };
  const looking = setInterval(look, 20);
  let started = performance.now();
  const { train: source } = await parquetSource(path, {
    ...{ targets: ['kind'], task: 'classification', missing: 'mean' },
  });
  look();
  if (reading !== 'open') started = performance.now();
  const read = async (indices: Int32Array) => {
    await readSourceRows({ source, where: path }, indices);
    look();
  };
  if (reading === 'order') {
    for (let from = 0; from < source.count; from += 4096) {
      const count = Math.min(4096, source.count - from);
      await read(Int32Array.from({ length: count }, (_, i) => from + i));
    }
  }
  if (reading === 'minibatches') {
    for (let k = 0; k < 10; k++) {
      await read(Int32Array.from({ length: 64 }, (_, i) => ((64 * k + i) * 7919) % source.count));
    }
  }
  clearInterval(looking);
  const moreMegabytes = (most - before) / 2 ** 20;
  const seconds = (performance.now() - started) / 1000;
  console.log(JSON.stringify({ reading, moreMegabytes, seconds } satisfies ParquetRow));
}

async function main(megabytes: number): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-parquet-'));
  try {
    for (const groupRows of [1_000_000, 100_000]) {
      const path = join(folder, 'table.parquet');
      await writeParquet(path, 1e6 * megabytes, groupRows);
      for (const reading of READINGS) {
        const { moreMegabytes, seconds } = await readParquet(path, reading);
        console.log(
          `${groupRows} rows in a group, ${reading}: ${moreMegabytes.toFixed(0)} MB more memory, ${seconds.toFixed(1)} s`,
        );
      }
    }
  } finally {
    await rm(folder, { recursive: true });
  }
}

const [, file, mode, ...rest] = process.argv;
if (file === fileURLToPath(import.meta.url)) {
  if (mode === 'child') await child(rest[0]!, rest[1] as ParquetReading);
  else await main(Number(mode ?? 1000));
}
