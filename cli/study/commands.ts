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
  stateOption,
  usedServerOption,
  whole,
} from '../options.ts';
import type { AblateOptions } from './ablate.ts';
import type { CheckCommandOptions } from './check.ts';
import type { CombinationWay, EnsembleOptions } from './ensemble.ts';
import type { LearningRateOptions } from './lr-find.ts';
import type { SearchOptions } from './search.ts';
import type { CurveOptions, FoldsOptions, StoppingOptions } from './validation.ts';

/** Names, options and help of the studies: commands that conduct many runs. */

/** `lr-find`, `search`, `folds`, `stopping`, `curve`, `ablate`, `ensemble`. */
export function registerStudyCommands(program: Command, outcome: Outcome): void {
  registerLearningRate(program, outcome);
  registerSearch(program, outcome);
  registerFolds(program, outcome);
  registerStopping(program, outcome);
  registerCurve(program, outcome);
  registerAblate(program, outcome);
  registerEnsemble(program, outcome);
}

/** `check`: what to run before anything else. */
export function registerCheck(program: Command, outcome: Outcome): void {
  addConfigOptions(
    program
      .command('check')
      .description('check an experiment for defects before training: data, model, a short trial')
      .argument('<experiment>', 'file of the experiment'),
  )
    .option('-w, --workers <n>', 'workers that together memorise a tiny data set', whole(1, 64), 2)
    .option('--steps <n>', 'updates of the short trial; at most one epoch', whole(5, 10_000), 100)
    .option('--accept <check...>', 'checks whose problems you accept; they are reported as advice')
    .option('--no-tiny', 'skip the check with a tiny data set, which starts a server and workers')
    .option('--no-throughput', 'skip measuring the speed of each minibatch size')
    .addOption(dataOption())
    .addOption(engineOption())
    .option('--verbose', 'print the logs of the server and the workers')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
Each check prints a verdict (ok, advice or problem), the numbers behind it and the next step. The checks cover:
- the data: scale of the inputs, classes, number of examples, duplicates across the parts, whether labels depend on inputs
- the model: frozen tensors, gradients against finite differences, loss before training, form of the output, activations
- a short trial with the server's update rule: learning rate, updates, batch normalisation
- the speed of each minibatch size
- whether one worker, and several workers, can memorise 32 examples
Nothing is saved. The exit code is 5 if there is a problem that you have not accepted.
${examples('downpour check examples/mnist-mlp.ts', 'downpour check my.ts --json --no-throughput --accept frozen')}`,
    )
    .action(async (file: string, options: CheckCommandOptions) => {
      const { checkCommand } = await import('./check.ts');
      outcome.exitCode = await checkCommand(file, options);
    });
}

/** What all studies share. */
function addStudyOptions(command: Command): Command {
  return addTokenOptions(
    addConfigOptions(command)
      .option(
        '-w, --workers <n>',
        'worker processes to start on this machine; 0: only workers started elsewhere train',
        whole(0, 1000),
        2,
      )
      .option('--workers-per-trial <n>', 'workers that train one trial together', whole(1, 1000), 1)
      .option(
        '--parallel <n>',
        'trials that train at the same time (default: as many as the workers allow)',
        whole(1, 1000),
      )
      .option(
        '--name <name>',
        'name of the study (default: derived from the settings, so that the same settings continue it)',
      )
      .option(
        '--out <folder>',
        'folder for the record, table and plots (default: ./studies/<name>)',
      )
      .addOption(stateOption())
      .addOption(usedServerOption())
      .addOption(ownPortOption())
      .addOption(dataOption())
      .addOption(engineOption())
      .option('--verbose', 'print the logs of the server and the workers')
      .option('--quiet', 'print only the result')
      .addOption(jsonOption()),
  );
}

const metricOption = () =>
  new Option('--metric <metric>', 'validation value to compare')
    .choices(['error', 'loss'])
    .default('error');

function registerLearningRate(program: Command, outcome: Outcome): void {
  const command = program
    .command('lr-find')
    .description('find the learning rate with a range test and short trainings at constant rates')
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--fork <run>',
      'start from the parameters and configuration of this run; the run itself does not change',
    )
    .option('--checkpoint <which>', 'checkpoint of that run: last, best, final or a file', 'last')
    .option('--new-data', 'allow --fork although the data have changed since that run')
    .option('--low <rate>', 'lowest learning rate of the range test', positive, 1e-5)
    .option('--high <rate>', 'highest learning rate of the range test', positive, 10)
    .option('--steps <n>', 'updates in the range test', whole(20, 2000), 200)
    .option('--probe-steps <n>', 'updates at each constant learning rate', whole(5, 2000), 100)
    .option(
      '--seeds <n>',
      'repetitions of the whole procedure, with different seeds',
      whole(1, 100),
      3,
    );
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
The suggested rate is above the rate that is best after about the first 100 updates, and below the rates at which training
becomes unstable (Deep Learning, sections 8.3.1 and 11.4.1). With --workers-per-trial above 1, the range test also runs with
one worker, to show how staleness moves the limit. The test part is not used. Without --fork each seed has its own initial
parameters. Stop an unfinished run in --state before you fork it.
${examples('downpour lr-find examples/mnist-mlp.ts', 'downpour lr-find examples/mnist-mlp.ts --workers-per-trial 2', 'downpour lr-find examples/mnist-mlp.ts --fork mnist-mlp-3f2a1c --checkpoint best')}`,
    )
    .action(async (file: string, options: LearningRateOptions) => {
      const { learningRateCommand } = await import('./lr-find.ts');
      outcome.exitCode = await learningRateCommand(file, options);
    });
}

function registerSearch(program: Command, outcome: Outcome): void {
  const command = program
    .command('search')
    .description('search hyperparameters with many trials that share the workers')
    .argument('<experiment>', 'file of the experiment')
    .option('-n, --trials <n>', 'number of trials; for a grid, the maximum', whole(1, 5000), 20)
    .addOption(
      new Option('--method <method>', 'how to choose the trials')
        .choices(['random', 'sobol', 'grid'])
        .default('random'),
    )
    .option(
      '--space <path=kind:range...>',
      'search range of a field: uniform, log, integer or logInteger as low..high, or choice; replaces the ranges of the experiment',
    )
    .option(
      '--space-file <file>',
      'JSON file with search ranges: {"learningRate": {"kind": "log", "low": 0.001, "high": 1}}',
    )
    .option(
      '--search-seed <n>',
      'random seed for choosing the trials',
      whole(0, Number.MAX_SAFE_INTEGER),
      1,
    )
    .addOption(metricOption())
    .option(
      '--rounds <n>',
      'number of rounds; each round after the first halves the ranges around the best values so far',
      whole(1, 20),
      1,
    )
    .option(
      '--learning-rate-first',
      'use a third of the trials for the learning rate alone, and the rest near the best rate',
    )
    .addOption(
      new Option(
        '--kill <rule>',
        'how to end bad trials early. asha: successive halving; median: the median rule',
      )
        .choices(['none', 'asha', 'median'])
        .default('none'),
    )
    .option('--eta <n>', 'asha: one in this many trials continues', whole(2, 100), 3)
    .option('--first <n>', 'evaluations of a trial before it may be ended', whole(1, 1_000_000), 1);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
A trial is an ordinary run. The test part is not used. The command prints a table and advice, and writes report.md,
report.json and plots to the folder of the study. The server's dashboard shows the same, also while the study runs. The same
command with the same settings continues the study; a plain random or Sobol search can be continued with more --trials.
If no ranges are given (--space, --space-file or the field search of the experiment), the search covers the learning rate,
the weight decay if it is not 0, and the hyperparameters in the configuration.
${examples(
  "downpour search examples/mnist-mlp.ts --trials 20 --epochs 9 --kill asha --space 'learningRate=log:0.001..1' 'hyperparameters.units=logInteger:16..512'",
  "downpour search my.ts --space 'optimizer.kind=choice:sgd,momentum' 'optimizer.momentum=uniform:0..0.99 when optimizer.kind=momentum'",
)}`,
    )
    .action(async (file: string, options: SearchOptions) => {
      const { searchCommand } = await import('./search.ts');
      outcome.exitCode = await searchCommand(file, options);
    });
}

function registerFolds(program: Command, outcome: Outcome): void {
  const command = program
    .command('folds')
    .description('run k-fold cross-validation: each example is used once for validation')
    .argument('<experiment>', 'file of the experiment')
    .option('-k, --folds <n>', 'number of folds', whole(2, 1000), 5)
    .option('--stratified', 'keep the class proportions the same in each fold')
    .option('--repeats <n>', 'number of repetitions, each with a different seed', whole(1, 100), 1);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Reports the mean, standard error and confidence interval (Student's t) of the validation error. The test part is not used.
The same command with the same settings continues an interrupted study.
${examples('downpour folds examples/csv-regression.ts --folds 5', 'downpour folds my.ts --folds 10 --stratified --repeats 3')}`,
    )
    .action(async (file: string, options: FoldsOptions) => {
      const { foldsCommand } = await import('./validation.ts');
      outcome.exitCode = await foldsCommand(file, options);
    });
}

function registerStopping(program: Command, outcome: Outcome): void {
  const command = program
    .command('stopping')
    .description('compare the three actions after early stopping: restore, retrain, continue')
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--repeats <n>',
      'number of seeds; all three actions use the same ones',
      whole(1, 100),
      3,
    );
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Prints a table of test error, updates and time. This command evaluates the test part once per run. Use the result to choose
the action after early stopping, but do not tune hyperparameters with it.
${examples('downpour stopping examples/mnist-mlp.ts --repeats 3')}`,
    )
    .action(async (file: string, options: StoppingOptions) => {
      const { stoppingCommand } = await import('./validation.ts');
      outcome.exitCode = await stoppingCommand(file, options);
    });
}

function registerCurve(program: Command, outcome: Outcome): void {
  const command = program
    .command('curve')
    .description(
      'plot error against training-set size, to decide between more data and a bigger model',
    )
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--fractions <list>',
      'fractions of the training part to train on, separated by commas',
      fractions,
      [0.0625, 0.125, 0.25, 0.5, 1],
    )
    .option('--repeats <n>', 'number of seeds per fraction', whole(1, 100), 3)
    .option('--target <error>', 'error that you need to reach, like 0.02', positive);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Plots training and validation error on logarithmic axes, extrapolates them with a power law, and recommends the next step by
the procedure of Deep Learning, section 11.3.
${examples('downpour curve examples/mnist-mlp.ts --target 0.015', 'downpour curve my.ts --fractions 0.1,0.3,1 --repeats 5')}`,
    )
    .action(async (file: string, options: CurveOptions) => {
      const { curveCommand } = await import('./validation.ts');
      outcome.exitCode = await curveCommand(file, options);
    });
}

function registerAblate(program: Command, outcome: Outcome): void {
  const command = program
    .command('ablate')
    .description(
      'compare variants of an experiment: capacity, regularisation, optimisers, or your own',
    )
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--variants <set>',
      'set of variants: capacity, regularisation, optimisers, schedules, activations, initial-values, random-filters, or a JSON file (default: the field ablate of the experiment)',
    )
    .option('--repeats <n>', 'number of seeds per variant', whole(1, 100), 3)
    .addOption(metricOption());
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
A variant is a partial configuration. The first variant of a set is the baseline. The table shows the mean over the seeds
with its 95 % confidence interval, and the difference to the baseline seed by seed. The sets capacity, regularisation,
activations and initial-values change hyperparameters that the model must read: those of layers.hidden (docs/layers.md).
random-filters changes hyperparameters.trained, which layers.trained reads.
The test part is not used. The same command with the same settings continues an interrupted study.
${examples('downpour ablate examples/mnist-mlp.ts --variants regularisation --epochs 15', 'downpour ablate examples/mnist-mlp.ts --variants capacity --repeats 5', 'downpour ablate my.ts --variants variants.json')}`,
    )
    .action(async (file: string, options: AblateOptions) => {
      const { ablateCommand } = await import('./ablate.ts');
      outcome.exitCode = await ablateCommand(file, options);
    });
}

function registerEnsemble(program: Command, outcome: Outcome): void {
  const command = program
    .command('ensemble')
    .description('train several models and combine them by mean, vote, controller or cascade')
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--members <kind:n>',
      'how members differ (seeds, bagging, folds or snapshots), and how many',
      'seeds:5',
    )
    .option(
      '--runs <list>',
      'use these trained runs as members instead, separated by commas',
      names,
    )
    .option(
      '--output <name>',
      'output whose answers are combined; needed if the experiment has several outputs',
    )
    .option('--cycle-epochs <n>', 'epochs of each snapshot after the first', whole(1, 100_000), 4)
    .option(
      '--averages',
      'also measure the first member with averaged parameters (EMA, Polyak), or without them if it averages already',
    )
    .option(
      '--combine <list>',
      'combinations to compare, separated by commas: mean, vote, calibrated, controller, cascade, weights (default: all that apply)',
      ways,
    )
    .option(
      '--tolerance <share>',
      'accuracy that a controller or cascade may lose to lower the cost',
      share,
      0.005,
    )
    .option('--accuracy <share>', 'accuracy that a cascade must reach; replaces --tolerance', share)
    .option(
      '--recall <share>',
      'recall that a cascade must reach in binary classification',
      share,
      0.99,
    )
    .option(
      '--costs <list>',
      'cost of one prediction for each of --runs, separated by commas (default: measured if their tensors differ)',
      costs,
    )
    .option(
      '--half-seed <n>',
      'random seed that splits the validation examples into halves',
      whole(0, Number.MAX_SAFE_INTEGER),
      1,
    )
    .option('--test', 'also evaluate the test part');
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Members made by
- seeds differ in initial parameters and in the order of examples
- bagging also differ in their resample of the training part (Deep Learning, section 7.11)
- folds each leave out a different fold; one more fold is held out from all of them
- snapshots continue from each other; for each, the learning rate falls again from its initial value to 0
All members predict the same validation examples, and no member was trained on them. Temperatures, thresholds and the
controller are fitted on one half of these examples and measured on the other half, and then the other way round.
ensemble.json and members/, next to the report, hold everything needed to use the ensemble. The same command with the same
settings continues an interrupted study.
${examples('downpour ensemble examples/mnist-mlp.ts --members seeds:5 --averages', 'downpour ensemble examples/mnist-mlp.ts --members snapshots:5 --cycle-epochs 3 --test', 'downpour ensemble examples/mnist-mlp.ts --runs mnist-mlp-1,mnist-cnn-1 --combine mean,cascade')}`,
    )
    .action(async (file: string, options: EnsembleOptions) => {
      const { ensembleCommand } = await import('./ensemble.ts');
      const stateGiven = isStateGiven(command);
      outcome.exitCode = await ensembleCommand(file, { ...options, stateGiven });
    });
}

const names = (text: string) => text.split(',').map((name) => name.trim());

const WAY_NAMES: readonly CombinationWay[] = [
  'mean',
  'vote',
  'calibrated',
  'controller',
  'cascade',
  'weights',
];

function ways(text: string): CombinationWay[] {
  const given = names(text);
  if (given.every((way) => WAY_NAMES.includes(way as CombinationWay)))
    return given as CombinationWay[];
  throw new InvalidArgumentError(`Write some of ${WAY_NAMES.join(', ')}, with commas.`);
}

function share(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && value >= 0 && value <= 1) return value;
  throw new InvalidArgumentError('It must be a share from 0 to 1.');
}

function costs(text: string): number[] {
  const values = text.split(',').map(Number);
  if (values.every((value) => Number.isFinite(value) && value > 0)) return values;
  throw new InvalidArgumentError('Write numbers above 0, with commas, like 1,12.');
}

function fractions(text: string): number[] {
  const values = text.split(',').map(Number);
  if (values.every((value) => value > 0 && value <= 1)) return values;
  throw new InvalidArgumentError('Write shares above 0, at most 1, like 0.1,0.3,1.');
}
