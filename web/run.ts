import type {
  CheckpointSummary,
  Evaluation,
  Metrics,
  RunDetail,
  RunSummary,
  WorkerSummary,
} from '../shared/rest.ts';
import { stoppingText } from '../shared/stopping.ts';
import { percent } from '../shared/text.ts';
import { isRefitted } from '../shared/trained-last.ts';
import { Chart, type Content, type Curve, type Mark } from './chart.ts';
import {
  ago,
  bytes,
  compact,
  count,
  duration,
  errorOf,
  plural,
  roundPercent,
  short,
} from './format.ts';
import { fill, fillNew, h, setText } from './html.ts';
import { observationsCards } from './observations.ts';
import {
  badge,
  card,
  confirm,
  emptyState,
  isActive,
  notify,
  Tile,
  tableOf,
  toggle,
  type View,
} from './parts.ts';
import { saveButtons } from './save.ts';
import { client, isOperator, knowsAllRuns, lookForRun, state } from './store.ts';
import { kindText } from './studies.ts';

/** One run: its curves, where its early stopping stands, its checkpoints, and what may be done with it. */

/** About as many as a plot has pixels on a wide screen. */
const POINTS = 600;
/** Between two readings of the curves while it trains. */
const READ_MS = 2_000;
/** The same of samples, which are large. */
const OBSERVE_MS = 10_000;

export function runView(id: string): View {
  const charts = {
    loss: new Chart('Loss', { height: 280, empty: 'The first loss comes with the first update' }),
    error: new Chart('Validation error', { empty: 'The first evaluation is still to come' }),
    rate: new Chart('Learning rate'),
    norm: new Chart('Gradient norm'),
    speed: new Chart('Throughput'),
    staleness: new Chart('Staleness'),
  };
  const tiles = {
    step: new Tile('Step'),
    loss: new Tile('Training loss'),
    best: new Tile('Best validation'),
    speed: new Tile('Throughput'),
    rate: new Tile('Learning rate'),
    staleness: new Tile('Staleness p95'),
  };
  const observations = observationsCards();
  let lossLog = false;
  const phase = h('span', {});
  const reason = h('p', { class: 'reason' });
  const actions = h('div', { class: 'buttons' });
  const stopping = h('div', {});
  const checkpoints = h('div', {});
  const workers = h('div', {});
  const events = h('div', {});
  const configuration = h('div', {});
  const looks = h('section', { class: 'card full', 'aria-label': 'Looks at this model' });
  looks.hidden = true;
  const sampling = card(
    'Inside the model',
    h(
      'p',
      { class: 'muted' },
      'Of this run nothing is sampled. A run with ',
      h('code', {}, '--set observe.everySteps=100'),
      ' shows here how large its updates are, which units are dead or saturated, and histograms of parameters, gradients and activations over time.',
    ),
  );
  sampling.classList.add('full');
  sampling.hidden = true;
  const chartCard = (chart: Chart, ...more: HTMLElement[]) =>
    card(
      chart.title,
      h('div', { class: 'card-tools' }, ...more, saveButtons(chart)),
      chart.element,
    );

  const page = h(
    'div',
    {},
    h(
      'nav',
      { class: 'crumbs', 'aria-label': 'Breadcrumb' },
      h('a', { href: '#/' }, 'Runs'),
      ' / ',
    ),
    h('div', { class: 'headline' }, h('h1', {}, id), phase, actions),
    reason,
    h('dl', { class: 'tiles' }, ...Object.values(tiles).map((tile) => tile.element)),
    h(
      'div',
      { class: 'cards' },
      withClass(
        chartCard(
          charts.loss,
          toggle('Logarithmic', lossLog, (on) => {
            lossLog = on;
            draw();
          }),
        ),
        'wide',
      ),
      withClass(card('Early stopping', stopping), 'narrow'),
      chartCard(charts.error),
      chartCard(charts.rate),
      chartCard(charts.norm),
      chartCard(charts.speed),
      chartCard(charts.staleness),
      ...observations.plots,
      card('Checkpoints', checkpoints),
      ...observations.tables,
      sampling,
      looks,
      withClass(card('Workers of this run', workers), 'full'),
      events,
      withClass(card('Configuration', configuration), 'full'),
    ),
  );
  const missing = emptyState(
    'No such run',
    `This server has no run '${id}'. It may be on another server, or its state folder was changed.`,
  );
  const element = h('div', {}, page, missing);
  missing.hidden = true;

  let metrics: Metrics | null = null;
  let detail: RunDetail | null = null;
  let readStep = -1;
  let readAt = Number.NEGATIVE_INFINITY;
  let reading = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let ended = false;
  let observing = false;
  let observedAt = Number.NEGATIVE_INFINITY;
  let observedStep = -1;
  let observedPhase = '';
  let looksVersion = -1;
  let shownCheckpoint: string | null | undefined;

  /** Curves are asked for when there is something new, and not more often than every two seconds. */
  async function read(): Promise<void> {
    const run = state.runs.get(id);
    const stamp = run ? `${run.step} ${run.phase} ${run.validation?.step}` : '';
    if (reading || ended) return;
    const wait = readAt + READ_MS - performance.now();
    if (wait > 0) {
      clearTimeout(timer);
      timer = setTimeout(update, wait);
      return;
    }
    reading = true;
    readAt = performance.now();
    try {
      metrics = await client.metrics(id, POINTS);
      seen = stamp;
      readStep = run?.step ?? -1;
      if (!ended) draw();
    } catch {
      // The link's state is shown above; the next update asks again.
    } finally {
      reading = false;
    }
  }
  let seen = 'nothing';
  let drawn = false;
  let lookedFor = false;

  function update(): void {
    const run = state.runs.get(id);
    missing.hidden = run !== undefined || !knowsAllRuns();
    page.hidden = !missing.hidden;
    if (!run) {
      if (state.link === 'live' && !lookedFor) void lookForRun(id);
      lookedFor ||= state.link === 'live';
      return;
    }
    facts(run);
    // The curves may have come before the facts.
    if (!drawn) draw();
    const stamp = `${run.step} ${run.phase} ${run.validation?.step}`;
    if (stamp !== seen) void read();
    if (run.checkpoint?.file !== shownCheckpoint) {
      shownCheckpoint = run.checkpoint?.file ?? null;
      void readCheckpoints(run);
    }
    if (!detail) void readDetail();
    void readObservations(run);
    void readLooks();
  }

  /** Samples are large, and new ones come seldom. */
  async function readObservations(run: RunSummary): Promise<void> {
    const every = detail?.config.observe.everySteps;
    if (detail) sampling.hidden = every !== null;
    const isDue = run.step >= observedStep + (every ?? 0) || !isActive(run);
    if (every == null || observing || !isDue || observedPhase === `${run.phase} ${run.step}`)
      return;
    const wait = observedAt + OBSERVE_MS - performance.now();
    if (wait > 0 && isActive(run)) return;
    observing = true;
    observedAt = performance.now();
    try {
      const observed = await client.observations(id);
      observedPhase = `${run.phase} ${run.step}`;
      observedStep = observed.samples.at(-1)?.step ?? 0;
      if (!ended) observations.show(observed);
    } catch {
      // As with the curves.
    } finally {
      observing = false;
    }
  }

  async function readLooks(): Promise<void> {
    const version = state.server?.studiesVersion ?? -1;
    if (version === looksVersion) return;
    looksVersion = version;
    const studies = await client.studies().catch(() => []);
    const mine = studies.filter(({ run }) => run === id);
    looks.hidden = mine.length === 0;
    fill(
      looks,
      h('h2', {}, 'Looks at this model'),
      h(
        'ul',
        { class: 'plain' },
        ...mine.map(({ name, kind, title, updatedAt }) =>
          h(
            'li',
            {},
            h('a', { href: `#/studies/${name}` }, title),
            h('span', { class: 'sub' }, `${kindText(kind)}, ${ago(updatedAt)}`),
          ),
        ),
      ),
    );
  }

  async function readDetail(): Promise<void> {
    detail = await client.run(id).catch(() => null);
    if (detail) fill(configuration, configurationOf(detail));
  }

  async function readCheckpoints(run: RunSummary): Promise<void> {
    const list = await client.checkpoints(id).catch(() => null);
    if (list && !ended)
      fill(
        checkpoints,
        checkpointTable(run.id, list, () => fork(run)),
      );
  }

  function facts(run: RunSummary): void {
    fillNew(phase, run.phase, () => [badge(run.phase)]);
    setText(reason, run.reason);
    fillNew(actions, [isOperator(), run.phase], () => (isOperator() ? buttons(run) : []));
    const left = run.secondsLeft === null ? '' : `, ${duration(run.secondsLeft)} left at most`;
    tiles.step.show(
      count(run.step),
      `${run.stepsMax === null ? '' : `of ${count(run.stepsMax)}, `}epoch ${count(run.epoch)}${left}`,
    );
    tiles.loss.show(short(run.trainingLoss), `after ${plural(run.examples, 'example')}`);
    const { best } = run;
    tiles.best.show(
      best === null ? '–' : best.error === null ? short(best.loss) : errorOf(run)(best.error),
      best === null
        ? 'no evaluation yet'
        : `loss ${short(best.loss)} at step ${count(best.step)}${isRefitted(run) ? `, before '${run.earlyStopping.afterStop}'` : ''}`,
    );
    tiles.speed.show(
      run.examplesPerSecond ? count(run.examplesPerSecond) : '–',
      `examples a second, ${plural(run.workers, 'worker')}`,
    );
    tiles.rate.show(
      short(run.learningRate),
      [
        run.momentum === null ? null : `momentum ${short(run.momentum)}`,
        run.correction?.text ?? null,
      ]
        .filter((part) => part !== null)
        .join('; '),
    );
    const { staleness } = run;
    tiles.staleness.show(
      staleness === null ? '–' : count(staleness.p95),
      staleness === null
        ? 'no push was applied yet'
        : `median ${count(staleness.p50)}, most ${count(staleness.max)}`,
    );
    const { earlyStopping, test } = run;
    // Before the configuration is known, as most runs have it.
    const tests = (detail?.config.testAtEnd ?? true) && run.data?.testCount !== 0;
    fillNew(stopping, [run.phase, run.stepsMax, earlyStopping, best, test, tests], () => [
      stoppingOf(run, tests),
    ]);
    const mine = workersHere(run);
    fillNew(workers, [run.phase, mine], () => [workersOf(run, mine)]);
    const happened = eventsOf(run);
    fillNew(events, [run.rollbacks, run.stepsLost], () => [
      happened && card('What happened', happened),
    ]);
    events.hidden = happened === null;
  }

  function buttons(run: RunSummary): HTMLElement[] {
    const act = async (what: string, action: () => Promise<unknown>) => {
      try {
        await action();
        notify(what);
      } catch (error) {
        notify((error as Error).message, 'error');
      }
    };
    const list: HTMLElement[] = [];
    if (isActive(run)) {
      list.push(
        h(
          'button',
          {
            class: 'button',
            type: 'button',
            onClick: () => void act('A checkpoint is written', () => client.checkpoint(id)),
          },
          'Checkpoint',
        ),
        h(
          'button',
          {
            class: 'button danger',
            type: 'button',
            onClick: async () => {
              const sure = await confirm(
                `Stop ${id}?`,
                'It leaves a checkpoint and can be resumed from there at any time.',
                'Stop the run',
              );
              if (sure) await act('Stopped', () => client.stop(id));
            },
          },
          'Stop',
        ),
      );
    }
    if (run.phase === 'stopped') {
      list.push(
        h(
          'button',
          {
            class: 'button primary',
            type: 'button',
            onClick: () => void act('Goes on', () => client.resume(id)),
          },
          'Resume',
        ),
      );
    }
    return list;
  }

  /** A new run that begins with a checkpoint's parameters, with the same configuration. */
  function fork(run: RunSummary) {
    return async ({ file, step, kind }: CheckpointSummary) => {
      const sure = await confirm(
        'Begin a new run from this checkpoint?',
        `It begins with the ${kind === 'last' ? 'newest' : kind} parameters of ${run.id} at step ${count(step)}, with the same configuration; optimizer, schedule and steps begin anew. ${run.id} stays as it is.`,
        'Begin',
      );
      if (!sure) return;
      try {
        const { experiment, experimentHash, config } = await client.run(run.id);
        const made = await client.createRun({
          experiment,
          experimentHash,
          config,
          fork: { run: run.id, checkpoint: file },
        });
        location.hash = `#/runs/${made.id}`;
      } catch (error) {
        notify((error as Error).message, 'error');
      }
    };
  }

  function draw(): void {
    const run = state.runs.get(id);
    if (!metrics || !run) return;
    drawn = true;
    const { training, evaluations } = metrics;
    const validation = evaluations.filter(({ part }) => part === 'validation');
    const measured = evaluations.filter(({ part }) => part === 'train');
    const marks: Mark[] = [];
    const { best } = run;
    if (best?.loss != null)
      marks.push({ x: best.step, y: best.loss, text: `best: step ${count(best.step)}` });
    const curve = (
      label: string,
      color: Curve['color'],
      y: readonly (number | null)[],
      more: Partial<Curve> = {},
    ): Curve => ({ label, color, x: training.step, y, ...more });
    const steps = { xLabel: 'step', formatX: compact };
    charts.loss.show({
      ...steps,
      curves: [
        ...(training.step.length > 0
          ? [
              curve('minibatch', 'muted', training.minibatchLoss, { draw: 'faint' }),
              curve('training, smoothed', 0, training.loss),
            ]
          : []),
        ...evaluationCurve('validation', 1, validation, 'loss'),
        ...evaluationCurve('training set', 3, measured, 'loss'),
      ],
      marks,
      yLabel: 'loss',
      yLog: lossLog,
    });
    const errors = validation.filter(({ error }) => error !== null);
    const toldError = errorOf(run);
    charts.error.show({
      ...steps,
      curves: [
        ...evaluationCurve('validation', 1, errors, 'error'),
        ...evaluationCurve(
          'training set',
          3,
          measured.filter(({ error }) => error !== null),
          'error',
        ),
      ],
      marks:
        best?.error != null
          ? [{ x: best.step, y: best.error, text: `best: ${toldError(best.error)}` }]
          : [],
      yLabel: 'error',
      formatY: toldError,
      ...(toldError === percent ? { formatTick: roundPercent } : {}),
      yFrom: 0,
    });
    const hasMomentum = training.momentum.some((value) => value !== null);
    charts.rate.show({
      ...steps,
      curves:
        training.step.length === 0
          ? []
          : [
              curve('learning rate', 0, training.learningRate, { draw: 'steps' }),
              ...(hasMomentum
                ? [curve('momentum', 2, training.momentum, { draw: 'steps', dashed: true })]
                : []),
            ],
      yLabel: 'learning rate',
      formatY: short,
      yFrom: 0,
    });
    charts.norm.show({
      ...steps,
      curves: training.step.length === 0 ? [] : [curve('gradient norm', 0, training.gradientNorm)],
      yLabel: 'gradient norm',
      yLog: training.gradientNorm.every((value) => value === null || value > 0),
    });
    charts.speed.show(throughputOf(training));
    charts.staleness.show(stalenessOf(metrics.stalenessHistogram, run.staleness));
    element.dataset.step = String(readStep);
  }

  update();
  void read();
  return {
    title: id,
    element,
    update,
    destroy() {
      ended = true;
      clearTimeout(timer);
      for (const chart of Object.values(charts)) chart.destroy();
      observations.destroy();
    },
  };
}

function withClass(element: HTMLElement, name: string): HTMLElement {
  element.classList.add(name);
  return element;
}

function evaluationCurve(
  label: string,
  color: number,
  evaluations: readonly Evaluation[],
  what: 'loss' | 'error',
): Curve[] {
  if (evaluations.length === 0) return [];
  return [
    {
      label,
      color,
      x: evaluations.map(({ step }) => step),
      y: evaluations.map((evaluation) => evaluation[what]),
      draw: evaluations.length > 60 ? 'line' : 'points',
    },
  ];
}

/** Examples a second between points that are far enough apart to tell. */
function throughputOf({ step, seconds, examples }: Metrics['training']): Content {
  const x: number[] = [];
  const y: number[] = [];
  const whole = (seconds.at(-1) ?? 0) - (seconds[0] ?? 0);
  const span = Math.max(Math.min(1, whole / 6), whole / 80);
  let last = 0;
  for (let i = 1; i < step.length; i++) {
    const [before, now] = [examples[last], examples[i]];
    const took = seconds[i]! - seconds[last]!;
    if (took < span || before == null || now == null) continue;
    x.push(step[i]!);
    y.push((now - before) / took);
    last = i;
  }
  return {
    curves: x.length === 0 ? [] : [{ label: 'examples a second', color: 0, x, y }],
    xLabel: 'step',
    yLabel: 'examples a second',
    yFrom: 0,
  };
}

/** Counts of pushes by staleness, as far as there are any. */
function stalenessOf(histogram: readonly number[], staleness: RunSummary['staleness']): Content {
  const last = histogram.findLastIndex((n) => n > 0);
  const counts = last < 0 ? [] : histogram.slice(0, Math.max(last + 1, 5));
  return {
    curves:
      counts.length === 0
        ? []
        : [
            {
              label: staleness
                ? `applied pushes; median ${staleness.p50}, p95 ${staleness.p95}, most ${staleness.max}`
                : 'applied pushes',
              color: 0,
              x: counts.map((_, i) => i),
              y: counts,
              draw: 'bars',
            },
          ],
    xLabel: 'staleness, steps',
    yLabel: 'applied pushes',
    yFrom: 0,
  };
}

/** @param tests whether the test part is looked at in the end. */
function stoppingOf(run: RunSummary, tests: boolean): HTMLElement {
  const { enabled, metric, patience, patienceLeft, afterStop, stoppedAt, target, refitSteps } =
    run.earlyStopping;
  const watches = enabled && stoppedAt === null;
  const used = patience === 0 ? 0 : (patience - patienceLeft) / patience;
  const { best } = run;
  const value =
    best === null ? null : metric === 'error' ? errorOf(run)(best.error) : short(best.loss);
  const path = [
    'training',
    ...(afterStop === 'restore' ? [] : ['refitting']),
    ...(tests || run.test !== null || run.phase === 'testing' ? ['testing'] : []),
    'finished',
  ];
  const at = path.indexOf(run.phase === 'measuring' ? 'refitting' : run.phase);
  return h(
    'div',
    { class: 'stopping' },
    h(
      'ol',
      { class: 'path', 'aria-label': 'Phases' },
      ...path.map((name, i) =>
        h('li', { class: i < at ? 'done' : '', 'aria-current': i === at ? 'step' : null }, name),
      ),
    ),
    h(
      'dl',
      { class: 'pairs' },
      ...pair(enabled ? 'Watches' : 'Chooses the best by', `validation ${metric}`),
      ...pair(
        'Best',
        best === null
          ? 'none yet'
          : `${value} at step ${count(best.step)}, epoch ${count(best.epoch)}`,
      ),
      ...(watches
        ? pair('Patience left', `${count(patienceLeft)} of ${plural(patience, 'evaluation')}`)
        : []),
      ...(stoppedAt === null ? [] : pair('Stopped at', `step ${count(stoppedAt)}`)),
      ...(target === null ? [] : pair('Target loss', short(target))),
      ...(refitSteps === null ? [] : pair('Updates since', count(refitSteps))),
      ...(run.test === null
        ? []
        : pair(
            'Test',
            `${run.test.error === null ? '' : `${errorOf(run)(run.test.error)} error, `}loss ${short(run.test.loss)}${run.testedAt === null ? '' : `, looked at ${ago(run.testedAt)}`}`,
          )),
    ),
    watches &&
      h(
        'div',
        { class: 'meter', role: 'img', 'aria-label': `${patienceLeft} of ${patience} left` },
        h('span', { style: { width: `${100 * (1 - used)}%` } }),
      ),
    h('p', { class: 'muted' }, `${stoppingText(run, count)}.`),
  );
}

const pair = (term: string, value: string | Node) => [h('dt', {}, term), h('dd', {}, value)];

/** As far as the page shows them: that they were seen just now is nothing new. */
const workersHere = (run: RunSummary) =>
  [...state.workers.values()]
    .filter((worker) => worker.run === run.id && worker.state !== 'gone')
    .map((worker) => ({ ...worker, lastSeenSecondsAgo: 0 }));

function workersOf(run: RunSummary, mine: readonly WorkerSummary[]): HTMLElement {
  if (mine.length === 0) {
    return h(
      'p',
      { class: 'muted' },
      isActive(run)
        ? `No worker serves this run now. Start one: npx downpour work --run ${run.id}`
        : 'None: the run is over.',
    );
  }
  return h(
    'ul',
    { class: 'plain columns' },
    ...mine.map((worker) =>
      h(
        'li',
        {},
        h('strong', {}, worker.worker),
        ' ',
        badge(worker.quarantine === null ? worker.state : 'quarantined'),
        h(
          'span',
          { class: 'sub' },
          `${worker.engine} on ${worker.device} · ${plural(worker.pushes.applied + worker.pushes.damped, 'push', 'pushes')} · ${short(worker.computeMsMean)} ms a gradient`,
        ),
      ),
    ),
  );
}

function eventsOf(run: RunSummary): HTMLElement | null {
  const lines = run.rollbacks.map(({ step, to, learningRate, reason }) =>
    h(
      'li',
      {},
      h('strong', {}, `Diverged at step ${count(step)}`),
      h(
        'span',
        { class: 'sub' },
        `back to ${to === null ? 'the initial parameters' : `step ${count(to)}`} with learning rate ${short(learningRate)}: ${reason}`,
      ),
    ),
  );
  if (run.stepsLost > 0) {
    lines.push(
      h(
        'li',
        {},
        h('strong', {}, `${plural(run.stepsLost, 'update')} lost`),
        h('span', { class: 'sub' }, 'with crashes of the server, after their last checkpoints'),
      ),
    );
  }
  return lines.length === 0 ? null : h('ul', { class: 'plain' }, ...lines);
}

function checkpointTable(
  id: string,
  list: readonly CheckpointSummary[],
  fork: () => (checkpoint: CheckpointSummary) => void,
): HTMLElement {
  if (list.length === 0) return h('p', { class: 'muted' }, 'The first one is still to come.');
  const newest = new Map(list.map((checkpoint) => [checkpoint.kind, checkpoint.file]));
  const rows = list.toReversed().map((checkpoint) => {
    const { kind, step, createdAt, file, bytes: size } = checkpoint;
    return h(
      'tr',
      {},
      h('td', {}, badge(kind, 'neutral')),
      h('td', { class: 'number' }, count(step)),
      h('td', { title: createdAt }, ago(createdAt)),
      h('td', { class: 'number' }, bytes(size)),
      h(
        'td',
        { class: 'row-actions' },
        newest.get(kind) === file &&
          h(
            'a',
            {
              class: 'quiet',
              href: `/runs/${id}/checkpoints/${kind}/file`,
              download: '',
              'aria-label': `Export the ${kind} checkpoint of step ${step}`,
            },
            'Export',
          ),
        isOperator() &&
          h(
            'button',
            {
              type: 'button',
              class: 'quiet',
              'aria-label': `New run from the ${kind} checkpoint of step ${step}`,
              onClick: () => fork()(checkpoint),
            },
            'New run',
          ),
      ),
    );
  });
  return tableOf(
    'Checkpoints',
    ['Kind', 'Step', 'Age', 'Size', h('span', { class: 'hidden' }, 'Actions')],
    rows,
    ['', 'number', '', 'number', ''],
  );
}

function configurationOf(run: RunDetail): HTMLElement {
  const lines: [string, string][] = [
    ['experiment', run.experiment],
    ['experimentHash', run.experimentHash.slice(0, 16)],
    ['parameters', run.parameters === null ? '–' : count(run.parameters)],
    ...(run.data
      ? ([
          [
            'data',
            `${run.data.source}: ${count(run.data.trainCount)} training, ${count(run.data.validationCount)} validation, ${count(run.data.testCount)} test examples`,
          ],
        ] as [string, string][])
      : []),
    ...(run.dataNote ? ([['mind', run.dataNote]] as [string, string][]) : []),
    // A server of an older release tells none of them.
    ...(run.inputShape
      ? ([['inputs', `[${run.inputShape.join(', ')}]`]] as [string, string][])
      : []),
    ...(run.classes ? ([['classes', run.classes.join(', ')]] as [string, string][]) : []),
    ...flat(run.config),
  ];
  return h(
    'details',
    {},
    h('summary', {}, `${lines.length} values`),
    h(
      'dl',
      { class: 'pairs columns' },
      ...lines.flatMap(([name, value]) => pair(name, h('code', {}, value))),
    ),
  );
}

/** Nested fields by their dotted names. */
function flat(value: unknown, prefix = ''): [string, string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return [[prefix, typeof value === 'string' ? value : JSON.stringify(value)]];
  }
  return Object.entries(value).flatMap(([key, inner]) =>
    flat(inner, prefix === '' ? key : `${prefix}.${key}`),
  );
}
