import { spawnSync } from 'node:child_process';
import { test } from 'vitest';

/**
 * Programs of others that read what Downpour writes, from PyPI: `.ci/run` installs them into a folder and names it in
 * DOWNPOUR_PYTHON_TOOLS. Without it, where the python3 of this machine has them.
 */

/** As test/python-tools.txt has them. */
const MODULES = ['tensorboard', 'safetensors', 'matplotlib'] as const;

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** @param args of python3: a script, or `-c` and its text. */
export function python(
  args: readonly string[],
  { input, env = {} }: { input?: string; env?: NodeJS.ProcessEnv } = {},
): Ran {
  const { status, stdout, stderr, error } = spawnSync('python3', args, {
    ...(input === undefined ? {} : { input }),
    encoding: 'utf8',
    timeout: 150_000,
    maxBuffer: 2 ** 26,
    env: {
      ...process.env,
      PYTHONPATH: process.env.DOWNPOUR_PYTHON_TOOLS ?? '',
      // Matplotlib keeps its list of fonts there, and draws without a screen.
      MPLBACKEND: 'Agg',
      ...env,
    },
  });
  return { status, stdout: stdout ?? '', stderr: error ? String(error) : stderr };
}

let lacking: string[] | null = null;

/** A test that needs some of them: skipped where they are missing, but in CI it fails. */
export function pythonTest(needed: readonly (typeof MODULES)[number][]) {
  if (lacking === null) {
    const found = `import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])`;
    const { status, stdout } = python(['-c', found, ...MODULES]);
    lacking = status === 0 ? stdout.trim().split(/\s+/).filter(Boolean) : [...MODULES];
  }
  const missing = needed.some((name) => lacking!.includes(name));
  return test.skipIf(missing && !process.env.CI);
}

/** Runs a text of Python. @returns the JSON that it prints. @throws with what it complains of. */
export function askPython<T>(text: string, args: readonly string[] = [], input?: string): T {
  const ran = python(['-c', text, ...args], input === undefined ? {} : { input });
  if (ran.status !== 0) throw new Error(`python3 ended with ${ran.status}:\n${ran.stderr}`);
  return JSON.parse(ran.stdout) as T;
}
