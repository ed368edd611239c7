import type { ServerFacts, WorkerSummary } from '../shared/rest.ts';
import { alertList } from './alerts.ts';
import { BASE } from './base.ts';
import { Lanes } from './cluster/lanes.ts';
import { WORKER_COLUMNS, workerCells } from './cluster/workers.ts';
import { ago, bytes, count, duration, plural } from './format.ts';
import { arrange, fillNew, h } from './html.ts';
import { card, emptyState, Tile, type View } from './parts.ts';
import { client, state } from './store.ts';
import { ViewQueries } from './view-queries.ts';

/** Who computes, how fast, for whom, and what is wrong. */

const READ_MS = 3_000;

export function clusterView(): View {
  return new ClusterView();
}

class ClusterView implements View {
  readonly title = 'Cluster';
  readonly element: HTMLElement;
  readonly #tiles = {
    workers: new Tile('Workers'),
    speed: new Tile('Throughput'),
    store: new Tile('State'),
    shards: new Tile('Shards'),
    memory: new Tile('Memory'),
    server: new Tile('Server'),
  };
  readonly #alerts = h('div', {});
  readonly #body = h('tbody');
  readonly #rows = new Map<string, HTMLElement>();
  readonly #table = workerTable(this.#body);
  readonly #none = emptyState(
    'No worker yet',
    'Any machine that reaches this server and has the experiment can be one, at any time:',
    `npx downpour work --server ${BASE.replace(/^http/, 'ws')}`,
  );
  readonly #lanes = new Lanes();
  readonly #queries = new ViewQueries();
  readonly #timeline = this.#queries.of({
    what: 'what the workers did',
    read: () => client.timeline(),
    show: (found) => this.#lanes.show(found),
  });

  constructor() {
    this.#none.classList.add('inside');
    const tiles = Object.values(this.#tiles).map((tile) => tile.element);
    this.element = h(
      'div',
      {},
      h('h1', {}, 'Cluster'),
      this.#queries.problem,
      h('dl', { class: 'tiles' }, ...tiles),
      card('Alerts', this.#alerts),
      card('Workers', this.#table, this.#none),
      this.#lanes.element,
    );
    this.update();
  }

  update(): void {
    const workers = [...state.workers.values()].sort(order);
    const connected = workers.filter((worker) => worker.state !== 'gone');
    this.#showWorkers(connected);
    if (state.server) this.#showServer(state.server);
    // Its bars move on by themselves.
    this.#timeline.want(String(Math.floor(performance.now() / READ_MS)), READ_MS);
    this.#none.hidden = workers.length > 0;
    this.#table.hidden = workers.length === 0;
    arrange(
      this.#body,
      workers.map((worker) => {
        const key = `${worker.worker}/${worker.incarnation}`;
        const row = this.#rows.get(key) ?? h('tr', { 'data-worker': worker.worker });
        this.#rows.set(key, row);
        fillNew(row, { ...worker, lastSeenSecondsAgo: 0 }, () => workerCells(worker));
        return row;
      }),
    );
  }

  destroy(): void {
    this.#queries.end();
  }

  #showWorkers(connected: readonly WorkerSummary[]): void {
    const of = (what: WorkerSummary['state']) =>
      connected.filter((worker) => worker.state === what).length;
    const busy = of('training') + of('evaluating');
    this.#tiles.workers.show(
      count(connected.length),
      connected.length === 0
        ? ''
        : `${busy} busy, ${of('waiting')} waiting, ${of('idle') + of('joining')} idle`,
    );
    const speed = connected.reduce((sum, worker) => sum + (worker.examplesPerSecond ?? 0), 0);
    this.#tiles.speed.show(count(speed), 'examples a second');
  }

  #showServer(server: ServerFacts): void {
    const { stateStore, stateStoreAway: away, shards, memoryBytes, version, startedAt } = server;
    const tiles = this.#tiles;
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
    tiles.memory.show(bytes(memoryBytes.rss), `${bytes(memoryBytes.arrayBuffers)} of it payloads`);
    tiles.server.show(version, `started ${ago(startedAt)}`);
    fillNew(this.#alerts, server.alerts, () => [alertList(server.alerts)]);
  }
}

function workerTable(body: HTMLElement): HTMLElement {
  const headings = WORKER_COLUMNS.map(([title, kind]) =>
    h('th', { scope: 'col', class: kind }, title),
  );
  return h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Workers' },
    h('table', { class: 'workers' }, h('thead', {}, h('tr', {}, ...headings)), body),
  );
}

/** Those that have gone come last. */
const order = (a: WorkerSummary, b: WorkerSummary) =>
  Number(a.state === 'gone') - Number(b.state === 'gone') || (a.worker < b.worker ? -1 : 1);
