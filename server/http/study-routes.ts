import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import { NAME_PATTERN } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  StudyDetailSchema,
  type StudyReport,
  StudyReportSchema,
  StudySummarySchema,
} from '../../shared/rest.ts';
import { JSON_TYPE, schema } from './route.ts';
import type { Studies } from './studies.ts';

const StudyName = Type.Object({ name: Type.String({ pattern: NAME_PATTERN }) });
type ByName = { Params: { name: string } };

export function addStudyRoutes(app: FastifyInstance, studies: Studies): void {
  const StudyList = Type.Object({ studies: Type.Array(StudySummarySchema) });
  app.get(
    '/studies',
    schema('List studies and looks at models, the last updated first', { 200: StudyList }),
    () => ({ studies: [...studies.list()] }),
  );
  app.get<ByName>(
    '/studies/:name',
    schema('Get the report of one study', { 200: StudyDetailSchema }, { params: StudyName }),
    // As it was checked when it came in: text is sent as it is.
    async (request, reply) =>
      reply.type(JSON_TYPE).send(JSON.stringify(await studies.read(request.params.name))),
  );
  app.put<ByName & { Body: StudyReport }>(
    '/studies/:name',
    {
      ...schema(
        'Create or replace the report of a study',
        { 200: StudySummarySchema },
        { params: StudyName, body: StudyReportSchema },
      ),
      bodyLimit: LIMITS.studyBytesMax,
    },
    (request) => studies.tell(request.params.name, request.body, new Date().toISOString()),
  );
  app.delete<ByName>(
    '/studies/:name',
    schema(
      'Delete the report of a study; its runs stay',
      { 204: Type.Null() },
      { params: StudyName },
    ),
    async (request, reply) => {
      await studies.remove(request.params.name);
      return reply.code(204).send(null);
    },
  );
}
