import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { findBrowser } from '../support/browser.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import {
  type Browser,
  launch,
  OUTPUT,
  type Page,
  picture,
  problemsOf,
} from '../support/dashboard.ts';

/**
 * The dashboard in a real browser, on a real training. What a view shows is compared with what REST answers;
 * pictures of each view go to test/output.
 */

const DIGITS = join(FIXTURES, 'few-digits.ts');
const TOKENS = { token: 'the-operator', observerToken: 'an-observer' } as const;

const skipped = findBrowser() === null && !process.env.CI;
let engine: Engine;
let cluster: Cluster;
let browser: Browser;
let page: Page;
let problems: string[];

beforeAll(async () => {
  if (skipped) return;
  engine = await openEngine({ engine: 'wasm' });
  cluster = await Cluster.start(engine, TOKENS);
  const common = { minibatchSize: 32, evaluateEverySteps: 13, hyperparameters: { count: 600 } };
  await cluster.createRun('digits-plain', DIGITS, { ...common, learningRate: 0.1, epochsMax: 6 });
  await cluster.work('digits-plain', 'ada').done;
  const other = { ...common, learningRate: 0.1, epochsMax: 6, seed: 2 };
  await cluster.createRun('digits-seed-2', DIGITS, other);
  await cluster.work('digits-seed-2', 'ada').done;
  await cluster.createRun('digits-momentum', DIGITS, {
    ...common,
    learningRate: 0.05,
    optimizer: { kind: 'momentum' },
    earlyStopping: { patience: 4 },
    evaluateTraining: 200,
    epochsMax: 6,
  });
  await cluster.work('digits-momentum', 'ada').done;
  // Still under way as long as the tests look.
  await cluster.createRun('digits-live', DIGITS, {
    ...common,
    learningRate: 0.02,
    earlyStopping: { patience: 10_000 },
    epochsMax: 100_000,
  });
  browser = await launch();
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  page = await context.newPage();
  problems = problemsOf(page);
});
afterAll(async () => {
  if (skipped) return;
  await browser?.close();
  await cluster?.close();
});

const text = async (selector: string) => (await page.locator(selector).first().textContent())!;
const grouped = (value: number) => new Intl.NumberFormat('en').format(value);

async function logIn(token: string): Promise<void> {
  await page.goto(cluster.url);
  await page.getByLabel('Token').fill(token);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.waitForSelector('tr[data-run]');
}

describe.skipIf(skipped)('the dashboard', () => {
  test('asks for a token, refuses a wrong one, and never shows it in an address', async () => {
    await page.goto(cluster.url);
    await page.waitForSelector('form.login');
    await picture(page, 'login');
    await page.getByLabel('Token').fill('a-guess');
    await page.getByRole('button', { name: 'Log in' }).click();
    await page.getByText('the token is missing or wrong').waitFor();
    await page.getByLabel('Token').fill(TOKENS.observerToken);
    await page.getByRole('button', { name: 'Log in' }).click();
    await page.waitForSelector('tr[data-run]');
    expect(page.url()).not.toContain(TOKENS.observerToken);
    const [cookie] = await page.context().cookies();
    expect(cookie).toMatchObject({ httpOnly: true, sameSite: 'Strict' });
    expect(cookie!.value).not.toContain(TOKENS.observerToken);
    expect(await page.evaluate(() => document.cookie)).toBe('');
  });

  test('shows an observer everything, and no button that changes a run', async () => {
    await page.goto(`${cluster.url}/#/runs/digits-live`);
    await page.getByRole('heading', { name: 'digits-live' }).waitFor();
    await page.getByText('observer').waitFor();
    // An address that was cut off in the midst of a name, and the way back.
    for (const place of ['runs/%ff', 'studies/%E0%A4', 'nowhere/else']) {
      await page.goto(`${cluster.url}/#/${place}`);
      await page.getByText('There is no such page.').waitFor();
      await page.goto(`${cluster.url}/#/runs/digits-live`);
      await page.getByRole('heading', { name: 'digits-live' }).waitFor();
    }
    expect(problems.filter((problem) => problem.includes('URI'))).toEqual([]);
    for (const name of ['Stop', 'Resume', 'Checkpoint', 'New run']) {
      expect(await page.getByRole('button', { name, exact: true }).count(), name).toBe(0);
    }
    const refused = await page.evaluate(async () => {
      const { status } = await fetch('/runs/digits-live/stop', { method: 'POST' });
      return status;
    });
    expect(refused).toBe(403);
    await page.getByRole('button', { name: 'Log out' }).click();
    await page.waitForSelector('form.login');
    expect(await page.evaluate(async () => (await fetch('/runs')).status)).toBe(401);
    await logIn(TOKENS.token);
  });

  test('lists all runs as REST does, filters them and orders them', async () => {
    await page.goto(`${cluster.url}/#/`);
    for (const run of await cluster.client.runs()) {
      const row = page.locator(`tr[data-run="${run.id}"]`);
      await row.waitFor();
      expect(await row.locator('.badge').textContent()).toBe(run.phase);
      if (run.phase !== 'finished') continue;
      expect(await row.locator('.col-step').textContent()).toContain(grouped(run.step));
      const best = await row.locator('.col-best').textContent();
      expect(best).toContain(`${(100 * run.best!.error!).toFixed(2)} %`);
      expect(best).toContain(`at ${grouped(run.best!.step)}`);
      expect(await row.locator('.col-loss').textContent()).toBe(
        String(Number(run.trainingLoss!.toPrecision(4))),
      );
      const points = await row.locator('polyline').getAttribute('points');
      expect(points!.split(' ')).toHaveLength(run.sparkline.length);
    }
    await page.getByLabel('Filter runs').fill('momentum');
    expect(await page.locator('tr[data-run]').count()).toBe(1);
    await page.getByLabel('Filter runs').fill('');
    await page.getByRole('button', { name: 'Ended' }).click();
    expect(await page.locator('tr[data-run]').count()).toBe(3);
    await page.getByRole('button', { name: 'All' }).click();
    await page.getByRole('button', { name: 'Training loss' }).click();
    const names = await page
      .locator('tr[data-run]')
      .evaluateAll((rows) => rows.map((row) => (row as HTMLElement).dataset.run));
    const losses = new Map((await cluster.client.runs()).map((run) => [run.id, run.trainingLoss]));
    const known = names.filter((name) => losses.get(name!) !== null);
    expect(known).toEqual([...known].sort((a, b) => losses.get(b!)! - losses.get(a!)!));
    expect(names.at(-1)).toBe('digits-live');
  });

  test('follows a run that trains, from the first step on', async () => {
    const { done } = cluster.work('digits-live', 'ada');
    cluster.work('digits-live', 'grace');
    done.catch(() => {});
    await page.goto(`${cluster.url}/#/runs/digits-live`);
    await page.waitForSelector('.u-over');
    const steps = async () =>
      Number((await text('.tile:first-child .tile-value')).replaceAll(',', ''));
    await expect.poll(steps).toBeGreaterThan(50);
    const seen = await steps();
    await expect.poll(steps).toBeGreaterThan(seen);
    await page.getByText('2 workers').first().waitFor();
    await expect
      .poll(() => page.locator('[aria-label^="Loss: "]').getAttribute('aria-label'))
      .toContain('validation 0.');
    // Examples of the validation part, with what the model says of them, and what the log says of the run.
    const gallery = page.locator('.gallery[aria-label="Predictions"] li');
    await expect.poll(() => gallery.count()).toBe(8);
    const { examples } = await cluster.client.examples('digits-live');
    const { shown } = examples[0]!;
    expect(shown).toMatchObject({ kind: 'image', width: 28, height: 28, channels: 1 });
    const caption = await gallery.first().locator('.line').textContent();
    expect(caption).toMatch(/^is \d, said \d$/);
    const log = page.getByRole('region', { name: 'Lines of the log' });
    await expect.poll(() => log.textContent()).toMatch(/worker grace takes part/);
    expect(await log.textContent()).toContain('created: few-digits');
    await picture(page, 'run-live');
    await page.goto(`${cluster.url}/#/`);
    await page.waitForSelector('tr[data-run]');
    await picture(page, 'runs');
  });

  test('shows one run as REST tells it', async () => {
    const id = 'digits-momentum';
    await page.goto(`${cluster.url}/#/runs/${id}`);
    await page.waitForSelector('.u-over');
    const [run, metrics, checkpoints] = await Promise.all([
      cluster.client.run(id),
      cluster.client.metrics(id),
      cluster.client.checkpoints(id),
    ]);
    expect(run.phase).toBe('finished');
    const short = (value: number) => String(Number(value.toPrecision(4)));
    // Each of what the view reads comes when it comes.
    await expect.poll(() => text('.tiles')).toContain(`${(100 * run.best!.error!).toFixed(2)} %`);
    const loss = await page.locator('[aria-label^="Loss: "]').getAttribute('aria-label');
    expect(loss).toContain(`smoothed ${short(metrics.training.loss.at(-1)!)}`);
    const last = metrics.evaluations.findLast(({ part }) => part === 'validation')!;
    expect(loss).toContain(`validation ${short(last.loss!)}`);
    const rate = await page.locator('[aria-label^="Learning rate: "]').getAttribute('aria-label');
    expect(rate).toContain('learning rate 0.05, momentum 0.9');
    const norm = await page.locator('[aria-label^="Gradient norm: "]').getAttribute('aria-label');
    expect(norm).toContain(short(metrics.training.gradientNorm.at(-1)!));
    const stopping = await text('.stopping');
    const { stoppedAt } = run.earlyStopping;
    expect(stopping).toContain(`Training stopped at step ${grouped(stoppedAt!)}; the best`);
    expect(stopping).not.toMatch(/Patience left|training stops/);
    expect(stopping).toContain(`at step ${grouped(run.best!.step)}`);
    await expect
      .poll(() => page.locator('[aria-label="Checkpoints"] tbody tr').count())
      .toBe(checkpoints.length);
    await picture(page, 'run');
    // For README and docs: `cp test/output/dashboard.png docs/`.
    await page.screenshot({ path: join(OUTPUT, 'dashboard.png') });
  });

  test('draws curves that have come before the facts of their run at once', async () => {
    const other = await page.context().newPage();
    let asked = 0;
    let curvesCame = () => {};
    const curves = new Promise<void>((done) => {
      curvesCame = done;
    });
    other.on('response', (response) => {
      if (!response.url().includes('/digits-plain/metrics')) return;
      asked++;
      curvesCame();
    });
    await other.route('**/feed*', async (route) => {
      await curves;
      await route.continue();
    });
    await other.goto(`${cluster.url}/#/runs/digits-plain`);
    await other.waitForSelector('[aria-label^="Loss: "] canvas');
    expect(asked).toBe(1);
    await other.close();
  });

  test('saves the numbers of a plot, and its picture', async () => {
    const saved = async (name: string) => {
      const [download] = await Promise.all([
        page.waitForEvent('download'),
        page.getByRole('button', { name }).click(),
      ]);
      return { name: download.suggestedFilename(), bytes: readFileSync(await download.path()) };
    };
    const { training } = await cluster.client.metrics('digits-momentum', 600);
    const csv = await saved('Save Gradient norm as CSV');
    expect(csv.name).toBe('gradient-norm.csv');
    const lines = csv.bytes.toString().trim().split('\n');
    expect(lines[0]).toBe('curve,step,gradient norm');
    expect(lines.slice(1)).toEqual(
      training.step.map((step, i) => `gradient norm,${step},${training.gradientNorm[i]}`),
    );
    const png = await saved('Save Loss as PNG');
    expect(png.bytes.subarray(1, 4).toString()).toBe('PNG');
    expect(png.bytes.length).toBeGreaterThan(3000);
    const svg = (await saved('Save Loss as SVG')).bytes.toString();
    expect(svg).toMatch(/^<svg [^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
    expect(svg.match(/<path /g)!.length).toBeGreaterThanOrEqual(3);
  });

  test('compares several runs on one plot', async () => {
    await page.goto(`${cluster.url}/#/`);
    for (const id of ['digits-plain', 'digits-momentum'])
      await page.getByLabel(`Select ${id}`).check();
    await page.getByText('2 runs selected').waitFor();
    await page.getByRole('link', { name: 'Compare' }).click();
    await page.waitForSelector('[data-curves="2"]');
    const label = () => page.locator('[aria-label^="Comparison: "]').getAttribute('aria-label');
    const runs = await Promise.all(
      ['digits-plain', 'digits-momentum'].map((id) => cluster.client.metrics(id)),
    );
    const ends = runs.map(({ training }) => String(Number(training.loss.at(-1)!.toPrecision(4))));
    expect(await label()).toBe(`Comparison: digits-plain ${ends[0]}, digits-momentum ${ends[1]}`);
    await page.getByLabel('Over').selectOption('examples');
    await page.getByLabel('Value').selectOption('validationError');
    await page.getByLabel('Logarithmic x').check();
    const errors = runs.map(
      ({ evaluations }) => evaluations.findLast(({ part }) => part === 'validation')!.error!,
    );
    await expect
      .poll(label)
      .toBe(
        `Comparison: digits-plain ${(100 * errors[0]!).toFixed(2)} %, digits-momentum ${(100 * errors[1]!).toFixed(2)} %`,
      );
    await page.getByLabel('Value').selectOption('trainingLoss');
    await page.getByLabel('Logarithmic x').uncheck();
  });

  test('compares the mean of all seeds with other configurations, and says what differs', async () => {
    await page.goto(`${cluster.url}/#/`);
    await page.getByLabel('Select digits-seed-2').check();
    await page.getByRole('link', { name: 'Compare' }).click();
    await page.waitForSelector('[data-curves="2"]');
    const label = () => page.locator('[aria-label^="Comparison: "]').getAttribute('aria-label');
    await expect.poll(label).toContain('digits-plain and 1 more: mean of 2');
    const ids = ['digits-plain', 'digits-seed-2'];
    const [first, second] = await Promise.all(ids.map((id) => cluster.client.metrics(id, 600)));
    await page.getByLabel('Value').selectOption('validationLoss');
    const last = (of: typeof first) =>
      of!.evaluations.findLast(({ part }) => part === 'validation')!.loss!;
    const mean = (last(first) + last(second)) / 2;
    await expect.poll(label).toContain(`mean of 2 ${Number(mean.toPrecision(4))}`);
    await page.getByText('one standard deviation').waitFor();
    const rows = page.getByRole('region', { name: 'Differences' }).locator('tr[data-field]');
    const fields = () =>
      rows.evaluateAll((all) => all.map((row) => (row as HTMLElement).dataset.field));
    await expect
      .poll(fields)
      .toEqual(
        expect.arrayContaining([
          ...['learningRate', 'optimizer.kind', 'earlyStopping.patience', 'seed'],
        ]),
      );
    expect(await fields()).not.toContain('minibatchSize');
    const rates = page.locator('tr[data-field="learningRate"] code');
    expect(await rates.allTextContents()).toEqual(['0.1', '0.05']);
    await page.getByLabel('Group by').selectOption('run');
    await page.waitForSelector('[data-curves="3"]');
    await page.getByLabel('Group by').selectOption('configuration');
    await page.getByLabel('Value').selectOption('trainingLoss');
    await picture(page, 'compare');
  });

  test('shows the workers, what they did, and the server, as REST tells them', async () => {
    await page.goto(`${cluster.url}/#/cluster`);
    await page.waitForSelector('tr[data-worker="grace"]');
    const { workers } = await cluster.client.status();
    for (const worker of workers.filter(({ state }) => state !== 'gone')) {
      const row = page.locator(`tr[data-worker="${worker.worker}"]`).first();
      const shown = (await row.textContent())!;
      expect(shown).toContain(`${worker.engine} on ${worker.device}`);
      expect(shown).toContain('digits-live');
      expect(shown).toMatch(/training|evaluating|waiting/);
    }
    expect(await page.locator('tr[data-worker]').count()).toBe(workers.length);
    // They work in this process, and tell how busy it is.
    const machine = page.locator('tr[data-worker="grace"] .machine');
    await expect.poll(() => machine.first().textContent()).toMatch(/of \d+ cores.*memory .* of /);
    const prometheus = await cluster.client.prometheus();
    expect(prometheus).toMatch(/^downpour_worker_memory_bytes\{worker="grace"\} \d{8,}/m);
    const received = (await cluster.client.status()).workers.map(({ bytes }) => bytes.received);
    expect(Math.min(...received)).toBeGreaterThan(1000);
    await expect.poll(() => text('.tiles')).toMatch(/Throughput[1-9]/);
    expect(await text('.tiles')).toContain('StateFiles');
    // Both are asked each time: those who went ten minutes ago leave the timeline while we look.
    const lanesAmiss = async () =>
      (await page.locator('.lane-bar').count()) - (await cluster.client.timeline()).workers.length;
    await expect.poll(lanesAmiss).toBe(0);
    const lane = await page.locator('.lane-bar').last().getAttribute('aria-label');
    expect(lane).toMatch(/computing \d+\.\d\d %/);
    // A busy machine may hold one of the two up: then the page says that.
    const alertsAmiss = async () => {
      const { alerts } = await cluster.client.status();
      const wanted = alerts.map((alert) => alert.text);
      if (wanted.length === 0) wanted.push('Nothing needs to be looked at.');
      const shown = await text('[aria-labelledby="card-alerts"]');
      return wanted.filter((line) => !shown.includes(line));
    };
    await expect.poll(alertsAmiss).toEqual([]);
    await picture(page, 'cluster');
    // Once they have gone, their sums stand still.
    await cluster.stopWorkers();
    await page.getByText('digits-live waits for a worker').waitFor({ timeout: 60_000 });
    await expect
      .poll(() => page.locator('tr[data-worker] .badge[data-kind="gone"]').count())
      .toBe(workers.length);
    for (const { worker, pushes } of (await cluster.client.status()).workers) {
      const rows = page.locator(`tr[data-worker="${worker}"]`, {
        hasText: grouped(pushes.applied),
      });
      await expect.poll(() => rows.count(), { message: worker }).toBeGreaterThan(0);
    }
    await picture(page, 'cluster-alert');
    cluster.work('digits-live', 'ada');
  });

  test('a group that thaws while the page is open, and a curve for each loss of an objective', async () => {
    const file = join(FIXTURES, 'two-losses.ts');
    const { config } = await loadExperiment(file);
    await cluster.createRun('two-losses', file, config!);
    await page.goto(`${cluster.url}/#/runs/two-losses`);
    const state = page.getByRole('region', { name: 'Groups of parameters' }).locator('td').last();
    await state.filter({ hasText: /^frozen until step 20$/ }).waitFor();
    const losses = page.locator('[aria-label^="Losses and metrics: "]');
    expect(await losses.isVisible()).toBe(false);
    await cluster.work('two-losses', 'lin').done;
    await state.filter({ hasText: /^trained from step 20 on$/ }).waitFor();
    const { evaluations } = await cluster.client.metrics('two-losses');
    const { metrics, step } = evaluations.findLast(({ part }) => part === 'validation')!;
    expect(Object.keys(metrics)).toEqual(['distance', 'size']);
    expect(step).toBe(40);
    const short = (value: number) => String(Number(value.toPrecision(4)));
    await expect
      .poll(() => losses.getAttribute('aria-label'))
      .toContain(`distance ${short(metrics.distance!)}, size ${short(metrics.size!)}`);
    await picture(page, 'run-losses');
  });

  test('an operator names, tags, notes and archives a run', async () => {
    await page.goto(`${cluster.url}/#/runs/digits-plain`);
    await page.getByRole('button', { name: 'Edit name, tags and note' }).click();
    await page.getByLabel('Name', { exact: true }).fill('The baseline <b>');
    await page.getByLabel('Tags, with spaces between').fill('paper, plain');
    await page
      .getByRole('textbox', { name: 'Note' })
      .fill('Trained with plain SGD.\n<script>alert(1)</script>');
    await page.getByRole('button', { name: 'Save', exact: true }).click();
    await page.getByRole('heading', { name: 'The baseline <b>' }).waitFor();
    await page.getByText('<script>alert(1)</script>').waitFor();
    expect(await cluster.client.run('digits-plain')).toMatchObject({
      ...{ name: 'The baseline <b>', tags: ['paper', 'plain'] },
      note: 'Trained with plain SGD.\n<script>alert(1)</script>',
    });
    await picture(page, 'run-labels');
    // One file to send: it loads nothing, and what users wrote is text.
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'Report', exact: true }).click(),
    ]);
    expect(download.suggestedFilename()).toBe('digits-plain.html');
    const offline = await browser.newContext({ offline: true });
    const sent = await offline.newPage();
    const asked: string[] = [];
    sent.on('request', (each) => asked.push(each.url()));
    const file = join(cluster.folder, 'report.html');
    await download.saveAs(file);
    await sent.goto(`file://${file}`);
    expect(await sent.title()).toBe('The baseline <b>');
    expect(await sent.locator('.note').textContent()).toContain('<script>alert(1)</script>');
    expect(await sent.locator('script').count()).toBe(0);
    expect(await sent.locator('svg[role="img"]').count()).toBeGreaterThanOrEqual(4);
    expect(await sent.locator('.gallery img').count()).toBe(8);
    const drawn = await sent
      .locator('.gallery img')
      .first()
      .evaluate((image: HTMLImageElement) => image.naturalWidth);
    expect(drawn).toBe(28);
    expect(asked.filter((url) => !/^(file|data):/.test(url))).toEqual([]);
    await sent.screenshot({ path: join(OUTPUT, 'report.png'), fullPage: true });
    await offline.close();
    await page.goto(`${cluster.url}/#/`);
    await page.getByRole('button', { name: 'Runs with tag paper' }).click();
    await expect.poll(() => page.locator('tr[data-run]').count()).toBe(1);
    await page.getByLabel('Filter runs').fill('');
    await page.getByLabel('Select digits-seed-2').check();
    await page.getByRole('button', { name: 'Archive', exact: true }).click();
    await page.locator('tr[data-run="digits-seed-2"]').waitFor({ state: 'detached' });
    expect((await cluster.client.run('digits-seed-2')).archived).toBe(true);
    await page.getByRole('button', { name: 'Archived' }).click();
    await page.locator('tr[data-run="digits-seed-2"]').waitFor();
    await page.goto(`${cluster.url}/#/runs/digits-seed-2`);
    await page.getByRole('button', { name: 'Take back' }).click();
    await page.getByRole('button', { name: 'Archive', exact: true }).waitFor();
    expect((await cluster.client.run('digits-seed-2')).archived).toBe(false);
  });

  test('shows the tables of a run as REST has them, and no card where there are none', async () => {
    await page.goto(`${cluster.url}/#/runs/digits-momentum`);
    await page.getByRole('heading', { name: 'digits-momentum' }).waitFor();
    expect(await page.locator('tr[data-table]').count()).toBe(0);
    const words = join(FIXTURES, 'rows-of-words.ts');
    await cluster.createRun('words', words, {
      ...{ epochsMax: 2, minibatchSize: 16, tables: { word: { rows: 200, width: 1 } } },
    });
    await cluster.work('words', 'words-0').done;
    const { tables, pushes } = await cluster.client.run('words');
    const [table] = tables!;
    expect(table!.updates).toBeGreaterThan(table!.rows);
    await page.goto(`${cluster.url}/#/runs/words`);
    const line = page.locator(`tr[data-table="${table!.name}"]`);
    const cells = async () => (await line.locator('td').allTextContents()).slice(0, 5);
    const { name, rows, rowsMax, width, updates, memoryBytes } = table!;
    const kept = `${grouped(rows)} of ${grouped(rowsMax)}`;
    const memory = `${Number((memoryBytes / 1_000).toPrecision(3))} KB`;
    await expect.poll(cells).toEqual([name, kept, String(width), memory, grouped(updates)]);
    const each = Number(await line.locator('td').nth(5).textContent());
    expect(each).toBeCloseTo(updates / pushes.applied, 1);
  });

  test('an operator stops a run, and resumes it', async () => {
    await page.goto(`${cluster.url}/#/runs/digits-live`);
    await page.getByRole('button', { name: 'Checkpoint', exact: true }).click();
    await page.getByText('A checkpoint is written').waitFor();
    await page.getByRole('button', { name: 'Stop', exact: true }).click();
    await page.getByRole('button', { name: 'Stop the run' }).click();
    await page.getByRole('button', { name: 'Resume' }).waitFor();
    expect((await cluster.client.run('digits-live')).phase).toBe('stopped');
    await page.getByRole('button', { name: 'Resume' }).click();
    await page.getByRole('button', { name: 'Stop', exact: true }).waitFor();
    expect((await cluster.client.run('digits-live')).phase).not.toBe('stopped');
  });

  test('says that the server is away, and goes on by itself when it is back', async () => {
    const { port } = new URL(cluster.url);
    await cluster.stopWorkers();
    await cluster.stopServer();
    await page.getByText('Reconnecting').waitFor();
    await cluster.serve(Number(port));
    await page.getByText('Live', { exact: true }).waitFor({ timeout: 60_000 });
    // By the same cookie: it outlives a restart.
    await page.getByRole('button', { name: 'Stop', exact: true }).waitFor();
  });

  test('names twenty of the runs that are compared, and all when it is asked to', async () => {
    const ids = Array.from({ length: 22 }, (_, i) => `many-${i}`);
    for (const id of ids) await cluster.createRun(id, DIGITS, {});
    // Nothing is selected in a page that is loaded anew.
    await page.goto(`${cluster.url}/?anew#/`);
    for (const id of ids) await page.getByLabel(`Select ${id}`, { exact: true }).check();
    await page.getByRole('link', { name: 'Compare' }).click();
    const rows = page.getByRole('region', { name: 'Compared runs' }).locator('tr[data-run]');
    await expect.poll(() => rows.count()).toBe(20);
    await page.getByRole('button', { name: 'Show all 22 runs' }).click();
    await expect.poll(() => rows.count()).toBe(22);
    expect(await page.getByRole('button', { name: /Show all/ }).count()).toBe(0);
  });

  test('does nothing that its policy forbids, and fails nowhere', () => {
    expect(problems).toEqual([]);
  });
});
