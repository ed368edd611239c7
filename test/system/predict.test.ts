import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openPredictor, type Predictor } from '../../cli/trained/predictor.ts';
import { modelApp } from '../../cli/trained/serve-model.ts';
import type { Prediction } from '../../shared/prediction.ts';
import { inputsOf } from '../../worker/serving/exported-model.ts';
import { outputOf } from '../support/command.ts';
import { png } from '../support/pictures.ts';
import { startCommand } from '../support/worker-process.ts';

/**
 * From a table with gaps, dates, categories and texts, and from pictures of mixed sizes, to answers: by commands alone, and equal by
 * `predict`, by the exported model in plain TensorFlow.js, and over HTTP.
 */

const run = promisify(execFile);
const folder = mkdtempSync(join(tmpdir(), 'downpour-predict-'));
const state = join(folder, 'state');
const at = (name: string) => join(folder, name);
const ROOT = join(import.meta.dirname, '../..');
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The id of the run that `train` made. */
async function trained(experiment: string, ...settings: string[]): Promise<string> {
  const out = await outputOf(
    ...['train', experiment, '--state', state, '--workers', '1', '--engine', 'wasm', '--json'],
    ...settings.flatMap((setting) => ['--set', setting]),
  );
  const last = out.trim().split('\n').at(-1)!;
  return (JSON.parse(last) as { id?: string; run?: { id: string } }).id ?? JSON.parse(last).run.id;
}

/** What a program of plain TensorFlow.js says, which knows nothing of Downpour. */
async function byPlainTfjs(
  exported: string,
  examples: readonly unknown[],
  options: Record<string, unknown> = {},
): Promise<Prediction[]> {
  const own = (name: string) => JSON.stringify(import.meta.resolve(name));
  const program = join(exported, 'program.mjs');
  await writeFile(
    program,
    `import * as core from ${own('@tensorflow/tfjs-core')};
import * as layers from ${own('@tensorflow/tfjs-layers')};
import ${own('@tensorflow/tfjs-backend-cpu')};
import { openModel } from './predict.js';
const examples = JSON.parse(process.argv[2]).map((each) => each.data ? { ...each, data: Uint8Array.from(each.data) } : each);
const model = await openModel({ ...core, ...layers }, undefined, JSON.parse(process.argv[3]));
console.log(JSON.stringify(await model.predict(examples)));
model.dispose();
`,
  );
  const { stdout } = await run(process.execPath, [
    ...[program, JSON.stringify(examples), JSON.stringify(options)],
  ]);
  return JSON.parse(stdout.trim().split('\n').at(-1)!);
}

async function overHttp(predictor: Predictor, examples: readonly unknown[]) {
  const app = await modelApp(predictor);
  try {
    const answer = await app.inject({ method: 'POST', url: '/predict', payload: { examples } });
    return { status: answer.statusCode, body: answer.json() };
  } finally {
    await app.close();
  }
}

/** Engines round in other places. */
function near(seen: readonly Prediction[], expected: readonly Prediction[]): void {
  expect(seen.length).toBe(expected.length);
  for (const [i, { prediction, probabilities }] of expected.entries()) {
    if (typeof prediction === 'number') expect(seen[i]!.prediction).toBeCloseTo(prediction, 3);
    else expect(seen[i]!.prediction).toBe(prediction);
    for (const [name, share] of Object.entries(probabilities ?? {})) {
      expect((seen[i]!.probabilities as Record<string, number>)[name]).toBeCloseTo(share, 4);
    }
  }
}

describe('a table', () => {
  let id: string;
  let predictor: Predictor;
  const rows = Array.from({ length: 400 }, (_, i) => {
    const size = ((i * 7919) % 1009) / 100;
    const island = ['Biscoe', 'Dream', 'Torgersen'][i % 3]!;
    const kind = size + 2 * (i % 3) > 7 ? 'Gentoo' : 'Adelie';
    return {
      size: i % 43 === 5 ? '' : size.toFixed(2),
      island: i % 37 === 2 ? 'NA' : island,
      seen: `2023-${String((i % 12) + 1).padStart(2, '0')}-${String((i % 28) + 1).padStart(2, '0')}`,
      note: `a ${['small', 'large', 'old', 'young'][i % 4]} bird by the ${['sea', 'rock'][i % 2]} ${i}`,
      species: i % 50 === 9 ? '' : kind,
    };
  });
  const csv = (some: readonly Record<string, string>[]) =>
    `${[Object.keys(some[0]!), ...some.map(Object.values)].map((line) => line.join(',')).join('\n')}\n`;
  const news = rows.slice(360).map(({ species: _, ...inputs }) => inputs);

  beforeAll(async () => {
    await writeFile(at('birds.csv'), csv(rows.slice(0, 360)));
    await writeFile(at('new.csv'), csv(news));
    await outputOf('init', at('birds.ts'), '--data', at('birds.csv'), '--yes');
    id = await trained(at('birds.ts'), 'epochsMax=12', 'earlyStopping.patience=20');
    predictor = await openPredictor(id, {
      ...{ state, stateGiven: true, experiments: [folder], engine: 'wasm' },
    });
  });
  afterAll(() => predictor?.close());

  const predict = async (file: string, ...options: string[]) =>
    outputOf(
      ...['predict', id, file, '--state', state, '--experiments', folder, '--engine', 'wasm'],
      ...options,
    );

  test('init writes all that the columns need, with no line by hand', () => {
    const source = readFileSync(at('birds.ts'), 'utf8');
    for (const option of [
      "missing: 'mean'",
      "dates: ['seen']",
      "hashed: { 'note': 32 }",
      'testFraction: 0.15',
    ]) {
      expect(source).toContain(option);
    }
  });

  test('is answered to by predict, in its order, with names', async () => {
    const lines = (await predict(at('new.csv'))).trim().split('\n');
    expect(lines[0]).toBe('line,species,confidence,probability of Adelie,probability of Gentoo');
    expect(lines.length).toBe(41);
    const right = rows
      .slice(360)
      .filter(({ species }, i) => lines[i + 1]!.split(',')[1] === species);
    const known = rows.slice(360).filter(({ species }) => species !== '').length;
    // It has learnt the rule, so the columns were not mixed up.
    expect(right.length).toBeGreaterThan(0.7 * known);
    await predict(at('new.csv'), '--out', at('answers.csv'));
    expect(readFileSync(at('answers.csv'), 'utf8').trim().split('\n')).toEqual(lines);
    // Several files, and a folder of them, make one list that names the file of each row.
    await mkdir(at('more'));
    await writeFile(at('more/b.csv'), readFileSync(at('new.csv')));
    await writeFile(at('more/README.txt'), 'no table');
    const [first, second] = [at('new.csv'), at('more/b.csv')];
    const all = (await predict(first, at('more'))).trim().split('\n');
    expect(all).toEqual([
      `file,${lines[0]}`,
      ...[first, second].flatMap((file) => lines.slice(1).map((line) => `${file},${line}`)),
    ]);
  });

  test('has the same answers from predict, plain TensorFlow.js and HTTP', async () => {
    const told = (await predict(at('new.csv'), '--json'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Prediction & { line: number });
    expect(told.map(({ line }) => line)).toEqual(news.map((_, i) => i + 2));
    await outputOf(
      ...['export', id, '--to', at('exported'), '--format', 'tfjs'],
      ...['--state', state, '--experiments', folder],
    );
    near(await byPlainTfjs(at('exported'), news), told);
    const { status, body } = await overHttp(predictor, news);
    expect(status).toBe(200);
    near(body.predictions, told);
    const readme = readFileSync(join(at('exported'), 'README.md'), 'utf8');
    expect(readme).toContain('| island | one of Biscoe, Dream, Torgersen | yes |');
    expect(readme).toContain("openModel(tf, undefined, { unknown: 'none' })");
  });

  test('its run is told in one file of HTML', async () => {
    const html = at('birds.html');
    const said = await outputOf('report', id, '--html', html, '--state', state, '--json');
    const text = readFileSync(html, 'utf8');
    expect(JSON.parse(said)).toEqual({ run: id, file: html, bytes: Buffer.byteLength(text) });
    expect(text).toMatch(/^<!doctype html>/i);
    expect(text).toContain(id);
    expect(text).toContain('minibatchSize');
    // Nothing is loaded from elsewhere: it can be sent.
    expect(text).not.toMatch(/<(?:script|link|img)[^>]+(?:src|href)="http/);
    const full = outputOf('report', id, '--html', at('none/birds.html'), '--state', state);
    await expect(full).rejects.toThrow(/ended with/);
  });

  test('requests at the same time are computed together, each with its own answers', async () => {
    const app = await modelApp(predictor);
    try {
      const ask = (examples: unknown[]) =>
        app.inject({ method: 'POST', url: '/predict', payload: { examples } });
      const alone = (await ask(news)).json().predictions;
      const all = await Promise.all(news.map((row) => ask([row])));
      near(
        all.map((answer) => answer.json().predictions[0]),
        alone,
      );
      expect((await ask([])).json().predictions).toEqual([]);
      const undecodable = await app.inject('/%ff');
      expect(undecodable.statusCode).toBe(400);
      expect(undecodable.json()).toEqual({
        code: 'DP_BODY_INVALID',
        message: expect.stringContaining('write each % of a path as %25'),
      });
      const api = (await app.inject('/openapi.json')).json();
      expect(Object.keys(api.paths)).toEqual(expect.arrayContaining(['/predict', '/health']));
    } finally {
      await app.close();
    }
  });

  test('what does not fit is refused, with its place', async () => {
    const bad = async (change: Record<string, unknown>) =>
      (await overHttp(predictor, [news[0], { ...news[1], ...change }])).body;
    expect(await bad({ island: 'Mars' })).toMatchObject({
      code: 'DP_BODY_INVALID',
      message: expect.stringMatching(/example 1: 'island' is 'Mars': it is none of Biscoe/),
    });
    expect((await bad({ seen: '2023-02-30' })).message).toMatch(/not a date that exists/);
    // The table had gaps, so a gap in a column that had none is no error.
    expect((await bad({ note: null })).predictions).toHaveLength(2);
    expect((await bad({ size: [1] })).message).toMatch(/neither a number nor a text/);
    await writeFile(at('mars.csv'), csv([{ ...news[0]!, island: 'Mars' }]));
    await expect(predict(at('mars.csv'))).rejects.toThrow();
    // A category that is new may be taken as none of those known, the same over HTTP.
    const [mars] = (await predict(at('mars.csv'), '--json', '--unknown', 'none'))
      .trim()
      .split('\n');
    const lenient = await openPredictor(id, {
      ...{ state, stateGiven: true, experiments: [folder], engine: 'wasm', unknown: 'none' },
    });
    const answer = await overHttp(lenient, [{ ...news[0], island: 'Mars' }]);
    near(answer.body.predictions, [JSON.parse(mars!) as Prediction]);
    // And in the exported model.
    const none = byPlainTfjs(at('exported'), [{ ...news[0], island: 'Mars' }], { unknown: 'none' });
    near(await none, [JSON.parse(mars!) as Prediction]);
    const strict = byPlainTfjs(at('exported'), [{ ...news[0], island: 'Mars' }]);
    await expect(strict).rejects.toThrow(/example 0: 'island' is 'Mars': it is none of Biscoe/);
    const wrong = byPlainTfjs(at('exported'), [], { unknwon: 'none' });
    await expect(wrong).rejects.toThrow(/openModel has no option 'unknwon'; it has: unknown/);
    lenient.close();
    await writeFile(at('lacks.csv'), csv(news.map(({ size: _, ...rest }) => rest)));
    await expect(predict(at('lacks.csv'))).rejects.toThrow();
  });

  test('numbers given as numbers are those of the text', () => {
    const row = { ...news[0]!, size: 3.25 };
    expect(inputsOf(predictor.about, [row])).toEqual(
      inputsOf(predictor.about, [{ ...row, size: '3.25' }]),
    );
  });

  test('serve-model answers over a socket, and ends when it is asked to', async () => {
    const server = startCommand(
      [
        ...['serve-model', id, '--port', '0', '--state', state, '--experiments', folder],
        ...['--engine', 'wasm'],
      ],
      { cwd: folder },
    );
    await server.said(/answers at \S+\/predict/);
    const [, url] = /answers at (\S+)\/predict/.exec(server.text())!;
    const answer = await fetch(`${url}/predict`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ examples: news.slice(0, 1) }),
    });
    expect(answer.status).toBe(200);
    await server.stop();
    expect(await server.closed).toBe(0);
  });
});

test('cars, of which some have no consumption and some no power, go from init to predictions', async () => {
  const cars = readFileSync(join(ROOT, 'examples/data/auto-mpg.csv'), 'utf8').trim().split('\n');
  const [header, ...lines] = cars;
  const power = header!.split(',').indexOf('horsepower');
  const emptied = lines.map((line, i) => {
    const cells = line.split(',');
    if (i % 40 === 7) cells[0] = '';
    if (i % 30 === 3) cells[power] = '?';
    return cells.join(',');
  });
  const held = emptied.filter((_, i) => i % 10 === 9);
  await writeFile(at('cars.csv'), [header, ...emptied.filter((_, i) => i % 10 !== 9)].join('\n'));
  await writeFile(at('new-cars.csv'), [header, ...held].join('\n'));
  // Three commands, and no line by hand.
  await outputOf('init', at('cars.ts'), '--data', at('cars.csv'), '--target', 'mpg');
  const id = await trained(at('cars.ts'));
  const out = await outputOf(
    ...['predict', id, at('new-cars.csv'), '--unknown', 'none', '--json'],
    ...['--state', state, '--experiments', folder, '--engine', 'wasm'],
  );
  const told = out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Prediction);
  expect(told.length).toBe(held.length);
  const right = lines.filter((_, i) => i % 10 === 9).map((line) => Number(line.split(',')[0]));
  const mean = right.reduce((sum, value) => sum + value, 0) / right.length;
  const offBy = (guess: (i: number) => number) =>
    right.reduce((sum, value, i) => sum + Math.abs(value - guess(i)), 0) / right.length;
  // In miles per gallon: far better than the mean of all.
  expect(offBy((i) => Number(told[i]!.prediction))).toBeLessThan(0.6 * offBy(() => mean));
});

test('photos of mixed sizes, in folders of parts, are learnt and answered to', async () => {
  const photo = (i: number, red: boolean) => {
    const [width, height] = [20 + (i % 7) * 3, 16 + (i % 5) * 4];
    return png(width, height, (x, y) =>
      red ? [200, (x * 9 + i) % 90, (y * 7) % 60] : [(x * 9 + i) % 90, (y * 7) % 60, 200],
    );
  };
  for (const [part, count] of [
    ['train', 24],
    ['test', 6],
  ] as const) {
    for (const red of [true, false]) {
      const own = join(folder, 'photos', part, red ? 'red' : 'blue');
      await mkdir(own, { recursive: true });
      for (let i = 0; i < count; i++) await writeFile(join(own, `${i}.png`), photo(i, red));
    }
  }
  await outputOf('init', at('photos.ts'), '--data', at('photos'), '--yes');
  const source = readFileSync(at('photos.ts'), 'utf8');
  expect(source).toMatch(/size: \d+, log/);
  expect(source).toContain('conv2d');
  const id = await trained(at('photos.ts'), 'epochsMax=6', 'minibatchSize=8');
  const test = join(folder, 'photos', 'test');
  const classFolders = readdirSync(test).map((name) => join(test, name));
  const out = await outputOf(
    ...['predict', id, ...classFolders, '--json'],
    ...['--state', state, '--experiments', folder, '--engine', 'wasm'],
  );
  const told = out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Prediction & { file: string });
  expect(told.length).toBe(12);
  for (const { file, prediction } of told) expect(file).toContain(String(prediction));

  await outputOf(
    ...['export', id, '--to', at('photo-model'), '--format', 'tfjs'],
    ...['--state', state, '--experiments', folder],
  );
  const { PNG } = await import('pngjs');
  const examples = told.map(({ file }) => {
    const { width, height, data } = PNG.sync.read(readFileSync(file));
    return { width, height, data: [...data] };
  });
  near(await byPlainTfjs(at('photo-model'), examples), told);
  const predictor = await openPredictor(id, {
    ...{ state, stateGiven: true, experiments: [folder], engine: 'wasm' },
  });
  try {
    const pictures = told.map(({ file }) => ({
      picture: readFileSync(file).toString('base64'),
    }));
    near((await overHttp(predictor, pictures)).body.predictions, told);
    const bad = await overHttp(predictor, [{ picture: 'bm8=' }]);
    expect([bad.status, bad.body.message]).toEqual([422, expect.stringContaining('example 0')]);
  } finally {
    predictor.close();
  }
});

describe('texts', () => {
  const sides = { down: ['dull', 'slow', 'weak'], up: ['great', 'funny', 'moving'] };
  const texts = Array.from({ length: 120 }, (_, i) => {
    const side = (['down', 'up'] as const)[i % 2]!;
    const words = Array.from(
      { length: 4 + (i % 5) },
      (_, k) => ['the', 'film', 'was', 'a'][(i + k) % 4],
    );
    return { side, text: `${words.join(' ')} ${sides[side][i % 3]}` };
  });
  const of = ['--state', state, '--experiments', folder, '--engine', 'wasm'];

  test('of a folder become classes, by commands alone', async () => {
    for (const [i, { side, text }] of texts.entries()) {
      await mkdir(at(`films/${side}`), { recursive: true });
      await writeFile(at(`films/${side}/${i}.txt`), text);
    }
    await outputOf('init', at('films.ts'), '--data', at('films'), '--yes');
    const id = await trained(at('films.ts'), 'epochsMax=15', 'learningRate=0.1');
    // The experiment is needed, and none of its data.
    rmSync(at('films'), { recursive: true });
    await mkdir(at('news'));
    await writeFile(at('news/1.txt'), 'a GREAT film');
    await writeFile(at('news/2.txt'), 'was slow, slow');
    const lines = (await outputOf('predict', id, at('news'), ...of)).trim().split('\n');
    expect(lines[0]).toBe('file,prediction,confidence,probability of down,probability of up');
    expect(lines.slice(1).map((line) => line.split(',').slice(0, 2))).toEqual([
      [at('news/1.txt'), 'up'],
      [at('news/2.txt'), 'down'],
    ]);
    const predictor = await openPredictor(id, {
      ...{ state, stateGiven: true, experiments: [folder], engine: 'wasm' },
    });
    const { body } = await overHttp(predictor, ['a great film', { text: 'was slow, slow' }]);
    expect(body.predictions.map(({ prediction }: Prediction) => prediction)).toEqual([
      'up',
      'down',
    ]);
    expect((await overHttp(predictor, [7])).body.message).toMatch(
      /it must be a text, or an object/,
    );
    predictor.close();
  });

  test('are continued by a language model, with nothing but its run and its experiment', async () => {
    await writeFile(at('tale.txt'), 'abcdefgh\n'.repeat(400));
    await outputOf('init', at('tale.ts'), '--data', at('tale.txt'), '--yes');
    const id = await trained(
      ...[at('tale.ts'), 'epochsMax=20', 'learningRate=0.03', 'hyperparameters.units=16'],
    );
    rmSync(at('tale.txt'));
    const said = await outputOf(
      ...['sample', id, '--prompt', 'abc', '--length', '8', '--temperature', '0', '--json', ...of],
    );
    expect(JSON.parse(said)).toMatchObject({ run: id, prompt: 'abc', text: 'defgh\nab' });
    const text = await outputOf('sample', id, '--length', '12', '--seed', '1', ...of);
    expect(text).toHaveLength(13);
    expect(await outputOf('sample', id, '--length', '12', '--seed', '1', ...of)).toBe(text);
    await writeFile(at('more.txt'), 'abc');
    await expect(outputOf('predict', id, at('more.txt'), ...of)).rejects.toThrow(
      /is a language model, which continues a text: use `downpour sample`/,
    );
  });
});
