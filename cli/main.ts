import { Command, CommanderError } from 'commander';
import { VERSION } from '../shared/version.ts';
import { registerCompletion } from './completion.ts';
import { registerDataCommands } from './data/data.ts';
import { registerEngineCommands } from './engine.ts';
import { registerInit } from './init/commands.ts';
import { EXIT, EXIT_HELP, exitCodeOf, type Outcome, tellError } from './options.ts';
import { registerRunCommands } from './runs/commands.ts';
import { registerServeCommands } from './serve/commands.ts';
import { registerSimulateCommands } from './simulate/commands.ts';
import { registerCheck, registerStudyCommands } from './study/commands.ts';
import {
  registerExport,
  registerLookCommands,
  registerPredict,
  registerReport,
  registerSample,
  registerServeModel,
} from './trained/commands.ts';
import { registerWork } from './workers/commands.ts';

/**
 * The command `downpour`. Modules that do the work are imported when their command runs, so that
 * `--help` answers at once and loads no TensorFlow.
 */

/** Commander suggests what is misspelt; this one also what was cut short: `--redis` for `--redis-url`. */
class OwnCommand extends Command {
  override createCommand(name?: string): Command {
    return new OwnCommand(name);
  }

  /** Commander's own, which it calls; its types leave it out. */
  unknownOption(flag: string): void {
    const all = this.options.flatMap(({ long }) => long ?? []);
    const longer = flag.length > 3 ? all.filter((option) => option.startsWith(`${flag}-`)) : [];
    if (longer.length === 0) {
      (Command.prototype as unknown as { unknownOption(flag: string): void }).unknownOption.call(
        this,
        flag,
      );
      return;
    }
    this.error(
      `error: unknown option '${flag}'\n(Did you mean ${longer.slice(0, 3).join(', ')}?)`,
      {
        code: 'commander.unknownOption',
      },
    );
  }
}

/** The whole program, before parsing. @param outcome where commands leave their exit code. */
export function createProgram(outcome: Outcome): Command {
  const program = new OwnCommand('downpour')
    .description('Train TensorFlow.js models with asynchronous SGD through a parameter server.')
    .version(VERSION, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print help')
    .helpCommand('help [command]', 'print the help of a command')
    .showSuggestionAfterError(true)
    .configureHelp({ showGlobalOptions: false })
    .configureOutput({
      outputError: (text, write) =>
        write(text.replace(/^error:/, 'error DP_USAGE:').replace('\n(', ' (')),
    })
    .exitOverride()
    .addHelpText(
      'after',
      `\n${EXIT_HELP}\n\nExample:\n  $ downpour train examples/mnist-mlp.ts --workers 2`,
    );
  registerServeCommands(program);
  registerWork(program);
  registerRunCommands(program, outcome);
  registerExport(program);
  registerReport(program);
  registerPredict(program);
  registerServeModel(program);
  registerSample(program);
  registerInit(program);
  registerCompletion(program);
  registerCheck(program, outcome);
  registerStudyCommands(program, outcome);
  registerSimulateCommands(program, outcome);
  registerLookCommands(program);
  registerEngineCommands(program);
  registerDataCommands(program);
  return program;
}

/** A reader that has enough, like `head`, is no failure. */
function onUnread(error: NodeJS.ErrnoException): void {
  if (error.code === 'EPIPE') process.exit(EXIT.ok);
  throw error;
}

/** Runs one command line and gives the exit code. Never throws. */
export async function main(args: readonly string[]): Promise<number> {
  // Compose files pass on what is not set as an empty value.
  for (const [name, value] of Object.entries(process.env)) {
    if (name.startsWith('DOWNPOUR_') && value === '') delete process.env[name];
  }
  if (!process.stdout.listeners('error').includes(onUnread)) process.stdout.on('error', onUnread);
  const outcome: Outcome = { exitCode: EXIT.ok };
  try {
    await createProgram(outcome).parseAsync([...args], { from: 'user' });
    return outcome.exitCode || Number(process.exitCode ?? EXIT.ok);
  } catch (error) {
    if (error instanceof CommanderError) {
      // Commander has printed it. Asked-for help is no failure.
      return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    }
    tellError(error);
    return exitCodeOf(error);
  }
}
