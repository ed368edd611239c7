import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  CheckpointSummarySchema,
  type CreateRun,
  CreateRunSchema,
  type EditRun,
  EditRunSchema,
  MetricsSchema,
  ObservationsSchema,
  RunDataSchema,
  RunDetailSchema,
  RunExamplesSchema,
  RunLogSchema,
  RunPageSchema,
  RunSummarySchema,
  WorkerSummarySchema,
} from '../../shared/rest.ts';
import { kindOfModel } from '../../shared/trained-last.ts';
import type { Coordinator } from '../fleet/coordinator.ts';
import { JoinedDownloads } from './joined-downloads.ts';
import {
  BYTES_TYPE,
  type ById,
  Id,
  JSON_TYPE,
  limitWanted,
  queryNumber,
  schema,
  textOf,
  Which,
  type WhichQuery,
  wantedBy,
} from './route.ts';

const Page = Type.Object(
  { ...Which.properties, after: Type.Optional(Type.String({ pattern: NAME_PATTERN })) },
  { additionalProperties: false },
);
/** Text, since nothing of a request is converted in silence. */
const Points = Type.Object(
  { points: Type.Optional(Type.String()) },
  { additionalProperties: false },
);
const Lines = Type.Object({ lines: Type.Optional(Type.String()) }, { additionalProperties: false });
const Force = Type.Object(
  { force: Type.Optional(Type.Union([Type.Literal('true'), Type.Literal('false')])) },
  { additionalProperties: false },
);
const IdAndKind = Type.Object({
  id: Type.String({ pattern: NAME_PATTERN }),
  /** `model`: what stands for the run. */
  kind: Type.Union([
    Type.Literal('last'),
    Type.Literal('best'),
    Type.Literal('final'),
    Type.Literal('model'),
  ]),
});

/** @param checkpointFolder where the checkpoints of a run lie. */
export function addRunRoutes(
  app: FastifyInstance,
  coordinator: Coordinator,
  checkpointFolder: (run: string) => string,
): void {
  // A run that is not read yet is waited for.
  app.addHook('preHandler', async ({ params }) => {
    const { id } = Object(params) as { id?: string };
    if (id !== undefined) await coordinator.reading(id);
  });
  addListing(app, coordinator);
  addReads(app, coordinator);
  addCommands(app, coordinator);
  addCurves(app, coordinator);
  addCheckpoints(app, coordinator, checkpointFolder);
}

/** Making a run, and the list of all. */
function addListing(app: FastifyInstance, coordinator: Coordinator): void {
  app.post<{ Body: CreateRun }>(
    '/runs',
    schema(
      'Create a run; workers that have its experiment start at once',
      { 201: RunSummarySchema },
      { body: CreateRunSchema },
    ),
    async (request, reply) => {
      const run = await coordinator.create(request.body);
      return reply.code(201).send(coordinator.reports.summary(run));
    },
  );

  app.get<{ Querystring: WhichQuery & { after?: string } }>(
    '/runs',
    schema(
      'List runs, oldest first; `limit`: maximum number (default: all); `after`: only runs created after this one, as given by `next`; `archived`: `true` (archived runs only), `false` (default: none of them) or `all`; `tag`, `study`: only runs with this tag, or trials of this study',
      { 200: RunPageSchema },
      { querystring: Page },
    ),
    ({ query }, reply) => {
      const { listing } = coordinator;
      const { limit, after = null } = query;
      listing.refresh();
      const page = listing.page(after, limitWanted(limit), wantedBy(query));
      // The error names some.
      if (!page) throw coordinator.unknown(after!);
      const next = JSON.stringify(page.next);
      const { archivedCount } = listing;
      return reply
        .type(JSON_TYPE)
        .send(`{"runs":${textOf(page.entries)},"next":${next},"archivedCount":${archivedCount}}`);
    },
  );
}

function addReads(app: FastifyInstance, coordinator: Coordinator): void {
  app.get<ById>(
    '/runs/:id',
    schema('Get one run with its configuration', { 200: RunDetailSchema }, { params: Id }),
    (request) => coordinator.reports.detail(coordinator.mustFind(request.params.id)),
  );

  app.get<ById>(
    '/runs/:id/data',
    schema(
      'Get facts about the data of a run: standardisation, shapes, names, classes',
      { 200: RunDataSchema },
      { params: Id },
    ),
    // The answer is long where there are many features: text is sent as it is.
    async (request, reply) => {
      const { data: summary, facts } = coordinator.mustFind(request.params.id);
      return reply.type(JSON_TYPE).send(JSON.stringify({ summary, facts }));
    },
  );
}

/** What a user asks of a run. */
function addCommands(app: FastifyInstance, coordinator: Coordinator): void {
  app.post<ById>(
    '/runs/:id/stop',
    schema(
      'Stop a run and write a checkpoint; it can be resumed',
      { 200: RunSummarySchema },
      { params: Id },
    ),
    async (request) => coordinator.reports.summary(await coordinator.stop(request.params.id)),
  );

  app.delete<ById & { Querystring: { force?: 'true' | 'false' } }>(
    '/runs/:id',
    schema(
      'Remove a run with its checkpoints and records; `force=true`: also a run that is being trained',
      { 204: Type.Null() },
      { params: Id, querystring: Force },
    ),
    async (request, reply) => {
      await coordinator.remove(request.params.id, request.query.force === 'true');
      return reply.code(204).send(null);
    },
  );

  app.patch<ById & { Body: EditRun }>(
    '/runs/:id',
    schema(
      'Name, tag, note or archive a run',
      { 200: RunSummarySchema },
      { params: Id, body: EditRunSchema },
    ),
    async (request) =>
      coordinator.reports.summary(await coordinator.edit(request.params.id, request.body)),
  );

  app.post<ById>(
    '/runs/:id/resume',
    schema('Resume a stopped run', { 200: RunSummarySchema }, { params: Id }),
    async (request) => coordinator.reports.summary(await coordinator.resume(request.params.id)),
  );

  app.post<ById>(
    '/runs/:id/test',
    schema(
      'Evaluate a finished run on the test part; allowed once per run',
      { 200: RunSummarySchema },
      { params: Id },
    ),
    async (request) => coordinator.reports.summary(await coordinator.test(request.params.id)),
  );

  app.post<ById>(
    '/runs/:id/checkpoint',
    schema('Write a checkpoint now', { 200: RunSummarySchema }, { params: Id }),
    async (request) => coordinator.reports.summary(await coordinator.checkpoint(request.params.id)),
  );
}

/** What a run tells of its training, and of its workers. */
function addCurves(app: FastifyInstance, coordinator: Coordinator): void {
  app.get<ById & { Querystring: { points?: string } }>(
    '/runs/:id/metrics',
    schema(
      'Get the curves of a run; `points`: maximum number of points per curve, chosen to preserve its shape',
      { 200: MetricsSchema },
      { params: Id, querystring: Points },
    ),
    ({ params, query }) => coordinator.mustFind(params.id).metrics(pointsWanted(query.points)),
  );

  app.get<ById>(
    '/runs/:id/observations',
    schema(
      'Get histograms over time, if the configuration samples them',
      { 200: ObservationsSchema },
      { params: Id },
    ),
    (request) => coordinator.mustFind(request.params.id).observed,
  );

  app.get<ById>(
    '/runs/:id/examples',
    schema(
      'Get the latest examples of the validation part with their predictions',
      { 200: RunExamplesSchema },
      { params: Id },
    ),
    (request) => coordinator.asides.examples(coordinator.mustFind(request.params.id).id),
  );

  app.get<ById & { Querystring: { lines?: string } }>(
    '/runs/:id/log',
    schema(
      'Get the last lines of the log about a run; `lines`: maximum number',
      { 200: RunLogSchema },
      { params: Id, querystring: Lines },
    ),
    ({ params, query: { lines } }) => {
      const most = LIMITS.runLogLinesMax;
      const limit = lines === undefined ? most : queryNumber('lines', lines, 1, most);
      return coordinator.asides.log.of(coordinator.mustFind(params.id).id, limit);
    },
  );

  const Workers = Type.Object({ workers: Type.Array(WorkerSummarySchema) });
  app.get<ById>(
    '/runs/:id/workers',
    schema('List the workers of a run', { 200: Workers }, { params: Id }),
    (request) => ({
      workers: coordinator.workers.summaries(coordinator.mustFind(request.params.id)),
    }),
  );
}

function addCheckpoints(
  app: FastifyInstance,
  coordinator: Coordinator,
  checkpointFolder: (run: string) => string,
): void {
  const joined = new JoinedDownloads();
  const Checkpoints = Type.Object({ checkpoints: Type.Array(CheckpointSummarySchema) });
  app.get<ById>(
    '/runs/:id/checkpoints',
    schema('List the checkpoints of a run, oldest first', { 200: Checkpoints }, { params: Id }),
    async (request) => ({
      checkpoints: [
        ...(await coordinator.reports.checkpoints(coordinator.mustFind(request.params.id))),
      ],
    }),
  );

  app.get<{ Params: { id: string; kind: 'last' | 'best' | 'final' | 'model' } }>(
    '/runs/:id/checkpoints/:kind/file',
    {
      schema: {
        summary:
          'Download the newest checkpoint of a kind as safetensors; `model`: the final one of a finished run, otherwise the best',
        params: IdAndKind,
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      const run = coordinator.mustFind(id);
      const kind = request.params.kind === 'model' ? kindOfModel(run) : request.params.kind;
      const checkpoints = await coordinator.reports.checkpoints(run);
      const newest = checkpoints.findLast((checkpoint) => checkpoint.kind === kind);
      if (!newest) {
        throw new DownpourError(
          'DP_CHECKPOINT_MISSING',
          `run '${id}' has no '${kind}' checkpoint yet; GET /runs/${id}/checkpoints lists what there is`,
        );
      }
      const folder = checkpointFolder(id);
      const { bytes, content } = newest.continues
        ? await joined.begin(folder, newest.file)
        : await fileContent(join(folder, newest.file));
      return reply
        .type(BYTES_TYPE)
        .header('content-length', bytes)
        .header(
          'content-disposition',
          `attachment; filename="${id}-${kind}-${newest.step}.safetensors"`,
        )
        .send(content);
    },
  );
}

async function fileContent(path: string) {
  const { size } = await stat(path);
  return { bytes: size, content: createReadStream(path) };
}

/** @throws DownpourError DP_BODY_INVALID. */
function pointsWanted(text: string | undefined): number | undefined {
  const { curvePointsMin, curvePointsMax } = LIMITS;
  return text === undefined
    ? undefined
    : queryNumber('points', text, curvePointsMin, curvePointsMax);
}
