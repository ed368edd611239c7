import type { Timeline, WorkerSummary } from '../shared/rest.ts';
import { percent } from '../shared/text.ts';
import { alertList } from './alerts.ts';
import { BASE } from './base.ts';
import { ago, bytes, count, duration, plural, short } from './format.ts';
import { arrange, fill, fillNew, h, svg } from './html.ts';
import { badge, card, emptyState, Tile, type View } from './parts.ts';
import { client, state } from './store.ts';

/** Who computes, how fast, for whom, and what is wrong. */

const COLUMNS: readonly (readonly [title: string, kind: string])[] = [
  ['Worker', ''],
  ['State', ''],
  ['Run', ''],
  ['Examples/s', 'number'],
  ['Gradient', 'number'],
  ['Pushes', 'number'],
  ['Staleness', 'number'],
  ['Received', 'number'],
  ['Sent', 'number'],
  ['Last error', ''],
];
const READ_MS = 3_000;

/** The states of a worker as the picture has them. */
const LANES: Readonly<Record<WorkerSummary['state'], string>> = {
  training: 'computing',
  evaluating: 'evaluating',
  waiting: 'waiting',
  joining: 'waiting',
  idle: 'idle',
  gone: 'gone',
};
const LANE_NAMES = ['computing', 'evaluating', 'waiting', 'idle', 'gone'];

export function clusterView(): View {
  const tiles = {
    workers: new Tile('Workers'),
    speed: new Tile('Throughput'),
    store: new Tile('State'),
    shards: new Tile('Shards'),
    memory: new Tile('Memory'),
    server: new Tile('Server'),
  };
  const alerts = h('div', {});
  const body = h('tbody');
  const rows = new Map<string, HTMLElement>();
  const table = h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Workers' },
    h(
      'table',
      { class: 'workers' },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          ...COLUMNS.map(([title, kind]) => h('th', { scope: 'col', class: kind }, title)),
        ),
      ),
      body,
    ),
  );
  const none = emptyState(
    'No worker yet',
    'Any machine that reaches this server and has the experiment can be one, at any time:',
    `npx downpour work --server ${BASE.replace(/^http/, 'ws')}`,
  );
  none.classList.add('inside');
  const lanes = h('div', { class: 'lanes' });
  const timeline = card(
    'What they did of late',
    h(
      'div',
      { class: 'legend', 'aria-hidden': 'true' },
      ...LANE_NAMES.map((name) =>
        h(
          'span',
          { class: 'legend-item' },
          h('span', { class: 'lane-swatch', 'data-lane': name }),
          name,
        ),
      ),
    ),
    lanes,
  );
  const element = h(
    'div',
    {},
    h('h1', {}, 'Cluster'),
    h('dl', { class: 'tiles' }, ...Object.values(tiles).map((tile) => tile.element)),
    card('Alerts', alerts),
    card('Workers', table, none),
    timeline,
  );
  let timer: ReturnType<typeof setTimeout> | undefined;
  let ended = false;

  async function read(): Promise<void> {
    const found = document.hidden ? null : await client.timeline().catch(() => null);
    if (ended) return;
    if (found) draw(found);
    timer = setTimeout(() => void read(), READ_MS);
  }

  function draw({ seconds, workers }: Timeline): void {
    timeline.hidden = workers.length === 0;
    // As long as anybody is known, so that the first minute of a cluster is not a sliver.
    const oldest = Math.max(60, ...workers.map(({ states }) => states[0]?.secondsAgo ?? 0));
    const span = Math.min(seconds, oldest);
    fill(lanes, ...workers.map((each) => laneOf(each, span)), axisOf(span));
  }

  function update(): void {
    const workers = [...state.workers.values()].sort(order);
    const connected = workers.filter((worker) => worker.state !== 'gone');
    const of = (what: WorkerSummary['state']) =>
      connected.filter((worker) => worker.state === what).length;
    const busy = of('training') + of('evaluating');
    tiles.workers.show(
      count(connected.length),
      connected.length === 0
        ? ''
        : `${busy} busy, ${of('waiting')} waiting, ${of('idle') + of('joining')} idle`,
    );
    const speed = connected.reduce((sum, worker) => sum + (worker.examplesPerSecond ?? 0), 0);
    tiles.speed.show(count(speed), 'examples a second');
    const { server } = state;
    if (server) {
      const { stateStore, stateStoreAway: away, shards, memoryBytes, version, startedAt } = server;
      tiles.store.show(
        stateStore === 'redis' ? 'Redis' : 'Files',
        away
          ? `away for ${duration(away.seconds)}, ${plural(away.records, 'record')} wait`
          : 'all is written as it comes',
      );
      tiles.shards.show(
        shards ? count(shards.count) : '1',
        shards === null
          ? 'all parameters in one process'
          : shards.whole
            ? 'all are there'
            : 'one is lost',
      );
      tiles.memory.show(
        bytes(memoryBytes.rss),
        `${bytes(memoryBytes.arrayBuffers)} of it payloads`,
      );
      tiles.server.show(version, `started ${ago(startedAt)}`);
      fillNew(alerts, server.alerts, () => [alertList(server.alerts)]);
    }
    none.hidden = workers.length > 0;
    table.hidden = workers.length === 0;
    arrange(
      body,
      workers.map((worker) => {
        const key = `${worker.worker}/${worker.incarnation}`;
        const row = rows.get(key) ?? h('tr', { 'data-worker': worker.worker });
        rows.set(key, row);
        fillNew(row, { ...worker, lastSeenSecondsAgo: 0 }, () => cellsOf(worker));
        return row;
      }),
    );
  }

  update();
  void read();
  return {
    title: 'Cluster',
    element,
    update,
    destroy() {
      ended = true;
      clearTimeout(timer);
    },
  };
}

/** Those that have gone come last. */
const order = (a: WorkerSummary, b: WorkerSummary) =>
  Number(a.state === 'gone') - Number(b.state === 'gone') || (a.worker < b.worker ? -1 : 1);

function cellsOf(worker: WorkerSummary): HTMLElement[] {
  const { applied, damped, duplicate, rejected } = worker.pushes;
  const more = [
    damped > 0 && `${count(damped)} damped`,
    rejected > 0 && `${count(rejected)} rejected`,
    duplicate > 0 && `${count(duplicate)} duplicate`,
  ].filter((text) => text !== false);
  const { lastError, quarantine } = worker;
  const cell = (kind: string, ...children: (Node | string | null | false)[]) =>
    h('td', { class: kind }, ...children);
  return [
    cell(
      '',
      h('strong', {}, worker.worker),
      h(
        'span',
        { class: 'sub' },
        `${worker.engine} on ${worker.device}${worker.transport === 'unix' ? ', unix socket' : ''}`,
      ),
    ),
    cell('', badge(quarantine === null ? worker.state : 'quarantined')),
    cell(
      '',
      worker.run !== null &&
        h('a', { class: 'run-name', href: `#/runs/${worker.run}` }, worker.run),
    ),
    cell('number', worker.examplesPerSecond ? count(worker.examplesPerSecond) : '–'),
    cell(
      'number',
      worker.computeMsMean ? `${short(Number(worker.computeMsMean.toPrecision(3)))} ms` : '–',
    ),
    cell(
      'number',
      count(applied + damped),
      more.length > 0 && h('span', { class: 'sub' }, more.join(', ')),
    ),
    cell(
      'number',
      worker.stalenessMean === null ? '–' : short(Number(worker.stalenessMean.toPrecision(3))),
    ),
    cell('number', bytes(worker.bytes.received)),
    cell('number', bytes(worker.bytes.sent)),
    cell(
      'error',
      quarantine ?? lastError?.message ?? '–',
      lastError !== null && h('span', { class: 'sub' }, `${lastError.code}, ${ago(lastError.at)}`),
    ),
  ];
}

const axisOf = (span: number) =>
  h(
    'div',
    { class: 'lane axis', 'aria-hidden': 'true' },
    h('span', {}),
    h('span', {}, h('span', {}, `${duration(span)} ago`), h('span', {}, 'now')),
  );

/** One worker's time as a bar, and in words for those who do not see it. */
function laneOf({ worker, states }: Timeline['workers'][number], seconds: number): HTMLElement {
  const shares = new Map<string, number>();
  const bars = states.map(({ state: what, secondsAgo }, i) => {
    const end = states[i + 1]?.secondsAgo ?? 0;
    const lane = LANES[what];
    shares.set(lane, (shares.get(lane) ?? 0) + secondsAgo - end);
    return svg('rect', {
      x: `${100 * (1 - secondsAgo / seconds)}%`,
      width: `${(100 * (secondsAgo - end)) / seconds}%`,
      height: '100%',
      'data-lane': lane,
    });
  });
  const known = states[0]?.secondsAgo || 1;
  const words = [...shares].map(([lane, time]) => `${lane} ${percent(time / known)}`).join(', ');
  return h(
    'div',
    { class: 'lane' },
    h('span', { class: 'lane-name' }, worker),
    svg('svg', { class: 'lane-bar', role: 'img', 'aria-label': `${worker}: ${words}` }, ...bars),
  );
}
