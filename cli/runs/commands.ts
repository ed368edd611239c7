import { type Command, Option } from 'commander';
import {
  addConfigOptions,
  addTokenOptions,
  dataOption,
  engineOption,
  examples,
  experimentsOption,
  isStateGiven,
  jsonOption,
  type Outcome,
  ownPortOption,
  positive,
  type ServerOptions,
  serverOption,
  stateOption,
  usedServerOption,
  whole,
} from '../options.ts';
import type { StatusOptions } from './status.ts';
import type { FollowOptions, TrainOptions } from './train.ts';

/** Names, options and help of the commands that train a run, follow it and stop it. */

/** `train`, `resume`, `test`, `status`, `stop`. */
export function registerRunCommands(program: Command, outcome: Outcome): void {
  registerTrain(program, outcome);
  registerResume(program, outcome);
  registerTest(program, outcome);
  registerStatus(program);
  registerStop(program);
  registerRemove(program);
}

/** What `train`, `resume` and `test` share. */
function addFollowOptions(command: Command, workers = 2): Command {
  return addTokenOptions(
    command
      .option(
        '-w, --workers <n>',
        'worker processes on this machine; 0: others do the work',
        whole(0, 1000),
        workers,
      )
      .addOption(stateOption())
      .addOption(usedServerOption())
      .addOption(ownPortOption())
      .addOption(dataOption())
      .addOption(engineOption())
      .option('--detach', 'with --server: do not wait for the end; starts no workers')
      .option('--verbose', 'print what server and workers log')
      .option('--quiet', 'print the result only')
      .option('--json', 'print one JSON object a line: events and progress'),
  );
}

function registerTrain(program: Command, outcome: Outcome): void {
  const command = program
    .command('train')
    .description('train an experiment: server and workers on this machine, until it is done')
    .argument('<experiment>', 'file of the experiment')
    .option('--run <name>', 'of the run (default: the server makes one)')
    .option(
      '--send',
      'with --server: send the experiment to workers that were started with --accept-experiments',
    );
  addFollowOptions(addConfigOptions(command))
    .addHelpText(
      'after',
      `
--send makes one file of the experiment, its own imports and the packages that it uses, and gives it to the server for its
workers; this takes an operator's token. Data are not sent: each worker reads its own, in the folder that data() is given.
${examples(
  'downpour train examples/mnist-mlp.ts --workers 2',
  'downpour train my.ts --workers 4 --learning-rate 0.05 --set optimizer.kind=momentum',
  'downpour train my.ts --server http://10.0.0.5:7420 --workers 0',
  'downpour train my.ts --server http://10.0.0.5:7420 --workers 0 --send',
)}`,
    )
    .action(async (file: string, options: TrainOptions) => {
      const { trainCommand } = await import('./train.ts');
      outcome.exitCode = await trainCommand(file, {
        ...options,
        stateGiven: isStateGiven(command),
      });
    });
}

function registerResume(program: Command, outcome: Outcome): void {
  const command = program
    .command('resume')
    .description('go on with a stopped or interrupted run, from its last checkpoint')
    .argument('[run]', 'its name (default: the newest that has not finished)')
    .addOption(experimentsOption());
  addFollowOptions(command)
    .addHelpText(
      'after',
      examples('downpour resume', 'downpour resume mnist-mlp-1 --server http://10.0.0.5:7420'),
    )
    .action(async (run: string | undefined, options: FollowOptions) => {
      const { resumeCommand } = await import('./train.ts');
      outcome.exitCode = await resumeCommand(run, {
        ...options,
        stateGiven: isStateGiven(command),
      });
    });
}

function registerTest(program: Command, outcome: Outcome): void {
  const command = program
    .command('test')
    .description('look at the test part, once, with the final parameters of a finished run')
    .argument('<run>', 'its name')
    .addOption(experimentsOption());
  addFollowOptions(command, 1)
    .addHelpText(
      'after',
      `
For a run that was trained without it (\`testAtEnd\` false, as the trials of studies are). The result and its day are
kept with the run, and no second look is taken: who chooses among runs by the test part has none any more.
${examples('downpour test mnist-mlp-1')}`,
    )
    .action(async (run: string, options: FollowOptions) => {
      const { testCommand } = await import('./train.ts');
      outcome.exitCode = await testCommand(run, { ...options, stateGiven: isStateGiven(command) });
    });
}

function registerStatus(program: Command): void {
  const command = program
    .command('status')
    .description('print what the server does, or all about one run')
    .argument('[run]', 'its name (default: all runs)')
    .addOption(
      new Option('--watch [seconds]', 'again and again, until Ctrl-C (default: every second)')
        // Parsed like one that is written.
        .preset('1')
        .argParser(positive),
    )
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      examples(
        'downpour status',
        'downpour status mnist-mlp-1 --json',
        'downpour status mnist-mlp-1 --watch',
      ),
    )
    .action(async (run: string | undefined, options: StatusOptions) => {
      const { statusCommand } = await import('./status.ts');
      await statusCommand(run, { ...options, stateGiven: isStateGiven(command) });
    });
}

function registerRemove(program: Command): void {
  const command = program
    .command('remove')
    .description('remove a run with its checkpoints, for good')
    .argument('<run>', 'its name')
    .option('--force', 'also one that is being trained: it is stopped first')
    .addOption(serverOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      examples('downpour remove mnist-mlp-1', 'downpour remove tries-7 --force'),
    )
    .action(
      async (
        run: string,
        options: ServerOptions & { readonly force?: boolean; readonly json?: boolean },
      ) => {
        const { removeCommand } = await import('./status.ts');
        await removeCommand(run, options);
      },
    );
}

function registerStop(program: Command): void {
  const command = program
    .command('stop')
    .description('stop a run with a checkpoint; `downpour resume` goes on')
    .argument('<run>', 'its name')
    .addOption(serverOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText('after', examples('downpour stop mnist-mlp-1'))
    .action(async (run: string, options: ServerOptions & { readonly json?: boolean }) => {
      const { stopCommand } = await import('./status.ts');
      await stopCommand(run, options);
    });
}
