import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';
import { loadLayersModel } from '@tensorflow/tfjs-layers';
import { expect, test } from 'vitest';
import { fromFolder } from '../../bench/sklearn/plain.ts';
import { readTensors } from '../../files/tensor-file.ts';
import type { CheckpointSummary, RunDetail, RunSummary } from '../../shared/rest.ts';
import { ROOT } from './deployment.ts';

// What somebody does who has cloned the project or installed the package, as real processes: train, Ctrl-C, resume,
// status, export; then what docs/getting-started.md says. On the 10,000 digits of the package `mnist`, whatever lies in
// DOWNPOUR_DATA.

/** Programs of Node.js beside the one that runs the tests, one for each other line that is supported: in CI. */
export const OTHER_NODES = (process.env.DOWNPOUR_NODES ?? '')
  .split(delimiter)
  .filter((program) => program !== '');

export interface NewcomerEvent {
  readonly event: string;
  readonly text?: string;
  readonly url?: string;
  readonly run?: RunSummary;
  readonly checkpoints?: CheckpointSummary[];
}

/** A command that runs: its lines, its events (with --json), its end. */
function startCommand(
  command: readonly string[],
  { folder, cwd }: { folder: string; cwd: string },
  children: Set<ChildProcess>,
) {
  const env: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1' };
  for (const name of Object.keys(env)) if (name.startsWith('DOWNPOUR_')) delete env[name];
  // The engines that are installed are part of the machine, like Node itself.
  const engines = process.env.DOWNPOUR_ENGINE_DIR;
  if (engines !== undefined) env.DOWNPOUR_ENGINE_DIR = engines;
  env.DOWNPOUR_DATA = join(folder, 'data');
  const [program, ...args] = command;
  const child = spawn(program!, args, {
    cwd,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.add(child);
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  let over = false;
  const wake = () => {
    for (const look of waiting) look();
  };
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line);
      wake();
    });
  }
  const code = new Promise<number | null>((done) => {
    child.on('close', (exitCode) => {
      over = true;
      children.delete(child);
      wake();
      done(exitCode);
    });
  });
  const events = (): NewcomerEvent[] =>
    lines
      .filter((line) => line.startsWith('{"event"'))
      .map((line) => JSON.parse(line) as NewcomerEvent);
  return {
    child,
    code,
    events,
    text: () => lines.join('\n'),
    /** The first event that is meant, as soon as it comes. */
    until(meant: (event: NewcomerEvent) => boolean): Promise<NewcomerEvent> {
      return new Promise((done, fail) => {
        const look = () => {
          const event = events().find(meant);
          if (event === undefined && !over) return;
          waiting.delete(look);
          if (event) done(event);
          else fail(new Error(`it ended before that:\n${lines.join('\n')}`));
        };
        waiting.add(look);
        look();
      });
    },
  };
}

type NewcomerCommand = ReturnType<typeof startCommand>;

/** Somebody with a folder to work in, which has a folder `data`, and a program of Node.js that runs ours. */
export class Newcomer {
  readonly folder: string;
  readonly #node: string;
  readonly #program: string;
  readonly #children = new Set<ChildProcess>();

  constructor(options: { folder: string; node?: string; program: string }) {
    this.folder = options.folder;
    this.#node = options.node ?? process.execPath;
    this.#program = options.program;
    mkdirSync(join(this.folder, 'data'), { recursive: true });
  }

  downpour(...args: string[]): NewcomerCommand {
    return this.start(this.#program, args);
  }

  start(program: string, args: readonly string[], cwd = this.folder): NewcomerCommand {
    return startCommand(
      [this.#node, program, ...args],
      { folder: this.folder, cwd },
      this.#children,
    );
  }

  /** `downpour` in another folder. */
  in(cwd: string, ...args: string[]): NewcomerCommand {
    return this.start(this.#program, args, cwd);
  }

  /** What a test that has failed left running: it may write to its folder until it has ended. */
  async kill(): Promise<void> {
    const gone = [...this.#children].map((child) => once(child, 'close'));
    for (const child of this.#children) child.kill('SIGKILL');
    await Promise.all(gone);
  }
}

const atStep = (step: number) => (e: NewcomerEvent) =>
  e.event === 'progress' && e.run!.step >= step;

/** @param experiment a file about the digits. */
export function newcomerTrains(of: () => { newcomer: Newcomer; experiment: string }): void {
  const downpour = (...args: string[]) => of().newcomer.downpour(...args);
  let run: RunDetail;

  test('interrupts training by Ctrl-C: it stops with a checkpoint and says how to go on', async () => {
    const args = [
      'train',
      of().experiment,
      '--workers',
      '2',
      '--port',
      '0',
      '--epochs',
      '3',
      '--json',
    ];
    const training = downpour(...args);
    const { run: seen } = await training.until(atStep(20));
    training.child.kill('SIGINT');
    expect(await training.code, training.text()).toBe(130);
    const ended = training.events().at(-1)!;
    expect(ended).toMatchObject({ event: 'ended', run: { phase: 'stopped' } });
    run = ended.run as RunDetail;
    expect(run.step).toBeGreaterThanOrEqual(seen!.step);
    const last = ended.checkpoints!.findLast(({ kind }) => kind === 'last')!;
    expect(last.step).toBe(run.step);
    expect(
      existsSync(join(of().newcomer.folder, '.downpour', run.id, 'checkpoints', last.file)),
    ).toBe(true);
    expect(training.text()).toContain('npx downpour resume');
  });

  test('sees the stopped run by `status`, though no server runs', async () => {
    const status = downpour('status', '--state', '.downpour');
    expect(await status.code).toBe(0);
    expect(status.text()).toMatch(new RegExp(`${run.id} +stopped`));
  });

  test('resumes: it goes on from that step, survives a killed worker, and ends by itself', async () => {
    const training = downpour('resume', '--workers', '2', '--port', '0', '--json');
    const first = await training.until(atStep(0));
    expect(first.run!.id).toBe(run.id);
    expect(first.run!.step).toBeGreaterThanOrEqual(run.step);
    await training.until(atStep(run.step + 1));
    const [victim] = childrenOf(training.child.pid!);
    process.kill(victim!, 'SIGKILL');
    await training.until((e) => e.event === 'note' && /SIGKILL; starting it again/.test(e.text!));
    expect(await training.code, training.text()).toBe(0);
    const ended = training.events().at(-1)!.run!;
    expect(ended).toMatchObject({ id: run.id, phase: 'finished' });
    expect(ended.step).toBeGreaterThan(run.step);
    expect(ended.test!.error).toBeLessThan(0.15);
    run = ended as RunDetail;
  });

  test('asks for a run that has ended to go on, and is told that it has ended', async () => {
    const again = downpour('resume', run.id, '--port', '0');
    expect(await again.code).toBe(1);
    expect(again.text()).toContain('error DP_RUN_ENDED');
  });

  test('exports the best: safetensors, and a model that tf.loadLayersModel opens', async () => {
    for (const format of ['safetensors', 'tfjs']) {
      // As it was told: no address, no folder; whoever has the default address is not asked in vain.
      const args = ['export', run.id, '--to', format, '--format', format];
      const exporting = downpour(...args);
      expect(await exporting.code, exporting.text()).toBe(0);
    }
    const { newcomer, experiment } = of();
    const { folder } = newcomer;
    const { tensors } = await readTensors(join(folder, 'safetensors', `${run.id}.safetensors`));
    await tf.setBackend('cpu');
    const model = await loadLayersModel(fromFolder(join(folder, 'tfjs')));
    expect(model.countParams()).toBe(run.parameters);
    // The layout of an MLP has the order of the model.
    const weights = model.weights.map((weight) => weight.read().dataSync());
    // A difference of 200,000 numbers would take vitest an hour to show.
    expect(weights.map(({ length }) => length)).toEqual(tensors.map(({ values }) => values.length));
    for (const [i, { name, values }] of tensors.entries()) {
      expect(
        values.findIndex((value, j) => value !== weights[i]![j]),
        name,
      ).toBe(-1);
    }
    const facts = JSON.parse(readFileSync(join(folder, 'tfjs', 'downpour.json'), 'utf8'));
    expect(facts).toMatchObject({
      run: run.id,
      experiment: basename(experiment, '.ts'),
      step: run.best!.step,
    });
  });
}

export function newcomerFollowsThePage(of: () => Newcomer): void {
  test('a newcomer who follows docs/getting-started.md gets from its experiment to a cluster', {
    timeout: 600_000,
  }, async () => {
    const newcomer = of();
    const page = readFileSync(join(ROOT, 'docs/getting-started.md'), 'utf8');
    const home = join(newcomer.folder, 'getting-started');
    mkdirSync(home);
    for (const [, file, source] of page.matchAll(/```ts\n\/\/ (\S+\.ts)\n([\s\S]*?)```/g)) {
      writeFileSync(join(home, file!), source!);
    }
    const lines = [...page.matchAll(/```sh\n([\s\S]*?)```/g)].flatMap(([, block]) =>
      block!.trim().split('\n'),
    );
    expect(lines.length).toBeGreaterThanOrEqual(10);
    const PORT = '127.0.0.1:7420';
    let address = PORT;
    let run = '';
    const kept: NewcomerCommand[] = [];
    for (const line of lines) {
      const [npx, program, command, ...words] = line.split(' ');
      expect([npx, program], line).toEqual(['npx', 'downpour']);
      const args = words.map((word) => word.replace('<run>', run).replace(PORT, address));
      const remote = args.includes('--server');
      // Nobody else's server, no port that may be taken; and two epochs teach as much as twenty.
      if (command === 'serve') args.push('--port', '0', '--json');
      else if (command === 'work') args.push('--server', `ws://${address}`);
      else if (command === 'train') args.push('--epochs', '2', ...(remote ? [] : ['--port', '0']));
      else if (!remote) args.push('--state', '.downpour');
      const started = newcomer.in(home, command!, ...args);
      if (command === 'serve') {
        const { url } = await started.until(({ event }) => event === 'listening');
        address = new URL(url!).host;
      }
      if (command === 'serve' || command === 'work') kept.push(started);
      else if (args.includes('--watch')) {
        await expect.poll(started.text, { timeout: 180_000 }).toContain(run);
        started.child.kill('SIGINT');
        await started.code;
      } else expect(await started.code, `${line}\n${started.text()}`).toBe(0);
      if (command === 'train') {
        expect(started.text()).toMatch(/finished/);
        run = /npx downpour export (\S+)/.exec(started.text())![1]!;
      }
      if (command === 'status') expect(started.text()).toContain(run);
      if (command === 'export') expect(existsSync(join(home, 'exported', 'model.json'))).toBe(true);
    }
    for (const { child, code } of kept.reverse()) {
      child.kill('SIGTERM');
      await code;
    }
  });
}

/** Numbers of the processes that a process has started. */
function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return text === '' ? [] : text.split(' ').map(Number);
}
