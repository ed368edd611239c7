import { type Command, Option } from 'commander';
import { SERVER_DEFAULTS } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  addServerTokenOptions,
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
import type { ServeOptions, ShardOptions } from './serve.ts';

/** Names, options and help of the commands that listen: `serve` and `shard`. */

/** `serve`, `shard`. */
export function registerServeCommands(program: Command): void {
  registerServe(program);
  registerShard(program);
}

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
    .addOption(
      limitOption(
        '--handshakes-max <n>',
        'of workers in a second with one token, after as many at once as it may have connections',
        LIMITS.handshakesPerSecondMax,
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
