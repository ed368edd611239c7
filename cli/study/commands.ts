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
import type { EnsembleOptions, Way } from './ensemble.ts';
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
      .description('look for defects in an experiment before training: data, model, a short trial')
      .argument('<experiment>', 'file of the experiment'),
  )
    .option('-w, --workers <n>', 'that learn a tiny set by heart together', whole(1, 64), 2)
    .option('--steps <n>', 'updates of the short trial; an epoch at most', whole(5, 10_000), 100)
    .option('--accept <check...>', 'problems that are meant: they count as advice')
    .option('--no-tiny', 'leave out the tiny set, and with it server and workers')
    .option('--no-throughput', 'leave out how fast each size of minibatch is')
    .addOption(dataOption())
    .addOption(engineOption())
    .option('--verbose', 'print what server and workers log')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
Each check has a verdict (ok, advice, problem), the numbers behind it and the next step: the scale of the
inputs, classes, how many examples, duplicates across the parts, whether labels follow the inputs, frozen
tensors, gradients against finite differences, the loss before training, the output's form, activations, a
short trial with the server's update rule (learning rate, updates, batch normalisation), the speed of each size
of minibatch, and whether one and several workers can learn 32 examples by heart. Nothing is kept. The exit
code is 5 when there is a problem that is not accepted.
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
        'worker processes on this machine; 0: others do the work',
        whole(0, 1000),
        2,
      )
      .option('--workers-per-trial <n>', 'workers that share a trial', whole(1, 1000), 1)
      .option(
        '--parallel <n>',
        'trials at a time (default: as many as there are workers for)',
        whole(1, 1000),
      )
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
  );
}

const metricOption = () =>
  new Option('--metric <metric>', 'validation value to compare')
    .choices(['error', 'loss'])
    .default('error');

function registerLearningRate(program: Command, outcome: Outcome): void {
  const command = program
    .command('lr-find')
    .description('find the learning rate: a range test, then short trainings at constant rates')
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--fork <run>',
      'begin with the parameters of this run and its configuration; it is left as it is',
    )
    .option('--checkpoint <which>', 'of that run: last, best, final or a file', 'last')
    .option('--new-data', 'continue from that run although the data have changed since')
    .option('--low <rate>', 'lower end of the range test', positive, 1e-5)
    .option('--high <rate>', 'upper end', positive, 10)
    .option('--steps <n>', 'updates of the range test', whole(20, 2000), 200)
    .option('--probe-steps <n>', 'updates at each constant rate', whole(5, 2000), 100)
    .option('--seeds <n>', 'repetitions of everything', whole(1, 100), 3);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
The suggestion is above the rate that is best after the first 100 updates or so, and below instability
(Deep Learning, sections 8.3.1 and 11.4.1). With --workers-per-trial above 1 the range test is done with one
worker as well, and shows how staleness moves the limit. The test part is not looked at. Without --fork every
seed has initial parameters of its own. An unfinished run in --state must be stopped before it is forked.
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
    .description('search for hyperparameters: many trials that share the workers')
    .argument('<experiment>', 'file of the experiment')
    .option('-n, --trials <n>', 'trials in all; of a grid at most', whole(1, 5000), 20)
    .addOption(
      new Option('--method <method>', 'how trials are chosen')
        .choices(['random', 'sobol', 'grid'])
        .default('random'),
    )
    .option(
      '--space <path=kind:range...>',
      'a range of a field: uniform, log, integer or logInteger, written low..high, or choice; instead of those of the experiment',
    )
    .option(
      '--space-file <file>',
      'ranges as JSON: {"learningRate": {"kind": "log", "low": 0.001, "high": 1}}',
    )
    .option('--search-seed <n>', 'of the choice of trials', whole(0, Number.MAX_SAFE_INTEGER), 1)
    .addOption(metricOption())
    .option(
      '--rounds <n>',
      'above 1: each round halves the ranges around the best so far',
      whole(1, 20),
      1,
    )
    .option(
      '--learning-rate-first',
      'a third of the trials for the learning rate alone, then the rest near the best',
    )
    .addOption(
      new Option('--kill <rule>', 'end bad trials early: successive halving, or the median rule')
        .choices(['none', 'asha', 'median'])
        .default('none'),
    )
    .option('--eta <n>', 'asha: one of so many goes on', whole(2, 100), 3)
    .option('--first <n>', 'evaluations before a trial may be ended', whole(1, 1_000_000), 1);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
A trial is an ordinary run; the test part is not looked at. Results: table and advice on the screen,
report.md, report.json and plots in the folder of the study, and the same on the server's dashboard, while it
runs too. Called again with the same settings it goes on where it was; of a plain random or Sobol search
--trials may be raised. Without ranges (--space, --space-file, the experiment's field search) the learning rate is searched,
weight decay if there is some, and the hyperparameters that the configuration names.
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
    .description('k-fold cross-validation: each example validates once')
    .argument('<experiment>', 'file of the experiment')
    .option('-k, --folds <n>', 'parts, of which each validates once', whole(2, 1000), 5)
    .option('--stratified', 'each fold has the same shares of the classes')
    .option('--repeats <n>', 'times that all is done, each with another seed', whole(1, 100), 1);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Mean, standard error and confidence interval (Student's t) of the validation error; the test part is
not looked at. Called again with the same settings it goes on where it was.
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
    .description('compare what can follow early stopping: restore, retrain, continue')
    .argument('<experiment>', 'file of the experiment')
    .option('--repeats <n>', 'seeds, the same for all three', whole(1, 100), 3);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Tabulates test error, updates and time. This looks at the test part, once a run: choose by it how to
train, and no hyperparameters.
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
    .description('error over training-set size: more data, or a bigger model?')
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--fractions <list>',
      'shares of the training part, with commas',
      fractions,
      [0.0625, 0.125, 0.25, 0.5, 1],
    )
    .option('--repeats <n>', 'seeds of each share', whole(1, 100), 3)
    .option('--target <error>', 'the error that would do, like 0.02', positive);
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Training and validation error on logarithmic axes, continued beyond the data by a power law, and what
to do next by the procedure of Deep Learning, section 11.3.
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
      'compare variants of an experiment: capacity, regularisation, optimisers, your own',
    )
    .argument('<experiment>', 'file of the experiment')
    .option(
      '--variants <set>',
      'capacity, regularisation, optimisers, schedules, activations, initial-values, or a JSON file (default: the field ablate of the experiment)',
    )
    .option('--repeats <n>', 'seeds of each variant', whole(1, 100), 3)
    .addOption(metricOption());
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
A variant is a part of a configuration; the first of a set is the baseline. The table has the mean over the
seeds with its 95 % confidence interval, and the difference to the baseline seed by seed. Sets of capacity,
regularisation, activations and initial values turn hyperparameters that the model must read: those of
layers.hidden (docs/layers.md). The test part is not looked at. Called again with the same settings it goes
on where it was.
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
    .description('train several models and combine them: mean, vote, controller, cascade')
    .argument('<experiment>', 'file of the experiment')
    .option('--members <kind:n>', 'seeds, bagging, folds or snapshots, and how many', 'seeds:5')
    .option('--runs <list>', 'runs that are trained already, with commas, instead', names)
    .option('--cycle-epochs <n>', 'of each snapshot after the first', whole(1, 100_000), 4)
    .option(
      '--averages',
      'also the first member with averaged parameters (EMA, Polyak), or without where it has them',
    )
    .option(
      '--combine <list>',
      'mean, vote, calibrated, controller, cascade, weights, with commas (default: all that fit)',
      ways,
    )
    .option(
      '--tolerance <share>',
      'accuracy that controller and cascade may lose for a lower cost',
      share,
      0.005,
    )
    .option('--accuracy <share>', 'of a cascade, instead of the tolerance', share)
    .option('--recall <share>', 'of a cascade of yes and no', share, 0.99)
    .option(
      '--costs <list>',
      'of an answer of each of --runs (default: measured where their tensors differ)',
      costs,
    )
    .option('--half-seed <n>', 'of the halves', whole(0, Number.MAX_SAFE_INTEGER), 1)
    .option('--test', 'look at the test part, too');
  addStudyOptions(command)
    .addHelpText(
      'after',
      `
Members: seeds differ in initial parameters and in the order of examples; bagging also in the resample of the
training part that they learn from (Deep Learning, section 7.11); folds leave out a different fold each, and one is
held out of all; snapshots go on from each other, the learning rate falling again from its start to 0. All answer the
same validation examples, which none has learnt from. What a combination fits (temperatures, thresholds, the
controller) is fitted on one half of them and measured on the other, in turn. Beside the report, ensemble.json and
members/ hold all that it takes to use the ensemble. Called again with the same settings it goes on where it was.
${examples('downpour ensemble examples/mnist-mlp.ts --members seeds:5 --averages', 'downpour ensemble examples/mnist-mlp.ts --members snapshots:5 --cycle-epochs 3 --test', 'downpour ensemble examples/mnist-mlp.ts --runs mnist-mlp-1,mnist-cnn-1 --combine mean,cascade')}`,
    )
    .action(async (file: string, options: EnsembleOptions) => {
      const { ensembleCommand } = await import('./ensemble.ts');
      const stateGiven = isStateGiven(command);
      outcome.exitCode = await ensembleCommand(file, { ...options, stateGiven });
    });
}

const names = (text: string) => text.split(',').map((name) => name.trim());

const WAY_NAMES: readonly Way[] = [
  'mean',
  'vote',
  'calibrated',
  'controller',
  'cascade',
  'weights',
];

function ways(text: string): Way[] {
  const given = names(text);
  if (given.every((way) => WAY_NAMES.includes(way as Way))) return given as Way[];
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
