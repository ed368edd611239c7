import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PROGRAM } from './processes.ts';
import { type Column, formatTable, writeBetween } from './report.ts';
import { type Journey, pythonSets, SETS, type SklearnResult, travel } from './sklearn/journey.ts';
import { mean, POINTS, shown, shownMean } from './sklearn/statistics.ts';

/**
 * `npx tsx bench/sklearn.ts`: the public data of scikit-learn, as pandas writes them, through `init` (without a test part: it has one), `check`,
 * `train` and `export` with nothing changed, against scikit-learn's own models on the same rows. Writes what came
 * out between the marks of docs/results.md. Needs scikit-learn and pandas in python3 or in DOWNPOUR_PYTHON_TOOLS.
 */

const ROOT = join(import.meta.dirname, '..');
const PAGE = join(ROOT, 'docs/results.md');

const { values } = parseArgs({
  options: {
    sets: { type: 'string', default: SETS.join(',') },
    /** Those of the report. What `init` writes was chosen on 101 … 112. */
    seeds: { type: 'string', default: '1,2,3,4,5' },
    engine: { type: 'string', default: 'wasm' },
    /** The package's own, built, starts in a third of the time. */
    program: { type: 'string', default: PROGRAM },
    /** Prints the table only. */
    print: { type: 'boolean', default: false },
    /** Prints an object for each set and seed only. */
    json: { type: 'boolean', default: false },
  },
});

/** What a quantity may be worse than scikit-learn's: a share of its error. */
const SHARE = 0.05;

interface Row extends SklearnResult {
  readonly journey: Journey;
}

/** What of scikit-learn is compared: the network of classes, ridge of quantities. */
const rival = ({ task, mlp, ridge }: SklearnResult) => (task === 'classification' ? mlp : ridge);

const COLUMNS: Column[] = [
  { key: 'set', title: 'data' },
  { key: 'rows', title: 'rows to learn from + to test with' },
  { key: 'downpour', title: 'Downpour' },
  { key: 'mlp', title: 'MLP' },
  { key: 'ridge', title: 'ridge' },
  { key: 'difference', title: 'worse by' },
  { key: 'allowed', title: 'allowed' },
  { key: 'met', title: 'met' },
  { key: 'agrees', title: 'predictions differ by at most' },
];

function summary(set: string, rows: readonly Row[]) {
  const { task, train, test } = rows[0]!;
  const isShare = task === 'classification';
  const told = (numbers: readonly number[]) => shownMean(numbers, isShare);
  const worse = rows.map((row) => row.journey.error - rival(row));
  const allowed = isShare ? POINTS : SHARE * mean(rows.map(rival));
  return {
    set,
    rows: `${train} + ${test}`,
    downpour: told(rows.map(({ journey }) => journey.error)),
    mlp: told(rows.map(({ mlp }) => mlp)),
    ridge: told(rows.map(({ ridge }) => ridge)),
    difference: told(worse),
    allowed: shown(allowed, 2, isShare),
    met: mean(worse) <= allowed ? 'yes' : 'no',
    agrees: Math.max(...rows.map(({ journey }) => journey.difference)).toExponential(1),
  };
}

function tell(rows: readonly Row[]): void {
  const sets = [...new Set(rows.map(({ set }) => set))];
  const table = formatTable({
    columns: COLUMNS,
    rows: sets.map((set) =>
      summary(
        set,
        rows.filter((row) => row.set === set),
      ),
    ),
  });
  const machine = `${cpus().length} cores (${cpus()[0]?.model.trim()}), Node ${process.versions.node}, engine ${values.engine}`;
  const text = `Seeds ${values.seeds}; mean and 95 % interval. Machine: ${machine}.\n\n${table}`;
  console.log(text);
  if (!values.print) writeFileSync(PAGE, writeBetween(readFileSync(PAGE, 'utf8'), 'sklearn', text));
}

const folder = mkdtempSync(join(tmpdir(), 'downpour-sklearn-'));
try {
  const seeds = values.seeds.split(',').map(Number);
  const results = pythonSets<SklearnResult>('sets.py', folder, values.sets.split(','), seeds);
  const rows: Row[] = [];
  for (const result of results) {
    const journey = await travel(join(folder, `${result.set}-${result.seed}`), values);
    rows.push({ ...result, journey });
    const { error, run } = journey;
    console.error(
      `  ${result.set} ${result.seed}${result.index ? ' with index' : ''}: ${error.toFixed(4)} (scikit-learn ${rival(result).toFixed(4)}), ${run.step} steps in ${run.seconds.toFixed(0)} s`,
    );
  }
  if (values.json) console.log(JSON.stringify(rows));
  else tell(rows);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
