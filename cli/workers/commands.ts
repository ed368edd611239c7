import { type Command, Option } from 'commander';
import {
  addTokenOptions,
  dataOption,
  engineOption,
  examples,
  experimentsOption,
  jsonOption,
  localSocketHelp,
  logOption,
  serverOption,
  whole,
} from '../options.ts';
import type { WorkOptions } from './options.ts';

/** `work`: its name, options and help. */
export function registerWork(program: Command): void {
  const command = program
    .command('work')
    .description('start a worker, which computes gradients for the runs of a server')
    .addOption(serverOption())
    .option('--run <run>', 'work for this run only (default: any)')
    .option('--name <name>', 'name of this worker (default: host name and process id)')
    .addOption(engineOption())
    .option('--threads <n>', 'CPU threads of the engine (default: all)', whole(1, 1024))
    .option(
      '--gpus <which>',
      'start one worker per GPU of this machine: all, or GPU numbers such as 0,2; uses the engine native-gpu unless --engine is given',
    )
    .addOption(experimentsOption())
    .option(
      '--accept-experiments',
      'run experiments that operators send with `train --send`; their code runs with the rights of this user; DOWNPOUR_ACCEPT_EXPERIMENTS=1 does the same',
    )
    .addOption(dataOption())
    .option('--once', 'exit when the run ends instead of waiting for the next one')
    .addOption(
      new Option(
        '--alive-file <file>',
        'touch this file every 10 s while the process is responsive, for liveness probes; with --gpus there is one more file per GPU',
      ).env('DOWNPOUR_ALIVE_FILE'),
    )
    .option('--no-local-socket', localSocketHelp('use TCP even for a server on this machine'))
    .addOption(logOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      examples(
        'downpour work --server ws://192.168.1.10:7420',
        'downpour work --server wss://trainer:7420 --tls-ca ca.pem --token-file token',
        'downpour work --experiments ./my-experiments --engine wasm --once',
        'downpour work --server wss://trainer:7420 --token-file token --accept-experiments',
        'downpour work --gpus all',
      ),
    )
    .action(async (options: WorkOptions) => {
      const { workCommand } = await import('./work.ts');
      await workCommand(options);
    });
}
