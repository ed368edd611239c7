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
      'how long a minibatch takes a worker; `downpour simulate --help` has the laws (default: gamma:100)',
    )
    .option(
      '--network <pairs>',
      'latency in ms one way, and bandwidth of each worker and of the server in Mbit/s: latency=20,bandwidth=100,server=1000 (default: takes no time)',
    )
    .option(
      '--service <ms>',
      'of the server for each push, one after the other (default: 0)',
      positive,
    )
    .option('--cores <n>', 'that all workers share, as processes of one machine do', positive)
    .option('--slow <workers:factor>', 'some take longer for good, like 1:5')
    .option(
      '--failures <pairs>',
      'each worker is lost with its gradient every so many seconds on average, and away for some: every=600,away=30',
    )
    .option('--change <list>', 'workers that come and go, by second: 60:+16,120:-8')
    .option(
      '--evaluation <ms>',
      'that an evaluation takes (default: a third of its minibatches)',
      positive,
    );
}

/** What `simulate` and `scale` compare. */
function addArmOptions(command: Command, workers: readonly number[], seeds: number): Command {
  return addConfigOptions(command)
    .option('-w, --workers <list>', 'numbers of workers, with commas', counts, workers)
    .option(
      '--modes <list>',
      'values of consistency.mode and consistency.correction to compare, and bound=staleness, with commas (default: as configured)',
    )
    .option('--seeds <n>', 'of each, from --seed on', whole(1, 100), seeds)
    .option(
      '--target <value>',
      'validation value that the time is taken to (default: 1.1 times what the fewest workers reach)',
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
        'train with any number of virtual workers: what would a thousand do to this run?',
      )
      .argument('<experiment>', 'file of the experiment'),
    [1, 4, 16],
    1,
  ).option(
    '--times <updates>',
    'no gradients: so many updates, for times and staleness alone',
    whole(1, 100_000_000),
  );
  addTokenOptions(addWorldOptions(command))
    .option(
      '--from <run>',
      'fit the law to the times of this real run, with its configuration; say --cores where its workers share a machine',
    )
    .option('--against <runs...>', 'hold the predictions against these real runs, too')
    .option('--name <name>', 'of the study (default: made of the settings)')
    .option('--out <folder>', 'for table and plots (default: ./studies/<name>)')
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(dataOption())
    .addOption(engineOption())
    .option('--quiet', 'print the result only')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
The gradients are real: each is computed at the parameters that its worker was sent, by the experiment's own model,
and applied by the server's own run and kernels. Only time is virtual: a clock jumps from one event to the next. So a
simulation takes as long as one worker would take for the same updates, however many workers there are, and the same
seeds give the same result to the bit on one machine and engine. Nothing is said of what this machine cannot
know: caches, TCP, other users.

--from takes the compute times that a real run has kept, and what its rounds took beyond them, and predicts updates a second,
staleness and time for other numbers of workers. How far the prediction is from that run itself, and from those of --against, is
said. Workers that share a machine with c cores need --cores c: the more there are, the slower each is.

Laws of compute times (--compute), all by their mean in ms:
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
      .description('accuracy and time against workers, mode and staleness, for your own experiment')
      .argument('<experiment>', 'file of the experiment'),
    [1, 2, 4, 8],
    3,
  ).option('--simulated', 'by virtual workers, as `downpour simulate` does, instead of real ones');
  addTokenOptions(
    addWorldOptions(command)
      .option('--name <name>', 'of the study (default: made of the settings; the same go on)')
      .option('--out <folder>', 'for record, table and plots (default: ./studies/<name>)')
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
Trains with each number of workers and each mode, one after the other, as many seeds as you say, and ends in one table,
one plot of each kind, and a sentence of advice from the numbers. Real workers are processes on this machine: from as many
as it has cores on they only share it, so time says little beyond; staleness and accuracy are as real. Called again with the
same settings it goes on where it was. With --simulated the workers are virtual, and --compute, --network, --service,
--cores, --slow, --failures, --change and --evaluation say what they live in (see \`downpour simulate --help\`). The test part is
not looked at.
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
    .description('repeat a result about asynchronous training: what the paper says, what comes out')
    .argument('[name]', 'of the result; without one all are listed')
    .option('--list', 'list all results, with how long each takes')
    .option('--seeds <n>', 'of each arm (default: as the list says)', whole(1, 10_000))
    .option('--first-seed <n>', 'the others follow', whole(0, Number.MAX_SAFE_INTEGER), 1)
    .option('--quick', 'a small form of it, to see that it works; it proves nothing')
    .option('--out <folder>', 'for table, plots and single runs (default: ./papers/<name>)')
    .option('--quiet', 'print the result only')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
Each result trains virtual workers through the server's own run and kernels, as \`downpour simulate\` does, tunes
what the paper tunes (a grid whose best value is at its edge is extended), and says what the paper claims, what came
out, with 95 % intervals over the seeds, and whether it holds here. Where intervals overlap it says "not separated".
Writes report.md, report.json, plots (SVG) and runs.csv with every single run.
${examples('downpour paper --list', 'downpour paper staleness', 'downpour paper stability --seeds 10 --out papers/stability-10')}`,
    )
    .action(async (name: string | undefined, options: PaperOptions) => {
      const { paperCommand } = await import('../paper/paper.ts');
      outcome.exitCode = await paperCommand(name, options);
    });
}
