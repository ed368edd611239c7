import { type Command, Option } from 'commander';
import type { Outcome } from './main.ts';
import {
  addConfigOptions,
  addTokenOptions,
  DEFAULT_PORT,
  dataOption,
  engineOption,
  examples,
  jsonOption,
  stateOption,
  whole,
} from './options.ts';
import type { SearchOptions } from './search.ts';

/** Names, options and help of the studies: commands that conduct many runs. */

/** `search`, `folds`, `stopping`, `curve`. */
export function registerStudyCommands(program: Command, outcome: Outcome): void {
  registerSearch(program, outcome);
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
      .addOption(
        new Option('--server <address>', 'use this running server instead of an own one').env(
          'DOWNPOUR_SERVER',
        ),
      )
      .addOption(
        new Option(
          '--port <n>',
          `of the own server (default: ${DEFAULT_PORT}, or a free one)`,
        ).argParser(whole(0, 65_535)),
      )
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
report.md, report.json and plots in the folder of the study. Called again with the same settings
it goes on where it was; of a plain random or Sobol search --trials may be raised.
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
