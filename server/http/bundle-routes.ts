import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import { BUNDLE_HASH } from '../../shared/bundle.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { BundleSchema } from '../../shared/rest.ts';
import type { Coordinator } from '../fleet/coordinator.ts';
import { BYTES_TYPE, schema } from './route.ts';

export const BUNDLE_ROUTE = '/bundles/:sha256';
const BundleHash = Type.Object({ sha256: Type.String({ pattern: BUNDLE_HASH }) });
type ByHash = { Params: { sha256: string } };

/** Experiments that are sent, and fetched by workers. */
export function addBundleRoutes(app: FastifyInstance, coordinator: Coordinator): void {
  app.addContentTypeParser(BYTES_TYPE, { parseAs: 'buffer' }, (_request, body, done) =>
    done(null, body),
  );
  app.put<ByHash & { Body: unknown }>(
    BUNDLE_ROUTE,
    {
      ...schema(
        'Upload an experiment as one JavaScript file, for workers that accept experiments; runs refer to it by `bundle`',
        { 200: BundleSchema },
        { params: BundleHash, body: { content: { [BYTES_TYPE]: { schema: {} } } } },
      ),
      bodyLimit: LIMITS.bundleBytesMax,
    },
    ({ params, body, holder }) => {
      if (Buffer.isBuffer(body)) return coordinator.keepBundle(params.sha256, body, holder);
      throw new DownpourError(
        'DP_BODY_INVALID',
        `a bundle is sent as ${BYTES_TYPE}, and not empty`,
      );
    },
  );
  app.get<ByHash>(
    BUNDLE_ROUTE,
    {
      schema: {
        summary: 'Download the bundle of an unfinished run',
        params: BundleHash,
      },
    },
    async (request, reply) => {
      await coordinator.readingUnfinished;
      const { bytes, content } = await coordinator.experiments.read(request.params.sha256);
      return reply.type(BYTES_TYPE).header('content-length', bytes).send(content);
    },
  );
}
