import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import type { ImageReading } from '../../../shared/reading.ts';
import { keepResult, recallResult } from '../../kept.ts';
import { type Column, kindOf, sizeOf } from '../columns.ts';
import { describe, isRecord } from '../described.ts';
import { DATA_PARTS } from '../examples.ts';
import { corrupt } from '../files.ts';
import { imageReadingOf } from '../pictures/images.ts';
import { sharedPool } from '../pictures/picture-pool.ts';
import { decodePicture, type SizeOf } from '../pictures/pictures.ts';
import { PositionedFile } from '../positioned-file.ts';
import { checkOptions, LOG, oneOf, optional, TEST_FRACTION } from '../reader-options.ts';
import type { ExampleSource, SourceField } from '../source.ts';
import { type CsvParts, partFiles } from '../tables/csv.ts';
import type { PartFile } from '../tables/table.ts';
import { TAR } from '../tables/table-files.ts';
import { TAR_BLOCK_BYTES } from '../tar/members.ts';
import {
  type CheckedTarField,
  checkedField,
  emptyRows,
  memberNumbers,
  putNumbers,
  type TarField,
} from '../tar/tar-fields.ts';
import {
  indexFromJson,
  indexShard,
  indexToJson,
  memberNameAt,
  type ShardIndex,
  type TarIndexing,
} from '../tar/tar-index.ts';
import { Kept } from './kept.ts';
import { lastNotAbove } from './offsets.ts';
import { holdOutRows, type SourceData } from './parts.ts';
import { ReadProgress } from './read-progress.ts';

/** Shards of tar archives, as WebDataset writes them: members are found in one pass, and read by position. */

export interface TarSourceOptions {
  /** By the name of the field: the ending of its members, or more about it. */
  readonly fields: Readonly<Record<string, string | readonly string[] | TarField>>;
  /** `drop`: examples that lack a member are left out. Default: they are refused. */
  readonly missing?: 'drop';
  /** Share of the examples that becomes the test part, where no shard does: the same in every run. Default: 0. */
  readonly testFraction?: number;
  /** The most bytes of decoded pictures that are kept. Default: 64 MiB. */
  readonly keptBytes?: number;
  /** Receives lines about progress. */
  readonly log?: (line: string) => void;
}

const OPTIONS = {
  fields: { allowed: "an object such as { inputs: 'jpg', targets: 'cls' }", test: isRecord },
  missing: optional(oneOf('drop')),
  testFraction: TEST_FRACTION,
  keptBytes: optional({
    allowed: 'a number of bytes from 0 on',
    test: (value) => typeof value === 'number' && value >= 0,
  }),
  log: LOG,
};

interface TarShard {
  readonly file: PositionedFile;
  readonly index: ShardIndex;
}

/**
 * Examples in one or several tar archives, as WebDataset has them: `0001.jpg`, `0001.cls` and `0001.json` are one example.
 * A path may be a folder, a pattern for the name of the file, or have a range of numbers in braces. Members are pictures,
 * `.npy`, JSON, texts and numbers; each example must have those that `fields` names.
 *
 *     data: async ({ log }) =>
 *       tarSource('photos-{000..099}.tar', {
 *         fields: {
 *           inputs: { member: ['jpg', 'png'], size: 64 },
 *           targets: { member: 'cls', classes: ['cat', 'dog'] },
 *         },
 *         log,
 *       })
 *
 * One pass over the headers finds where each member is; the result is kept in `~/.cache/downpour/sources` until a shard
 * changes. Then members are read by position when a minibatch needs them, and pictures are decoded in threads of their own.
 *
 * @throws DownpourError DP_DATA_MISSING; DP_EXPERIMENT_INVALID for a wrong option; DP_DATA_CORRUPT for a shard that is no tar
 * archive, compressed, truncated or damaged, for a member that is missing, occurs twice or is damaged, and, when examples are
 * read, for a shard that has changed; DP_DATA_LABEL for a text that is not in `classes`. All name the shard and the member.
 */
export async function tarSource(
  shards: string | readonly string[] | CsvParts,
  options: TarSourceOptions,
): Promise<SourceData> {
  checkOptions('tarSource', options, OPTIONS);
  const fields = fieldsOf(options);
  const files = await partFiles('tarSource', expanded(shards), TAR);
  if (files.length > LIMITS.tarShardsMax) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `tarSource: the paths name ${files.length} shards; allowed: ${LIMITS.tarShardsMax}. Join some of them with tar --concatenate`,
    );
  }
  const found = await indexed(files, fields, options);
  const whole = found.filter(({ index }) => index.count > 0);
  const dropped = found.reduce((sum, { index }) => sum + index.dropped, 0);
  if (dropped > 0) options.log?.(`tarSource: left out ${dropped} examples that lack a member`);
  const kept = new Kept<string, Uint8Array>(options.keptBytes ?? LIMITS.sourceCacheBytes);
  const parts = DATA_PARTS.map((part) => whole.filter((shard) => shard.part === part));
  const first = parts[0]![0];
  if (!first) {
    throw corrupt(
      files[0]!.file,
      'no example of the train part has all members that `fields` names',
    );
  }
  const kinds: TarColumn[] = [];
  for (const [at, field] of fields.entries()) kinds.push(await columnFrom(field, first, at));
  const sources = parts.map((own) => (own.length === 0 ? null : sourceOf(own, kinds, kept)));
  const [train, validation, test] = sources;
  if (test && options.testFraction) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `tarSource: \`testFraction\` is ${options.testFraction}, but there are shards of the test part already; leave it out`,
    );
  }
  const split = holdOutRows(train!, options.testFraction);
  const heldOut = split.test ?? test;
  const count = sources.reduce((sum, source) => sum + (source?.count ?? 0), 0);
  return {
    train: split.train,
    ...(validation ? { validation } : {}),
    ...(heldOut ? { test: heldOut } : {}),
    source: `${count} examples in ${files.length} shards from ${files[0]!.file}${files.length > 1 ? ' …' : ''}${dropped > 0 ? `; left out ${dropped} that lack a member` : ''}`,
  };
}

function fieldsOf({ fields }: TarSourceOptions): CheckedTarField[] {
  const entries = Object.entries(fields);
  if (entries.length === 0 || entries.length > LIMITS.fieldsMax) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `tarSource: fields is ${describe(fields)}; allowed: 1 to ${LIMITS.fieldsMax} fields, such as { inputs: 'jpg', targets: 'cls' }`,
    );
  }
  return entries.map(([name, given]) => checkedField(name, given));
}

/** Ranges of numbers in braces, as shells and WebDataset have them: `a-{00..02}.tar` is three files. */
function expanded<T>(given: T): T {
  const all = (path: string): string[] => {
    const range = /^(.*?)\{(\d+)\.\.(\d+)\}(.*)$/s.exec(path);
    if (!range) return [path];
    const [, before, from, to, behind] = range as unknown as [
      string,
      string,
      string,
      string,
      string,
    ];
    const count = Number(to) - Number(from) + 1;
    if (!(count >= 1 && count <= LIMITS.tarShardsMax)) {
      throw new DownpourError(
        'DP_EXPERIMENT_INVALID',
        `tarSource: {${from}..${to}} in the path names ${Math.max(0, count)} shards; allowed: 1 to ${LIMITS.tarShardsMax}`,
      );
    }
    return Array.from({ length: count }, (_, i) =>
      String(Number(from) + i).padStart(from.length, '0'),
    ).flatMap((number) => all(`${before}${number}${behind}`));
  };
  const each = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.flatMap((path) => each(path));
    if (typeof value !== 'string') return value;
    const paths = all(value);
    return paths.length === 1 ? paths[0] : paths;
  };
  if (!isRecord(given) || given instanceof URL) return each(given) as T;
  return Object.fromEntries(Object.entries(given).map(([name, own]) => [name, each(own)])) as T;
}

interface PartTarShard extends TarShard {
  readonly part: PartFile['part'];
}

/** The most bytes of an index that are kept for the next start. */
const KEPT_INDEX_BYTES_MAX = 2 ** 26;

/** Where the members of all shards are: as kept, or found anew. */
async function indexed(
  files: readonly PartFile[],
  fields: readonly CheckedTarField[],
  { missing, log }: TarSourceOptions,
): Promise<PartTarShard[]> {
  const opened: PositionedFile[] = [];
  for (const { file } of files) opened.push(await PositionedFile.open(file));
  const indexing: TarIndexing = {
    endings: fields.map(({ endings }) => endings),
    names: fields.map(({ name }) => name),
    drops: missing === 'drop',
  };
  const versions = opened.map(({ path, version }) => [path, version]);
  const key = JSON.stringify(['tar index 1', versions, indexing]);
  const recalled = recallResult(key);
  const known = Array.isArray(recalled) ? recalled.map(indexFromJson) : [];
  const isKnown = known.length === files.length && known.every((index) => index !== null);
  const indices: ShardIndex[] = [];
  for (const [at, file] of opened.entries()) {
    const name = files.length > 1 ? `${file.path} (${at + 1} of ${files.length})` : file.path;
    const progress = new ReadProgress(log, name, 'bytes', file.size);
    indices.push(isKnown ? known[at]! : await indexShard(file, indexing, progress));
  }
  const bytes = indices.reduce((sum, { count }) => sum + 12 * count * fields.length, 0);
  if (!isKnown && bytes <= KEPT_INDEX_BYTES_MAX) {
    try {
      keepResult(key, indices.map(indexToJson));
    } catch (error) {
      log?.(`the index of the shards is not kept for the next start: ${describe(error)}`);
    }
  }
  return indices.map((index, at) => ({ part: files[at]!.part, file: opened[at]!, index }));
}

/** A field, as the first example has it. */
interface TarColumn {
  readonly field: CheckedTarField;
  readonly source: SourceField;
  /** For pictures. */
  readonly reading: ImageReading | null;
  /** Whose size all pictures must have; null: they are brought to one size. */
  readonly like: SizeOf | null;
}

const startOf = ({ index }: TarShard, field: number, row: number): number =>
  index.fields[field]!.blocks[row]! * TAR_BLOCK_BYTES;

async function columnFrom(field: CheckedTarField, shard: TarShard, at: number): Promise<TarColumn> {
  const { file, index } = shard;
  const start = startOf(shard, at, 0);
  const bytes = await file.read({ start, length: index.fields[at]!.sizes[0]! });
  const where = `${file.path}: member '${await memberNameAt(file, start)}'`;
  const { role, classes, classCount, names } = field;
  const texts = {
    ...(role ? { role } : {}),
    ...(classes ? { classes } : {}),
    ...(classCount === undefined ? {} : { classCount }),
    ...(names ? { names } : {}),
  };
  if (field.kind !== 'picture') {
    const { values, shape } = memberNumbers(field, bytes, where);
    const source = { ...texts, shape, type: kindOf(values) };
    return { field, reading: null, like: null, source };
  }
  const { width, height } = await decodePicture(bytes, where);
  const reading = imageReadingOf(field, { width, height });
  const shape = [reading.height, reading.width, reading.channels];
  return {
    ...{ field, reading, source: { ...texts, shape, type: 'uint8', reading } },
    like: field.size === undefined ? { path: where, width, height } : null,
  };
}

function sourceOf(
  shards: readonly TarShard[],
  columns: readonly TarColumn[],
  kept: Kept<string, Uint8Array>,
): ExampleSource {
  const starts: number[] = [];
  let count = 0;
  for (const { index } of shards) {
    starts.push(count);
    count += index.count;
  }
  const [first] = shards as readonly [TarShard];
  const shown = shards.length > 1 ? ` and ${shards.length - 1} more` : '';
  return {
    count,
    name: `${first.file.path}${shown}`,
    key: JSON.stringify([
      shards.map(({ file, index }) => [file.path, file.version, index.count]),
      columns.map(({ field }) => field),
    ]),
    fields: Object.fromEntries(columns.map(({ field, source }) => [field.name, source])),
    async read(indices, { signal }) {
      const rows = columns.map(({ source }) =>
        emptyRows(source.type, source.shape, indices.length),
      );
      const wanted = new Map<number, number[]>();
      indices.forEach((index, i) => {
        const at = lastNotAbove(starts, index);
        const own = wanted.get(at);
        if (own) own.push(i);
        else wanted.set(at, [i]);
      });
      for (const [at, own] of wanted) {
        signal.throwIfAborted();
        const asked = own.map((i) => ({ into: i, row: indices[i]! - starts[at]! }));
        await readShard(shards[at]!, asked, { columns, rows, kept });
      }
      return Object.fromEntries(columns.map(({ field }, c) => [field.name, rows[c]!]));
    },
  };
}

interface ReadingInto {
  readonly columns: readonly TarColumn[];
  readonly rows: readonly Column['values'][];
  readonly kept: Kept<string, Uint8Array>;
}

interface AskedExample {
  /** Its place in the minibatch, and its row in the shard. */
  readonly into: number;
  readonly row: number;
}

/**
 * Reads the members of some examples together. No signal ends it: another read may wait for the same pictures.
 * @throws DownpourError as `tarSource`
 */
async function readShard(
  shard: TarShard,
  asked: readonly AskedExample[],
  { columns, rows, kept }: ReadingInto,
): Promise<void> {
  const { file, index } = shard;
  const ranges: { start: number; length: number }[] = [];
  const takes: ((bytes: Buffer) => void)[] = [];
  const drops: ((error: unknown) => void)[] = [];
  /** The bytes of a member, when all are read. */
  const bytesOf = (field: number, row: number): Promise<Buffer> =>
    new Promise((resolve, reject) => {
      ranges.push({ start: startOf(shard, field, row), length: index.fields[field]!.sizes[row]! });
      takes.push(resolve);
      drops.push(reject);
    });
  const named = async (field: number, row: number) =>
    `${file.path}: member '${await memberNameAt(file, startOf(shard, field, row))}'`;
  const waiting = columns.flatMap(({ field, source, reading, like }, c) =>
    asked.map(async ({ into, row }) => {
      const size = sizeOf(source.shape);
      if (reading) {
        const key = `${file.path}: ${c}, ${row}`;
        const pixels = await kept.get(key, size, async () => {
          const bytes = await bytesOf(c, row);
          const decode = (path: string) =>
            sharedPool().decode({ path, bytes, canvas: reading, like });
          // The name of the member is looked for only where a message needs it.
          return decode('').catch(async () => decode(await named(c, row)));
        });
        rows[c]!.set(pixels, into * size);
        return;
      }
      const bytes = await bytesOf(c, row);
      const put = (where: string) =>
        putNumbers(memberNumbers(field, bytes, where), source, rows[c]!, into, where);
      try {
        put('');
      } catch {
        put(await named(c, row));
      }
    }),
  );
  // All members have been asked for: those that are kept need no bytes.
  const reading = file.readAll(ranges, (bytes, i) => takes[i]!(bytes));
  reading.catch((error: unknown) => {
    for (const drop of drops) drop(error);
  });
  const results = await Promise.allSettled([reading, ...waiting]);
  const failed = results.find((result) => result.status === 'rejected');
  if (failed) throw failed.reason;
}
