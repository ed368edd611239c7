import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { cpus, freemem, totalmem } from 'node:os';
import type { Command } from 'commander';
import { NODE_LINES_TEXT } from '../bin/node-lines.js';
import { errorText } from '../shared/errors.ts';
import { ROOT } from '../shared/own-files.ts';
import type { EngineSurvey } from '../worker/engine.ts';
import { print, printJson, tell } from './options.ts';

const INTERRUPTED = 130;
const REDIS_TIMEOUT_MS = 2_000;

/** Adds `doctor` and `engine install | remove | list`. What they need is imported when they run. */
export function registerEngineCommands(program: Command): void {
  program
    .command('doctor')
    .description(
      'show which compute engine training would use here, and why the better ones do not work',
    )
    .option('--json', 'print JSON')
    .action(doctor)
    .addHelpText(
      'after',
      '\nTries each engine in a separate process. The exit code is 0 if at least one works.\n' +
        '\nExample:\n  $ downpour doctor\n  $ downpour doctor --json',
    );

  const engine = program
    .command('engine')
    .description('install, remove or list native engines')
    .addHelpText('after', '\nExample:\n  $ downpour engine install');
  engine
    .command('install')
    .description("build the native engine on the TensorFlow library from PyPI's wheel")
    .option('--gpu', 'build with CUDA 12 for NVIDIA GPUs (Linux on x86-64, needs 10 GB of disk)')
    .option('--json', 'print JSON')
    .action(install)
    .addHelpText(
      'after',
      '\nNeeds python3 with pip, g++, make and 1.2 GB of disk, and takes about a minute. The engine is installed in\n' +
        'DOWNPOUR_ENGINE_DIR (default: ~/.cache/downpour/engines), where `npm ci` does not remove it. An engine is for the line\n' +
        `of Node.js that installs it. Supported are the lines ${NODE_LINES_TEXT}.\n` +
        '\nExample:\n  $ downpour engine install',
    );
  engine
    .command('remove')
    .description('remove the native engine')
    .option('--gpu', 'remove the engine with CUDA')
    .action(remove)
    .addHelpText('after', '\nExample:\n  $ downpour engine remove');
  engine
    .command('list')
    .description('list the installed native engines')
    .option('--json', 'print JSON')
    .action(list)
    .addHelpText('after', '\nExample:\n  $ downpour engine list');
}

interface JsonOption {
  readonly json?: boolean;
}
interface GpuOption {
  readonly gpu?: boolean;
}

async function doctor(options: JsonOption): Promise<void> {
  const { surveyEngines } = await import('../worker/engine.ts');
  const engines = await surveyEngines();
  const chosen = engines.find((engine) => engine.available) ?? null;
  const facts = {
    downpour: ownVersion(),
    node: process.versions.node,
    platform: `${process.platform} ${process.arch}`,
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryBytes: totalmem(),
    memoryFreeBytes: freemem(),
    engine: chosen?.name ?? null,
    engines,
    data: dataFacts(process.env.DOWNPOUR_DATA),
    redis: await redisFacts(process.env.DOWNPOUR_REDIS_URL),
  };
  if (chosen === null) process.exitCode = 1;
  if (options.json) return printJson(facts);
  for (const line of report(facts, chosen)) print(line);
}

function report(
  facts: {
    readonly downpour: string;
    readonly node: string;
    readonly platform: string;
    readonly processor: string;
    readonly cores: number;
    readonly memoryBytes: number;
    readonly memoryFreeBytes: number;
    readonly engines: readonly EngineSurvey[];
    readonly data: { readonly text: string };
    readonly redis: { readonly text: string };
  },
  chosen: EngineSurvey | null,
): string[] {
  const gigabytes = (bytes: number) => (bytes / 1e9).toFixed(1);
  const versions = Object.entries(chosen?.versions ?? {})
    .map(([name, version]) => `${name} ${version}`)
    .join(', ');
  const rows = facts.engines.map((engine) => {
    const mark = engine === chosen ? '>' : engine.available ? '+' : '-';
    const text = engine.available
      ? [`works on ${engine.device}`, engine.why].filter(Boolean).join('; ')
      : engine.why;
    return `  ${mark} ${engine.name.padEnd(13)}  ${text}`;
  });
  return [
    chosen === null
      ? 'engine     none works here: npm ci, then again'
      : `engine     ${chosen.name} on ${chosen.device}`,
    ...(versions ? [`versions   ${versions}`] : []),
    `downpour   ${facts.downpour}, Node ${facts.node}, ${facts.platform}`,
    `machine    ${facts.cores} cores (${facts.processor}), ${gigabytes(facts.memoryBytes)} GB of memory, ${gigabytes(facts.memoryFreeBytes)} free`,
    `data       ${facts.data.text}`,
    `redis      ${facts.redis.text}`,
    '',
    'Engines, best first (> chosen, + works, - not available):',
    ...rows,
  ];
}

function dataFacts(folder: string | undefined): { folder: string | null; text: string } {
  if (folder === undefined || folder === '') {
    return { folder: null, text: 'DOWNPOUR_DATA is not set: the 10,000 digits that npm brought' };
  }
  if (!existsSync(folder)) return { folder: null, text: `${folder} does not exist` };
  const names = readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() || entry.isSymbolicLink())
    .map((entry) => entry.name);
  const text = `${folder}: ${names.join(', ') || 'no data sets in it'}`;
  return { folder, text };
}

async function redisFacts(
  url: string | undefined,
): Promise<{ reachable: boolean | null; text: string }> {
  if (url === undefined || url === '') {
    return { reachable: null, text: 'DOWNPOUR_REDIS_URL is not set: state is kept in files' };
  }
  const { openRedisStore } = await import('../server/store/redis.ts');
  const { redisFilesOf } = await import('../server/store/redis-address.ts');
  const { DOWNPOUR_REDIS_CA, DOWNPOUR_REDIS_CERT, DOWNPOUR_REDIS_KEY } = process.env;
  const [ca, cert, key] = [DOWNPOUR_REDIS_CA, DOWNPOUR_REDIS_CERT, DOWNPOUR_REDIS_KEY];
  // A password in the address is nobody's to read.
  const address = url.replace(/\/\/[^@/]*@/, '//***@');
  const files = redisFilesOf({ ca, cert, key });
  const store = openRedisStore({ url, files, timeoutMs: REDIS_TIMEOUT_MS });
  try {
    await store.listRuns();
    return { reachable: true, text: `${address} answers` };
  } catch (error) {
    return { reachable: false, text: `${address} does not answer: ${errorText(error)}` };
  } finally {
    await store.close();
  }
}

async function install(options: GpuOption & JsonOption): Promise<void> {
  const { installEngine } = await import('../worker/engine-install.ts');
  const controller = new AbortController();
  const stop = () => controller.abort(new Error('interrupted'));
  process.once('SIGINT', stop).once('SIGTERM', stop);
  try {
    const result = await installEngine({
      gpu: options.gpu === true,
      signal: controller.signal,
      log: tell,
    });
    const { folder, manifest, installed } = result;
    const size = `${(manifest.bytes / 1e6).toFixed(0)} MB`;
    const built = `TensorFlow ${manifest.tensorflow}, ${manifest.variant}, ${size}, in ${folder}`;
    const text = installed ? `installed: ${built}` : `already installed: ${built}`;
    if (options.json) printJson(result);
    else print(text);
  } catch (error) {
    if (!controller.signal.aborted) throw error;
    tell('interrupted: nothing is installed, what was downloaded is kept');
    process.exitCode = INTERRUPTED;
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}

async function remove(options: GpuOption): Promise<void> {
  const { engineFolder, removeEngine } = await import('../worker/engine-folder.ts');
  const variant = options.gpu ? 'gpu' : 'cpu';
  const folder = engineFolder(variant);
  print(removeEngine(variant) ? `removed ${folder}` : `nothing to remove: no engine in ${folder}`);
}

async function list(options: JsonOption): Promise<void> {
  const { enginesFolder, listEngines } = await import('../worker/engine-folder.ts');
  const engines = listEngines();
  if (options.json) return printJson(engines);
  if (engines.length === 0) {
    return print(`no native engine in ${enginesFolder()}: downpour engine install`);
  }
  for (const { folder, manifest } of engines) {
    const size = `${(manifest.bytes / 1e6).toFixed(0)} MB`;
    print(`${manifest.variant}  TensorFlow ${manifest.tensorflow}  ${size}  ${folder}`);
  }
}

function ownVersion(): string {
  const file = new URL('package.json', ROOT);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
