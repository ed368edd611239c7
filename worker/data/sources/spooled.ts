import { DownpourError } from '../../../shared/errors.ts';
import { describe } from '../described.ts';
import { checkOptions, isText, LOG, optional } from '../reader-options.ts';
import { type ExampleSource, readSourceRows } from '../source.ts';
import { readSpool, rowsAtOnce, type SpoolBatch, writeSpool } from './spool.ts';

/** Sources that are slow in the order of training, written once in their own order. */

export interface SpoolOptions {
  /** Where the file is put: `folder` of the arguments of `data`, say. */
  readonly folder: string;
  /** Name of the file, without an ending. Each part of the data needs a name of its own. */
  readonly name: string;
  /** Write it anew, though it is there. Default: false. */
  readonly refresh?: boolean;
  /** Receives lines about progress. */
  readonly log?: (line: string) => void;
}

export const SPOOL_FIELDS = {
  folder: { allowed: 'the path of a folder', test: isText },
  name: {
    allowed: "letters, digits, '-', '_' and '.', such as 'rides-train', at most 100",
    test: (value: unknown) => isText(value) && /^[\w-][\w.-]{0,99}$/.test(value),
  },
  refresh: optional({ allowed: 'true, false', test: (value) => typeof value === 'boolean' }),
  log: LOG,
};

/**
 * The same examples, written once to the file `<folder>/<name>.rows` and read from there by position: for a source that can
 * only be read well from the first example to the last, such as Parquet files with more data than are kept decoded. The file is
 * used again as long as the `key` of the source is the same. It takes as many bytes as all numbers have; a category of a table
 * has one float64 for each of its names.
 *
 *     data: async ({ folder, log }) => {
 *       const { train, ...facts } = await parquetSource('rides.parquet', { targets: ['fare'], log });
 *       return { ...facts, train: await spooled(train, { folder, name: 'rides', log }) };
 *     }
 *
 * @throws DownpourError DP_EXPERIMENT_INVALID for a wrong option; DP_DISK: the disk is full, and nothing of the file is left;
 * DP_DATA_CORRUPT for a damaged file, and what the source throws
 */
export async function spooled(
  source: ExampleSource,
  options: SpoolOptions,
): Promise<ExampleSource> {
  checkOptions('spooled', options, SPOOL_FIELDS);
  if (typeof source?.read !== 'function') {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `spooled: the first argument is ${describe(source)}; allowed: a source, such as parquetSource(…) gives for each part`,
    );
  }
  const { count, fields, key = null } = source;
  // Without a key nobody knows what is in the file.
  const of = JSON.stringify([key, count, fields]);
  const known = key === null || options.refresh ? null : await readSpool(options, of);
  if (known) return known;
  await writeSpool(options, of, batchesOf(source), count);
  return (await readSpool(options, of))!;
}

async function* batchesOf(source: ExampleSource): AsyncGenerator<SpoolBatch, void> {
  const { count, fields, name = 'source' } = source;
  const step = rowsAtOnce(fields);
  for (let from = 0; from < count; from += step) {
    const indices = Int32Array.from({ length: Math.min(step, count - from) }, (_, i) => from + i);
    const rows = await readSourceRows({ source, where: name }, indices);
    yield { count: indices.length, fields, rows };
  }
}
