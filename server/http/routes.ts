import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import { BUNDLE_HASH } from '../../shared/bundle.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  BundleSchema,
  CheckpointSummarySchema,
  type CreateRun,
  CreateRunSchema,
  ErrorBodySchema,
  type Health,
  HealthSchema,
  MetricsSchema,
  ObservationsSchema,
  RunDataSchema,
  RunDetailSchema,
  RunPageSchema,
  RunSummarySchema,
  StatusSchema,
  StudyDetailSchema,
  type StudyReport,
  StudyReportSchema,
  StudySummarySchema,
  TimelineSchema,
  WorkerSummarySchema,
} from '../../shared/rest.ts';
import { kindOfModel } from '../../shared/trained-last.ts';
import { isFromHere } from '../../wire/local-socket.ts';
import type { Coordinator } from '../fleet/coordinator.ts';
import type { Entry } from '../fleet/listing.ts';
import type { StateStore } from '../store/state-store.ts';
import { Lag } from '../watch/counts.ts';
import { EXPOSITION_TYPE, exposition } from '../watch/prometheus.ts';
import type { FeedSource } from './feed.ts';
import type { Studies } from './studies.ts';

export interface RoutesOptions {
  readonly coordinator: Coordinator;
  readonly version: string;
  readonly stateStore: Pick<StateStore, 'kind' | 'away'>;
  readonly startedAt: Date;
  /** Of the server on this machine, if it listens on one. */
  readonly localSocket: () => string | null;
  readonly studies: Studies;
  /** Where the checkpoints of a run lie. */
  readonly checkpointFolder: (run: string) => string;
}

const Id = Type.Object({ id: Type.String({ pattern: NAME_PATTERN }) });
const Kind = Type.Union([Type.Literal('last'), Type.Literal('best'), Type.Literal('final')]);
const IdAndKind = Type.Object({
  id: Type.String({ pattern: NAME_PATTERN }),
  /** `model`: what stands for the run. */
  kind: Type.Union([...Kind.anyOf, Type.Literal('model')]),
});
/** Text, since nothing of a request is converted in silence. */
const Points = Type.Object(
  { points: Type.Optional(Type.String()) },
  { additionalProperties: false },
);
const Limit = Type.Object({ limit: Type.Optional(Type.String()) }, { additionalProperties: false });
const Page = Type.Object(
  {
    limit: Type.Optional(Type.String()),
    after: Type.Optional(Type.String({ pattern: NAME_PATTERN })),
  },
  { additionalProperties: false },
);
const JSON_TYPE = 'application/json; charset=utf-8';
/** Of runs whose texts are ready. */
const textOf = (entries: readonly Entry[]) => `[${entries.map(({ text }) => text).join()}]`;
/** Of experiments that were sent. */
export const BUNDLE_ROUTE = '/bundles/:sha256';
const BundleHash = Type.Object({ sha256: Type.String({ pattern: BUNDLE_HASH }) });
const BYTES = 'application/octet-stream';
const StudyName = Type.Object({ name: Type.String({ pattern: NAME_PATTERN }) });
type ByName = { Params: { name: string } };
const errors = { '4xx': ErrorBodySchema, '5xx': ErrorBodySchema };
type ById = { Params: { id: string } };
type ByHash = { Params: { sha256: string } };

declare module 'fastify' {
  interface FastifyRequest {
    /** Of the token that it was let in by. */
    holder: string | null;
  }
}

/** It answers either way: who looks whether to start it again must not. */
function healthOf({ problem }: Coordinator): Pick<Health, 'status' | 'problem'> {
  return { status: problem === null ? 'ok' : 'degraded', problem };
}

/**
 * The REST interface. Reads cost training nothing but the time to answer.
 * @returns the same facts for the feed.
 */
export function addRoutes(app: FastifyInstance, options: RoutesOptions): FeedSource {
  const { coordinator, version, stateStore, studies, startedAt } = options;
  const startedMs = performance.now();
  const schema = (summary: string, response: object, more: object = {}) => ({
    schema: { summary, response: { ...response, ...errors }, ...more },
  });

  app.get('/health', schema('Is the server up?', { 200: HealthSchema }), (request) => ({
    ...healthOf(coordinator),
    version,
    stateStore: stateStore.kind,
    uptimeSeconds: (performance.now() - startedMs) / 1000,
    localSocket: isFromHere(request.socket) ? options.localSocket() : null,
  }));

  const { listing } = coordinator;
  const facts: FeedSource = {
    listing,
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
        alerts: coordinator.alerts(stateStoreAway),
        studiesVersion: studies.version,
        memoryBytes: { rss, heap: heapUsed, arrayBuffers },
        connections: coordinator.line.facts(),
      };
    },
    workers: () => coordinator.workers(null),
  };
  app.get<{ Querystring: { limit?: string } }>(
    '/status',
    schema(
      'Runs and workers, and what to look at; `limit`: at most so many runs, those at work first, then the newest',
      { 200: StatusSchema },
      { querystring: Limit },
    ),
    ({ query }, reply) => {
      listing.refresh();
      const limit = limitWanted(query.limit);
      const chosen =
        limit < listing.size ? listing.newest(limit) : listing.page(null, limit)!.entries;
      const inOrder = [...chosen].sort((a, b) => a.index - b.index);
      const { size: runCount } = listing;
      const rest = JSON.stringify({ ...facts.server(), runCount, workers: facts.workers() });
      return reply.type(JSON_TYPE).send(`{"runs":${textOf(inOrder)},${rest.slice(1)}`);
    },
  );

  const lag = new Lag(() => performance.now());
  app.addHook('preClose', async () => lag.close());
  const Text = { content: { 'text/plain': { schema: Type.String() } } };
  app.get('/metrics', schema('The same for Prometheus', { 200: Text }), (_request, reply) => {
    listing.refresh();
    const { runs, phases } = coordinator.prometheusFacts();
    const { user, system } = process.cpuUsage();
    const { active } = performance.eventLoopUtilization();
    const page = exposition({
      server: facts.server(),
      ...{ runs, phases },
      workers: facts.workers(),
      errors: coordinator.errorCounts,
      unasked: coordinator.unaskedFacts,
      process: {
        startedSeconds: performance.timeOrigin / 1000,
        cpuSeconds: (user + system) / 1e6,
        lag: lag.seconds,
        busySeconds: active / 1000,
      },
    });
    return reply.type(EXPOSITION_TYPE).send(page);
  });

  app.get(
    '/timeline',
    schema('What the workers did in the last ten minutes', { 200: TimelineSchema }),
    () => coordinator.timeline(),
  );

  app.post<{ Body: CreateRun }>(
    '/runs',
    schema(
      'Create a run; workers that have its experiment begin at once',
      { 201: RunSummarySchema },
      { body: CreateRunSchema },
    ),
    async (request, reply) => {
      const run = await coordinator.create(request.body);
      return reply.code(201).send(coordinator.runSummary(run));
    },
  );

  app.get<{ Querystring: { limit?: string; after?: string } }>(
    '/runs',
    schema(
      'Runs, oldest first; `limit`: at most so many, all by default; `after`: those created after this one, as `next` says',
      { 200: RunPageSchema },
      { querystring: Page },
    ),
    ({ query: { limit, after = null } }, reply) => {
      listing.refresh();
      const page = listing.page(after, limitWanted(limit));
      // The error names some.
      if (!page) throw coordinator.unknown(after!);
      const next = JSON.stringify(page.next);
      return reply.type(JSON_TYPE).send(`{"runs":${textOf(page.entries)},"next":${next}}`);
    },
  );

  app.get<ById>(
    '/runs/:id',
    schema('One run, with its configuration', { 200: RunDetailSchema }, { params: Id }),
    (request) => coordinator.runDetail(coordinator.mustFind(request.params.id)),
  );

  app.get<ById>(
    '/runs/:id/data',
    schema(
      'What a run keeps of its data: how inputs are standardised, shapes, names, classes',
      { 200: RunDataSchema },
      { params: Id },
    ),
    // Of many features it is long: text is sent as it is.
    async (request, reply) => {
      const { data: summary, facts } = coordinator.mustFind(request.params.id);
      return reply.type('application/json; charset=utf-8').send(JSON.stringify({ summary, facts }));
    },
  );

  app.post<ById>(
    '/runs/:id/stop',
    schema(
      'Stop a run; it leaves a checkpoint and can be resumed',
      { 200: RunSummarySchema },
      { params: Id },
    ),
    async (request) => coordinator.runSummary(await coordinator.stop(request.params.id)),
  );

  app.post<ById>(
    '/runs/:id/resume',
    schema('Go on with a stopped run', { 200: RunSummarySchema }, { params: Id }),
    async (request) => coordinator.runSummary(await coordinator.resume(request.params.id)),
  );

  app.post<ById>(
    '/runs/:id/test',
    schema(
      'Evaluate a finished run on the test part, which counts once',
      { 200: RunSummarySchema },
      { params: Id },
    ),
    async (request) => coordinator.runSummary(await coordinator.test(request.params.id)),
  );

  app.post<ById>(
    '/runs/:id/checkpoint',
    schema('Write a checkpoint now', { 200: RunSummarySchema }, { params: Id }),
    async (request) => coordinator.runSummary(await coordinator.checkpoint(request.params.id)),
  );

  app.get<ById & { Querystring: { points?: string } }>(
    '/runs/:id/metrics',
    schema(
      'Curves of a run; `points`: at most so many of each, chosen so that the shape stays',
      { 200: MetricsSchema },
      { params: Id, querystring: Points },
    ),
    ({ params, query }) => coordinator.mustFind(params.id).metrics(pointsWanted(query.points)),
  );

  app.get<ById>(
    '/runs/:id/observations',
    schema(
      'Histograms over time, where the configuration has them sampled',
      { 200: ObservationsSchema },
      { params: Id },
    ),
    (request) => coordinator.mustFind(request.params.id).observed,
  );

  const Workers = Type.Object({ workers: Type.Array(WorkerSummarySchema) });
  app.get<ById>(
    '/runs/:id/workers',
    schema('The workers of a run', { 200: Workers }, { params: Id }),
    (request) => ({ workers: coordinator.workers(coordinator.mustFind(request.params.id)) }),
  );

  const Checkpoints = Type.Object({ checkpoints: Type.Array(CheckpointSummarySchema) });
  app.get<ById>(
    '/runs/:id/checkpoints',
    schema('The checkpoints of a run, oldest first', { 200: Checkpoints }, { params: Id }),
    async (request) => ({
      checkpoints: [...(await coordinator.checkpoints(coordinator.mustFind(request.params.id)))],
    }),
  );

  app.get<{ Params: { id: string; kind: 'last' | 'best' | 'final' | 'model' } }>(
    '/runs/:id/checkpoints/:kind/file',
    {
      schema: {
        summary:
          'The newest checkpoint of a kind, as safetensors; `model`: the final one of a finished run, else the best',
        params: IdAndKind,
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      const run = coordinator.mustFind(id);
      const kind = request.params.kind === 'model' ? kindOfModel(run) : request.params.kind;
      const checkpoints = await coordinator.checkpoints(run);
      const newest = checkpoints.findLast((checkpoint) => checkpoint.kind === kind);
      if (!newest) {
        throw new DownpourError(
          'DP_CHECKPOINT_MISSING',
          `run '${id}' has no '${kind}' checkpoint yet; GET /runs/${id}/checkpoints lists what there is`,
        );
      }
      const path = join(options.checkpointFolder(id), newest.file);
      const { size } = await stat(path);
      return reply
        .type(BYTES)
        .header('content-length', size)
        .header(
          'content-disposition',
          `attachment; filename="${id}-${kind}-${newest.step}.safetensors"`,
        )
        .send(createReadStream(path));
    },
  );

  const StudyList = Type.Object({ studies: Type.Array(StudySummarySchema) });
  app.get(
    '/studies',
    schema('Studies and looks at models, those told of last first', { 200: StudyList }),
    () => ({ studies: [...studies.list()] }),
  );
  app.get<ByName>(
    '/studies/:name',
    schema('What one study has found', { 200: StudyDetailSchema }, { params: StudyName }),
    // As it was checked when it came in: text is sent as it is.
    async (request, reply) =>
      reply
        .type('application/json; charset=utf-8')
        .send(JSON.stringify(await studies.read(request.params.name))),
  );
  app.put<ByName & { Body: StudyReport }>(
    '/studies/:name',
    {
      ...schema(
        'Tell what a study has found so far, in the place of what it told before',
        { 200: StudySummarySchema },
        { params: StudyName, body: StudyReportSchema },
      ),
      bodyLimit: LIMITS.studyBytesMax,
    },
    (request) => studies.tell(request.params.name, request.body, new Date().toISOString()),
  );
  app.delete<ByName>(
    '/studies/:name',
    schema('Remove what a study told; its runs stay', { 204: Type.Null() }, { params: StudyName }),
    async (request, reply) => {
      await studies.remove(request.params.name);
      return reply.code(204).send(null);
    },
  );

  app.addContentTypeParser(BYTES, { parseAs: 'buffer' }, (_request, body, done) =>
    done(null, body),
  );
  app.put<ByHash & { Body: unknown }>(
    BUNDLE_ROUTE,
    {
      ...schema(
        'Send an experiment as one file of JavaScript, for workers that accept experiments; runs name it as `bundle`',
        { 200: BundleSchema },
        { params: BundleHash, body: { content: { [BYTES]: { schema: {} } } } },
      ),
      bodyLimit: LIMITS.bundleBytesMax,
    },
    ({ params, body, holder }) => {
      if (Buffer.isBuffer(body)) return coordinator.keepBundle(params.sha256, body, holder);
      throw new DownpourError('DP_BODY_INVALID', `a bundle is sent as ${BYTES}, and not empty`);
    },
  );
  app.get<ByHash>(
    BUNDLE_ROUTE,
    {
      schema: {
        summary: 'The bundle of a run that is not over, as it was sent',
        params: BundleHash,
      },
    },
    async (request, reply) => {
      const { bytes, content } = await coordinator.readBundle(request.params.sha256);
      return reply.type(BYTES).header('content-length', bytes).send(content);
    },
  );

  app.get('/openapi.json', { schema: { summary: 'This interface, as OpenAPI' } }, () =>
    app.swagger(),
  );
  return facts;
}

/** @throws DownpourError DP_BODY_INVALID. */
function pointsWanted(text: string | undefined): number | undefined {
  const { curvePointsMin, curvePointsMax } = LIMITS;
  return text === undefined ? undefined : numberIn('points', text, curvePointsMin, curvePointsMax);
}

/** All that there can be, by default. @throws DownpourError DP_BODY_INVALID. */
function limitWanted(text: string | undefined): number {
  return text === undefined ? LIMITS.runCountMax : numberIn('limit', text, 1, LIMITS.runCountMax);
}

function numberIn(name: string, text: string, least: number, most: number): number {
  const value = /^\d{1,6}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new DownpourError(
    'DP_BODY_INVALID',
    `${name} is '${text.slice(0, 20)}'; it must be a whole number from ${least} to ${most}`,
  );
}
