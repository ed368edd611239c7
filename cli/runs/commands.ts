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
  serverOption,
  stateOption,
  usedServerOption,
  whole,
} from '../options.ts';
import type { EditOptions, OneRunOptions, StatusOptions } from './status.ts';
import type { FollowOptions, TrainCommandOptions } from './train.ts';

/** Names, options and help of the commands that train a run, follow it and stop it. */

/** `train`, `resume`, `test`, `status`, `stop`, `edit`, `remove`. */
export function registerRunCommands(program: Command, outcome: Outcome): void {
  registerTrain(program, outcome);
  registerResume(program, outcome);
  registerTest(program, outcome);
  registerStatus(program);
  registerStop(program);
  registerEdit(program);
  registerRemove(program);
}

/** What `train`, `resume` and `test` share. */
function addFollowOptions(command: Command, workers = 2): Command {
  return addTokenOptions(
    command
      .option(
        '-w, --workers <n>',
        'worker processes to start on this machine; 0: only workers started elsewhere train',
        whole(0, 1000),
        workers,
      )
      .addOption(stateOption())
      .addOption(usedServerOption())
      .addOption(ownPortOption())
      .addOption(dataOption())
      .addOption(engineOption())
      .option(
        '--detach',
        'with a server that runs already: return at once, without starting workers',
      )
      .option('--verbose', 'print the logs of the server and the workers')
      .option('--quiet', 'print only the result')
      .option('--json', 'print events and progress as JSON, one object per line'),
  );
}

function registerTrain(program: Command, outcome: Outcome): void {
  const command = program
    .command('train')
    .description('train an experiment to the end, with a server and workers on this machine')
    .argument('<experiment>', 'file of the experiment')
    .option('--run <name>', 'name of the run (default: chosen by the server)')
    .option(
      '--send',
      'with --server: send the experiment to workers started with --accept-experiments',
    );
  addFollowOptions(addConfigOptions(command))
    .addHelpText(
      'after',
      `
--send bundles the experiment, the files it imports and the packages it uses into one file. The server passes this file to
its workers. Sending requires an operator's token. Data are not sent: each worker reads its own copy from the folder that
data() receives.
${examples(
  'downpour train examples/mnist-mlp.ts --workers 2',
  'downpour train my.ts --workers 4 --learning-rate 0.05 --set optimizer.kind=momentum',
  'downpour train my.ts --server http://10.0.0.5:7420 --workers 0',
  'downpour train my.ts --server http://10.0.0.5:7420 --workers 0 --send',
)}`,
    )
    .action(async (file: string, options: TrainCommandOptions) => {
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
    .description('continue a stopped or interrupted run from its last checkpoint')
    .argument('[run]', 'name of the run (default: the newest unfinished run)')
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
    .description('evaluate a finished run on the test part, once, with its final parameters')
    .argument('<run>', 'name of the run')
    .addOption(experimentsOption());
  addFollowOptions(command, 1)
    .addHelpText(
      'after',
      `
For a run that was trained with \`testAtEnd\` false, such as a trial of a study. The result and its date are kept with the
run, and a second evaluation is refused: a test part that is used to choose among runs no longer measures generalisation.
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
    .description('print the state of a server, or the details of one run')
    .argument('[run]', 'name of the run, or of a study to list its runs (default: all runs)')
    .option('--all', 'also list archived runs')
    .option('--tag <tag>', 'list only runs with this tag')
    .addOption(
      new Option('--watch [seconds]', 'repeat until Ctrl-C; seconds between updates')
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
        'downpour status search-mnist-mlp-3f2a1c',
        'downpour status --tag paper --all',
      ),
    )
    .action(async (run: string | undefined, options: StatusOptions) => {
      const { statusCommand } = await import('./status.ts');
      await statusCommand(run, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** Ends a command about one run: where its server is, and what it does. */
function aboutOneRun<O extends object>(
  command: Command,
  samples: readonly string[],
  act: (
    commands: typeof import('./status.ts'),
    run: string,
    options: O & { readonly stateGiven: boolean },
  ) => Promise<unknown>,
): void {
  command.addOption(serverOption()).addOption(stateOption()).addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText('after', examples(...samples))
    .action(async (run: string, options: O) => {
      const given = { ...options, stateGiven: isStateGiven(command) };
      await act(await import('./status.ts'), run, given);
    });
}

function registerRemove(program: Command): void {
  const command = program
    .command('remove')
    .description('remove a run and its checkpoints permanently')
    .argument('<run>', 'name of the run')
    .option('--force', 'also remove a run that is being trained; it is stopped first');
  aboutOneRun<Omit<OneRunOptions, 'stateGiven'> & { readonly force?: boolean }>(
    command,
    ['downpour remove mnist-mlp-1', 'downpour remove tries-7 --force'],
    ({ removeCommand }, run, options) => removeCommand(run, options),
  );
}

function registerEdit(program: Command): void {
  const command = program
    .command('edit')
    .description('name, tag, note or archive a run')
    .argument('<run>', 'name of the run')
    .option('--name <text>', "name for people, in one line; '' removes it; the run keeps its id")
    .option('--tag <tags...>', 'add tags')
    .option('--untag <tags...>', 'remove tags')
    .option('--note <text>', "note; '' removes it")
    .option('--archive', 'leave the run out of lists; it cannot be continued, and its files stay')
    .option('--unarchive', 'undo --archive');
  aboutOneRun<Omit<EditOptions, 'stateGiven'>>(
    command,
    [
      'downpour edit mnist-mlp-1 --name "Wide, with dropout" --tag paper',
      'downpour edit mnist-mlp-2 --archive --note "learning rate too high"',
    ],
    ({ editCommand }, run, options) => editCommand(run, options),
  );
}

function registerStop(program: Command): void {
  const command = program
    .command('stop')
    .description('stop a run and write a checkpoint; `downpour resume` continues it')
    .argument('<run>', 'name of the run');
  aboutOneRun<Omit<OneRunOptions, 'stateGiven'>>(
    command,
    ['downpour stop mnist-mlp-1'],
    ({ stopCommand }, run, options) => stopCommand(run, options),
  );
}
