import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { type Fuzzed, fuzz } from './fuzz.ts';
import { trySequences } from './sequences.ts';
import { openTargets } from './targets.ts';

/**
 * `npm run fuzz -- --frames 100000 --seed 1`: every reader of others' bytes, on damaged input. With `--sequences 1000`:
 * valid messages in any order from workers that nobody asked, beside an honest one.
 */

const { values } = parseArgs({
  options: {
    frames: { type: 'string', default: '100000' },
    seed: { type: 'string', default: String(randomInt(2 ** 31)) },
    target: { type: 'string' },
    sequences: { type: 'string' },
  },
});
const frames = Number(values.frames);
const seed = Number(values.seed);
if (values.sequences !== undefined) {
  await trySequences(Number(values.sequences), seed);
  console.log(`${values.sequences} sequences of up to 80 messages, seed ${seed}: nothing changed`);
  process.exit();
}
const targets = await openTargets();
const rows: Fuzzed[] = [];
let failed = false;
for (const target of targets) {
  if (values.target !== undefined && !target.name.includes(values.target)) continue;
  try {
    const row = await fuzz(target, Math.ceil(frames / (target.cost ?? 1)), seed);
    rows.push(row);
    console.error(`${row.target}: ${row.inputs} inputs`);
  } catch (error) {
    failed = true;
    console.error(`${target.name}: ${error instanceof Error ? error.message : String(error)}`);
    console.error(
      `again: npm run fuzz -- --frames ${frames} --seed ${seed} --target '${target.name}'`,
    );
  }
}
for (const target of targets) target.close?.();

console.log(`seed ${seed}\n`);
console.log(
  '| reader | inputs | accepted | refused, each with a code | most allocated, MB | slowest, ms |',
);
console.log('|---|---:|---:|---|---:|---:|');
for (const { target, inputs, accepted, rejected, allocatedBytesMax, slowestMs } of rows) {
  const codes = Object.entries(rejected)
    .sort(([, a], [, b]) => b - a)
    .map(([code, count]) => `${count} \`${code}\``)
    .join(', ');
  const megabytes = (allocatedBytesMax / 1e6).toFixed(1);
  console.log(
    `| ${target} | ${inputs} | ${accepted} | ${codes} | ${megabytes} | ${slowestMs.toFixed(1)} |`,
  );
}
if (failed) process.exitCode = 1;
