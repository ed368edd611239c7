import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { engineNote } from '../bin/node-lines.js';
import { DownpourError } from '../shared/errors.ts';
import { probe } from './engine.ts';
import {
  bindingPackage,
  type EngineManifest,
  engineFolder,
  type InstalledEngine,
  type NativeVariant,
  readEngine,
  TFJS_NODE_VERSION,
} from './engine-folder.ts';

export interface EngineInstallOptions {
  /** CUDA build (Linux on x86-64); default the CPU's. */
  readonly gpu?: boolean;
  /** Where to, if not its own place. Must not exist, or be an engine already. */
  readonly folder?: string;
  /** Gets a line at each step and at least every 2 s in between. */
  readonly log?: (line: string) => void;
  readonly signal?: AbortSignal;
}

export interface EngineInstallResult extends InstalledEngine {
  /** False when it was there already and nothing was done. */
  readonly installed: boolean;
}

interface Wheel {
  /** What pip is asked for. */
  readonly requirement: string;
  readonly platforms: readonly string[];
  readonly megabytes: number;
  /** Free disk space that the whole install needs at its peak. */
  readonly gigabytesNeeded: number;
}

/**
 * TensorFlow from PyPI, where its C interface comes along. 2.15 is the last whose CPU build is small;
 * 2.21 is a CUDA 12.5 build for GPUs up to Hopper and, through PTX, newer ones.
 */
const WHEELS: Readonly<Record<string, Wheel>> = {
  'cpu-x64': {
    requirement: 'tensorflow-cpu==2.15.1',
    platforms: ['manylinux2014_x86_64', 'manylinux_2_27_x86_64'],
    megabytes: 207,
    gigabytesNeeded: 1.2,
  },
  'cpu-arm64': {
    requirement: 'tensorflow-cpu-aws==2.15.1',
    platforms: ['manylinux2014_aarch64', 'manylinux_2_27_aarch64'],
    megabytes: 212,
    gigabytesNeeded: 1.3,
  },
  'gpu-x64': {
    requirement: 'tensorflow==2.21.0',
    platforms: ['manylinux2014_x86_64', 'manylinux_2_27_x86_64'],
    megabytes: 572,
    gigabytesNeeded: 10,
  },
};

const PROGRESS_MS = 1_500;
const LIBRARIES = ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2'] as const;

/**
 * Builds the native engine: tfjs-node's binding over the TensorFlow library of a PyPI wheel, without
 * the download that tfjs-node's own installer makes. Made in a folder beside its place and renamed when
 * a child process has loaded it and computed a gradient: what is in place is whole. A wheel that was
 * fetched is kept until an install succeeds, so a second try goes on from there.
 *
 * @throws DownpourError `DP_ENGINE_INSTALL`: what is missing and the command that brings it.
 */
export async function installEngine(
  options: EngineInstallOptions = {},
): Promise<EngineInstallResult> {
  const variant: NativeVariant = options.gpu ? 'gpu' : 'cpu';
  const folder = options.folder ?? engineFolder(variant);
  const present = readEngine(folder);
  if (present !== null) return { ...present, installed: false };

  const wheel = WHEELS[`${variant}-${process.arch}`];
  if (process.platform !== 'linux' || wheel === undefined) throw unsupported(variant);
  if (options.folder !== undefined && existsSync(folder) && readdirSync(folder).length > 0) {
    throw failed(`${folder} holds other things: name an empty folder`);
  }
  const parent = dirname(folder);
  mkdirSync(parent, { recursive: true });
  const { log = () => {} } = options;
  log(engineNote());
  const steps = new InstallSteps(log, options.signal);
  await requireTools(steps);
  requireSpace(parent, wheel);
  const partial = join(parent, `.partial-${basename(folder)}-${process.pid}`);
  const wheels = join(parent, '.wheels');
  removeAbandoned(parent);
  removeAbandoned(wheels);

  try {
    mkdirSync(partial, { recursive: true });
    await installBinding(steps, partial, variant);
    const wheelFile = await downloadWheel(steps, wheels, wheel);
    const library = await unpackLibrary(steps, partial, variant, wheelFile);
    if (variant === 'gpu') await installCuda(steps, partial, wheel, library.cuda);
    await buildBinding(steps, partial, variant);
    const manifest: EngineManifest = {
      variant,
      tfjsNode: TFJS_NODE_VERSION,
      tensorflow: library.version,
      wheel: basename(wheelFile),
      sha256: library.sha256,
      bytes: folderBytes(partial),
      installedAt: new Date().toISOString(),
    };
    writeFileSync(join(partial, 'engine.json'), `${JSON.stringify(manifest, null, 2)}\n`);
    await prove(steps, partial);
    const mine = putInPlace(partial, folder);
    rmSync(wheelFile, { force: true });
    removeIfEmpty(wheels);
    return { ...readEngine(folder)!, installed: mine };
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

// ---------------------------------------------------------------- the steps

/**
 * The binding's package, with empty stand-ins for the tfjs packages that it would bring: the worker
 * answers for them with its own (8.7 MB instead of 302, and one tfjs in the process).
 */
async function installBinding(
  steps: InstallSteps,
  folder: string,
  variant: NativeVariant,
): Promise<void> {
  const name = bindingPackage(variant);
  for (const standIn of ['tfjs', 'tfjs-core']) {
    const at = join(folder, 'stand-ins', standIn);
    mkdirSync(at, { recursive: true });
    const manifest = { name: `@tensorflow/${standIn}`, version: TFJS_NODE_VERSION };
    writeFileSync(join(at, 'package.json'), JSON.stringify(manifest));
    writeFileSync(
      join(at, 'index.js'),
      `throw new Error('Downpour opens this engine with its own tfjs: see worker/engine.ts');\n`,
    );
  }
  const manifest = {
    name: 'downpour-engine',
    private: true,
    dependencies: {
      [name]: TFJS_NODE_VERSION,
      '@tensorflow/tfjs': 'file:./stand-ins/tfjs',
      '@tensorflow/tfjs-core': 'file:./stand-ins/tfjs-core',
    },
    overrides: { '@tensorflow/tfjs': '$@tensorflow/tfjs' },
    // `download`, as the GPU package itself runs it, would wipe the library that we put there.
    scripts: { binding: `cd node_modules/${name} && node scripts/install.js ${variant}` },
  };
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  await steps.run(`fetching ${name}@${TFJS_NODE_VERSION}`, 'npm', {
    args: ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'],
    cwd: folder,
  });
}

/** @returns the wheel's file name. Pip itself compares the index's checksum. */
async function downloadWheel(steps: InstallSteps, wheels: string, wheel: Wheel): Promise<string> {
  const stem = wheel.requirement.replaceAll('-', '_').replace('==', '-');
  const find = () => readdirSync(wheels).find((file) => file.startsWith(`${stem}-`));
  mkdirSync(wheels, { recursive: true });
  const kept = find();
  if (kept !== undefined) {
    steps.log(`wheel ${wheel.requirement} is here from an earlier try`);
    return join(wheels, kept);
  }
  const temporary = join(wheels, `.tmp-${process.pid}`);
  const whole = join(temporary, 'whole');
  mkdirSync(whole, { recursive: true });
  try {
    await steps.run(`downloading ${wheel.requirement}`, 'python3', {
      args: [
        ...['-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--progress-bar=off'],
        ...['--disable-pip-version-check', '--retries=5', '--timeout=30', '--no-cache-dir'],
        ...['--python-version=311', '--implementation=cp'],
        ...wheel.platforms.map((platform) => `--platform=${platform}`),
        `--dest=${whole}`,
        wheel.requirement,
      ],
      cwd: wheels,
      // Pip writes there as it reads, so the folder's size is the progress.
      env: { TMPDIR: temporary },
      // Where it ends it has two copies for a moment.
      progress: () => {
        const seen = Math.min(Number(megabytes(folderBytes(temporary))), wheel.megabytes);
        return `${seen} of ${wheel.megabytes} MB`;
      },
    });
    for (const file of readdirSync(whole)) renameSync(join(whole, file), join(wheels, file));
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  const file = find();
  if (file === undefined) throw failed(`pip left no wheel of ${wheel.requirement} in ${wheels}`);
  return join(wheels, file);
}

interface Library {
  readonly version: string;
  readonly sha256: Readonly<Record<string, string>>;
  /** Requirements of the wheel's extra `and-cuda`. */
  readonly cuda: readonly string[];
}

/** Takes library and headers out of the wheel; each is compared with the wheel's own record. */
const UNPACK = `
import base64, csv, hashlib, io, json, os, re, sys, zipfile
wheel, deps, libraries = sys.argv[1], sys.argv[2], sys.argv[3:]
archive = zipfile.ZipFile(wheel)
info = next(n for n in archive.namelist() if n.endswith('.dist-info/RECORD'))[:-len('RECORD')]
record = {row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(info + 'RECORD').decode()))}
headers = ('tensorflow/c/', 'tensorflow/core/platform/', 'tsl/', 'xla/tsl/')
sums = {}
def take(name, to):
    os.makedirs(os.path.dirname(to), exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(name) as source, open(to, 'wb') as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
    seen = 'sha256=' + base64.urlsafe_b64encode(digest.digest()).decode().rstrip('=')
    if record.get(name) != seen:
        sys.exit(f'{name}: {seen}, the wheel records {record.get(name)}; try again')
    return digest.hexdigest()
for name in libraries:
    sums[name] = take('tensorflow/' + name, os.path.join(deps, 'lib', name))
prefix = 'tensorflow/include/'
for name in archive.namelist():
    if name.startswith(tuple(prefix + h for h in headers)) and not name.endswith('/'):
        take(name, os.path.join(deps, 'include', name[len(prefix):]))
meta = archive.read(info + 'METADATA').decode()
cuda = [m.split(';')[0].strip() for m in re.findall(r'^Requires-Dist: (.*)$', meta, re.M) if 'and-cuda' in m]
version = re.search(r'^Version: (.*)$', meta, re.M).group(1).strip()
print(json.dumps({'version': version, 'sha256': sums, 'cuda': cuda}))
`;

async function unpackLibrary(
  steps: InstallSteps,
  folder: string,
  variant: NativeVariant,
  wheelFile: string,
): Promise<Library> {
  const deps = join(folder, 'node_modules', bindingPackage(variant), 'deps');
  const output = await steps
    .run('unpacking and checking the library', 'python3', {
      args: ['-c', UNPACK, wheelFile, deps, ...LIBRARIES],
      cwd: folder,
      progress: () => `${megabytes(folderBytes(deps))} MB`,
    })
    .catch((error) => {
      // A wheel that is damaged would fail every time; the next try fetches another.
      if (error instanceof DownpourError) rmSync(wheelFile, { force: true });
      throw error;
    });
  const library = JSON.parse(output) as Library;
  const links = {
    'libtensorflow.so': LIBRARIES[0],
    'libtensorflow.so.2': LIBRARIES[0],
    // The name by which the package's installer knows that the library need not be downloaded.
    'libtensorflow.so.2.9.1': LIBRARIES[0],
    'libtensorflow_framework.so': LIBRARIES[1],
  };
  for (const [link, target] of Object.entries(links)) symlinkSync(target, join(deps, 'lib', link));
  return library;
}

/** CUDA's libraries are wheels too; the library's own run path finds them in `deps/nvidia`. */
async function installCuda(
  steps: InstallSteps,
  folder: string,
  wheel: Wheel,
  requirements: readonly string[],
): Promise<void> {
  if (requirements.length === 0) throw failed(`${wheel.requirement} names no CUDA libraries`);
  const deps = join(folder, 'node_modules', bindingPackage('gpu'), 'deps');
  const temporary = join(folder, 'tmp');
  mkdirSync(temporary);
  await steps.run(`fetching ${requirements.length} CUDA libraries (4.2 GB unpacked)`, 'python3', {
    args: [
      ...['-m', 'pip', 'install', '--no-deps', '--only-binary=:all:', '--progress-bar=off'],
      ...['--disable-pip-version-check', '--retries=5', '--timeout=30', '--no-compile'],
      ...['--no-warn-conflicts', `--target=${deps}`, ...requirements],
    ],
    cwd: folder,
    env: { TMPDIR: temporary },
    progress: () => `${megabytes(folderBytes(temporary) + folderBytes(join(deps, 'nvidia')))} MB`,
  });
  rmSync(temporary, { recursive: true, force: true });
  gatherLibraries(join(deps, 'nvidia'));
}

/** The one of NVIDIA's packages whose folder TensorFlow cannot do without. */
const RUNTIME = 'cuda_runtime';

/**
 * Links all CUDA libraries, each in a package of its own, into one folder. TensorFlow opens them by name from its
 * framework library, whose run path knows most of the packages but not all: not cuSOLVER in 2.21, without which
 * it takes no GPU. (Python's own TensorFlow is opened by a library that knows it.)
 * @param folder with the packages, as pip puts them.
 */
export function gatherLibraries(folder: string): void {
  const to = join(folder, RUNTIME, 'lib');
  for (const name of readdirSync(folder)) {
    const from = join(folder, name, 'lib');
    if (name === RUNTIME || !existsSync(from)) continue;
    for (const file of readdirSync(from)) {
      // Relative: the engine is built in one place and moved to another.
      if (/\.so(\.\d+)*$/.test(file))
        symlinkSync(join('..', '..', name, 'lib', file), join(to, file));
    }
  }
}

async function buildBinding(
  steps: InstallSteps,
  folder: string,
  variant: NativeVariant,
): Promise<void> {
  const binding = join(folder, 'node_modules', bindingPackage(variant));
  // Makes the package's installer build the binding instead of fetching one.
  const custom = { 'tf-lib': 'file-already-in-deps' };
  writeFileSync(join(binding, 'scripts', 'custom-binary.json'), JSON.stringify(custom));
  const prefix = dirname(dirname(realpathSync(process.execPath)));
  const hasHeaders = existsSync(join(prefix, 'include', 'node', 'node_api.h'));
  await steps.run('building the binding', 'npm', {
    args: ['run', 'binding', '--foreground-scripts'],
    cwd: folder,
    // Node's own headers when it came with them; else node-gyp fetches them.
    env: hasHeaders ? { npm_config_nodedir: prefix } : {},
  });
}

async function prove(steps: InstallSteps, folder: string): Promise<void> {
  const row = await steps.watch('computing a gradient with it', probe('native', { folder }));
  if (!row.available) throw failed(`it was built but does not work: ${row.why}`);
}

/** @returns false when another install was quicker; then theirs stays. */
function putInPlace(partial: string, folder: string): boolean {
  if (readEngine(folder) !== null) return false;
  // Without a manifest it is no engine: empty, or left by something else in our own cache.
  rmSync(folder, { recursive: true, force: true });
  try {
    renameSync(partial, folder);
    return true;
  } catch (error) {
    if (readEngine(folder) !== null) return false;
    throw failed(`can't move the engine to ${folder}`, error);
  }
}

// ---------------------------------------------------------------- before it starts

async function requireTools(steps: InstallSteps): Promise<void> {
  const tools = [
    { what: 'python3', args: ['--version'], apt: 'python3' },
    { what: 'python3', args: ['-m', 'pip', '--version'], apt: 'python3-pip', name: 'pip' },
    { what: 'g++', args: ['--version'], apt: 'g++' },
    { what: 'make', args: ['--version'], apt: 'make' },
    { what: 'npm', args: ['--version'], apt: 'npm' },
  ];
  const missing: typeof tools = [];
  for (const tool of tools) {
    if (!(await steps.answers(tool.what, tool.args))) missing.push(tool);
  }
  if (missing.length === 0) return;
  throw failed(
    `it needs ${missing.map((tool) => tool.name ?? tool.what).join(', ')}, not found here: ` +
      `apt-get install -y ${missing.map((tool) => tool.apt).join(' ')}`,
  );
}

function requireSpace(folder: string, wheel: Wheel): void {
  const { bavail, bsize } = statfsSync(folder);
  const free = (bavail * bsize) / 1e9;
  if (free >= wheel.gigabytesNeeded) return;
  throw failed(
    `${folder} has ${free.toFixed(1)} GB free, it needs ${wheel.gigabytesNeeded}: ` +
      'make room, or set DOWNPOUR_ENGINE_DIR to another disk',
  );
}

/** Half-made folders of processes that were killed. */
function removeAbandoned(parent: string): void {
  if (!existsSync(parent)) return;
  for (const name of readdirSync(parent)) {
    const pid = /^\.(?:partial|tmp)-(?:.*-)?(\d+)$/.exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) {
      rmSync(join(parent, name), { recursive: true, force: true });
    }
  }
}

/** The wheels of another install may still be there. */
function removeIfEmpty(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {
    // Then it stays.
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function unsupported(variant: NativeVariant): DownpourError {
  const { platform, arch } = process;
  if (variant === 'gpu' && platform === 'linux') {
    return failed(`the CUDA engine is for Linux on x64, this is ${arch}: downpour engine install`);
  }
  return failed(
    `it is made for Linux on x64 and arm64, this is ${platform} on ${arch}: ` +
      `npm install --no-save @tensorflow/tfjs-node@${TFJS_NODE_VERSION}, or the engine wasm, which is always there`,
  );
}

// ---------------------------------------------------------------- running and watching programs

interface Program {
  readonly args: readonly string[];
  readonly cwd: string;
  readonly env?: Readonly<Record<string, string>>;
  /** How far it is, for the line that appears while it runs. */
  readonly progress?: () => string;
}

const OUTPUT_CHARS_KEPT = 20_000;
const NO_NETWORK =
  /name resolution|Failed to establish a new connection|Network is unreachable|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED|ProxyError|Read timed out/i;

/** Runs one program after the other, tells how it goes, and ends them when the signal says so. */
class InstallSteps {
  readonly log: (line: string) => void;
  private readonly signal: AbortSignal | undefined;

  constructor(log: (line: string) => void, signal: AbortSignal | undefined) {
    this.log = log;
    this.signal = signal;
  }

  /** @returns what the program printed on its standard output. */
  async run(what: string, file: string, program: Program): Promise<string> {
    const end = await this.watch(what, this.start(file, program), program.progress);
    if (end.code === 0) return end.stdout;
    const tail = end.output.trim().split('\n').slice(-12).join('\n');
    if (NO_NETWORK.test(end.output)) {
      throw failed(
        `${what}: the package index can't be reached. Check network and proxy and run it again; ` +
          `what was fetched is kept. ${file} said:\n${tail}`,
      );
    }
    throw failed(`${what}: ${file} ended with ${end.code ?? end.reason}:\n${tail}`);
  }

  async answers(file: string, args: readonly string[]): Promise<boolean> {
    return (await this.start(file, { args, cwd: process.cwd() })).code === 0;
  }

  /** Tells when it starts, how long it takes, and what came of it. */
  async watch<T>(what: string, work: Promise<T>, progress?: () => string): Promise<T> {
    const start = performance.now();
    const tell = (end: string) => {
      const seconds = `${((performance.now() - start) / 1000).toFixed(1)} s`;
      this.log(`${what}${end}: ${progress ? `${progress()}, ` : ''}${seconds}`);
    };
    this.log(what);
    const timer = setInterval(() => tell(''), PROGRESS_MS);
    try {
      const result = await work;
      this.signal?.throwIfAborted();
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      this.log(`${what}: done in ${seconds} s`);
      return result;
    } finally {
      clearInterval(timer);
    }
  }

  private start(file: string, program: Program) {
    this.signal?.throwIfAborted();
    const child = spawn(file, program.args, {
      cwd: program.cwd,
      env: { ...process.env, ...program.env },
      stdio: ['ignore', 'pipe', 'pipe'],
      // A group of its own, so that the compilers below it end with it.
      detached: true,
    });
    const stop = () => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGTERM');
      } catch {
        // It has ended by itself.
      }
    };
    this.signal?.addEventListener('abort', stop, { once: true });
    let stdout = '';
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout = (stdout + text).slice(-OUTPUT_CHARS_KEPT);
      output = (output + text).slice(-OUTPUT_CHARS_KEPT);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      output = (output + text).slice(-OUTPUT_CHARS_KEPT);
    });
    return new Promise<{ code: number | null; reason: string; stdout: string; output: string }>(
      (resolve) => {
        const finish = (code: number | null, reason: string) => {
          this.signal?.removeEventListener('abort', stop);
          resolve({ code, reason, stdout, output });
        };
        child.on('error', (error) => finish(null, error.message));
        child.on('close', (code, signal) => finish(code, String(signal)));
      },
    );
  }
}

function failed(message: string, cause?: unknown): DownpourError {
  return new DownpourError(
    'DP_ENGINE_INSTALL',
    `the native engine is not installed: ${message}`,
    cause === undefined ? {} : { cause },
  );
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(0);
}

/** Bytes of the plain files below a folder; what vanishes while it looks counts nothing. */
function folderBytes(folder: string): number {
  let bytes = 0;
  try {
    for (const entry of readdirSync(folder, { withFileTypes: true, recursive: true })) {
      if (!entry.isFile()) continue;
      bytes +=
        statSync(join(entry.parentPath ?? entry.path, entry.name), {
          throwIfNoEntry: false,
        })?.size ?? 0;
    }
  } catch {
    // The program under way has not made it yet, or has just removed it.
  }
  return bytes;
}
