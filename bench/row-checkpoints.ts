/**
 * What a checkpoint of a table takes: bytes on disk, and time of the processor to copy it, in its longest piece, and to hash and
 * write it. With all rows, and with those alone that some pushes have changed.
 *
 *     npx tsx bench/row-checkpoints.ts --rows 400000 --width 100 --touched 2889
 *
 * Needs memory for the values twice, and disk for all of them twice.
 */
import { parseArgs } from 'node:util';
import { writeCheckpoint } from '../files/checkpoint.ts';
import type { Continues } from '../files/manifest.ts';
import { RunTables } from '../server/core/tables/run-tables.ts';
import { resolveConfig } from '../shared/config.ts';
import { random } from '../shared/random.ts';
import { encodeRows } from '../shared/rows.ts';
import { temporaryFolder } from './processes.ts';

const { values: options } = parseArgs({
  options: {
    rows: { type: 'string', default: '400000' },
    width: { type: 'string', default: '100' },
    touched: { type: 'string', default: '2889' },
  },
});
const [rows, width, touched] = [options.rows, options.width, options.touched].map(Number) as [
  number,
  number,
  number,
];
/** Rows that are given at once, in the beginning. */
const GIVEN = 20_000;
const TURNS = 3;

const tables = new RunTables(resolveConfig({ tables: { word: { rows, width } } }));
const draw = random(1, 1);
const some = (keys: Uint32Array) =>
  encodeRows(
    tables.shapes,
    [{ keys, values: Float32Array.from({ length: keys.length * width }, () => draw.uniform()) }],
    'f32',
  );

for (let start = 0; start < rows; start += GIVEN) {
  const count = Math.min(GIVEN, rows - start);
  tables.begin(some(Uint32Array.from({ length: count }, (_, i) => start + i)));
}

/** Each with rows drawn evenly: others change more of the same rows. */
function push(): void {
  const keys = new Set<number>();
  while (keys.size < touched) keys.add(draw.below(rows));
  const bytes = some(Uint32Array.from(keys).sort());
  tables.stage(bytes, { step: tables.rowStep, encoding: 'f32', bytes: bytes.length, wanted: 0 });
  tables.apply(0.01, { limit: Infinity, factor: 1 }, () => 1);
}

/** Time of the processor so far, ms: on a busy machine others take theirs in between. */
function spent(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1_000;
}

const folder = temporaryFolder();
let after: Continues['after'] = [];
async function write(what: string, changes: boolean): Promise<void> {
  const began = spent();
  const copy = tables.beginCopy('last', null, { changes });
  let longestMs = spent() - began;
  for (let more = true; more; ) {
    const at = spent();
    more = copy.more();
    longestMs = Math.max(longestMs, spent() - at);
  }
  const copied = spent();
  const manifest = await writeCheckpoint(folder.path, {
    ...({ run: 'r', step: tables.rowStep, kind: 'last', layoutHash: '', state: null } as const),
    ...{ tensors: copy.tensors(), now: new Date() },
    ...(changes && { continues: { after, rows: copy.groups } }),
  });
  const written = spent();
  tables.endCopy(true);
  const { file, sha256, bytes } = manifest;
  after = changes ? [...after, { file, sha256 }] : [{ file, sha256 }];
  const [megabytes, copyMs, writeMs] = [bytes / 1e6, copied - began, written - copied].map((x) =>
    x.toFixed(1),
  );
  console.log(
    `${what}: ${megabytes} MB, copied in ${copyMs} ms (at most ${longestMs.toFixed(1)} ms at once), written in ${writeMs} ms`,
  );
}

try {
  for (let turn = 0; turn < TURNS; turn++) {
    await write('all rows', false);
    for (const pushes of [1, 10, 100]) {
      for (let i = 0; i < pushes; i++) push();
      await write(`rows of ${pushes} push${pushes > 1 ? 'es' : ''}`, true);
    }
  }
} finally {
  folder.remove();
}
