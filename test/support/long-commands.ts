import { type ChildProcess, spawn } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  unwatchFile,
  watchFile,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/** Every command that runs for long, and what shows that it is in the midst of its work. */

const EXAMPLES = fileURLToPath(new URL('../../examples', import.meta.url));
/** Training that early stopping does not end. */
const ENDLESS = ['--set', 'earlyStopping.enabled=false', '--epochs', '100000'];
const EXPERIMENT = 'csv-regression.ts';
const LOCAL = ['--engine', 'wasm', '--workers', '1'];
const RUN = 'cars';
const OF_RUN = ['--state', '.downpour', '--engine', 'wasm'];
const LAST = ['--kind', 'last'];

/** Which character follows in a text: classes, of which `refuse` and `sample` speak. It trains for a second. */
const TALE = 'tale.ts';
const TALE_SOURCE = `import { defineExperiment } from 'downpour';
import { textWindows } from 'downpour/text';

const shares = { validationFraction: 0.2, testFraction: 0.2 };
export default defineExperiment({
  data: () => textWindows({ file: 'data/auto-mpg.csv', window: 16, ...shares }),
  model: ({ tf, classCount }) =>
    tf.sequential({
      layers: [
        tf.layers.embedding({ inputDim: classCount, outputDim: 8, inputLength: 16 }),
        tf.layers.dense({ units: classCount }),
      ],
    }),
  loss: 'softmaxCrossEntropy',
  config: { learningRate: 0.1, epochsMax: 1, testAtEnd: false },
});
`;

export interface LongCommand {
  readonly args: readonly string[];
  /**
   * It prints this when its work has begun; `state`: it has opened the state folder, and has nothing to say of it; `ends`: it
   * ends without Ctrl-C, and others use the run that it leaves.
   */
  readonly works: RegExp | 'state' | 'ends';
  /** It needs the run that this command left, in a copy of its folder. */
  readonly uses?: 'train' | 'train to the end';
  /** What it ends with after Ctrl-C: 130, or 0 where Ctrl-C is how it is meant to end. */
  readonly code: number;
  /** Whether it trains here: then each run of its state folder has a checkpoint afterwards. */
  readonly trains?: boolean;
  /** It says this at its end. */
  readonly says?: RegExp;
}

const study = (name: string, ...more: readonly string[]): LongCommand => ({
  args: [name, EXPERIMENT, ...more, ...LOCAL],
  works: / started/,
  code: 130,
  says: /the same command continues the study/,
});

export const LONG_COMMANDS: Readonly<Record<string, LongCommand>> = {
  train: {
    args: ['train', EXPERIMENT, '--run', RUN, ...ENDLESS, ...LOCAL],
    works: /step \d/,
    code: 130,
    trains: true,
  },
  check: {
    args: ['check', EXPERIMENT, '--steps', '10000', '--engine', 'wasm'],
    works: /^ok /m,
    code: 130,
  },
  'lr-find': study('lr-find'),
  search: study('search', '--space', 'learningRate=log:0.001..0.1', ...ENDLESS),
  folds: study('folds', ...ENDLESS),
  stopping: study('stopping', '--patience', '1000', '--epochs', '100000'),
  curve: study('curve', ...ENDLESS),
  ablate: study('ablate', '--variants', 'optimisers', ...ENDLESS),
  ensemble: study('ensemble', ...ENDLESS),
  simulate: {
    args: ['simulate', EXPERIMENT, '--workers', '64', ...ENDLESS, '--engine', 'wasm'],
    works: /./,
    code: 130,
  },
  scale: {
    args: ['scale', EXPERIMENT, ...ENDLESS, '--engine', 'wasm'],
    works: /./,
    code: 130,
  },
  paper: { args: ['paper', 'staleness', '--quick'], works: /./, code: 130 },
  serve: { args: ['serve', '--port', '0'], works: /listens|serv/i, code: 0 },
  work: {
    args: ['work', '--server', 'http://127.0.0.1:9', '--engine', 'wasm'],
    works: /engine wasm/,
    code: 0,
  },
  resume: {
    args: ['resume', RUN, ...LOCAL],
    works: /step \d/,
    ...{ code: 130, trains: true, uses: 'train' },
  },
  'serve-model': {
    args: ['serve-model', RUN, '--port', '0', ...LAST, ...OF_RUN],
    works: /answers at/,
    ...{ code: 0, uses: 'train' },
  },
  look: {
    args: ['look', EXPERIMENT, '--run', RUN, ...LAST, ...OF_RUN],
    ...{ works: 'state', code: 130, uses: 'train' },
  },
  predict: {
    args: ['predict', RUN, 'data/auto-mpg.csv', ...LAST, ...OF_RUN],
    ...{ works: 'state', code: 130, uses: 'train' },
  },
  report: {
    args: ['report', RUN, '--html', 'report.html', '--state', '.downpour'],
    ...{ works: 'state', code: 130, uses: 'train' },
  },
  export: {
    args: ['export', RUN, '--to', 'exported', '--format', 'tfjs', ...LAST, '--state', '.downpour'],
    ...{ works: 'state', code: 130, uses: 'train' },
  },
  'train to the end': {
    args: ['train', TALE, '--run', 'tale', ...LOCAL],
    ...{ works: 'ends', code: 0, trains: true, says: /tale finished/ },
  },
  test: {
    args: ['test', 'tale', ...LOCAL],
    ...{ works: /run tale: watch it/, code: 130, uses: 'train to the end' },
  },
  refuse: {
    args: ['refuse', TALE, '--run', 'tale', ...OF_RUN],
    ...{ works: 'state', code: 130, uses: 'train to the end' },
  },
  sample: {
    args: ['sample', 'tale', '--length', '100000', ...OF_RUN],
    works: /writes the same text again/,
    ...{ code: 130, uses: 'train to the end' },
  },
  'status --watch': {
    args: ['status', '--watch', '--server', 'http://127.0.0.1:9'],
    works: /trying again/,
    code: 0,
  },
};

/** Those that need the folder of another one stand behind it. @returns the folder in which a command runs, all in one folder. */
export function homeOf(folder: string, name: string): string {
  const home = join(folder, name.replaceAll(' ', ''));
  const { uses } = LONG_COMMANDS[name]!;
  if (uses) cpSync(homeOf(folder, uses), home, { recursive: true });
  return home;
}

export interface Interrupted {
  /** 130: of its own, or as a shell has it for a process that SIGINT has ended. */
  readonly code: number | NodeJS.Signals | null;
  /** From Ctrl-C to the end, s. */
  readonly seconds: number;
  readonly text: string;
  /** Processes that it left behind. */
  readonly left: number;
}

/**
 * Starts a command in a folder of its own with an experiment and data, waits until it works, and presses Ctrl-C: the
 * terminal sends it to the command and to all processes that it has started.
 * @param program of ours. @param limitMs after which it is killed, before and after Ctrl-C.
 */
export async function interrupt(
  program: string,
  { args, works }: LongCommand,
  folder: string,
  limitMs: number,
): Promise<Interrupted> {
  mkdirSync(folder, { recursive: true });
  cpSync(join(EXAMPLES, EXPERIMENT), join(folder, EXPERIMENT));
  writeFileSync(join(folder, TALE), TALE_SOURCE);
  cpSync(join(EXAMPLES, 'data'), join(folder, 'data'), { recursive: true });
  // A copied folder has that of the server that was there.
  const address = join(folder, '.downpour', '.owner', 'address.json');
  rmSync(address, { force: true });
  const clean = Object.entries(process.env).filter(([name]) => !name.startsWith('DOWNPOUR_'));
  const child = spawn(process.execPath, [program, ...args], {
    ...{ cwd: folder, env: { ...Object.fromEntries(clean), NO_COLOR: '1' } },
    ...{ stdio: ['ignore', 'pipe', 'pipe'], detached: true },
  });
  const group = -child.pid!;
  let text = '';
  const closed = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((done) =>
    child.once('close', (code, signal) => done({ code, signal })),
  );
  const working = new Promise<void>((done) => {
    const hear = (chunk: Buffer) => {
      text += chunk;
      if (works instanceof RegExp && works.test(text)) done();
    };
    if (works === 'state')
      watchFile(address, { interval: 20 }, ({ mtimeMs }) => {
        if (mtimeMs > 0) done();
      });
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
  });
  const timer = setTimeout(() => process.kill(group, 'SIGKILL'), limitMs);
  await Promise.race([working, closed]);
  unwatchFile(address);
  const since = performance.now();
  if (child.exitCode === null) process.kill(group, 'SIGINT');
  const { code, signal } = await closed;
  clearTimeout(timer);
  const seconds = (performance.now() - since) / 1000;
  return {
    code: signal === 'SIGINT' ? 130 : (signal ?? code),
    seconds,
    text,
    left: await killLeft(child),
  };
}

/** Processes that end because the command has ended may take a moment. */
const LEFT_MS = 60_000;

/** @returns 1: some were left, and are killed now. */
async function killLeft({ pid }: ChildProcess): Promise<number> {
  for (const since = performance.now(); performance.now() - since < LEFT_MS; await wait(20)) {
    try {
      process.kill(-pid!, 0);
    } catch {
      // The group is empty.
      return 0;
    }
  }
  process.kill(-pid!, 'SIGKILL');
  return 1;
}

/** Runs of a state folder, and whether each has a checkpoint. */
export function checkpointsIn(folder: string): Record<string, boolean> {
  const state = join(folder, '.downpour');
  if (!existsSync(state)) return {};
  const runs = readdirSync(state, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const has = (run: string) => {
    const own = join(state, run, 'checkpoints');
    return existsSync(own) && readdirSync(own).some((name) => name.endsWith('.safetensors'));
  };
  return Object.fromEntries(
    runs
      .filter(({ name }) => existsSync(join(state, name, 'checkpoints')))
      .map(({ name }) => [name, has(name)]),
  );
}
