import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  addConfigOptions,
  addTokenOptions,
  dataOption,
  engineOption,
  examples,
  isStateGiven,
  jsonOption,
  type Outcome,
  ownPortOption,
  positive,
  serverOption,
  stateOption,
  usedServerOption,
  whole,
} from '../options.ts';
import type { PaperOptions } from '../paper/paper.ts';
import { LAWS_HELP } from './laws.ts';
import type { ScaleOptions } from './scale.ts';
import type { SimulateOptions } from './simulate.ts';

/** Names, options and help of the commands that ask what many workers would do. */

/** `simulate`, `scale`, `paper`. */
export function registerSimulateCommands(program: Command, outcome: Outcome): void {
  registerSimulate(program, outcome);
  registerScale(program, outcome);
  registerPaper(program, outcome);
}

/** Virtual workers that one command may have. */
const WORKERS_MAX = 100_000;

/** Numbers of workers, with commas. */
function counts(text: string): number[] {
  const values = text.split(',').map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  if (values.every((n) => Number.isInteger(n) && n >= 1 && n <= WORKERS_MAX)) {
    return [...new Set(values)].sort((a, b) => a - b);
  }
  throw new InvalidArgumentError(`Write whole numbers from 1 to ${WORKERS_MAX}, like 1,4,16.`);
}

/** Where virtual workers live. */
function addWorldOptions(command: Command): Command {
  return command
    .option(
      '--compute <law>',
      'law of the compute times: how long a worker needs for a minibatch; `downpour simulate --help` lists the laws (default: gamma:100)',
    )
    .option(
      '--network <pairs>',
      'one-way latency in ms, bandwidth of each worker and bandwidth of the server in Mbit/s, like latency=20,bandwidth=100,server=1000 (default: messages take no time)',
    )
    .option(
      '--service <ms>',
      'time that the server needs for each push, in ms; it handles one push after the other (default: 0)',
      positive,
    )
    .option(
      '--cores <n>',
      'number of cores that all workers share, like processes on one machine (default: one core for each worker)',
      positive,
    )
    .option(
      '--slow <workers:factor>',
      'make some workers permanently slower: 1:5 means that one worker needs 5 times as long',
    )
    .option(
      '--failures <pairs>',
      'mean time in seconds between two failures of a worker, and mean time until it comes back, like every=600,away=30; a failure loses the gradient in progress',
    )
    .option(
      '--change <list>',
      'workers that join and leave: 60:+16,120:-8 means that 16 join after 60 seconds and 8 leave after 120 seconds',
    )
    .option(
      '--evaluation <ms>',
      'time of an evaluation in ms (default: a third of the compute time of its minibatches)',
      positive,
    );
}

/** What `simulate` and `scale` compare. */
function addArmOptions(command: Command, workers: readonly number[], seeds: number): Command {
  return addConfigOptions(command)
    .option(
      '-w, --workers <list>',
      'numbers of workers to compare, separated by commas',
      counts,
      workers,
    )
    .option(
      '--modes <list>',
      'modes and corrections to compare, separated by commas: values of consistency.mode and consistency.correction, bound=N for stalenessMax N, or local=N, diloco=N, elastic=N for N local steps (default: as configured)',
    )
    .option(
      '--seeds <n>',
      'number of seeds for each row; the first is --seed',
      whole(1, 100),
      seeds,
    )
    .option(
      '--target <value>',
      'validation value for the column "time to" (default: 1.1 times the value of the smallest number of workers)',
      positive,
    )
    .addOption(
      new Option('--metric <metric>', 'validation value to compare')
        .choices(['error', 'loss'])
        .default('error'),
    );
}

function registerSimulate(program: Command, outcome: Outcome): void {
  const command = addArmOptions(
    program
      .command('simulate')
      .description(
        'train with any number of virtual workers, to see what a thousand workers would do to a run',
      )
      .argument('<experiment>', 'file of the experiment'),
    [1, 4, 16],
    1,
  ).option(
    '--times <updates>',
    'simulate this number of updates without gradients, to see times and staleness only',
    whole(1, 100_000_000),
  );
  addTokenOptions(addWorldOptions(command))
    .option(
      '--from <run>',
      'take compute times and configuration from this real run; add --cores if its workers shared a machine',
    )
    .option('--against <runs...>', 'also compare the predictions with these real runs')
    .option('--name <name>', 'name of the study (default: made from the settings)')
    .option('--out <folder>', 'folder for the table and the plots (default: ./studies/<name>)')
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(dataOption())
    .addOption(engineOption())
    .option('--quiet', 'print the result only')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
The gradients are real. The experiment's own model computes each gradient at the parameters that its worker received, and the
server's own code applies it. Only time is virtual: the clock jumps from one event to the next. A simulation therefore takes
as long as one worker would take for the same updates, for any number of workers. The same seeds give the same result to
the bit on one machine and engine. A simulation does not know caches, TCP or other users of a machine.

Updates a second leave out the first tenth of the updates, in which processes warm up, and the evaluation of the end.

--from uses the compute times that a real run has recorded, the time that its rounds took in addition, its warm-up and the
time of its last evaluation. It predicts updates a second, staleness and time for other numbers of workers, and shows the
error of the prediction for that run and for the runs of --against. If the workers share a machine with C cores, add --cores C: more workers then slow each other down.

Laws of compute times (--compute); the first number is the mean in ms:
${LAWS_HELP}
${examples(
  'downpour simulate examples/mnist-mlp.ts --workers 1,16,64 --epochs 4',
  'downpour simulate my.ts --workers 32 --modes auto,none,inverse --seeds 5 --compute exponential:80',
  'downpour simulate my.ts --from my-3f2a1c --workers 8,16,32',
  'downpour simulate my.ts --workers 10,100,1000 --times 20000 --service 0.8 --network latency=20,bandwidth=100',
)}`,
    )
    .action(async (file: string, options: SimulateOptions) => {
      const { simulateCommand } = await import('./simulate.ts');
      outcome.exitCode = await simulateCommand(file, {
        ...options,
        stateGiven: isStateGiven(command),
      });
    });
}

function registerScale(program: Command, outcome: Outcome): void {
  const command = addArmOptions(
    program
      .command('scale')
      .description(
        'measure accuracy, time and staleness of your experiment for several numbers of workers and modes',
      )
      .argument('<experiment>', 'file of the experiment'),
    [1, 2, 4, 8],
    3,
  )
    .option(
      '--simulated',
      'use virtual workers instead of real worker processes, as `downpour simulate` does',
    )
    .option('--test', 'also evaluate the test part, once at the end of each run');
  addTokenOptions(
    addWorldOptions(command)
      .option(
        '--name <name>',
        'name of the study (default: made from the settings; the same settings continue the study)',
      )
      .option(
        '--out <folder>',
        'folder for the record, the table and the plots (default: ./studies/<name>)',
      )
      .addOption(stateOption())
      .addOption(usedServerOption())
      .addOption(ownPortOption())
      .addOption(dataOption())
      .addOption(engineOption())
      .option('--verbose', 'print what server and workers log')
      .option('--quiet', 'print the result only')
      .addOption(jsonOption()),
  )
    .addHelpText(
      'after',
      `
Trains with each number of workers and each mode, one training after the other, and repeats this for each seed. The result is
one table, plots, and advice that follows from the numbers. Real workers are processes on this machine. If there are more
workers than cores, they share the cores, so the measured time is longer than it would be on machines of their own; staleness and
accuracy stay meaningful. The same command continues an interrupted study. With --simulated the workers are virtual; the options
--compute, --network, --service, --cores, --slow, --failures, --change and --evaluation describe them (see \`downpour simulate --help\`).
Only --test evaluates the test part.
${examples(
  'downpour scale examples/mnist-mlp.ts --workers 1,2,4 --epochs 3',
  'downpour scale my.ts --workers 1,8,64 --modes auto,none,inverse --simulated --compute exponential:80',
)}`,
    )
    .action(async (file: string, options: ScaleOptions) => {
      const { scaleCommand } = await import('./scale.ts');
      outcome.exitCode = await scaleCommand(file, {
        ...options,
        stateGiven: isStateGiven(command),
      });
    });
}

function registerPaper(program: Command, outcome: Outcome): void {
  program
    .command('paper')
    .description(
      'repeat a published result about asynchronous training, and compare it with the claim of the paper',
    )
    .argument('[name]', 'name of the result; without a name, all results are listed')
    .option('--list', 'list all results with the time that each takes')
    .option('--seeds <n>', 'number of seeds for each row (default: see the list)', whole(1, 10_000))
    .option(
      '--first-seed <n>',
      'first seed; the others are the next whole numbers',
      whole(0, Number.MAX_SAFE_INTEGER),
      1,
    )
    .option('--quick', 'run a small form of the result, to see that it works; it proves nothing')
    .option(
      '--out <folder>',
      'folder for the table, the plots and the single runs (default: ./papers/<name>)',
    )
    .option('--quiet', 'print the result only')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
Each result trains virtual workers with the server's own code, as \`downpour simulate\` does. It tunes what the paper tunes; if the
best value is at the edge of a grid, the grid is extended. The report has the claim of the paper, the result with 95 % intervals
over the seeds, and a verdict. If intervals overlap, it says "not separated". The command writes report.md, report.json, plots (SVG)
and runs.csv, which has every single run.
${examples('downpour paper --list', 'downpour paper staleness', 'downpour paper stability --seeds 10 --out papers/stability-10')}`,
    )
    .action(async (name: string | undefined, options: PaperOptions) => {
      const { paperCommand } = await import('../paper/paper.ts');
      outcome.exitCode = await paperCommand(name, options);
    });
}
