import { Argument, type Command, Option } from 'commander';
import { SERVER_DEFAULTS } from '../shared/config.ts';
import { LIMITS } from '../shared/limits.ts';
import { SHELLS, type Shell } from './completion.ts';
import { addTableOptions } from './data/table-options.ts';
import type { InitOptions } from './init/init.ts';
import type { Outcome } from './main.ts';
import {
  addConfigOptions,
  addServerTokenOptions,
  addTokenOptions,
  type ConfigOptions,
  DEFAULT_HOST,
  DEFAULT_PORT,
  dataOption,
  engineOption,
  examples,
  experimentsOption,
  jsonOption,
  type LogFormat,
  logOption,
  ownPortOption,
  positive,
  positiveUpTo,
  type ServerOptions,
  type ServerTokenOptions,
  serverOption,
  stateOption,
  usedServerOption,
  whole,
} from './options.ts';

/** Names, options and help of the commands; what they do is imported when they run. */

/** Certificates for a Redis over TLS. */
export interface RedisFileOptions {
  readonly redisCa?: string;
  readonly redisCert?: string;
  readonly redisKey?: string;
}

export interface ServeOptions extends ServerOptions, ServerTokenOptions, RedisFileOptions {
  readonly host: string;
  readonly port: number;
  readonly state: string;
  readonly redisUrl?: string;
  readonly insecure?: boolean;
  /** Commander's: true unless --no-local-socket was given. */
  readonly localSocket: boolean;
  readonly shards: number;
  readonly shardsElsewhere?: boolean;
  readonly pushLog?: string;
  readonly tensorboard?: string;
  /** Experiments, or folders of them, that browsers may train. */
  readonly join?: string[];
  readonly data?: string;
  readonly checkpointCopy?: string;
  readonly checkpointCopies: number;
  readonly copyGrace: number;
  readonly standbyOf?: string;
  readonly peer?: string;
  readonly replication: 'sync' | 'async';
  readonly lagMax: number;
  readonly advertise?: string;
  readonly leaseSeconds: number;
  readonly requestsMax: number;
  readonly connectionsMax: number;
  readonly runsMax: number;
  readonly log?: LogFormat;
  readonly json?: boolean;
}

export interface ShardOptions
  extends Omit<
    ServeOptions,
    | 'checkpointCopy'
    | 'checkpointCopies'
    | 'copyGrace'
    | 'shards'
    | 'shardsElsewhere'
    | 'pushLog'
    | 'tensorboard'
    | 'join'
    | 'data'
    | 'standbyOf'
    | 'peer'
    | 'replication'
    | 'lagMax'
    | 'leaseSeconds'
    | 'requestsMax'
    | 'connectionsMax'
    | 'runsMax'
  > {
  readonly advertise?: string;
}

export interface WorkOptions extends ServerOptions {
  readonly run?: string;
  readonly name?: string;
  readonly engine?: string;
  readonly threads?: number;
  readonly gpus?: string;
  readonly aliveFile?: string;
  readonly experiments?: string[];
  readonly acceptExperiments?: boolean;
  readonly data?: string;
  readonly once?: boolean;
  /** Commander's: true unless --no-local-socket was given. */
  readonly localSocket: boolean;
  readonly log?: LogFormat;
  readonly json?: boolean;
}

export interface FollowOptions extends ServerOptions {
  readonly workers: number;
  readonly state: string;
  /** True when --state was written on the command line. */
  readonly stateGiven: boolean;
  readonly port?: number;
  readonly data?: string;
  readonly engine?: string;
  readonly experiments?: string[];
  readonly detach?: boolean;
  readonly verbose?: boolean;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

export interface TrainOptions extends FollowOptions, ConfigOptions {
  readonly run?: string;
  readonly send?: boolean;
}

export interface RunOptions extends ServerOptions {
  readonly state: string;
  readonly stateGiven: boolean;
  readonly json?: boolean;
}

export interface StatusOptions extends RunOptions {
  /** Seconds between two looks. */
  readonly watch?: number;
}

export interface ExportOptions extends RunOptions {
  readonly to: string;
  readonly format: 'safetensors' | 'tfjs' | 'tensorboard' | 'jsonl';
  readonly kind?: 'best' | 'last' | 'final';
  readonly experiments?: string[];
  readonly data?: string;
}

/** `serve`, `shard`, `work`, `train`, `resume`, `test`, `status`, `stop`, `export`, `init`, `completion`. */
export function registerCommands(program: Command, outcome: Outcome): void {
  registerServe(program);
  registerShard(program);
  registerWork(program);
  registerTrain(program, outcome);
  registerResume(program, outcome);
  registerTest(program, outcome);
  registerStatus(program);
  registerStop(program);
  registerExport(program);
  registerInit(program);
  registerCompletion(program);
}

const localSocketHelp = (what: string) => `${what}; so does DOWNPOUR_LOCAL_SOCKET=0`;

function addRedisFileOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--redis-ca <file>',
        "PEM of the authority that signed Redis's certificate (default: those that Node.js trusts)",
      ).env('DOWNPOUR_REDIS_CA'),
    )
    .addOption(
      new Option('--redis-cert <file>', 'PEM of our certificate, where Redis asks for one').env(
        'DOWNPOUR_REDIS_CERT',
      ),
    )
    .addOption(new Option('--redis-key <file>', 'PEM of its key').env('DOWNPOUR_REDIS_KEY'));
}

// Of `serve` and `shard`.

const hostOption = () =>
  new Option('--host <address>', 'to listen on; beyond this machine it needs a token')
    .env('DOWNPOUR_HOST')
    .default(DEFAULT_HOST);

const portOption = (free: number) =>
  new Option('--port <n>', 'to listen on; 0: any free one')
    .env('DOWNPOUR_PORT')
    .default(free)
    .argParser(whole(0, 65_535));

const insecureOption = () =>
  new Option(
    '--insecure',
    'let anyone in who can reach a host beyond this machine, without a token',
  );

const noLocalSocketOption = () =>
  new Option('--no-local-socket', localSocketHelp('no unix socket for workers on this machine'));

const limitOption = (flags: string, help: string, most: number) =>
  new Option(flags, help).default(most).argParser(whole(1, most));

function registerServe(program: Command): void {
  const command = program
    .command('serve')
    .description('start a server: it holds the parameters of runs and applies gradients')
    .addOption(hostOption())
    .addOption(portOption(DEFAULT_PORT))
    .addOption(stateOption())
    .addOption(
      new Option(
        '--redis-url <url>',
        'keep the registry of runs in Redis, for several servers',
      ).env('DOWNPOUR_REDIS_URL'),
    )
    .addOption(insecureOption())
    .addOption(noLocalSocketOption())
    .addOption(
      new Option(
        '--shards <n>',
        'share the parameters among so many shards, this server one of them',
      )
        .default(1)
        .argParser(whole(1, LIMITS.shardCountMax)),
    )
    .option(
      '--shards-elsewhere',
      'the others are processes of their own, found in the state store: `downpour shard`; else threads',
    )
    .option('--push-log <file>', 'write down each applied push, to be checked afterwards')
    .option(
      '--join <experiments...>',
      'let browsers that open /join train these: files, or folders whose experiments say `browser: true`',
    )
    .addOption(dataOption())
    .addOption(
      new Option(
        '--tensorboard <folder>',
        'write event files for TensorBoard, a folder a run: curves, histograms',
      ).env('DOWNPOUR_TENSORBOARD'),
    )
    .addOption(
      new Option(
        '--checkpoint-copy <url>',
        'copy each checkpoint to s3://bucket/prefix, and fill an empty state folder from there; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and DOWNPOUR_S3_ENDPOINT for another S3 than that of AWS',
      ).env('DOWNPOUR_CHECKPOINT_COPY'),
    )
    .addOption(
      new Option('--checkpoint-copies <n>', 'of kind last that stay there of each run')
        .env('DOWNPOUR_CHECKPOINT_COPIES')
        .default(SERVER_DEFAULTS.copiesKept)
        .argParser(whole(1, 1_000)),
    )
    .addOption(
      new Option('--copy-grace <s>', 'that a stopping server waits for its last copies')
        .env('DOWNPOUR_COPY_GRACE')
        .default(SERVER_DEFAULTS.copyGraceSeconds)
        .argParser(positive),
    )
    .option(
      '--standby-of <address>',
      'follow this server with copies of its runs, and take over when it is gone',
    )
    .addOption(
      new Option(
        '--peer <address>',
        'the other of two servers: the one that owned the state last begins, the other follows it',
      ).env('DOWNPOUR_PEER'),
    )
    .addOption(
      new Option(
        '--replication <mode>',
        'of a standby: sync, no push is answered before it has it; async, it may lack --lag-max',
      )
        .choices(['sync', 'async'])
        .default('sync'),
    )
    .addOption(
      new Option('--lag-max <n>', 'pushes that an async standby may lack')
        .default(SERVER_DEFAULTS.lagMax)
        .argParser(whole(1, 1_000_000)),
    )
    .option(
      '--advertise <host>',
      'at which workers reach a standby (default: --host, or where it comes from)',
    )
    .addOption(
      new Option(
        '--lease-seconds <s>',
        'not heard of for so long, this server may be replaced; 2 where it has a standby',
      )
        .env('DOWNPOUR_LEASE_SECONDS')
        .default(SERVER_DEFAULTS.leaseSeconds)
        .argParser(positiveUpTo(LIMITS.leaseMsMax / 1_000)),
    )
    .addOption(
      limitOption('--requests-max <n>', 'in a second with one token', LIMITS.requestsPerSecondMax),
    )
    .addOption(
      limitOption(
        '--connections-max <n>',
        'of workers with one token',
        LIMITS.connectionsPerTokenMax,
      ),
    )
    .addOption(limitOption('--runs-max <n>', 'that the server holds', LIMITS.runCountMax))
    .addOption(logOption())
    .addOption(jsonOption());
  addServerTokenOptions(addRedisFileOptions(command))
    .addHelpText(
      'after',
      examples(
        'downpour serve',
        'downpour serve --shards 4',
        'downpour serve --join ./my-experiments',
        'DOWNPOUR_TOKEN=secret downpour serve --host 0.0.0.0 --redis-url redis://redis:6379',
        'downpour serve --host 0.0.0.0 --tokens tokens.txt --tls-cert server.pem --tls-key server.key',
        'downpour serve --redis-url rediss://trainer:secret@redis:6380 --redis-ca ca.pem',
        'downpour serve --redis-url redis+sentinel://10.0.0.1,10.0.0.2,10.0.0.3/mymaster',
        'downpour serve --checkpoint-copy s3://backups/downpour',
        'downpour serve --standby-of http://10.0.0.5:7420 --redis-url redis://10.0.0.9:6379 --lease-seconds 2',
      ),
    )
    .action(async (options: ServeOptions) => {
      const { serveCommand } = await import('./serve.ts');
      await serveCommand(options);
    });
}

function registerShard(program: Command): void {
  const command = program
    .command('shard')
    .description('start a shard on this machine: it holds a part of the parameters for a server')
    .addOption(hostOption())
    .addOption(portOption(0))
    .option('--advertise <host>', 'at which workers and the server reach it (default: --host)')
    .addOption(stateOption())
    .addOption(
      new Option('--redis-url <url>', 'where it says that it is there, as the server').env(
        'DOWNPOUR_REDIS_URL',
      ),
    )
    .addOption(insecureOption())
    .addOption(noLocalSocketOption())
    .addOption(logOption())
    .addOption(jsonOption());
  addServerTokenOptions(addRedisFileOptions(command))
    .addHelpText(
      'after',
      examples(
        'downpour shard --host 10.0.0.6 --redis-url redis://10.0.0.5:6379',
        'downpour serve --host 10.0.0.5 --redis-url redis://10.0.0.5:6379 --shards 2 --shards-elsewhere',
      ),
    )
    .action(async (options: ShardOptions) => {
      const { shardCommand } = await import('./serve.ts');
      await shardCommand(options);
    });
}

function registerWork(program: Command): void {
  const command = program
    .command('work')
    .description('start a worker: it computes gradients for the runs of a server')
    .addOption(serverOption())
    .option('--run <run>', 'work for this run only (default: any)')
    .option('--name <name>', 'of this worker (default: host and process)')
    .addOption(engineOption())
    .option('--threads <n>', 'of the engine (default: all)', whole(1, 1024))
    .option(
      '--gpus <which>',
      'start one worker for each GPU of this machine: all, or numbers such as 0,2; uses engine native-gpu unless --engine is given',
    )
    .addOption(experimentsOption())
    .option(
      '--accept-experiments',
      'run experiments that operators send by `train --send`: code of theirs, as this user; so does DOWNPOUR_ACCEPT_EXPERIMENTS=1',
    )
    .addOption(dataOption())
    .option('--once', 'end when the run has ended, instead of waiting for the next')
    .addOption(
      new Option(
        '--alive-file <file>',
        'touch this file every 10 s while the process does not stand still: for probes; with --gpus one more for each GPU',
      ).env('DOWNPOUR_ALIVE_FILE'),
    )
    .option('--no-local-socket', localSocketHelp('TCP also to a server on this machine'))
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
      const { workCommand } = await import('./workers/work.ts');
      await workCommand(options);
    });
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
      outcome.exitCode = await trainCommand(file, { ...options, stateGiven: isGiven(command) });
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
      outcome.exitCode = await resumeCommand(run, { ...options, stateGiven: isGiven(command) });
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
      outcome.exitCode = await testCommand(run, { ...options, stateGiven: isGiven(command) });
    });
}

function registerInit(program: Command): void {
  const init = program
    .command('init')
    .description('write a new experiment that runs at once, from your data and a few answers')
    .argument('[file]', 'to write (default: asks; experiment.ts)')
    .option('--data <what>', 'a CSV file, a folder of images (one folder a class), or mnist')
    .option('--target <column>', 'of a CSV file: what to predict (default: asks; the last one)')
    .addOption(
      new Option('--task <task>', 'default: by what the column holds').choices([
        'classification',
        'regression',
      ]),
    )
    .addOption(new Option('--model <model>', 'of images').choices(['mlp', 'cnn']));
  addTableOptions(init)
    .option('--force', 'write over a file that is there')
    .option('-y, --yes', 'ask nothing, take the defaults')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
For a table, init looks at the cells of each column. Numbers become inputs. Text with few different values becomes one
0/1 input for each value. init leaves out columns that count the rows, equal another column, are constant, have dates,
names, codes or missing values, are the target under another name, or have a mistyped number. It gives the reason for each,
and the first bad line. A target with few whole numbers from 0 or 1 on, or with two different values, is read as
classes; other numbers as a quantity. --task overrides this.
${examples(
  'downpour init',
  'downpour init cars.ts --data examples/data/auto-mpg.csv --target mpg',
  "downpour init sales.ts --data 'sales 2024.csv' --delimiter ';' --decimal , --encoding windows-1252",
  'downpour init digits.ts --data mnist --model cnn',
)}`,
    )
    .action(async (file: string | undefined, options: InitOptions) => {
      const { initCommand } = await import('./init/init.ts');
      await initCommand(file, options);
    });
}

function registerCompletion(program: Command): void {
  program
    .command('completion')
    .description('print what completes commands and options in your shell')
    .addArgument(new Argument('<shell>', 'which one').choices(SHELLS))
    .addHelpText(
      'after',
      examples('downpour completion fish | source', 'source <(downpour completion bash)'),
    )
    .action(async (shell: Shell) => {
      const { completionCommand } = await import('./completion.ts');
      completionCommand(program, shell);
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

function registerExport(program: Command): void {
  const command = program
    .command('export')
    .description('write trained parameters, or the course of a run, for other programs')
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .requiredOption('--to <folder>', 'to write to; made when it is missing')
    .addOption(
      new Option(
        '--format <format>',
        'parameters as safetensors, or as tfjs: model.json and weights.bin; the course as tensorboard: an event file, or as jsonl: a line a step, like those of Weights & Biases',
      )
        .choices(['safetensors', 'tfjs', 'tensorboard', 'jsonl'])
        .default('safetensors'),
    )
    .addOption(
      new Option(
        '--kind <kind>',
        'which checkpoint of the run, for its parameters (default: final if it has finished, else best)',
      ).choices(['best', 'last', 'final']),
    )
    .addOption(experimentsOption())
    .addOption(dataOption())
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      examples(
        'downpour export mnist-mlp-1 --to exported --format tfjs',
        'downpour export mnist-mlp-1 --to logs/mnist-mlp-1 --format tensorboard',
        'downpour export .downpour/mnist-mlp-1/checkpoints/step-000001234-best-0007.safetensors --to exported',
      ),
    )
    .action(async (what: string, options: ExportOptions) => {
      const { exportCommand } = await import('./trained/export.ts');
      await exportCommand(what, { ...options, stateGiven: isGiven(command) });
    });
}

const isGiven = (command: Command) => command.getOptionValueSource('state') === 'cli';
