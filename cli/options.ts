import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { clean, cleanJson, cleanLines } from '../shared/clean.ts';
import { DownpourError, type ErrorCode, errorCode, errorText } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';
import { Said } from '../shared/said.ts';
import { fetchOver, trustOf } from '../wire/tls.ts';

/** What all commands have in common: exit codes, options, the way they print facts. */

/** What scripts can rely on; `--help` and docs/cli.md list them. */
export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  runFailed: 4,
  problems: 5,
  interrupted: 130,
} as const;

export const EXIT_HELP = `Exit codes:
  0    done
  1    failed; the line \`error DP_CODE: message\` says why
  2    wrong usage: unknown command, option, experiment or configuration field
  3    no server at the address, or no answer in time
  4    the run failed, for example because it diverged
  5    the check of an experiment found a problem
  130  interrupted by Ctrl-C`;

const USAGE: readonly ErrorCode[] = [
  'DP_USAGE',
  'DP_CONFIG_INVALID',
  'DP_EXPERIMENT_UNKNOWN',
  'DP_EXPERIMENT_INVALID',
];
const RUN_FAILED: readonly ErrorCode[] = ['DP_RUN_FAILED', 'DP_DIVERGED'];

/** The exit code that a command left, where it is not 0. */
export interface Outcome {
  exitCode: number;
}

/** The exit code for something thrown. */
export function exitCodeOf(error: unknown): number {
  const code = errorCode(error);
  if (USAGE.includes(code)) return EXIT.usage;
  if (RUN_FAILED.includes(code)) return EXIT.runFailed;
  return code === 'DP_SERVER_UNREACHABLE' ? EXIT.unreachable : EXIT.failed;
}

/** `error DP_CODE: message`, in one line or as many as the message has; a defect brings its stack. */
export function errorLine(error: unknown): string {
  const line = `error ${errorCode(error)}: ${errorText(error)}`;
  const debug = process.env.DOWNPOUR_DEBUG === '1';
  if (debug && error instanceof Error) return `${line}\n${error.stack ?? ''}`;
  if (error instanceof DownpourError) return line;
  return `${line}; this is a defect of Downpour: DOWNPOUR_DEBUG=1 shows where`;
}

export const DEFAULT_HOST = '127.0.0.1';
export const DEFAULT_PORT = 7420;
export const DEFAULT_SERVER = `http://${DEFAULT_HOST}:${DEFAULT_PORT}`;
export const DEFAULT_STATE = '.downpour';
/** Looked through for experiments, in the working folder. */
export const DEFAULT_EXPERIMENTS = ['experiments', 'examples', '.'] as const;

/** A whole number from `min` to `max`, as an option's parser. */
export function whole(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isInteger(value) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
  };
}

/** A finite number above 0, as an option's parser. */
export function positive(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError('It must be a number above 0.');
}

/** A number above 0 and up to `max`, as an option's parser. */
export function positiveUpTo(max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && value > 0 && value <= max) return value;
    throw new InvalidArgumentError(`It must be a number above 0 and at most ${max}.`);
  };
}

export const serverOption = () =>
  new Option('--server <address>', `address of a running server (default: ${DEFAULT_SERVER})`).env(
    'DOWNPOUR_SERVER',
  );
export const stateOption = () =>
  new Option('--state <folder>', 'folder for runs and checkpoints')
    .env('DOWNPOUR_STATE')
    .default(DEFAULT_STATE);
/** For commands that bring a server of their own unless they are given one. */
export const usedServerOption = () =>
  new Option('--server <address>', 'use this running server instead of starting one').env(
    'DOWNPOUR_SERVER',
  );
export const ownPortOption = () =>
  new Option(
    '--port <n>',
    `port of the server that this command starts (default: ${DEFAULT_PORT}, or a free one)`,
  ).argParser(whole(0, 65_535));
export const dataOption = () =>
  new Option('--data <folder>', 'folder of the data sets').env('DOWNPOUR_DATA');
export const engineOption = () =>
  new Option(
    '--engine <name>',
    'compute engine (default: the best available, see `downpour doctor`; the faster of native and wasm for the model)',
  ).env('DOWNPOUR_ENGINE');
export const experimentsOption = () =>
  new Option(
    '--experiments <folder...>',
    `folders to search for experiments (default: ${DEFAULT_EXPERIMENTS.map((f) => (f === '.' ? 'this folder' : `./${f}`)).join(', ')}, then the examples of Downpour)`,
  );
export const jsonOption = () => new Option('--json', 'print JSON');

export interface TokenOptions {
  readonly token?: string;
  readonly tokenFile?: string;
}

/** Headings in `--help`. docs/cli.md has these options once, not in the section of each command. */
export const CONNECTION_OPTIONS = 'Connection options:';
export const ACCESS_OPTIONS = 'Access and TLS options:';

/** Adds options under a heading of their own. */
export function addUnder(heading: string, command: Command, options: readonly Option[]): Command {
  for (const option of options) command.addOption(option.helpGroup(heading));
  return command;
}

/** How commands get into a server: `--token`, `--token-file`, and whom they trust over TLS. */
export function addTokenOptions(command: Command): Command {
  return addUnder(CONNECTION_OPTIONS, command, [
    ...tokenOptions(),
    new Option(
      '--tls-ca <file>',
      'CA certificate (PEM) to verify a server at https:// or wss:// (default: the CAs that Node.js trusts)',
    ).env('DOWNPOUR_TLS_CA'),
    new Option('--tls-cert <file>', 'client certificate (PEM), if the server requires one').env(
      'DOWNPOUR_TLS_CERT',
    ),
    new Option('--tls-key <file>', 'private key (PEM) of the client certificate').env(
      'DOWNPOUR_TLS_KEY',
    ),
  ]);
}

const tokenOptions = () => [
  new Option(
    '--token <token>',
    'access token; other users of this machine can see it, so prefer the environment variable or --token-file',
  ).env('DOWNPOUR_TOKEN'),
  new Option('--token-file <file>', 'file with the access token in its first line').env(
    'DOWNPOUR_TOKEN_FILE',
  ),
];

/** What a server is told of tokens with roles, beside the operators' own. */
export interface ServerTokenOptions {
  readonly workerToken?: string;
  readonly observerToken?: string;
  readonly tokens?: string;
}

/** Tokens and certificates of `serve` and `shard`. */
export function addServerTokenOptions(command: Command): Command {
  return addUnder(ACCESS_OPTIONS, command, [
    ...tokenOptions(),
    new Option(
      '--worker-token <token>',
      'token that lets workers join and allows nothing else',
    ).env('DOWNPOUR_WORKER_TOKEN'),
    new Option('--observer-token <token>', 'token that allows reading runs and nothing else').env(
      'DOWNPOUR_OBSERVER_TOKEN',
    ),
    new Option(
      '--tokens <file>',
      'file with one token per line: role (operator, worker or observer), token, and optionally a name; or a folder with one token file per role; changes take effect without a restart',
    ).env('DOWNPOUR_TOKENS'),
    new Option(
      '--tls-cert <file>',
      'certificate (PEM) of this server; turns on https:// and wss://',
    ).env('DOWNPOUR_TLS_CERT'),
    new Option(
      '--tls-key <file>',
      'private key (PEM) of the certificate; changes to both files take effect without a restart',
    ).env('DOWNPOUR_TLS_KEY'),
    new Option(
      '--tls-ca <file>',
      'require client certificates signed by this CA (PEM), in addition to the token',
    ).env('DOWNPOUR_TLS_CA'),
  ]);
}

/** A file is left to the server, which reads it again when it changes. */
export function serverTokensOf(options: TokenOptions & ServerTokenOptions): {
  readonly token?: string;
  readonly tokenFile?: string;
  readonly workerToken?: string;
  readonly observerToken?: string;
  readonly tokensFile?: string;
} {
  const { token, tokenFile, workerToken, observerToken, tokens } = options;
  return {
    ...(token === undefined ? {} : { token }),
    ...(token !== undefined || tokenFile === undefined ? {} : { tokenFile }),
    ...(workerToken === undefined ? {} : { workerToken }),
    ...(observerToken === undefined ? {} : { observerToken }),
    ...(tokens === undefined ? {} : { tokensFile: tokens }),
  };
}

/** The token, if one was given. @throws DownpourError DP_USAGE when its file cannot be read. */
export function tokenOf(options: TokenOptions): string | undefined {
  if (options.token !== undefined) return options.token;
  if (options.tokenFile === undefined) return undefined;
  let text: string;
  try {
    text = readFileSync(options.tokenFile, 'utf8');
  } catch (error) {
    throw new DownpourError(
      'DP_USAGE',
      `the token file ${options.tokenFile} cannot be read: ${errorText(error)}`,
      { cause: error },
    );
  }
  const token = text.split('\n', 1)[0]!.trim();
  if (token === '') {
    throw new DownpourError('DP_USAGE', `the token file ${options.tokenFile} has an empty line 1`);
  }
  return token;
}

/**
 * The token for who asks for a long time: of a file, as it is at that moment, since tokens are renewed. A file that is being
 * replaced may be missing for a moment: the last token stays. @throws DownpourError as `tokenOf`, the first time.
 */
export function newestTokenOf(
  options: TokenOptions,
  log: Log = () => {},
): string | (() => string) | undefined {
  let known = tokenOf(options);
  if (known === undefined || options.token !== undefined) return known;
  const unread = new Said();
  return () => {
    try {
      known = tokenOf(options) ?? known;
      unread.clear();
    } catch (error) {
      // It is read for each connection, again and again while the server is away.
      if (unread.isNew(errorText(error))) log(errorText(error), { level: 'warn' });
    }
    return known!;
  };
}

/** An environment in which a worker that we start has the token, or its file, which it reads again and again. */
export function withToken(env: NodeJS.ProcessEnv, options: TokenOptions): NodeJS.ProcessEnv {
  const { DOWNPOUR_TOKEN, DOWNPOUR_TOKEN_FILE, ...rest } = env;
  const { token, tokenFile } = options;
  if (token !== undefined) return { ...rest, DOWNPOUR_TOKEN: token };
  return tokenFile === undefined ? rest : { ...rest, DOWNPOUR_TOKEN_FILE: resolve(tokenFile) };
}

/** Certificates of a server or of a client. */
export interface TlsFileOptions {
  readonly tlsCa?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
}

/** A server's certificate; undefined: none. @throws DownpourError DP_USAGE: half of one. */
export function serverTlsOf({ tlsCa: ca, tlsCert: cert, tlsKey: key }: TlsFileOptions) {
  if (cert !== undefined && key !== undefined) return { cert, key, ...(ca ? { ca } : {}) };
  if (cert === undefined && key === undefined && ca === undefined) return undefined;
  throw new DownpourError(
    'DP_USAGE',
    'a server over TLS needs --tls-cert and --tls-key, and perhaps --tls-ca: one of them is missing',
  );
}

/** Whom to trust at this address; undefined where it is in the clear. */
export function trustFor(server: string, options: TlsFileOptions, log?: Log) {
  if (!/^(https|wss):/i.test(server)) return undefined;
  const { tlsCa: ca, tlsCert: cert, tlsKey: key } = options;
  const files = {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
  return trustOf(files, log ? { log } : {});
}

/** Help of `--no-local-socket`. */
export const localSocketHelp = (what: string) => `${what}; DOWNPOUR_LOCAL_SOCKET=0 does the same`;

/** True when `--state` was written on the command line. */
export const isStateGiven = (command: Command): boolean =>
  command.getOptionValueSource('state') === 'cli';

export interface ServerOptions extends TokenOptions, TlsFileOptions {
  readonly server?: string;
}

/** For commands that read a run, of a server or of a state folder. */
export interface RunCommandOptions extends ServerOptions {
  readonly state: string;
  /** True when --state was written on the command line. */
  readonly stateGiven: boolean;
  readonly json?: boolean;
}

/** A client of the server that the options name, or of the default one on this machine. */
export function clientOf(options: ServerOptions, signal?: AbortSignal): RestClient {
  const server = options.server ?? DEFAULT_SERVER;
  const tls = trustFor(server, options);
  return createRestClient({
    server,
    token: newestTokenOf(options),
    ...(tls ? { fetch: fetchOver(tls) } : {}),
    ...(signal ? { signal } : {}),
  });
}

/** Collects `--set key.path=value` into one part of a configuration. Values are JSON, else text. */
export function parseSet(
  text: string,
  previous: Readonly<Record<string, unknown>> = {},
): Record<string, unknown> {
  const equals = text.indexOf('=');
  const path = text.slice(0, equals).trim();
  const keys = path.split('.');
  if (equals < 0 || keys.some((key) => key === '')) {
    throw new InvalidArgumentError(
      'Write it as key.path=value, like learningRate=0.1 or optimizer.kind=adam.',
    );
  }
  if (keys.some((key) => ['__proto__', 'constructor', 'prototype'].includes(key))) {
    throw new InvalidArgumentError(`'${path}' is no field of a configuration.`);
  }
  let value: unknown = text.slice(equals + 1);
  try {
    value = JSON.parse(value as string);
  } catch {
    // No JSON: the text itself.
  }
  return setAt(previous, keys, value);
}

/** A copy of `object` with `value` at the path; what was no object on the way is replaced. */
function setAt(
  object: Readonly<Record<string, unknown>>,
  [key, ...rest]: readonly string[],
  value: unknown,
): Record<string, unknown> {
  if (key === undefined) return { ...object };
  if (rest.length === 0) return { ...object, [key]: value };
  const inner = object[key];
  const isObject = typeof inner === 'object' && inner !== null && !Array.isArray(inner);
  return { ...object, [key]: setAt(isObject ? { ...inner } : {}, rest, value) };
}

export interface ConfigOptions {
  readonly set?: Record<string, unknown>;
  readonly seed?: number;
  readonly minibatchSize?: number;
  readonly learningRate?: number;
  readonly epochs?: number;
  readonly patience?: number;
  readonly afterStop?: string;
}

/** `--set` and the short ways to write the settings that are changed most. */
export function addConfigOptions(command: Command): Command {
  return command
    .option(
      '--seed <n>',
      'random seed for initial parameters, data split and example order',
      whole(0, Number.MAX_SAFE_INTEGER),
    )
    .option('--minibatch-size <n>', 'examples in each minibatch', whole(1, 1_000_000))
    .option('--learning-rate <rate>', 'initial learning rate, before the schedule', positive)
    .option(
      '--epochs <n>',
      'maximum number of epochs; early stopping may end training sooner',
      whole(1, 1_000_000_000),
    )
    .option(
      '--patience <n>',
      'evaluations without improvement before training stops',
      whole(1, 1e9),
    )
    .addOption(
      new Option('--after-stop <what>', 'what to do after early stopping').choices([
        'restore',
        'retrain',
        'continue',
      ]),
    )
    .option(
      '--set <key.path=value>',
      'set any configuration field, e.g. optimizer.kind=adam; repeat it for more fields',
      (text: string, previous: Record<string, unknown> | undefined) => parseSet(text, previous),
    );
}

/** The part of a configuration that the options give; a short way wins over `--set`. */
export function configOf(options: ConfigOptions): Record<string, unknown> {
  let config: Record<string, unknown> = { ...options.set };
  const put = (path: string, value: unknown) => {
    if (value !== undefined) config = setAt(config, path.split('.'), value);
  };
  put('seed', options.seed);
  put('minibatchSize', options.minibatchSize);
  put('learningRate', options.learningRate);
  put('epochsMax', options.epochs);
  put('earlyStopping.patience', options.patience);
  put('earlyStopping.afterStop', options.afterStop);
  return config;
}

/** Prints facts for programs. */
export function printJson(value: unknown, indent = 2): void {
  process.stdout.write(`${cleanJson(value, indent)}\n`);
}

/** One line, whatever is in it. */
export function print(line = ''): void {
  process.stdout.write(`${clean(line)}\n`);
}

/** Says on standard error what goes on, where standard output belongs to facts. */
export function tell(line: string): void {
  process.stderr.write(`${clean(line)}\n`);
}

/** The last words of a command that failed. */
export function tellError(error: unknown): void {
  process.stderr.write(`${cleanLines(errorLine(error))}\n`);
}

export type LogFormat = 'text' | 'pretty' | 'json';

/** For commands that run for long and say what goes on. */
export const logOption = () =>
  new Option(
    '--log <format>',
    'log format. text: plain lines; pretty: with times and colours; json: one object per line with level, time, run, worker and code (default: pretty in a terminal, otherwise text)',
  )
    .env('DOWNPOUR_LOG')
    .choices(['text', 'pretty', 'json']);

/** Examples at the end of a command's help. */
export function examples(...lines: string[]): string {
  return `\nExample${lines.length > 1 ? 's' : ''}:\n${lines.map((line) => `  $ ${line}`).join('\n')}`;
}

/**
 * A signal for Ctrl-C and SIGTERM: the first asks to end in good order, the second ends at once.
 * @param onFirst what to tell the user
 */
export function untilInterrupted(onFirst: () => void = () => {}): {
  readonly signal: AbortSignal;
  dispose(): void;
} {
  const controller = new AbortController();
  const stop = () => {
    if (controller.signal.aborted) process.exit(EXIT.interrupted);
    controller.abort();
    onFirst();
  };
  process.on('SIGINT', stop);
  process.on('SIGTERM', stop);
  return {
    signal: controller.signal,
    dispose() {
      process.off('SIGINT', stop);
      process.off('SIGTERM', stop);
    },
  };
}
