import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { Figure } from '../../shared/figure.ts';
import type { StudyReport } from '../../shared/rest.ts';
import { openEngine } from '../../worker/engine.ts';
import { findBrowser } from '../support/browser.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';
import { type Browser, launch, type Page, picture, problemsOf } from '../support/dashboard.ts';
import { workForAll } from '../support/study.ts';

/**
 * Studies and looks at a model, conducted by their commands against a real server with real workers, in a real
 * browser. What each view shows is compared with what REST answers.
 */

const DIGITS = join(FIXTURES, 'few-digits.ts');
const TOKENS = { token: 'the-operator', observerToken: 'an-observer' } as const;

const skipped = findBrowser() === null && !process.env.CI;
let cluster: Cluster;
let browser: Browser;
let page: Page;
let problems: string[];

/** A command against the cluster, whose workers do the work. */
async function command(name: string, ...args: string[]): Promise<void> {
  const common = ['--server', cluster.url, '--token', TOKENS.token, '--data', cluster.folder];
  await outputOf(name, DIGITS, ...args, ...common, '--engine', 'wasm', '--json');
}

async function study(kind: string, ...args: string[]): Promise<void> {
  const small = ['--set', 'hyperparameters.count=500', '--epochs', '2'];
  const here = ['--workers', '0', '--parallel', '2', '--out', join(cluster.folder, kind)];
  await command(kind, '--name', `a-${kind}`, ...small, ...here, ...args);
}

beforeAll(async () => {
  if (skipped) return;
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }), TOKENS);
  await workForAll(cluster, 2, [FIXTURES]);
  await study('lr-find', '--steps', '60', '--probe-steps', '20', '--seeds', '1');
  const space = [
    '--space',
    'learningRate=log:0.003..1',
    '--space',
    'optimizer.kind=choice:sgd,adam',
  ];
  await study('search', '--trials', '10', '--method', 'sobol', ...space);
  await study('folds', '--folds', '3');
  await study('curve', '--fractions', '0.3,0.6,1', '--repeats', '1');
  await cluster.createRun('digits', DIGITS, {
    ...{ learningRate: 0.1, epochsMax: 8, observe: { everySteps: 10, costMax: 1 } },
    ...{ hyperparameters: { count: 2000 }, evaluateTraining: 200, testAtEnd: false },
  });
  const ended = async () => (await cluster.client.checkpoints('digits')).map(({ kind }) => kind);
  await vi.waitFor(async () => expect(await ended()).toContain('final'), 60_000);
  const out = (name: string) => ['--run', 'digits', '--out', join(cluster.folder, name)];
  await command('look', ...out('look'), '--worst', '24', '--random', '16');
  await command('refuse', ...out('refuse'), '--accuracy', '0.95', '--coverage', '0.9');
  browser = await launch();
  page = await (await browser.newContext({ viewport: { width: 1280, height: 900 } })).newPage();
  problems = problemsOf(page);
  await logIn(TOKENS.token);
}, 600_000);
afterAll(async () => {
  if (skipped) return;
  await browser?.close();
  await cluster?.close();
});

async function logIn(token: string): Promise<void> {
  await page.goto(cluster.url);
  await page.getByLabel('Token').fill(token);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.waitForSelector('tr[data-run]');
}

const text = async (selector: string) => (await page.locator(selector).first().textContent())!;

async function open(name: string) {
  await page.goto(`${cluster.url}/#/studies/${name}`);
  await page.getByRole('heading', { name, exact: true }).waitFor();
  await page.waitForSelector('[data-figure]');
  // Their width is known a moment after they are there, and they are drawn then.
  await page.waitForFunction(() =>
    [...document.querySelectorAll('.figure')].every((figure) => figure.childElementCount > 0),
  );
  return cluster.client.study(name);
}

/** The part of the page that shows a figure, and the figure as REST has it. */
function shown<K extends Figure['kind']>(figures: readonly Figure[], kind: K, title: RegExp) {
  const figure = figures.find((each) => each.kind === kind && title.test(each.title));
  expect(figure, `a ${kind} ${title}`).toBeDefined();
  const place = page.locator(`[data-figure="${kind}"]`, { hasText: figure!.title });
  return { figure: figure as Extract<Figure, { kind: K }>, place: place.first() };
}

/** Points of a chart that are to be seen. */
const pointsIn = (figure: Extract<Figure, { kind: 'chart' }>, ...styles: string[]) =>
  figure.series
    .filter(({ style = 'line' }) => styles.includes(style))
    .flatMap(({ points }) => points)
    .filter(({ y }) => y !== null);

describe.skipIf(skipped)('studies on the dashboard', () => {
  test('are listed as REST lists them', async () => {
    await page.goto(`${cluster.url}/#/studies`);
    await page.waitForSelector('tr[data-study]');
    const studies = await cluster.client.studies();
    expect(studies.map(({ name }) => name)).toEqual([
      ...['refuse-digits', 'look-digits', 'a-curve', 'a-folds', 'a-search', 'a-lr-find'],
    ]);
    const rows = await page
      .locator('tr[data-study]')
      .evaluateAll((all) => all.map((row) => row.textContent));
    for (const [i, { name, title, state, trials }] of studies.entries()) {
      expect(rows[i]).toContain(name + title);
      expect(rows[i]).toContain(state);
      expect(rows[i]).toContain(trials === null ? '–' : `${trials.ended} of ${trials.of}`);
    }
    await picture(page, 'studies');
  });

  test('the learning-rate finder: the loss over the rate, with the suggestion', async () => {
    const { figures, advice, rows } = await open('a-lr-find');
    const { figure, place } = shown(figures, 'chart', /^Range test/);
    const points = (await place.locator('polyline').first().getAttribute('points'))!.split(' ');
    expect(points).toHaveLength(pointsIn(figure, 'curve').length);
    // Rates rise evenly on the logarithmic axis.
    const xs = points.map((point) => Number(point.split(',')[0]));
    const steps = xs.slice(1).map((x, i) => x - xs[i]!);
    expect(Math.max(...steps) - Math.min(...steps)).toBeLessThan(1);
    const [mark] = figure.marks!;
    expect(mark!.text).toBe(`use ${mark!.x}`);
    expect(await place.textContent()).toContain(mark!.text);
    expect(advice).toContain(`Use learningRate ${mark!.x}`);
    const paragraph = (await page.getByText('Use learningRate').textContent())!;
    expect(paragraph).toBe(advice.replaceAll('`', ''));
    expect(await page.locator('[aria-label="Results"] tbody tr').count()).toBe(rows.length);
    await picture(page, 'study-lr');
  });

  test('a search: parallel coordinates, a scatter for each hyperparameter, importance', async () => {
    const { figures, runs, advice } = await open('a-search');
    const parallel = shown(figures, 'parallel', /^Trials/);
    expect(await parallel.place.locator('polyline').count()).toBe(runs.length);
    const hints = await parallel.place.locator('polyline > title').allTextContents();
    expect(hints.sort()).toEqual(parallel.figure.lines.map(({ label }) => label).sort());
    for (const what of ['learningRate', 'optimizer.kind']) {
      const { figure, place } = shown(figures, 'chart', new RegExp(`over ${what}$`));
      const points = pointsIn(figure, 'scatter');
      expect(points.length).toBeGreaterThan(5);
      expect(await place.locator('circle').count()).toBe(points.length);
    }
    const importance = shown(figures, 'chart', /explains$/);
    const shares = pointsIn(importance.figure, 'bars').map(({ label }) => label);
    const bars = importance.place.locator('rect > title');
    expect(await bars.allTextContents()).toEqual(shares);
    // Its trials lead to their runs, and to their comparison.
    await page.getByRole('link', { name: 'Compare its runs' }).click();
    await page.waitForSelector(`[data-curves="${runs.length}"]`);
    // In the list of runs they are one line, which opens.
    await page.goto(`${cluster.url}/#/`);
    const line = page.locator('tr[data-study="a-search"]');
    expect(await line.textContent()).toContain(`${runs.length} trials`);
    // The best trial is the same in the list, in `status` and in the report.
    const [, trial, error] = /is trial (\d+) with a validation error \([^)]*\) of ([\d.]+) %/.exec(
      advice,
    )!;
    expect(await line.textContent()).toContain(`${error} %`);
    const { studies } = await cluster.client.status(50, { fold: 'studies' });
    const { best } = studies!.find(({ study }) => study === 'a-search')!;
    expect(best!.run).toBe(`a-search-${trial}`);
    expect((100 * best!.value).toFixed(2)).toBe(error);
    expect(await page.locator('tr.trial').count()).toBe(0);
    await picture(page, 'runs-folded');
    await line.getByRole('button', { name: 'Show the trials of a-search' }).click();
    await expect.poll(() => page.locator('tr.trial').count()).toBe(runs.length);
    await picture(page, 'runs-open');
    await line.getByRole('button', { name: 'Hide the trials of a-search' }).click();
    await page.goto(`${cluster.url}/#/studies/a-search`);
    await page.waitForSelector('[data-figure="parallel"]');
    await picture(page, 'study-search');
  });

  test('error over the size of the data, with its fit; folds with their mean and interval', async () => {
    const curve = shown((await open('a-curve')).figures, 'chart', /training-set size/);
    expect(await curve.place.locator('circle').count()).toBe(
      pointsIn(curve.figure, 'line', 'scatter').length,
    );
    expect(await curve.place.locator('polygon').count()).toBe(1);
    expect(await curve.place.locator('polyline[stroke-dasharray]').count()).toBe(1);
    await picture(page, 'study-curve');
    const folds = await open('a-folds');
    const { figure, place } = shown(folds.figures, 'chart', /each fold/);
    const labels = await place.locator('circle > title').allTextContents();
    expect(labels).toEqual(pointsIn(figure, 'scatter').flatMap(({ label }) => label ?? []));
    expect(labels).toHaveLength(3);
    expect(await place.locator('polygon').count()).toBe(1);
    for (const cell of folds.rows[0]!) {
      expect(await text('[aria-label="Results"] tbody tr')).toContain(cell);
    }
    await picture(page, 'study-folds');
  });

  test('worst errors, a random sample, and which classes are taken for which', async () => {
    const { figures } = await open('look-digits');
    for (const title of [/^Highest/, /^A random/]) {
      const { figure, place } = shown(figures, 'gallery', title);
      const captions = await place.locator('.line').allTextContents();
      expect(captions).toEqual(figure.cards.map(({ caption }) => caption[0]));
      // The pixels are those that were told.
      const { shown: example } = figure.cards[0]!;
      const pixels = await place
        .locator('canvas')
        .first()
        .evaluate((canvas: HTMLCanvasElement) => {
          const { width, height } = canvas;
          const { data } = canvas.getContext('2d')!.getImageData(0, 0, width, height);
          return Array.from({ length: width * height }, (_, i) => data[4 * i]!);
        });
      expect(example.kind).toBe('image');
      const told = Buffer.from(example.kind === 'image' ? example.pixels : '', 'base64');
      expect(pixels).toEqual([...told]);
      expect(Math.max(...pixels)).toBeGreaterThan(100);
    }
    const { figure, place } = shown(figures, 'matrix', /answer/);
    const cells = await place.locator('rect > title').allTextContents();
    expect(cells.map((cell) => Number(/: (\d+) of/.exec(cell)![1]))).toEqual(figure.counts.flat());
    await picture(page, 'study-look');
  });

  test('coverage against accuracy, with a slider that reads out the threshold', async () => {
    const { figures } = await open('refuse-digits');
    const { figure } = shown(figures, 'thresholds', /Accuracy/);
    const slider = page.getByLabel('Share of the examples to answer');
    for (const at of [0, Math.floor(figure.points.length / 2), figure.points.length - 1]) {
      await slider.fill(String(at));
      const { threshold, coverage, accuracy } = figure.points[at]!;
      const said = await text('.readout');
      expect(said).toContain(`confidence of ${Number(threshold.toPrecision(4))}:`);
      expect(said).toContain(`${(100 * coverage).toFixed(2)} % of the examples`);
      expect(said).toContain(`${(100 * accuracy).toFixed(2)} % of these answers`);
    }
    // By the keyboard as well.
    await slider.focus();
    await page.keyboard.press('Home');
    expect(await text('.readout')).toContain(
      `${(100 * figure.points[0]!.coverage).toFixed(2)} % of the examples`,
    );
    await slider.fill(String(Math.floor(0.8 * figure.points.length)));
    await picture(page, 'study-refuse');
  });

  test('the run leads to the looks at its model, also if the page grows during the click', async () => {
    let cameLate = () => {};
    const late = new Promise<void>((resolve) => {
      cameLate = resolve;
    });
    await page.route('**/runs/digits/observations', async (route) => {
      await late;
      await route.continue();
    });
    await page.goto(`${cluster.url}/#/runs/digits`);
    await page.getByRole('link', { name: 'Looking at digits' }).waitFor();
    await page.locator('.gallery[aria-label="Predictions"] li').first().waitFor();
    const link = page.getByRole('link', { name: 'Refusing to answer: digits' });
    await link.hover();
    await page.mouse.down();
    // Plots and histograms, which stand above the link.
    const observed = page.waitForResponse('**/runs/digits/observations');
    cameLate();
    await (await observed).finished();
    await page.evaluate(
      () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))),
    );
    expect(await page.locator('.heatmap').isVisible()).toBe(false);
    await page.mouse.up();
    await page.getByRole('heading', { name: 'refuse-digits' }).waitFor();
    await page.unroute('**/runs/digits/observations');
  });

  test('what could not be read is said, and read again', async () => {
    const body = JSON.stringify({ code: 'DP_INTERNAL', message: 'the shelf fell down' });
    const ofRun = {
      'the curves': '[aria-label^="Loss: "] canvas',
      'the checkpoints': '[aria-label="Checkpoints"]',
      'the configuration': 'summary:text(" values")',
      'the looks at this model': 'a[href="#/studies/look-digits"]',
      'the predictions': '.gallery li',
      'the log': '[aria-label="Lines of the log"]',
    };
    const views: [place: string, asked: RegExp, shown: Readonly<Record<string, string>>][] = [
      ['studies', /\/studies$/, { 'the studies': 'tr[data-study="refuse-digits"]' }],
      ['studies/refuse-digits', /\/studies\/refuse-digits$/, { 'this study': '.readout' }],
      ['runs/digits', /(\/runs\/digits[^.]*|\/studies)$/, ofRun],
      ['cluster', /\/timeline$/, { 'what the workers did': '.lane-bar' }],
    ];
    for (const [place, asked, shown] of views) {
      // The page without any view, so that this one begins anew.
      await page.goto(`${cluster.url}/#/nowhere`);
      await page.route(asked, (route) =>
        route.fulfill({ status: 500, contentType: 'application/json', body }),
      );
      await page.goto(`${cluster.url}/#/${place}`);
      const problem = page.locator('.view-problem');
      for (const [what, element] of Object.entries(shown)) {
        await problem.filter({ hasText: what }).waitFor();
        expect(await page.locator(element).first().isVisible(), what).toBe(false);
      }
      const names = Object.keys(shown).length;
      const words = new RegExp(
        `^Could not read [a-z ]+(, [a-z ]+){${names - 1}}: the shelf fell down\\. Trying again\\.$`,
      );
      expect(await problem.textContent()).toMatch(words);
      await page.unroute(asked);
      for (const element of Object.values(shown)) await page.locator(element).first().waitFor();
      await problem.waitFor({ state: 'hidden' });
    }
  });

  test('one run: update sizes against the band, dead and saturated units, histograms', async () => {
    await page.goto(`${cluster.url}/#/runs/digits`);
    await page.waitForSelector('.heatmap');
    const { samples, cost } = await cluster.client.observations('digits');
    const { tensors, layers, step } = samples.at(-1)!;
    const short = (value: number) => String(Number(value.toPrecision(4)));
    const ratios = (await page
      .locator('[aria-label^="Update size: "]')
      .getAttribute('aria-label'))!;
    for (const { name } of tensors) {
      const known = samples.flatMap(
        (s) => s.tensors.find((t) => t.name === name)!.updateRatio ?? [],
      );
      // There is none for a tensor that began at 0.
      const last = known.at(-1);
      const told = last === undefined ? '–' : `${short(100 * last)} %`;
      expect(ratios).toContain(`${name} ${told}`);
    }
    const units = page.locator('[aria-label^="Dead and saturated: "]');
    for (const { layer, dead } of layers) {
      expect(await units.getAttribute('aria-label')).toContain(
        `${layer} dead ${(100 * dead).toFixed(2)} %`,
      );
    }
    const rows = page.locator('[aria-label="Tensors of the last sample"] tbody tr');
    expect(await rows.count()).toBe(tensors.length);
    for (const [i, { name, updateRatio }] of tensors.entries()) {
      const row = (await rows.nth(i).textContent())!;
      expect(row).toContain(name);
      if (updateRatio === null) continue;
      const word = updateRatio < 1e-3 ? 'below' : updateRatio > 1e-2 ? 'above' : 'within';
      expect(row).toContain(`${word} the band`);
    }
    expect(await text('.card:has(.heatmap)')).toContain(`${cost.samples} samples`);
    const histogram = () => page.locator('.heatmap svg').getAttribute('aria-label');
    const of = ({ low, high, counts }: { low: number; high: number; counts: number[] }) =>
      `at step ${step} ${counts.reduce((a, b) => a + b)} values from ${short(low)} to ${short(high)}`;
    expect(await histogram()).toContain(of(tensors[0]!.weights));
    expect(await histogram()).toContain(`in ${samples.length} samples`);
    const choose = (label: string, value: string) =>
      page
        .locator('label.field', { has: page.getByText(label, { exact: true }) })
        .locator('select')
        .selectOption(value);
    await choose('Of', 'gradients');
    await choose('Tensor', tensors[2]!.name);
    await expect.poll(histogram).toContain(of(tensors[2]!.gradients));
    await choose('Of', 'activations');
    await expect.poll(histogram).toContain(of(layers[0]!.values));
    await picture(page, 'run-inside');
  });

  test('a study that runs is followed without a touch, and an operator removes it', async () => {
    const report = (ended: number): StudyReport => ({
      ...{ kind: 'ensemble', state: 'running', experiment: 'few-digits', run: null },
      ...{ title: 'An ensemble', trials: { ended, of: 4 }, headings: ['run', 'loss'] },
      ...{
        rows: [['digits', `0.${ended}`]],
        advice: '',
        figures: [],
        omitted: 0,
        runs: ['digits'],
      },
    });
    await cluster.client.tellStudy('of-a-kind-to-come', report(1));
    await page.goto(`${cluster.url}/#/studies/of-a-kind-to-come`);
    await page.getByText('1 of 4 trials ended').waitFor();
    await page.getByRole('link', { name: 'digits' }).waitFor();
    await cluster.client.tellStudy('of-a-kind-to-come', report(3));
    await page.getByText('3 of 4 trials ended').waitFor();
    expect(await text('[aria-label="Results"] tbody tr')).toBe('digits0.3');
    await page.getByRole('button', { name: 'Remove' }).click();
    await page.getByRole('button', { name: 'Remove the study' }).click();
    await page.waitForSelector('tr[data-study="a-search"]');
    await expect.poll(() => page.locator('tr[data-study="of-a-kind-to-come"]').count()).toBe(0);
    const names = (await cluster.client.studies()).map(({ name }) => name);
    expect(names).not.toContain('of-a-kind-to-come');
    // They outlive the server.
    const { port } = new URL(cluster.url);
    await cluster.stopWorkers();
    await cluster.stopServer();
    await cluster.serve(Number(port));
    expect((await cluster.client.studies()).map(({ name }) => name)).toEqual(names);
  });

  test('an observer reads them, and sees no button that changes one', async () => {
    await page.getByRole('button', { name: 'Log out' }).click();
    await page.waitForSelector('form.login');
    await logIn(TOKENS.observerToken);
    await open('a-search');
    expect(await page.getByRole('button', { name: 'Remove' }).count()).toBe(0);
    const status = await page.evaluate(
      async () => (await fetch('/studies/a-search', { method: 'DELETE' })).status,
    );
    expect(status).toBe(403);
  });

  test('nothing failed in the page', () => {
    expect(problems).toEqual([]);
  });
});
