import { type Command, Option } from 'commander';
import { SERVER_DEFAULTS } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  ACCESS_OPTIONS,
  addServerTokenOptions,
  addUnder,
  DEFAULT_HOST,
  DEFAULT_PORT,
  dataOption,
  examples,
  jsonOption,
  localSocketHelp,
  logOption,
  positive,
  positiveUpTo,
  stateOption,
  whole,
} from '../options.ts';
import type { ServeCommandOptions, ShardCommandOptions } from './serve.ts';

/** Names, options and help of the commands that listen: `serve` and `shard`. */

/** `serve`, `shard`. */
export function registerServeCommands(program: Command): void {
  registerServe(program);
  registerShard(program);
}

function registerServe(program: Command): void {
  const command = program
    .command('serve')
    .description('start a server, which holds the parameters of runs and applies gradients')
    .addOption(hostOption())
    .addOption(portOption(DEFAULT_PORT))
    .addOption(stateOption())
    .addOption(
      new Option(
        '--redis-url <url>',
        'keep the registry of runs in this Redis; needed for several servers',
      ).env('DOWNPOUR_REDIS_URL'),
    )
    .addOption(insecureOption())
    .addOption(noLocalSocketOption())
    .addOption(
      new Option('--shards <n>', 'number of shards that hold the parameters, including this server')
        .default(1)
        .argParser(whole(1, LIMITS.shardCountMax)),
    )
    .option(
      '--shards-elsewhere',
      'use processes started with `downpour shard` as the other shards, found through Redis or the state folder (default: threads of this server)',
    )
    .option('--push-log <file>', 'log every applied push to this file, to check them afterwards')
    .option(
      '--join <experiments...>',
      'experiments that browsers may train at /join: files, or folders whose experiments have `browser: true`',
    )
    .addOption(dataOption())
    .addOption(
      new Option(
        '--tensorboard <folder>',
        'write TensorBoard event files with curves and histograms, one folder per run',
      ).env('DOWNPOUR_TENSORBOARD'),
    );
  addCopyOptions(command);
  addStandbyOptions(command);
  addServeLimits(command);
  command.addOption(logOption()).addOption(jsonOption());
  addRedisFileOptions(addServerTokenOptions(command))
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
    .action(async (options: ServeCommandOptions) => {
      const { serveCommand } = await import('./serve.ts');
      await serveCommand(options);
    });
}

/** Options about copies of checkpoints in a bucket. */
function addCopyOptions(command: Command): void {
  command
    .addOption(
      new Option(
        '--checkpoint-copy <url>',
        'copy each checkpoint to s3://bucket/prefix, and restore an empty state folder from there; uses AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and DOWNPOUR_S3_ENDPOINT if the S3 service is not AWS',
      ).env('DOWNPOUR_CHECKPOINT_COPY'),
    )
    .addOption(
      new Option(
        '--checkpoint-copies <n>',
        'number of `last` checkpoints to keep in the bucket for each run',
      )
        .env('DOWNPOUR_CHECKPOINT_COPIES')
        .default(SERVER_DEFAULTS.copiesKept)
        .argParser(whole(1, 1_000)),
    )
    .addOption(
      new Option(
        '--copy-grace <s>',
        'seconds that a stopping server waits for its last checkpoint copies',
      )
        .env('DOWNPOUR_COPY_GRACE')
        .default(SERVER_DEFAULTS.copyGraceSeconds)
        .argParser(positive),
    );
}

/** Options about two servers, one of which follows the other. */
function addStandbyOptions(command: Command): void {
  command
    .option(
      '--standby-of <address>',
      'act as the hot standby of this server: replicate its runs, and take over if it fails',
    )
    .addOption(
      new Option(
        '--peer <address>',
        'address of the other server of a pair: the last owner of the state starts as the primary, and the other becomes its standby',
      ).env('DOWNPOUR_PEER'),
    )
    .addOption(
      new Option(
        '--replication <mode>',
        'replication to a standby. sync: a push is answered only after the standby has it; async: the standby may lag by up to --lag-max pushes',
      )
        .choices(['sync', 'async'])
        .default('sync'),
    )
    .addOption(
      new Option('--lag-max <n>', 'maximum number of pushes by which an async standby may lag')
        .default(SERVER_DEFAULTS.lagMax)
        .argParser(whole(1, 1_000_000)),
    )
    .option(
      '--advertise <host>',
      'host name or address at which workers reach this standby (default: --host, or the address it connects from)',
    )
    .addOption(
      new Option(
        '--lease-seconds <s>',
        'seconds of silence before another server may take over; 2 is usual with a standby',
      )
        .env('DOWNPOUR_LEASE_SECONDS')
        .default(SERVER_DEFAULTS.leaseSeconds)
        .argParser(positiveUpTo(LIMITS.leaseMsMax / 1_000)),
    );
}

/** Options about what the server lets in. */
function addServeLimits(command: Command): void {
  command
    .addOption(
      limitOption(
        '--requests-max <n>',
        'maximum requests per second with one token',
        LIMITS.requestsPerSecondMax,
      ),
    )
    .addOption(
      limitOption(
        '--connections-max <n>',
        'maximum worker connections with one token',
        LIMITS.connectionsPerTokenMax,
      ),
    )
    .addOption(
      limitOption(
        '--handshakes-max <n>',
        'maximum worker connections per second with one token, after an initial burst of up to --connections-max',
        LIMITS.handshakesPerSecondMax,
      ),
    )
    .addOption(
      limitOption(
        '--runs-max <n>',
        'maximum number of runs that the server holds',
        LIMITS.runCountMax,
      ),
    );
}

function registerShard(program: Command): void {
  const command = program
    .command('shard')
    .description('start a shard, which holds part of the parameters for a server')
    .addOption(hostOption())
    .addOption(portOption(0))
    .option(
      '--advertise <host>',
      'host name or address at which workers and the server reach this shard (default: --host)',
    )
    .addOption(stateOption())
    .addOption(
      new Option(
        '--redis-url <url>',
        'Redis through which the server finds this shard; same URL as for the server',
      ).env('DOWNPOUR_REDIS_URL'),
    )
    .addOption(insecureOption())
    .addOption(noLocalSocketOption())
    .addOption(logOption())
    .addOption(jsonOption());
  addRedisFileOptions(addServerTokenOptions(command))
    .addHelpText(
      'after',
      examples(
        'downpour shard --host 10.0.0.6 --redis-url redis://10.0.0.5:6379',
        'downpour serve --host 10.0.0.5 --redis-url redis://10.0.0.5:6379 --shards 2 --shards-elsewhere',
      ),
    )
    .action(async (options: ShardCommandOptions) => {
      const { shardCommand } = await import('./serve.ts');
      await shardCommand(options);
    });
}

function addRedisFileOptions(command: Command): Command {
  return addUnder(ACCESS_OPTIONS, command, [
    new Option(
      '--redis-ca <file>',
      'CA certificate (PEM) to verify Redis (default: the CAs that Node.js trusts)',
    ).env('DOWNPOUR_REDIS_CA'),
    new Option('--redis-cert <file>', 'client certificate (PEM), if Redis requires one').env(
      'DOWNPOUR_REDIS_CERT',
    ),
    new Option('--redis-key <file>', 'private key (PEM) of that client certificate').env(
      'DOWNPOUR_REDIS_KEY',
    ),
  ]);
}

const hostOption = () =>
  new Option('--host <address>', 'address to listen on; any address but loopback requires a token')
    .env('DOWNPOUR_HOST')
    .default(DEFAULT_HOST);

const portOption = (free: number) =>
  new Option('--port <n>', 'port to listen on; 0 takes a free one')
    .env('DOWNPOUR_PORT')
    .default(free)
    .argParser(whole(0, 65_535));

const insecureOption = () =>
  new Option('--insecure', 'allow access from other machines without a token');

const noLocalSocketOption = () =>
  new Option(
    '--no-local-socket',
    localSocketHelp('do not open a Unix socket for workers on this machine'),
  );

const limitOption = (flags: string, help: string, most: number) =>
  new Option(flags, help).default(most).argParser(whole(1, most));
