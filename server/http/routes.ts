import { performance } from 'node:perf_hooks';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import {
  type Health,
  HealthSchema,
  StatusSchema,
  type StudyFold,
  TimelineSchema,
} from '../../shared/rest.ts';
import { isFromHere } from '../../wire/local-socket.ts';
import type { Coordinator } from '../fleet/coordinator.ts';
import type { Fold } from '../fleet/listing.ts';
import type { StateStore } from '../store/state-store.ts';
import { Lag } from '../watch/counts.ts';
import { EXPOSITION_TYPE, exposition } from '../watch/prometheus.ts';
import { addBundleRoutes } from './bundle-routes.ts';
import type { FeedSource } from './feed.ts';
import {
  JSON_TYPE,
  limitWanted,
  OPENAPI,
  schema,
  textOf,
  Which,
  type WhichQuery,
  wantedBy,
} from './route.ts';
import { addRunRoutes } from './run-routes.ts';
import type { Studies } from './studies.ts';
import { addStudyRoutes } from './study-routes.ts';

export interface RoutesOptions {
  readonly coordinator: Coordinator;
  readonly version: string;
  readonly stateStore: Pick<StateStore, 'kind' | 'away'>;
  readonly startedAt: Date;
  /** Path of the server's Unix socket on this machine; null: it has none. */
  readonly localSocket: () => string | null;
  readonly studies: Studies;
  /** Where the checkpoints of a run lie. */
  readonly checkpointFolder: (run: string) => string;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Name of the token that let the request in. */
    holder: string | null;
  }
}

/**
 * The REST interface. Reads cost training nothing but the time to answer.
 * @returns the same facts for the feed.
 */
export function addRoutes(app: FastifyInstance, options: RoutesOptions): FeedSource {
  const { coordinator, studies, checkpointFolder } = options;
  const facts = factsOf(options);
  addHealth(app, options);
  addStatus(app, coordinator, studies, facts);
  addMetrics(app, coordinator, facts);
  app.get(
    '/timeline',
    schema('Get the states of the workers in the last ten minutes', { 200: TimelineSchema }),
    () => coordinator.workers.timeline(),
  );
  addRunRoutes(app, coordinator, checkpointFolder);
  addStudyRoutes(app, studies);
  addBundleRoutes(app, coordinator);
  app.get('/openapi.json', { schema: { summary: 'Describe this interface as OpenAPI' } }, () =>
    (app as unknown as Record<typeof OPENAPI, () => object>)[OPENAPI](),
  );
  return facts;
}

/** What REST, the feed and Prometheus tell of the server. */
function factsOf({
  coordinator,
  version,
  stateStore,
  studies,
  startedAt,
}: RoutesOptions): FeedSource {
  return {
    listing: coordinator.listing,
    server: () => {
      const { rss, heapUsed, arrayBuffers } = process.memoryUsage();
      const stateStoreAway = stateStore.away && {
        seconds: stateStore.away.sinceMs / 1000,
        records: stateStore.away.records,
      };
      return {
        version,
        startedAt: startedAt.toISOString(),
        stateStore: stateStore.kind,
        stateStoreAway,
        shards: coordinator.shards,
        standby: coordinator.replication?.facts() ?? null,
        copies: coordinator.copier?.facts() ?? null,
        runsRead: coordinator.runsRead,
        alerts: coordinator.alerts(stateStoreAway),
        studiesVersion: studies.version,
        memoryBytes: { rss, heap: heapUsed, arrayBuffers },
        connections: coordinator.line.facts(),
      };
    },
    workers: () => coordinator.workers.summaries(null),
  };
}

/** It answers either way: who looks whether to start it again must not. */
function healthOf({ problem }: Coordinator): Pick<Health, 'status' | 'problem'> {
  return { status: problem === null ? 'ok' : 'degraded', problem };
}

function addHealth(app: FastifyInstance, options: RoutesOptions): void {
  const { coordinator, version, stateStore } = options;
  const startedMs = performance.now();
  app.get(
    '/health',
    schema('Check whether the server is up', { 200: HealthSchema }),
    (request) => ({
      ...healthOf(coordinator),
      version,
      stateStore: stateStore.kind,
      uptimeSeconds: (performance.now() - startedMs) / 1000,
      localSocket: isFromHere(request.socket) ? options.localSocket() : null,
    }),
  );
}

const Folded = Type.Object(
  { ...Which.properties, fold: Type.Optional(Type.Literal('studies')) },
  { additionalProperties: false },
);

/** With what the reports of the studies say. */
function foldsTold(folds: readonly Fold[], studies: Studies): StudyFold[] {
  return folds.map((fold) => {
    const { kind, state, title, trials } = studies.find(fold.study) ?? {};
    return {
      ...fold,
      ...{ kind: kind ?? null, state: state ?? null, title: title ?? null, trials: trials ?? null },
    };
  });
}

function addStatus(
  app: FastifyInstance,
  coordinator: Coordinator,
  studies: Studies,
  facts: FeedSource,
): void {
  const { listing } = coordinator;
  app.get<{ Querystring: WhichQuery & { fold?: 'studies' } }>(
    '/status',
    schema(
      'Get runs, workers and alerts; `limit`: maximum number of runs, active ones first, then the newest; `archived`, `tag`, `study` as for `GET /runs`; `fold=studies`: one entry for each study instead of its trials',
      { 200: StatusSchema },
      { querystring: Folded },
    ),
    ({ query }, reply) => {
      listing.refresh();
      const limit = limitWanted(query.limit);
      const isFolded = query.fold === 'studies';
      const wanted = { ...wantedBy(query), noTrials: isFolded };
      const chosen =
        limit < listing.size
          ? listing.newest(limit, wanted)
          : listing.page(null, limit, wanted)!.entries;
      const inOrder = [...chosen].sort((a, b) => a.index - b.index);
      const { size: runCount, archivedCount } = listing;
      const folds = isFolded && { studies: foldsTold(listing.folds(wantedBy(query)), studies) };
      const rest = JSON.stringify({
        ...facts.server(),
        ...{ runCount, archivedCount, ...folds },
        workers: facts.workers(),
      });
      return reply.type(JSON_TYPE).send(`{"runs":${textOf(inOrder)},${rest.slice(1)}`);
    },
  );
}

function addMetrics(app: FastifyInstance, coordinator: Coordinator, facts: FeedSource): void {
  const lag = new Lag(() => performance.now());
  app.addHook('preClose', async () => lag.close());
  const Text = { content: { 'text/plain': { schema: Type.String() } } };
  app.get(
    '/metrics',
    schema('Get the status as Prometheus metrics', { 200: Text }),
    (_request, reply) => {
      coordinator.listing.refresh();
      const { runs, phases } = coordinator.reports.prometheusFacts();
      const { user, system } = process.cpuUsage();
      const { active } = performance.eventLoopUtilization();
      const page = exposition({
        server: facts.server(),
        ...{ runs, phases },
        workers: facts.workers(),
        errors: coordinator.reports.errorCounts,
        unasked: coordinator.workers.unaskedFacts,
        process: {
          startedSeconds: performance.timeOrigin / 1000,
          cpuSeconds: (user + system) / 1e6,
          lag: lag.seconds,
          busySeconds: active / 1000,
        },
      });
      return reply.type(EXPOSITION_TYPE).send(page);
    },
  );
}
