import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { DownpourError } from '../shared/errors.ts';

/** What NVIDIA's driver says of this machine. Nothing of CUDA is loaded to learn it. */
export interface NvidiaSurvey {
  /** Version of the driver, null when `nvidia-smi` is not there or does not answer. */
  readonly driver: string | null;
  /** Why `nvidia-smi` gave nothing, in its own words; null when it answered. */
  readonly smiFailure: string | null;
  /** Where the driver's library `libcuda.so.1` was found; null when it was not. */
  readonly libcuda: string | null;
  readonly gpus: readonly { readonly name: string; readonly computeCapability: number }[];
}

const LIBCUDA_FOLDERS = [
  '/usr/lib/x86_64-linux-gnu',
  '/usr/lib/aarch64-linux-gnu',
  '/usr/lib64',
  '/usr/lib',
  '/usr/lib/wsl/lib',
  '/usr/local/nvidia/lib64',
  '/usr/local/cuda/compat',
];
const SMI_TIMEOUT_MS = 10_000;

/** @param run a stand-in for starting a program, for tests: gives its standard output or throws. */
export async function surveyNvidia(
  run: (file: string, args: readonly string[]) => Promise<string> = runProgram,
  env: NodeJS.ProcessEnv = process.env,
): Promise<NvidiaSurvey> {
  const libcuda = await findLibcuda(run, env);
  try {
    const output = await run('nvidia-smi', [
      '--query-gpu=name,compute_cap,driver_version',
      '--format=csv,noheader',
    ]);
    const rows = output
      .trim()
      .split('\n')
      .map((line) => line.split(',').map((cell) => cell.trim()))
      .filter((cells) => cells.length === 3);
    return {
      driver: rows[0]?.[2] ?? null,
      smiFailure: rows.length === 0 ? output.trim() || 'nvidia-smi lists no GPU' : null,
      libcuda,
      gpus: rows.map(([name, capability]) => ({
        name: name!,
        computeCapability: Number(capability),
      })),
    };
  } catch (error) {
    const smiFailure = isMissing(error) ? 'nvidia-smi is not installed' : firstLine(error);
    return { driver: null, smiFailure, libcuda, gpus: [] };
  }
}

/** The GPUs of this machine in the driver's order, by names that CUDA_VISIBLE_DEVICES takes. */
export async function listGpus(
  run: (file: string, args: readonly string[]) => Promise<string> = runProgram,
): Promise<{ readonly index: number; readonly uuid: string; readonly name: string }[]> {
  let output: string;
  try {
    output = await run('nvidia-smi', ['--query-gpu=index,uuid,name', '--format=csv,noheader']);
  } catch (error) {
    const why = isMissing(error) ? 'nvidia-smi is not installed' : firstLine(error);
    throw new DownpourError('DP_ENGINE_UNAVAILABLE', `no GPU is found here: ${why}`, {
      cause: error,
    });
  }
  const rows = output.split('\n').map((line) => line.split(',').map((cell) => cell.trim()));
  return rows.flatMap(([index, uuid, name]) =>
    uuid?.startsWith('GPU-') ? { index: Number(index), uuid, name: name ?? '' } : [],
  );
}

/** What a GPU is doing; null: unknown. */
export interface GpuLoad {
  /** Share of the driver's last period, 0 to 1. */
  readonly share: number | null;
  readonly memoryBytes: number | null;
  readonly memoryBytesMax: number | null;
}

/**
 * The load of the GPU that this process sees first.
 * @throws Error: there is no `nvidia-smi`, or it does not answer.
 */
export async function nvidiaLoad(
  run: (file: string, args: readonly string[]) => Promise<string> = runProgram,
  env: NodeJS.ProcessEnv = process.env,
): Promise<GpuLoad> {
  const output = await run('nvidia-smi', [
    '--query-gpu=index,uuid,utilization.gpu,memory.used,memory.total',
    '--format=csv,noheader,nounits',
  ]);
  const rows = output
    .trim()
    .split('\n')
    .map((line) => line.split(',').map((cell) => cell.trim()));
  const [visible = ''] = (env.CUDA_VISIBLE_DEVICES ?? '').split(',');
  const own = rows.find(
    ([index, uuid]) => visible !== '' && (index === visible || uuid === visible),
  );
  const [, , busy, used, total] = own ?? rows[0] ?? [];
  // A card without such a counter says "[N/A]".
  const number = (text: string | undefined, factor: number) => {
    const value = Number.parseFloat(text ?? '');
    return Number.isFinite(value) && value >= 0 ? value * factor : null;
  };
  const share = number(busy, 1 / 100);
  return {
    share: share === null ? null : Math.min(1, share),
    memoryBytes: number(used, 2 ** 20),
    memoryBytesMax: number(total, 2 ** 20),
  };
}

/** Why no CUDA engine can run here, with what to do; null when driver, library and GPU are all there. */
export function whyNoNvidia(survey: NvidiaSurvey): string | null {
  if (survey.libcuda !== null && survey.gpus.length > 0) return null;
  if (survey.libcuda === null && survey.driver === null) {
    return `no NVIDIA driver: libcuda.so.1 was not found and ${survey.smiFailure ?? 'nvidia-smi lists no GPU'}`;
  }
  if (survey.libcuda === null) {
    return (
      `nvidia-smi answers (driver ${survey.driver}) but libcuda.so.1 was not found: ` +
      'in a container, start it with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility'
    );
  }
  return `the driver's library is at ${survey.libcuda} but no GPU answers: ${survey.smiFailure ?? 'none listed'}`;
}

/** The newest GPU that TensorFlow's two CUDA builds have kernels (or PTX that may be compiled) for. */
const CAPABILITY_MAX = {
  /** The official tfjs-node-gpu: TensorFlow 2.9.1, CUDA 11.2, cuDNN 8.1: ends with Ampere. */
  'tfjs-node-gpu': 8.6,
  /** The wheel of TensorFlow 2.21: CUDA 12.5, cuDNN 9; carries PTX for 9.0, which newer ones compile. */
  'native-gpu': Number.POSITIVE_INFINITY,
} as const;

/**
 * Why a CUDA engine that was loaded runs without a GPU although the driver shows one: tfjs falls back to
 * the CPU in silence, so the reason is in what TensorFlow printed.
 */
export function whyNoGpuDevice(
  engine: keyof typeof CAPABILITY_MAX,
  survey: NvidiaSurvey,
  tensorflowLog: string,
): string {
  const missing = whyNoNvidia(survey);
  if (missing !== null) return missing;
  const gpu = survey.gpus[0]!;
  const max = CAPABILITY_MAX[engine];
  if (gpu.computeCapability > max) {
    return (
      `${gpu.name} has compute capability ${gpu.computeCapability}; this build (CUDA 11.2) ends at ${max}: ` +
      'downpour engine install --gpu'
    );
  }
  const libraries = [...tensorflowLog.matchAll(/Could not load dynamic library '([^']+)'/g)].map(
    (match) => match[1]!,
  );
  if (libraries.length > 0) {
    const names = [...new Set(libraries)].join(', ');
    const again = 'downpour engine remove --gpu, then downpour engine install --gpu';
    return `the driver is there but CUDA libraries are missing: ${names}${engine === 'native-gpu' ? `; helps: ${again}` : ''}`;
  }
  if (/Cannot dlopen some GPU libraries/.test(tensorflowLog)) {
    return 'the driver is there but TensorFlow could not open some CUDA libraries: downpour engine install --gpu';
  }
  const cuInit = /failed call to cuInit: ?(.*)/.exec(tensorflowLog);
  if (cuInit) return `CUDA does not start: ${cuInit[1]!.trim()} (driver ${survey.driver})`;
  return (
    `TensorFlow runs without ${gpu.name} (driver ${survey.driver}) and does not say why; ` +
    'TF_CPP_MIN_LOG_LEVEL=0 shows its log'
  );
}

async function findLibcuda(
  run: (file: string, args: readonly string[]) => Promise<string>,
  env: NodeJS.ProcessEnv,
): Promise<string | null> {
  const folders = [
    ...(env.LD_LIBRARY_PATH ?? '').split(delimiter).filter(Boolean),
    ...LIBCUDA_FOLDERS,
  ];
  const folder = folders.find((each) => existsSync(join(each, 'libcuda.so.1')));
  if (folder !== undefined) return join(folder, 'libcuda.so.1');
  for (const ldconfig of ['ldconfig', '/sbin/ldconfig']) {
    try {
      const match = /libcuda\.so\.1 .*=> (\S+)/.exec(await run(ldconfig, ['-p']));
      return match?.[1] ?? null;
    } catch {
      // Not on the PATH of an ordinary user on Debian, hence the second try.
    }
  }
  return null;
}

async function runProgram(file: string, args: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(file, args, { timeout: SMI_TIMEOUT_MS });
  return stdout;
}

function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'ENOENT';
}

function firstLine(error: unknown): string {
  const { stdout, message } = error as { stdout?: string; message: string };
  return ((stdout || message).trim().split('\n')[0] ?? '').trim();
}
