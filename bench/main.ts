/**
 * `npm run bench`: what the parameter path reaches, question by question, each with its limit measured
 * in the same run, so that the ratios hold on any machine; and which targets are met.
 *
 *     npm run bench                              # some minutes
 *     npm run bench -- --quick                   # a look, about a minute
 *     npm run bench -- --only exchange,fleet
 *     npm run bench -- --json
 *     npm run bench -- --write                   # also into docs/benchmarks.md
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { errorText } from '../shared/errors.ts';
import { ROOT } from './processes.ts';
import { createProgress } from './progress.ts';
import {
  formatTable,
  judge,
  type Table,
  type Target,
  type Verdict,
  verdictTable,
  writeBetween,
} from './report.ts';
import { SECTIONS } from './sections.ts';

export interface BenchReport {
  readonly machine: { cores: number; cpu: string; memoryGigabytes: number; node: string };
  readonly quick: boolean;
  readonly sections: readonly {
    readonly name: string;
    readonly seconds: number;
    readonly tables: readonly Table[];
    readonly targets: readonly Verdict[];
  }[];
}

const PAGE = join(ROOT, 'docs/benchmarks.md');
const names = SECTIONS.map(({ name }) => name);
const USAGE = `npm run bench -- [--quick] [--json] [--write] [--only name,name]; names: ${names.join(', ')}`;

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        only: { type: 'string' },
        quick: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
        write: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    });
    const wanted = values.only?.split(',').map((name) => name.trim()) ?? names;
    const unknown = wanted.filter((name) => !names.includes(name));
    if (unknown.length > 0) throw new Error(`there is no '${unknown.join("', '")}'`);
    return { ...values, wanted };
  } catch (error) {
    console.error(`error DP_USAGE: ${errorText(error)}; ${USAGE}`);
    process.exit(2);
  }
}

const options = readOptions();
if (options.help) {
  console.log(USAGE);
  process.exit();
}
// Leaving runs what ends all processes and removes all folders.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));

const machine = {
  cores: cpus().length,
  cpu: cpus()[0]?.model.trim() ?? 'unknown',
  memoryGigabytes: Math.round(totalmem() / 1e9),
  node: process.versions.node,
};
const machineLine = `${machine.cores} cores (${machine.cpu}), ${machine.memoryGigabytes} GB, Node ${machine.node}${options.quick ? '; a quick run' : ''}.`;
const print = (text: string) => {
  if (!options.json) process.stdout.write(`${text}\n\n`);
};

const sections: BenchReport['sections'][number][] = [];
print(machineLine);
for (const section of SECTIONS) {
  if (!options.wanted.includes(section.name)) continue;
  const from = performance.now();
  const progress = createProgress(section.name);
  let found: { tables: Table[]; targets: Target[] };
  try {
    found = await section.run({ quick: options.quick, progress: progress.tell });
  } finally {
    progress.end();
  }
  const seconds = Math.round((performance.now() - from) / 1000);
  // A quick run does not ask for everything.
  const asked = found.targets.filter(({ seen }) => seen !== null || !options.quick);
  const targets = asked.map(judge);
  sections.push({ name: section.name, seconds, tables: found.tables, targets });
  const text = [
    ...found.tables.map(tableText),
    ...(targets.length > 0 ? [verdictText(targets)] : []),
  ].join('\n\n');
  print(text);
  if (options.write) {
    const page = readFileSync(PAGE, 'utf8');
    writeFileSync(PAGE, writeBetween(page, section.name, `Machine: ${machineLine}\n\n${text}`));
  }
}
const all = sections.flatMap(({ targets }) => targets);
const met = all.filter((verdict) => verdict.met).length;
if (all.length > 0) print(`${met} of ${all.length} targets met.`);
if (options.json) {
  console.log(
    JSON.stringify({ machine, quick: options.quick, sections } satisfies BenchReport, null, 2),
  );
}
process.exit();

function tableText(table: Table): string {
  return [`**${table.question}**`, formatTable(table), ...(table.note ? [table.note] : [])].join(
    '\n\n',
  );
}

function verdictText(targets: readonly Verdict[]): string {
  return formatTable(verdictTable(targets));
}
