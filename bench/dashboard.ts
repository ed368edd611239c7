import { mkdir } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { checkpointFolder, readCheckpoint, writeCheckpoint } from '../files/checkpoint.ts';
import { listCheckpoints } from '../files/manifest.ts';
import type { RunState } from '../server/core/run/state.ts';
import { medianOf } from '../shared/quantile.ts';
import { findBrowser } from '../test/support/browser.ts';
import { launch, type Page } from '../test/support/dashboard.ts';
import { EXPERIMENT, MLP_PARAMETERS, startLoad } from './load.ts';
import { cpuMs, startServer, temporaryFolder } from './processes.ts';
import type { Table, Target } from './report.ts';

/**
 * What a dashboard costs, and how soon it shows something: a real browser, a server of its own, real runs of 100,000
 * updates. The browser has the same cores as all else here; elsewhere it would have its own.
 */

export interface DashboardRow {
  readonly what: string;
  readonly unit: string;
  readonly value: number | null;
  readonly low: number | null;
  readonly high: number | null;
}

export interface DashboardOptions {
  readonly runs: number;
  readonly steps: number;
  readonly turns: number;
  readonly seconds: number;
  readonly progress: (what: string) => void;
}

const NAMES = {
  first: 'first curve of a run visible',
  firstCpu: 'CPU time of the page until then',
  cold: 'the same, as the first page after the start of the server',
  compare: 'all runs compared: until their curves are there',
  frame: 'longest frame while they are compared, smoothed and zoomed, CPU time',
  watched: 'updates/s with a page that shows the run, over those without',
  asked: 'the same, where the page asks and draws elsewhere',
  cpu: 'server CPU time of an update without a page, over that with one',
} as const;

/** Elements of the runs with long curves: their updates are to be quick. */
const SMALL = 64;

/** @returns no rows where there is no browser. */
export async function benchDashboard(options: DashboardOptions): Promise<DashboardRow[]> {
  if (findBrowser() === null) return [];
  const { progress } = options;
  progress(`a run of ${options.steps} updates, ${options.runs} times`);
  const folder = temporaryFolder();
  try {
    await makeLongRuns(folder.path, options);
    const rows = await benchPages(folder.path, options);
    return [...rows, ...(await benchCost(options))];
  } finally {
    folder.remove();
  }
}

/** One real run, and its copies under other names with other numbers, as checkpoints that a server finds. */
async function makeLongRuns(state: string, { runs, steps }: DashboardOptions): Promise<void> {
  const server = await startServer({ state });
  const load = startLoad();
  try {
    const { client, url } = server;
    await client.createRun({ id: 'long-0', ...EXPERIMENT, config: LONG });
    const to = { url, run: 'long-0', transport: 'unix', elements: SMALL, push: 'f32' } as const;
    await load.open({ count: 1, to });
    while ((await client.run('long-0')).step < steps) await load.run(0.5);
    await load.disconnect();
    await client.stop('long-0');
    const isKept = async () =>
      (await client.checkpoints('long-0')).some(({ step }) => step >= steps);
    while (!(await isKept())) await wait(50);
  } finally {
    await load.close();
    await server.close();
  }
  const folder = checkpointFolder(state, 'long-0');
  const manifest = (await listCheckpoints(folder)).findLast(({ kind }) => kind === 'last')!;
  const { tensors } = await readCheckpoint(folder, manifest);
  const source = manifest.state as RunState;
  for (let i = 1; i < runs; i++) {
    const run = `long-${i}`;
    const scale = 0.8 + (0.4 * i) / runs;
    const points = source.observations.points.map((point, at) => ({
      ...point,
      loss: scale * (0.1 + Math.exp(-at / 400)) * (1 + 0.1 * Math.sin(at * (1 + i))),
    }));
    await mkdir(checkpointFolder(state, run), { recursive: true });
    await writeCheckpoint(checkpointFolder(state, run), {
      ...{ run, step: manifest.step, kind: 'last', layoutHash: manifest.layoutHash, tensors },
      state: {
        ...source,
        options: { ...source.options, id: run },
        observations: { ...source.observations, points },
      },
      now: new Date(),
    });
  }
}

const LONG = {
  ...{ optimizer: { kind: 'sgd' }, averaging: { kind: 'none' }, minibatchSize: 64 },
  ...{
    evaluateEverySteps: 1_000_000_000,
    stepsMax: 1_000_000_000,
    earlyStopping: { enabled: false },
  },
  checkpoint: { everySeconds: 3600 },
} as const;

async function benchPages(
  state: string,
  { runs, turns, progress }: DashboardOptions,
): Promise<DashboardRow[]> {
  const server = await startServer({ state });
  const browser = await launch();
  const opened = async (use: (page: Page) => Promise<number>) => {
    // Nothing is in its cache.
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    try {
      return await use(await context.newPage());
    } finally {
      await context.close();
    }
  };
  try {
    const cpus: number[] = [];
    const first = () =>
      opened(async (page) => {
        let seconds = Number.NaN;
        const tasks = await tasksOf(page, async () => {
          await page.goto(`${server.url}/#/runs/long-0`);
          await page.waitForSelector('[aria-label^="Loss: "] canvas');
          // Since the address was entered, when a frame with it has been painted.
          seconds = await page.evaluate(
            () =>
              new Promise<number>((done) =>
                requestAnimationFrame(() => setTimeout(() => done(performance.now() / 1000))),
              ),
          );
        });
        cpus.push(tasks.reduce((sum, ms) => sum + ms, 0) / 1000);
        return seconds;
      });
    progress('the first curve');
    const cold = await first();
    const warm: number[] = [];
    for (let i = 0; i < turns; i++) warm.push(await first());
    const frames: number[] = [];
    const compared: number[] = [];
    for (let i = 0; i < Math.min(3, turns); i++) {
      progress(`${runs} runs compared, ${i + 1}`);
      await opened(async (page) => {
        let seconds = Number.NaN;
        await selectAll(page, server.url, runs);
        const tasks = await tasksOf(page, async () => {
          seconds = await compareAll(page, runs);
        });
        frames.push(Math.max(...tasks));
        compared.push(seconds);
        return 0;
      });
    }
    return [
      rowOf(NAMES.first, 's', warm),
      rowOf(NAMES.firstCpu, 's', cpus),
      rowOf(NAMES.cold, 's', [cold]),
      rowOf(NAMES.compare, 's', compared),
      rowOf(NAMES.frame, 'ms', frames),
    ];
  } finally {
    await browser.close();
    await server.close();
  }
}

/**
 * CPU time of each task of the page's own thread meanwhile, ms: what a frame takes on a machine that does nothing else.
 */
async function tasksOf(page: Page, meanwhile: () => Promise<void>): Promise<number[]> {
  const browser = page.context().browser()!;
  await browser.startTracing(page, { categories: ['disabled-by-default-devtools.timeline'] });
  let trace: Buffer;
  try {
    await meanwhile();
  } finally {
    trace = await browser.stopTracing();
  }
  interface Event {
    readonly name: string;
    readonly tid: number;
    readonly pid: number;
    readonly tdur?: number;
    readonly args?: { readonly name?: string };
  }
  const { traceEvents } = JSON.parse(trace.toString()) as { traceEvents: readonly Event[] };
  const threads = new Set(
    traceEvents
      .filter(({ name, args }) => name === 'thread_name' && args?.name === 'CrRendererMain')
      .map(({ pid, tid }) => `${pid} ${tid}`),
  );
  return traceEvents
    .filter(({ name, pid, tid }) => name === 'RunTask' && threads.has(`${pid} ${tid}`))
    .map(({ tdur = 0 }) => tdur / 1000);
}

async function selectAll(page: Page, url: string, runs: number): Promise<void> {
  await page.goto(url);
  await page.waitForFunction((n) => document.querySelectorAll('tr[data-run]').length === n, runs);
  await page.evaluate(() => {
    for (const box of document.querySelectorAll<HTMLInputElement>('tr[data-run] input'))
      box.click();
  });
  await frame(page);
}

/** Compares the selected runs, smooths and zooms. @returns seconds until all curves were there. */
async function compareAll(page: Page, runs: number): Promise<number> {
  const from = performance.now();
  // Not by its role: looking for that takes the page as long as a frame.
  await page.click('a[href="#/compare"]');
  await page.waitForSelector(`[data-curves="${runs}"]`, { timeout: 60_000 });
  const seconds = (performance.now() - from) / 1000;
  const slider = page.getByLabel('Smoothing');
  for (const value of ['0.3', '0.6', '0.9', '0.99']) {
    await slider.fill(value);
    await frame(page);
  }
  await page.getByLabel('Logarithmic y').check();
  await frame(page);
  const box = (await page.locator('.u-over').boundingBox())!;
  await page.mouse.move(box.x + 0.2 * box.width, box.y + 50);
  await page.mouse.down();
  for (let i = 1; i <= 5; i++) {
    await page.mouse.move(box.x + (0.2 + 0.1 * i) * box.width, box.y + 60);
    await frame(page);
  }
  await page.mouse.up();
  await frame(page);
  return seconds;
}

const frame = (page: Page) =>
  page.evaluate(() => new Promise((done) => requestAnimationFrame(() => setTimeout(done))));

/** Training in turns: nobody looks, a page of a browser does, a page's requests come from elsewhere. */
async function benchCost({ turns, seconds, progress }: DashboardOptions): Promise<DashboardRow[]> {
  const server = await startServer();
  const load = startLoad();
  const browser = await launch();
  try {
    const { client, url } = server;
    await client.createRun({ id: 'bench', ...EXPERIMENT, config: LONG });
    const to = { url, run: 'bench', transport: 'unix', push: 'f32' } as const;
    await load.open({ count: 1, to: { ...to, elements: MLP_PARAMETERS } });
    const page = await (await browser.newContext()).newPage();
    const rate = async () => {
      const [step, cpu] = [(await client.run('bench')).step, await cpuMs(server.pid)];
      const { roundTripsPerSecond } = await load.run(seconds);
      const updates = (await client.run('bench')).step - step;
      return { perSecond: roundTripsPerSecond, cpuMs: ((await cpuMs(server.pid)) - cpu) / updates };
    };
    await load.run(1);
    const ratios: Record<'watched' | 'asked' | 'cpu', number[]> = {
      watched: [],
      asked: [],
      cpu: [],
    };
    for (let i = 0; i < turns; i++) {
      progress(`an open page, turn ${i + 1} of ${turns}`);
      const before = await rate();
      await page.goto(`${url}/#/runs/bench`);
      await page.waitForSelector('.u-over');
      ratios.watched.push((await rate()).perSecond / before.perSecond);
      await page.goto('about:blank');
      const again = await rate();
      const stop = askLikeAPage(url);
      const asked = await rate();
      stop.abort();
      ratios.asked.push(asked.perSecond / again.perSecond);
      ratios.cpu.push(again.cpuMs / asked.cpuMs);
    }
    return (['watched', 'asked', 'cpu'] as const).map((way) => rowOf(NAMES[way], '', ratios[way]));
  } finally {
    await browser.close();
    await load.close();
    await server.close();
  }
}

/** The feed, and the curves of the run every two seconds. */
function askLikeAPage(url: string): AbortController {
  const stop = new AbortController();
  const { signal } = stop;
  const read = async (path: string) => {
    const response = await fetch(url + path, { signal });
    for await (const _ of response.body!) {
      // Taken, and left.
    }
  };
  void read('/feed').catch(() => {});
  const curves = async () => {
    while (!signal.aborted) {
      await read('/runs/bench/metrics?points=600');
      await wait(2_000, null, { signal });
    }
  };
  void curves().catch(() => {});
  return stop;
}

function rowOf(what: string, unit: string, values: readonly number[]): DashboardRow {
  const sorted = [...values].sort((a, b) => a - b);
  return { what, unit, value: medianOf(values), low: sorted[0]!, high: sorted.at(-1)! };
}

export function dashboardTable(
  rows: readonly DashboardRow[],
  { runs, steps }: Pick<DashboardOptions, 'runs' | 'steps'>,
): Table {
  return {
    name: 'dashboard',
    question: `How soon does the dashboard show a run, and what does it cost, with ${runs} runs of ${steps} updates?`,
    columns: [
      { key: 'what', title: 'what' },
      { key: 'value', title: 'median' },
      { key: 'low', title: 'least' },
      { key: 'high', title: 'most' },
      { key: 'unit', title: 'unit' },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: 'Headless Chromium on the same cores, an empty cache each time, no GPU. A frame: the longest task of the page’s thread, in CPU time, which does not depend on other work on the machine. Costs: one simulated worker pushes the MLP in f32 as fast as it gets answers, in turns with and without a page; medians of ratios. The browser draws on the same cores and takes its share of them. So the last two rows show what the server itself spends on a page.',
  };
}

export function dashboardTargets(rows: readonly DashboardRow[]): Target[] {
  const seen = (what: string) => rows.find((row) => row.what === what)?.value ?? null;
  return [
    { what: NAMES.first, unit: 's', bound: 'atMost', wanted: 1, seen: seen(NAMES.first) },
    { what: NAMES.frame, unit: 'ms', bound: 'atMost', wanted: 50, seen: seen(NAMES.frame) },
    { what: NAMES.asked, unit: '', bound: 'atLeast', wanted: 0.98, seen: seen(NAMES.asked) },
  ];
}
