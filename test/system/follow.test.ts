import { execFile } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { mkdir, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { EXIT } from '../../cli/options.ts';
import { openPredictor } from '../../cli/trained/predictor.ts';
import { modelApp } from '../../cli/trained/serve-model.ts';
import { readTensors, writeTensors } from '../../files/tensor-file.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { openModel } from '../../worker/serving/exported-model.ts';
import { tf } from '../../worker/tf.ts';
import { KIND_NAMES, type Kind, kindText } from '../fixtures/kinds.ts';
import { Cluster } from '../support/cluster.ts';
import { runHere } from '../support/command.ts';
import { until } from '../support/until.ts';

// Each command on each kind of experiment: it works, or it is refused in words. docs/experiments.md has the same table.

const KINDS = Object.keys(KIND_NAMES) as Kind[];

let cluster: Cluster;
let folder: string;
let outs = 0;
const file = (kind: Kind) => join(folder, `${kind}.js`);

beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  folder = join(cluster.folder, 'experiments');
  await mkdir(folder);
  const values = (size: number) => Float32Array.from({ length: size }, (_, i) => Math.sin(i));
  const { sha256 } = await writeTensors(join(folder, 'trunk.safetensors'), [
    { name: 'trunk/kernel', shape: [2, 3], values: values(6) },
    { name: 'trunk/bias', shape: [3], values: values(3) },
  ]);
  for (const kind of KINDS) writeFileSync(file(kind), kindText(kind, sha256));
  const said: string[] = [];
  const log = (line: string) => said.push(line);
  for (const kind of KINDS) {
    const { config = {} } = await loadExperiment(file(kind));
    await cluster.createRun(kind, file(kind), config);
  }
  cluster.work('any', 'ada', { run: null, once: false, folders: [folder], log });
  const areOver = async () =>
    (await cluster.client.runs()).every(({ phase }) => phase === 'finished');
  const logs = () => said.slice(-30).join('\n');
  await until('all runs have ended', areOver, { withinMs: 600_000, logs });
}, 600_000);
afterAll(async () => {
  await cluster?.close();
});

/** Runs a command in this process. No output may have what no user should read. */
async function run(args: readonly string[], kind: Kind) {
  const where = NEEDS_NO_SERVER.has(args[0]!) ? [] : ['--server', cluster.url];
  const ended = await runHere(...args, ...where);
  expect(ended.out + ended.err, `${args.join(' ')} of ${kind}`).not.toMatch(
    /DP_INTERNAL|NaN|undefined|\[object|\n {4}at /,
  );
  return ended;
}
const NEEDS_NO_SERVER = new Set(['check', 'simulate']);

/** Works: what the output says. Refused: how the error begins. */
type Cell = RegExp | { readonly refused: RegExp };
type Cells = Readonly<Record<Kind, Cell>>;

const refused = (words: RegExp) => ({ refused: words });
const all = (works: RegExp, others: Partial<Cells> = {}): Cells => ({
  ...(Object.fromEntries(KINDS.map((kind) => [kind, works])) as Cells),
  ...others,
});
const noAnswers = refused(/DP_USAGE: telling answers one by one needs a loss.*report what matters/);
const objectives = { objective: noAnswers, models: noAnswers, carried: noAnswers };
const manyModels = refused(
  /DP_USAGE: .*objective over several models.*downpour export models --to exported --format tfjs/,
);
const noLayers = refused(/DP_USAGE: the model is a function of variables.*--format safetensors/);

const out = () => join(cluster.folder, `out-${outs++}`);
const study = (...args: string[]) => [...args, '--workers', '0', '--out', out()];

/** Every command that reads an experiment or its trained model. */
const COMMANDS: Readonly<Record<string, readonly [(kind: Kind) => string[], Cells]>> = {
  check: [
    (kind) => [
      'check',
      file(kind),
      '--engine',
      'wasm',
      '--no-tiny',
      '--no-throughput',
      '--steps',
      '5',
    ],
    all(/\d/),
  ],
  look: [
    (kind) => ['look', file(kind), '--run', kind, '--engine', 'wasm', '--out', out()],
    all(/loss/, {
      fields: /Output sum: The mean loss .*Output side: .*answers/s,
      objective: /The mean loss is 0?\.\d+/,
      models: /The mean loss is/,
      carried: /The mean loss is/,
    }),
  ],
  refuse: [
    (kind) => ['refuse', file(kind), '--run', kind, '--engine', 'wasm', '--out', out()],
    all(/calibration error/, { fields: /output side.*calibration error/s, ...objectives }),
  ],
  'export --format safetensors': [
    (kind) => ['export', kind, '--to', out(), '--experiments', folder],
    all(/\.safetensors/),
  ],
  'export --format tfjs': [
    (kind) => [
      'export',
      kind,
      '--to',
      join(folder, `tfjs-${kind}`),
      '--format',
      'tfjs',
      '--experiments',
      folder,
    ],
    all(/predict\.js/, { models: /maker\/model\.json.*judge\/weights\.bin/s, carried: noLayers }),
  ],
  predict: [
    (kind) => [
      'predict',
      kind,
      join(folder, `${kind}.csv`),
      '--experiments',
      folder,
      '--engine',
      'wasm',
    ],
    all(
      /^line,prediction,confidence,probability of left,probability of right\n2,(left|right),0?\.\d/,
      {
        fields:
          /^line,sum,side,confidence of side,probability of side left,.*\n2,-?\d\S*,(left|right),/,
        objective: /^line,0,1\n2,-?\d\S*,-?\d\S*\n/,
        carried: /^line,0,1\n2,0\.5,-0\.25\n/,
        models: manyModels,
      },
    ),
  ],
  simulate: [
    (kind) => [
      'simulate',
      file(kind),
      '--workers',
      '3',
      '--set',
      'stepsMax=6',
      '--engine',
      'wasm',
      '--out',
      out(),
    ],
    all(/updates/),
  ],
  report: [
    (kind) => ['report', kind, '--html', join(cluster.folder, `${kind}.html`)],
    all(/\.html/),
  ],
  ensemble: [
    (kind) => {
      const output = kind === 'fields' ? ['--output', 'side'] : [];
      return study('ensemble', file(kind), '--members', 'seeds:2', '--combine', 'mean', ...output);
    },
    all(/mean/, objectives),
  ],
  test: [(kind) => ['test', kind, '--workers', '0'], all(/test/)],
};

const CASES = Object.entries(COMMANDS).flatMap(([command, [args, cells]]) =>
  KINDS.map((kind) => [command, kind, args, cells[kind]] as const),
);

/** New examples: the columns of `predict`, and the objects of a program. */
const ROWS: Partial<Record<Kind, object>> = {
  fields: { town: 3, east: 0.5, north: -0.25 },
  tables: { town: 3, east: 0.5, north: -0.25 },
};
/** The sources that the experiment of this kind has opened in this process, and that are not closed. */
const openSources = () => (globalThis as { openSources?: Set<unknown> }).openSources ?? new Set();
/** Those of the worker in this process, which keeps its run's until it has another one. */
const HELD_MAX = 3;

const row = (kind: Kind) => ROWS[kind] ?? { inputs_0: 0.5, inputs_1: -0.25 };

/**
 * Studies train runs as `train` does, and look at their evaluations: one kind each is enough. Those with groups vary the
 * fields of groups.
 */
const STUDIES: readonly (readonly [Kind, readonly string[]])[] = [
  [
    'objective',
    ['lr-find', '--steps', '20', '--probe-steps', '5', '--seeds', '1', '--high', '0.5'],
  ],
  ['models', ['search', '--trials', '2']],
  ['source', ['folds', '--folds', '2']],
  ['carried', ['curve', '--repeats', '1', '--fractions', '0.5,1']],
  ['pretrained', ['ablate', '--repeats', '1']],
  ['tables', ['search', '--trials', '2', '--space', 'tables.town.weightDecay=log:0.001..0.1']],
];

describe('each command on each kind of experiment', () => {
  beforeAll(() => {
    for (const kind of KINDS) {
      const lines = [Object.keys(row(kind)), Object.values(row(kind))].map((cells) =>
        cells.join(','),
      );
      writeFileSync(join(folder, `${kind}.csv`), `${lines.join('\n')}\n`);
    }
  });

  test.each(CASES)('%s: %s', async (_, kind, args, cell) => {
    const { code, out, err } = await run(args(kind), kind);
    if ('refused' in cell) {
      expect(err).toMatch(new RegExp(`^error ${cell.refused.source}`, 'm'));
      expect(code).not.toBe(EXIT.ok);
      return;
    }
    expect(err.match(/^error.*/m)).toBeNull();
    expect(out).toMatch(cell);
    await until('sources are closed', () => openSources().size <= HELD_MAX);
    expect(code).toBe(EXIT.ok);
  });
});

test.each(KINDS)('train of %s ends with commands that are not refused', async (kind) => {
  const args = ['train', file(kind), '--workers', '0', '--run', `trained-${kind}`];
  const { code, out } = await run(args, kind);
  expect(code).toBe(EXIT.ok);
  const told = [...out.matchAll(/npx downpour (\w+) .*?(?:(--format \w+)|)$/gm)];
  const commands = told.map(([, command, format]) => (format ? `${command} ${format}` : command!));
  expect(commands).toContain('status');
  const [, tfjs] = COMMANDS['export --format tfjs']!;
  // No answer of plain layers to every lookup of a table.
  const isTfjs = !('refused' in tfjs[kind]) && kind !== 'tables';
  expect(commands).toContain(`export --format ${isTfjs ? 'tfjs' : 'safetensors'}`);
  for (const command of commands) {
    const known = COMMANDS[command];
    if (known) expect('refused' in known[1][kind], `${command} of ${kind}`).toBe(false);
  }
});

describe('studies', () => {
  test.each(STUDIES)('%s: %j', async (kind, [command, ...args]) => {
    const { code, err, out } = await run(study(command!, file(kind), ...args), kind);
    expect(err.match(/^error.*/m)).toBeNull();
    expect(code).toBe(EXIT.ok);
    expect(out).toMatch(/\d/);
  });

  test('vary the fields of groups', async () => {
    const runs = await cluster.client.runs({ archived: 'all' });
    const groupsOf = async (pattern: RegExp) => {
      const own = runs.filter(({ id }) => pattern.test(id));
      return Promise.all(own.map(async ({ id }) => (await cluster.client.run(id)).config.groups));
    };
    // Other experiments are searched and varied too.
    const judges = (await groupsOf(/^search-/)).flatMap((groups) => groups?.judge ?? []);
    expect(new Set(judges.map(({ learningRate }) => learningRate)).size).toBe(2);
    const trunks = (await groupsOf(/^ablate-/)).flatMap((groups) => groups?.pretrained ?? []);
    expect(new Set(trunks.map(({ frozen }) => frozen))).toEqual(new Set([true, false]));
  });

  test.each([
    ['groups.judge.learningrate=log:0.1..1', /did you mean '(groups\.judge\.)?learningRate'/],
    [
      'groups.juge.learningRate=log:0.1..1',
      /'juge\/\*' matches no tensor.*did you mean 'judge\/\*'/,
    ],
  ])('a space with %s is refused, with the nearest name', async (space, words) => {
    const args = study('search', file('models'), '--trials', '1', '--space', space);
    const { code, err } = await run(args, 'models');
    expect(err).toMatch(words);
    expect(code).not.toBe(EXIT.ok);
  });
});

test('simulate trains a group from the step on that it is frozen up to', async () => {
  const errorOf = async (frozen: unknown) => {
    const setting = `groups.judge.frozen=${JSON.stringify(frozen)}`;
    const how = ['--workers', '1', '--set', setting, '--set', 'stepsMax=6', '--engine', 'wasm'];
    const args = ['simulate', file('models'), ...how, '--out', out(), '--quiet', '--json'];
    const { rows } = JSON.parse((await run(args, 'models')).out);
    return rows[0].value.mean as number;
  };
  const errors = [await errorOf(false), await errorOf(true), await errorOf({ untilStep: 3 })];
  expect(new Set(errors).size).toBe(3);
  expect(await errorOf({ untilStep: 7 })).toBe(errors[1]);
});

describe('new examples', () => {
  test.each(KINDS.filter((kind) => !['models', 'carried', 'tables'].includes(kind)))(
    '%s: predict, HTTP and an exported model answer alike',
    async (kind) => {
      const told = (
        await run(
          [
            'predict',
            kind,
            join(folder, `${kind}.csv`),
            '--experiments',
            folder,
            '--engine',
            'wasm',
            '--json',
          ],
          kind,
        )
      ).out;
      const { line: _, ...expected } = JSON.parse(told.trim()) as Record<string, unknown>;
      const example = kind === 'fields' ? { town: 3, place: [0.5, -0.25] } : [0.5, -0.25];
      const server = { state: '', stateGiven: false, server: cluster.url };
      const predictor = await openPredictor(kind, {
        ...{ ...server, experiments: [folder], engine: 'wasm' },
      });
      const app = await modelApp(predictor);
      const post = (examples: unknown[]) =>
        app.inject({ method: 'POST', url: '/predict', payload: { examples } });
      const [answer, again, wrong] = await Promise.all([
        post([example]),
        post([example, row(kind)]),
        post([example, kind === 'fields' ? { town: 0.5, place: [1] } : [1]]),
      ]);
      await app.close();
      predictor.close();
      expect(answer.json().predictions).toEqual([expected]);
      expect(again.json().predictions).toEqual([expected, expected]);
      expect(wrong.json()).toMatchObject({
        code: 'DP_BODY_INVALID',
        message: expect.stringMatching(
          /^example 1: ('town' is 0\.5; it must be a whole|it must be 2 numbers)/,
        ),
      });
      const exported = await openModel(tf as never, join(folder, `tfjs-${kind}`));
      expect(await exported.predict([example])).toEqual([expected]);
      exported.dispose();
      const readme = readFileSync(join(folder, `tfjs-${kind}`, 'README.md'), 'utf8');
      expect(readme).toMatch(kind === 'fields' ? /\| place \| .*east, north/ : /of shape \[2\]/);
    },
  );

  test('several models: the README of the export opens each, with the parameters of the run', async () => {
    const exported = join(folder, 'tfjs-models');
    const readme = readFileSync(join(exported, 'README.md'), 'utf8');
    const [, program] = /```js\n(.*?)```/s.exec(readme)!;
    await symlink(join(import.meta.dirname, '../../node_modules'), join(exported, 'node_modules'));
    // The package @tensorflow/tfjs is these three.
    const parts = ['backend-cpu', 'core', 'layers'].map((part) => {
      return `import * as ${part.replace('-', '')} from '@tensorflow/tfjs-${part}';`;
    });
    const text = program!.replace(
      "import * as tf from '@tensorflow/tfjs';",
      `${parts.join('\n')}\nconst tf = { ...core, ...layers };`,
    );
    const shown = ['maker', 'judge'].map((name) => {
      return `[...${name}Model.getWeights()].flatMap((weight) => [...weight.dataSync()])`;
    });
    writeFileSync(
      join(exported, 'open.mjs'),
      `${text}\nconsole.log('\\n' + JSON.stringify([${shown.join(', ')}]));`,
    );
    const { stdout } = await promisify(execFile)('node', ['open.mjs'], { cwd: exported });
    const seen = JSON.parse(stdout.trim().split('\n').at(-1)!) as number[][];
    const plain = out();
    await run(['export', 'models', '--to', plain, '--experiments', folder], 'models');
    const { tensors } = await readTensors(join(plain, 'models.safetensors'));
    const sorted = (values: readonly number[]) => values.toSorted((a, b) => a - b);
    for (const [i, name] of ['maker', 'judge'].entries()) {
      const own = tensors.filter((tensor) => tensor.name.startsWith(`${name}/`));
      expect(own.length).toBeGreaterThan(0);
      expect(sorted(seen[i]!)).toEqual(sorted(own.flatMap(({ values }) => [...values])));
    }
  });

  test('an export that is refused leaves no folder', async () => {
    const to = out();
    const args = ['export', 'carried', '--to', to, '--format', 'tfjs', '--experiments', folder];
    expect((await run(args, 'carried')).code).not.toBe(EXIT.ok);
    expect(existsSync(to)).toBe(false);
  });

  test('that do not fit are refused with their line', async () => {
    const path = join(folder, 'bad.jsonl');
    writeFileSync(path, '{"town":1,"place":[1,2]}\n\n{"town":9.5,"place":[1,2]}\n');
    const args = ['predict', 'fields', path, '--experiments', folder, '--engine', 'wasm'];
    expect((await run(args, 'fields')).err).toMatch(
      /DP_DATA_CORRUPT: .*bad\.jsonl: line 3: 'town' is 9\.5; it must be a whole number/,
    );
    writeFileSync(path, '{"town":1}\n');
    expect((await run(args, 'fields')).err).toMatch(
      /line 1: 'place' is missing; give 2 numbers, or the columns east, north/,
    );
  });
});

test('docs/experiments.md has this table', () => {
  const page = readFileSync(join(import.meta.dirname, '../../docs/experiments.md'), 'utf8');
  const lines = page.split('\n').filter((line) => line.startsWith('|'));
  const head = `| command | ${KINDS.map((kind) => KIND_NAMES[kind]).join(' | ')} |`;
  const start = lines.indexOf(head);
  expect(start, head).toBeGreaterThanOrEqual(0);
  const rows = new Map(
    lines.slice(start + 2).map((line) => {
      const [command, ...cells] = line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim());
      return [command!.replaceAll('`', ''), cells] as const;
    }),
  );
  for (const [command, [, cells]] of Object.entries(COMMANDS)) {
    const expected = KINDS.map((kind) => ('refused' in cells[kind] ? 'refused' : 'yes'));
    const told = rows.get(command)?.map((cell) => cell.replace(/[,:] .*/, ''));
    expect(told, command).toEqual(expected);
  }
});
