import { type Command, Option } from 'commander';
import type { Outcome } from './main.ts';
import {
  addTokenOptions,
  DEFAULT_HOST,
  DEFAULT_PORT,
  examples,
  jsonOption,
  type ServerOptions,
  serverOption,
  stateOption,
  whole,
} from './options.ts';

/** Names, options and help of the commands; what they do is imported when they run. */

export interface ServeOptions extends ServerOptions {
  readonly host: string;
  readonly port: number;
  readonly state: string;
  readonly redisUrl?: string;
  readonly insecure?: boolean;
  readonly json?: boolean;
}

export interface RunOptions extends ServerOptions {
  readonly state: string;
  readonly stateGiven: boolean;
  readonly json?: boolean;
}

/** `serve`, `status`, `stop`. */
export function registerCommands(program: Command, _outcome: Outcome): void {
  registerServe(program);
  registerStatus(program);
  registerStop(program);
}

function registerServe(program: Command): void {
  const command = program
    .command('serve')
    .description('start a server: it holds the parameters of runs and applies gradients')
    .addOption(
      new Option('--host <address>', 'to listen on; beyond this machine it needs a token')
        .env('DOWNPOUR_HOST')
        .default(DEFAULT_HOST),
    )
    .addOption(
      new Option('--port <n>', 'to listen on; 0: any free one')
        .env('DOWNPOUR_PORT')
        .default(DEFAULT_PORT)
        .argParser(whole(0, 65_535)),
    )
    .addOption(stateOption())
    .addOption(
      new Option(
        '--redis-url <url>',
        'keep the registry of runs in Redis, for several servers',
      ).env('DOWNPOUR_REDIS_URL'),
    )
    .option('--insecure', 'let anyone in who can reach a host beyond this machine, without a token')
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      examples(
        'downpour serve',
        'DOWNPOUR_TOKEN=secret downpour serve --host 0.0.0.0 --redis-url redis://redis:6379',
      ),
    )
    .action(async (options: ServeOptions) => {
      const { serveCommand } = await import('./serve.ts');
      await serveCommand(options);
    });
}

function registerStatus(program: Command): void {
  const command = program
    .command('status')
    .description('print what the server does, or all about one run')
    .argument('[run]', 'its name (default: all runs)')
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText('after', examples('downpour status', 'downpour status mnist-mlp-1 --json'))
    .action(async (run: string | undefined, options: RunOptions) => {
      const { statusCommand } = await import('./status.ts');
      await statusCommand(run, { ...options, stateGiven: isGiven(command) });
    });
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

const isGiven = (command: Command) => command.getOptionValueSource('state') === 'cli';
