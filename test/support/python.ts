import { spawn, spawnSync } from 'node:child_process';
import { text } from 'node:stream/consumers';
import { test } from 'vitest';

/**
 * Programs of others that read what Downpour writes or speak its protocol, from PyPI: `.ci/run` installs them into a folder and names it in
 * DOWNPOUR_PYTHON_TOOLS. Without it, where the python3 of this machine has them.
 */

/** As test/python-tools.txt has them. */
const MODULES = [
  'tensorboard',
  'safetensors',
  'matplotlib',
  'sklearn',
  'pandas',
  'kubernetes_validate',
  'moto',
  'numpy',
  'msgpack',
  'websockets',
] as const;

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Not so that this process waits: it may be the server that the script asks.
 * @param args of python3: a script, or `-c` and its text.
 */
export async function python(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Ran> {
  const child = spawn('python3', args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...pythonEnvironment(), ...env },
  });
  const [stdout, stderr, status] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    }),
  ]);
  return { status, stdout, stderr };
}

export const pythonEnvironment = () => ({
  ...process.env,
  PYTHONPATH: process.env.DOWNPOUR_PYTHON_TOOLS ?? '',
  // Matplotlib draws without a screen.
  MPLBACKEND: 'Agg',
});

let lacking: string[] | null = null;

/** Whether some are missing that need not be there; in CI all must be. */
export function isLacking(needed: readonly (typeof MODULES)[number][]): boolean {
  if (process.env.CI) return false;
  if (lacking === null) {
    const found = `import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])`;
    const args = ['-c', found, ...MODULES];
    const { status, stdout } = spawnSync('python3', args, {
      encoding: 'utf8',
      env: pythonEnvironment(),
    });
    lacking = status === 0 ? stdout.trim().split(/\s+/).filter(Boolean) : [...MODULES];
  }
  return needed.some((name) => lacking!.includes(name));
}

/** A test that needs some of them: skipped where they are missing, but in CI it fails. */
export const pythonTest = (needed: Parameters<typeof isLacking>[0]) =>
  test.skipIf(isLacking(needed));

/** Runs a text of Python. @returns the JSON that it prints. @throws with what it complains of. */
export async function askPython<T>(source: string, args: readonly string[] = []): Promise<T> {
  const { status, stdout, stderr } = await python(['-c', source, ...args]);
  if (status !== 0) throw new Error(`python3 ended with ${status}:\n${stderr}`);
  return JSON.parse(stdout) as T;
}

/** What TensorBoard reads of event files. */
export interface Board {
  readonly scalars: Record<string, { step: number; value: number; wallTime: number }[]>;
  readonly histograms: Record<
    string,
    { step: number; min: number; max: number; num: number; counts: number[]; limits: number[] }[]
  >;
  readonly texts: Record<string, string>;
  readonly images: Record<string, { step: number; width: number; height: number; png: string }[]>;
}

const BOARD_READER = `
import base64, json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator(sys.argv[1], size_guidance=dict(scalars=0, histograms=0, tensors=0, images=0))
board.Reload()
tags = board.Tags()
print(json.dumps(dict(
  scalars={t: [dict(step=e.step, value=e.value, wallTime=e.wall_time) for e in board.Scalars(t)] for t in tags['scalars']},
  histograms={t: [dict(step=e.step, min=e.histogram_value.min, max=e.histogram_value.max, num=e.histogram_value.num,
    counts=list(e.histogram_value.bucket), limits=list(e.histogram_value.bucket_limit)) for e in board.Histograms(t)] for t in tags['histograms']},
  images={t: [dict(step=e.step, width=e.width, height=e.height, png=base64.b64encode(e.encoded_image_string).decode()) for e in board.Images(t)] for t in tags['images']},
  texts={t: board.Tensors(t)[0].tensor_proto.string_val[0].decode() for t in tags['tensors']},
)))`;
/** @param folder with event files. */
export const readBoard = (folder: string) => askPython<Board>(BOARD_READER, [folder]);
