import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { PNG } from 'pngjs';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import type { RunDetail, Status } from '../../shared/rest.ts';
import { freePort } from '../redis-server.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';

/** `init`, `completion` and `status --watch`, as somebody uses them at a shell. */

const ROOT = join(import.meta.dirname, '..', '..');
const PROGRAM = inject('program');

let folder: string;
let env: NodeJS.ProcessEnv;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-tools-'));
  copyFileSync(join(ROOT, 'examples/data/auto-mpg.csv'), join(folder, 'cars.csv'));
  env = { ...process.env, NO_COLOR: '1' };
  for (const name of Object.keys(env)) if (name.startsWith('DOWNPOUR_')) delete env[name];
  env.DOWNPOUR_ENGINE = 'wasm';
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function downpour(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [PROGRAM, ...args], {
    ...{ cwd: folder, env, encoding: 'utf8', timeout: 120_000 },
  });
  return { status, stdout, stderr };
}

/** Trains what `init` wrote, for a moment. @returns the finished run. */
function train(file: string): RunDetail {
  const few = ['--set', 'earlyStopping.patience=2', '--epochs', '3', '--workers', '1'];
  const { status, stdout, stderr } = downpour('train', file, ...few, '--json');
  expect(status, stderr).toBe(0);
  const events = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  return events.findLast(({ run }) => typeof run === 'object').run as RunDetail;
}

describe('init', () => {
  test('writes an experiment for a table, which trains at once', () => {
    const { status, stdout, stderr } = downpour(
      'init',
      'mpg.ts',
      '--data',
      'cars.csv',
      '--target',
      'mpg',
    );
    expect(status, stderr).toBe(0);
    expect(stdout).toContain('392 examples; predicts mpg (regression)');
    expect(stdout).toContain("leaves out column 'name'");
    expect(stdout).toContain('npx downpour check mpg.ts');
    const run = train('mpg.ts');
    expect(run).toMatchObject({ phase: 'finished', data: { trainCount: 266, testCount: 59 } });
    // The mean alone has 61.
    expect(run.best!.loss!).toBeLessThan(40);
  });

  test('knows classes from quantities, and says what it cannot do', () => {
    const made = downpour(
      'init',
      'origin.ts',
      '--data',
      'cars.csv',
      '--target',
      'origin',
      '--json',
    );
    expect(JSON.parse(made.stdout).notes[0]).toContain('origin (classification)');
    expect(readFileSync(join(folder, 'origin.ts'), 'utf8')).toContain("task: 'classification'");
    expect(train('origin.ts')).toMatchObject({ phase: 'finished' });
    const again = downpour('init', 'origin.ts', '--data', 'cars.csv');
    expect(again).toMatchObject({ status: 2, stderr: expect.stringContaining('--force') });
    for (const [args, text] of [
      [['x.ts', '--data', 'cars.csv', '--target', 'mpgg'], "no column 'mpgg'"],
      [['x.ts', '--data', 'none.csv'], 'none.csv'],
      [['x.ts', '--data', 'cars.csv', '--model', 'cnn'], 'is only for images'],
      [
        ['x.ts', '--data', 'cars.csv', '--target', 'name', '--task', 'regression'],
        'it has too many different texts',
      ],
      [['a b.ts', '--data', 'cars.csv'], 'cannot name an experiment'],
    ] as const) {
      const { status, stderr } = downpour('init', ...args);
      expect(status, stderr).not.toBe(0);
      expect(stderr).toContain(text);
      expect(stderr).toMatch(/^error DP_/);
    }
  });

  test('writes a convolutional network for a folder of images', () => {
    for (const [name, left] of [
      ['left', true],
      ['right', false],
    ] as const) {
      mkdirSync(join(folder, 'images', name), { recursive: true });
      for (let i = 0; i < 40; i++) {
        const png = new PNG({ width: 8, height: 8 });
        png.data.fill(255);
        for (let y = 0; y < 8; y++) png.data[4 * (8 * y + (left ? i % 4 : 4 + (i % 4)))] = 0;
        writeFileSync(join(folder, 'images', name, `${i}.png`), PNG.sync.write(png));
      }
    }
    const { status, stdout, stderr } = downpour(
      'init',
      'sides.ts',
      '--data',
      'images',
      '--model',
      'cnn',
    );
    expect(status, stderr).toBe(0);
    expect(stdout).toContain('80 images of 8 × 8; classes left (40), right (40)');
    expect(train('sides.ts')).toMatchObject({ phase: 'finished', data: { trainCount: 64 } });
  });
});

describe('completion', () => {
  const complete = (script: string, ...words: string[]) => {
    const { stdout, stderr } = spawnSync(
      'bash',
      [
        '-c',
        `source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _downpour; printf '%s\\n' "\${COMPREPLY[@]}"`,
        ...[script, 'downpour', ...words],
      ],
      { cwd: folder, encoding: 'utf8' },
    );
    expect(stderr).toBe('');
    return stdout.trim().split('\n');
  };

  test('in bash knows commands, options, choices and files', () => {
    const script = join(folder, 'completion.bash');
    writeFileSync(script, downpour('completion', 'bash').stdout);
    expect(complete(script, 'tra')).toEqual(['train']);
    expect(complete(script, '')).toEqual(expect.arrayContaining(['serve', 'init', '--version']));
    expect(complete(script, 'engine', 'ins')).toEqual(['install']);
    expect(complete(script, 'train', 'x.ts', '--after')).toEqual(['--after-stop']);
    expect(complete(script, 'train', '--after-stop', 'c')).toEqual(['continue']);
    expect(complete(script, 'data', 'inspect', 'ca')).toEqual(['cars.csv']);
    expect(complete(script, 'data', 'inspect', '--del')).toEqual(['--delimiter']);
  });

  test.each(['zsh', 'fish'])('for %s is a script that it reads', (shell) => {
    const script = join(folder, `completion.${shell}`);
    const { status, stdout } = downpour('completion', shell);
    expect(status).toBe(0);
    expect(stdout).toContain('--after-stop'.slice(2));
    writeFileSync(script, stdout);
    const { status: read, error, stderr } = spawnSync(shell, ['-n', script], { encoding: 'utf8' });
    // Not every machine has it; CI has.
    if (error && !process.env.CI) return;
    expect(read, stderr ?? String(error)).toBe(0);
  });

  test('another shell is refused', () => {
    expect(downpour('completion', 'tcsh')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('bash, zsh, fish'),
    });
  });
});

test('status --watch looks again and again, also at a server that goes and comes back', async () => {
  const port = await freePort();
  const state = join(folder, 'watched');
  let server: ServerProcess = await startServerProcess(state, port);
  const args = ['status', '--server', server.url, '--watch', '0.1', '--json'];
  const watching = spawn(process.execPath, [PROGRAM, ...args], {
    ...{ cwd: folder, env, stdio: ['ignore', 'pipe', 'inherit'] as const },
  });
  const seen: (Partial<Status> & { error?: string })[] = [];
  createInterface({ input: watching.stdout }).on('line', (line) => seen.push(JSON.parse(line)));
  const look = (what: (last: (typeof seen)[number] | undefined) => boolean) =>
    expect.poll(() => what(seen.at(-1)), { timeout: 120_000, interval: 50 }).toBe(true);
  try {
    await look((last) => last?.runs?.length === 0);
    await server.client.createRun({ id: 'r', experiment: 'e', experimentHash: 'h', config: {} });
    await look((last) => last?.runs?.[0]?.id === 'r');
    await server.kill();
    await look((last) => last?.error?.startsWith('error DP_SERVER_UNREACHABLE') === true);
    server = await startServerProcess(state, port);
    await look((last) => last?.runs?.[0]?.id === 'r');
    watching.kill('SIGINT');
    const [code] = await once(watching, 'exit');
    expect(code).toBe(0);
  } finally {
    watching.kill('SIGKILL');
    await server.kill();
  }
});
