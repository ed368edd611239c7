import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import Module, { createRequire } from 'node:module';
import { cpus } from 'node:os';
import { join } from 'node:path';
import util from 'node:util';
import * as tf from '@tensorflow/tfjs-core';
import * as layers from '@tensorflow/tfjs-layers';
import { DownpourError, errorText } from '../shared/errors.ts';
import { ownEntry } from '../shared/own-files.ts';
import {
  type Adapter,
  describeAdapter,
  type LoadedEngine,
  openCpu,
  openWasm,
  ourVersions,
  prove,
  setBackend,
} from './backend.ts';
import { bindingPackage, engineFolder, type NativeVariant, readEngine } from './engine-folder.ts';
import { type NvidiaSurvey, surveyNvidia, whyNoGpuDevice, whyNoNvidia } from './engine-nvidia.ts';
import { repairNativeKernels } from './kernels-native.ts';
import { repairWebgpuKernels } from './kernels-webgpu.ts';
// For the methods of tensors, which layers and gradients lean on.
import './tf.ts';

/** What can train here, best first. */
export const ENGINES = [
  'tfjs-node-gpu',
  'native-gpu',
  'webgpu',
  'tfjs-node',
  'native',
  'wasm',
  'cpu',
] as const;
export type EngineName = (typeof ENGINES)[number];

/** The engine that this process trains with. */
export interface Engine extends LoadedEngine {
  readonly name: EngineName;
}

export interface EngineOptions {
  readonly engine?: EngineName | 'auto';
  /** Threads that one operation may use (native engines). Default: TensorFlow's, one for each core. */
  readonly threads?: number;
  /** Where the native engine lies, if not in its own place; for proving one before it is put there. */
  readonly folder?: string;
}

export interface EngineSurvey {
  readonly name: EngineName;
  readonly available: boolean;
  /** In one line: why it can't be had and what helps, or what it runs on. */
  readonly why: string;
  readonly device?: string;
  readonly versions: Readonly<Record<string, string>>;
}

interface Candidate {
  /** A cheap look that loads nothing: why this engine can't be there; null when it may be. */
  missing(options: EngineOptions): Promise<string | null>;
  /** Loads it and sets tfjs's backend; throws when that fails. */
  load(options: EngineOptions): Promise<LoadedEngine>;
}

const CANDIDATES: Readonly<Record<EngineName, Candidate>> = {
  'tfjs-node-gpu': {
    missing: async () => whyNoNvidia(await nvidia()) ?? missingPackage('@tensorflow/tfjs-node-gpu'),
    load: (options) => loadBinding('gpu', findPackage('@tensorflow/tfjs-node-gpu')!, options),
  },
  'native-gpu': {
    missing: async (options) => whyNoNvidia(await nvidia()) ?? missingNative('gpu', options),
    load: (options) => loadBinding('gpu', nativeEntry('gpu', options), options),
  },
  webgpu: {
    missing: async () =>
      missingPackage('webgpu') ?? missingPackage('@tensorflow/tfjs-backend-webgpu'),
    load: loadWebgpu,
  },
  'tfjs-node': {
    missing: async () => whyNoTensorflow() ?? missingPackage('@tensorflow/tfjs-node'),
    load: (options) => loadBinding('cpu', findPackage('@tensorflow/tfjs-node')!, options),
  },
  native: {
    missing: async (options) => whyNoTensorflow() ?? missingNative('cpu', options),
    load: (options) => loadBinding('cpu', nativeEntry('cpu', options), options),
  },
  wasm: { missing: async () => null, load: () => openWasm(processor()) },
  cpu: { missing: async () => null, load: () => openCpu(processor()) },
};

const GPU_ENGINES: ReadonlySet<EngineName> = new Set(['tfjs-node-gpu', 'native-gpu']);
const PROBE_TIMEOUT_MS = 120_000;
const PROBE_MARK = '@downpour-engine@';

/**
 * Opens an engine and proves that it computes a right gradient. `auto`, the default, takes the best of
 * `ENGINES` that works. Sets tfjs's backend for the whole process.
 *
 * @throws DownpourError `DP_ENGINE_UNAVAILABLE` when a named engine can't be had: the reason, what helps.
 * @example const engine = await openEngine(); console.log(engine.name, engine.device);
 */
export async function openEngine(options: EngineOptions = {}): Promise<Engine> {
  const { engine = 'auto' } = options;
  if (engine !== 'auto') {
    const why = await CANDIDATES[engine].missing(options);
    if (why !== null) throw unavailable(engine, why);
    try {
      return { name: engine, ...(await loadProved(engine, options)) };
    } catch (error) {
      throw unavailable(engine, errorText(error), error);
    }
  }
  const skipped: string[] = [];
  for (const name of ENGINES) {
    const why = await CANDIDATES[name].missing(options);
    if (why !== null) {
      skipped.push(`${name}: ${why}`);
      continue;
    }
    // A CUDA build that finds no GPU has by then loaded a TensorFlow that stays in the process and
    // would collide with the next engine's: a child tries first.
    const failure = GPU_ENGINES.has(name) ? await probe(name, options) : null;
    if (failure !== null && !failure.available) {
      skipped.push(`${name}: ${failure.why}`);
      continue;
    }
    try {
      const loaded = await loadProved(name, options);
      return { name, ...loaded, notes: [...loaded.notes, ...skipped] };
    } catch (error) {
      skipped.push(`${name}: ${errorText(error)}`);
    }
  }
  throw new DownpourError(
    'DP_ENGINE_UNAVAILABLE',
    `no engine works here. ${skipped.join('; ')}. Reinstall with: npm ci`,
  );
}

/**
 * Tries every engine, each in a process of its own so that one can't disturb another.
 * @returns one row an engine, best first.
 */
export async function surveyEngines(options: EngineOptions = {}): Promise<readonly EngineSurvey[]> {
  const rows: EngineSurvey[] = [];
  for (const name of ENGINES) {
    const why = await CANDIDATES[name].missing(options);
    rows.push(
      why === null ? await probe(name, options) : { name, available: false, why, versions: {} },
    );
  }
  return rows;
}

/** Opens one engine in a child process and tells what came of it; a crash is an answer too. */
export async function probe(name: EngineName, options: EngineOptions = {}): Promise<EngineSurvey> {
  const { code, signal, stdout, stderr } = await runChild(name, options);
  const at = stdout.lastIndexOf(PROBE_MARK);
  if (at >= 0) {
    const row = JSON.parse(stdout.slice(at + PROBE_MARK.length)) as EngineSurvey;
    if (row.available || !(name === 'tfjs-node-gpu' || name === 'native-gpu')) return row;
    return { ...row, why: whyNoGpuDevice(name, await nvidia(), stderr) };
  }
  const last = stderr.trim().split('\n').at(-1) ?? '';
  const end = signal === null ? `exit ${code}` : `signal ${signal}`;
  return { name, available: false, why: `its process ended with ${end}: ${last}`, versions: {} };
}

async function loadProved(name: EngineName, options: EngineOptions): Promise<LoadedEngine> {
  const loaded = await CANDIDATES[name].load(options);
  await prove();
  return loaded;
}

// ---------------------------------------------------------------- TensorFlow's library, by Node-API

interface BindingBackend extends tf.KernelBackend {
  readonly isUsingGpuDevice: boolean;
  readonly binding: { readonly TF_Version: string };
}

/**
 * Loads a build of tfjs-node on *our* tfjs. Its bundle would bring a second tfjs-core, whose tensors
 * and gradients are other classes than ours; so what it asks for by name is answered with the modules
 * that this worker has imported. (`require.cache` is a documented, writable part of Node.)
 * @param entry file name of the package's main module.
 */
async function loadBinding(
  variant: NativeVariant,
  entry: string,
  options: EngineOptions,
): Promise<LoadedEngine> {
  const notes: string[] = [];
  process.env.TF_CPP_MIN_LOG_LEVEL ??= '2';
  if (options.threads !== undefined) {
    process.env.TF_NUM_INTRAOP_THREADS = String(options.threads);
  }
  // More threads only hand the operations of a graph to and fro, which most often wait for one another: an LSTM over 64
  // characters 38.6 → 29.6 ms of the processor's time a step, an MLP 9.7 → 6.0 ms on a busy machine.
  if (variant === 'cpu') process.env.TF_NUM_INTEROP_THREADS ??= '1';
  if (variant === 'gpu') {
    // Else the first worker takes all of the GPU's memory, and a second one on it has none.
    process.env.TF_FORCE_GPU_ALLOW_GROWTH ??= 'true';
    // Products of float32 are rounded to 10 bits on Ampere and later unless this says no.
    process.env.NVIDIA_TF32_OVERRIDE ??= '0';
  }
  restoreNodeUtil();
  const require = createRequire(entry);
  answerWith(require, '@tensorflow/tfjs-core', tf);
  answerWith(require, '@tensorflow/tfjs', { ...tf, ...layers, version: { tfjs: tf.version_core } });
  require(entry);
  repairNativeKernels();
  if (tf.getBackend() !== 'tensorflow') await setBackend('tensorflow');

  const backend = tf.backend() as BindingBackend;
  const versions = {
    tensorflow: backend.binding.TF_Version,
    [bindingPackage(variant)]: packageVersion(entry),
    ...ourVersions(),
  };
  if (variant === 'gpu' && !backend.isUsingGpuDevice) {
    throw new Error('TensorFlow runs, but without a GPU; downpour doctor says why');
  }
  if (options.threads !== undefined) notes.push(`${options.threads} threads an operation`);
  const device = variant === 'gpu' ? ((await nvidia()).gpus[0]?.name ?? 'NVIDIA GPU') : processor();
  return { backend: 'tensorflow', device, versions, notes };
}

/**
 * Makes `require(name)` from there give `exports`. Absent packages need no answer; ours stays ours.
 */
function answerWith(require: NodeJS.Require, name: string, exports: object): void {
  let file: string;
  try {
    file = require.resolve(name);
  } catch {
    return;
  }
  if (require.cache[file] !== undefined) return;
  const stand = new Module(file);
  stand.filename = file;
  stand.exports = exports;
  stand.loaded = true;
  require.cache[file] = stand;
}

/** Node 23 took `util.isNullOrUndefined` and `util.isArray` away, which tfjs-node 4.22 calls in every op. */
function restoreNodeUtil(): void {
  const legacy = util as unknown as Record<string, unknown>;
  // From 22 on they warn, so theirs are replaced there too.
  if (Number(process.versions.node.split('.')[0]) < 22) return;
  legacy.isNullOrUndefined = (value: unknown) => value === null || value === undefined;
  legacy.isArray = Array.isArray;
}

function missingNative(variant: NativeVariant, options: EngineOptions): string | null {
  const folder = options.folder ?? engineFolder(variant);
  if (readEngine(folder) !== null) return null;
  const command = `downpour engine install${variant === 'gpu' ? ' --gpu' : ''}`;
  return `not installed in ${folder}; helps: ${command}`;
}

function nativeEntry(variant: NativeVariant, options: EngineOptions): string {
  const folder = options.folder ?? engineFolder(variant);
  // A CUDA build also computes without a GPU, so `native` may be pointed at one: how an install is proved.
  const built = readEngine(folder)?.manifest.variant ?? variant;
  return createRequire(join(folder, 'package.json')).resolve(bindingPackage(built));
}

/** PyPI's and Google's builds of TensorFlow end the process with an illegal instruction without AVX. */
function whyNoTensorflow(): string | null {
  if (process.platform !== 'linux' || process.arch !== 'x64') return null;
  try {
    if (/\bavx\b/.test(readFileSync('/proc/cpuinfo', 'utf8'))) return null;
  } catch {
    return null;
  }
  return 'this processor has no AVX, which TensorFlow is built for';
}

let nvidiaSurvey: Promise<NvidiaSurvey> | undefined;
/** Once a process: `nvidia-smi` takes up to a second. */
function nvidia(): Promise<NvidiaSurvey> {
  nvidiaSurvey ??= surveyNvidia();
  return nvidiaSurvey;
}

// ---------------------------------------------------------------- WebGPU (Dawn for Node)

interface Dawn {
  readonly globals: Readonly<Record<string, unknown>>;
  create(options: readonly string[]): GpuAccess;
}
interface GpuAccess {
  requestAdapter(options: { powerPreference: string }): Promise<Adapter | null>;
}
async function loadWebgpu(): Promise<LoadedEngine> {
  const dawn = (await import(findPackage('webgpu')!)) as Dawn;
  Object.assign(globalThis, dawn.globals);
  const gpu = dawn.create([]);
  // Without an adapter tfjs's backend fails on null, or another backend is taken in silence.
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (adapter === null) throw new Error('Dawn finds no GPU (on Linux it needs a Vulkan driver)');
  const { device, software } = describeAdapter(adapter);
  if (software && process.env.DOWNPOUR_ALLOW_SOFTWARE_GPU !== '1') {
    throw new Error(
      `the only adapter is software (${device}), slower than wasm; ` +
        'for tests: DOWNPOUR_ALLOW_SOFTWARE_GPU=1',
    );
  }
  // Node 21 and newer have a navigator with read-only members; older ones have none.
  if (globalThis.navigator === undefined) {
    Object.defineProperty(globalThis, 'navigator', { value: {}, configurable: true });
  }
  Object.defineProperty(globalThis.navigator, 'gpu', { value: gpu, configurable: true });

  const entry = findPackage('@tensorflow/tfjs-backend-webgpu')!;
  const require = createRequire(entry);
  answerWith(require, '@tensorflow/tfjs-core', tf);
  require(entry);
  repairWebgpuKernels();
  await setBackend('webgpu');
  return {
    backend: 'webgpu',
    device,
    versions: { 'tfjs-backend-webgpu': packageVersion(entry), ...ourVersions() },
    notes: software ? ['software adapter, allowed by DOWNPOUR_ALLOW_SOFTWARE_GPU'] : [],
  };
}

// ---------------------------------------------------------------- small things

/** Main module of an optional package: beside ours, or in the folder that the user works in. */
function findPackage(name: string): string | null {
  for (const from of [import.meta.url, join(process.cwd(), 'package.json')]) {
    try {
      return createRequire(from).resolve(name);
    } catch {
      // Not there; the next place may have it.
    }
  }
  return null;
}

function missingPackage(name: string): string | null {
  if (findPackage(name) !== null) return null;
  return `the package ${name} is not installed; helps: npm install --no-save ${name}`;
}

function packageVersion(entry: string): string {
  let folder = entry;
  for (let i = 0; i < 6; i++) {
    folder = join(folder, '..');
    try {
      const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      if (typeof version === 'string') return version;
    } catch {
      // Further up.
    }
  }
  return 'unknown';
}

function processor(): string {
  const all = cpus();
  return `${all[0]?.model.trim() ?? 'CPU'}, ${all.length} cores`;
}

function unavailable(name: EngineName, why: string, cause?: unknown): DownpourError {
  return new DownpourError(
    'DP_ENGINE_UNAVAILABLE',
    `engine '${name}' can't be opened: ${why}. Or let Downpour choose: engine 'auto'`,
    cause === undefined ? {} : { cause },
  );
}

interface ChildEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

function runChild(name: EngineName, options: EngineOptions): Promise<ChildEnd> {
  const own = ownEntry('engine', new URL(import.meta.url)).href;
  const script = `
    import { openEngine } from ${JSON.stringify(own)};
    const tell = (row) => process.stdout.write(${JSON.stringify(PROBE_MARK)} + JSON.stringify(row), () => process.exit(0));
    try {
      const { name, device, versions, notes } = await openEngine(${JSON.stringify({ ...options, engine: name })});
      tell({ name, available: true, why: notes.join('; '), device, versions });
    } catch (error) {
      tell({ name: ${JSON.stringify(name)}, available: false, why: error.message, versions: {} });
    }`;
  const loader = own.endsWith('.ts') ? ['--import', createRequire(own).resolve('tsx')] : [];
  const child = spawn(
    process.execPath,
    [...loader, '--input-type=module', '--eval', script],
    // TensorFlow's log says why a GPU was not taken.
    {
      env: {
        ...process.env,
        ...(GPU_ENGINES.has(name)
          ? { TF_CPP_MIN_LOG_LEVEL: '0', TF_CPP_VMODULE: 'dso_loader=1' }
          : { TF_CPP_MIN_LOG_LEVEL: '2' }),
      },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: PROBE_TIMEOUT_MS,
      killSignal: 'SIGKILL',
    },
  );
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve) => {
    child.on('error', (error) =>
      resolve({ code: null, signal: null, stdout, stderr: error.message }),
    );
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}
