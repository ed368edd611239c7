import type { IncomingMessage } from 'node:http';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import { type Login, LoginSchema, type SessionFacts, SessionSchema } from '../shared/rest.ts';
import type { Grant } from './access.ts';
import { DASHBOARD_PATHS, dashboard, PAGE_POLICY } from './dashboard.ts';
import { Feed, type FeedSource } from './feed.ts';

/** What pages ask of whoever lets requests in. */
export interface PageDoor {
  /** Without a token: nobody's grant at a server that has tokens. @throws DownpourError DP_LIMIT. */
  look(request: IncomingMessage): SessionFacts;
  /**
   * @returns the cookie that stands for a token from now on.
   * @throws DownpourError DP_UNAUTHORIZED, DP_FORBIDDEN or DP_LIMIT.
   */
  login(
    request: IncomingMessage,
    token: string,
  ): { readonly grant: Grant; readonly cookie: string };
  logout(request: IncomingMessage): string;
  /** Whether the grant that a request had is there still; call it often. */
  watch(request: IncomingMessage): () => boolean;
}

/** Where no token is asked for: they tell nothing of the runs. */
export const FOR_ANYBODY: ReadonlySet<string> = new Set([...DASHBOARD_PATHS, '/session']);

const TICK_MS = 1_000;

/** The dashboard: its files, its login and its live feed. */
export function addPages(app: FastifyInstance, door: PageDoor, source: FeedSource): void {
  for (const path of DASHBOARD_PATHS) {
    app.get(path, { schema: { hide: true } }, async (request, reply) => {
      const { type, bytes, gzipped, tag } = (await dashboard()).get(path)!;
      reply
        .type(type)
        .headers({ etag: tag, vary: 'accept-encoding', 'cache-control': 'no-cache' })
        .header('content-security-policy', PAGE_POLICY);
      if (request.headers['if-none-match'] === tag) return reply.code(304).send();
      if (!/\bgzip\b/.test(String(request.headers['accept-encoding'] ?? ''))) return bytes;
      return reply.header('content-encoding', 'gzip').send(gzipped);
    });
  }

  app.get(
    '/session',
    { schema: { summary: 'Who am I, by this token or cookie?', response: { 200: SessionSchema } } },
    (request) => door.look(request.raw),
  );
  app.post<{ Body: Login }>(
    '/session',
    {
      schema: {
        summary: 'Exchange a token for a cookie that scripts cannot read',
        body: LoginSchema,
        response: { 200: SessionSchema },
      },
    },
    (request, reply) => {
      const { grant, cookie } = door.login(request.raw, request.body.token);
      reply.header('set-cookie', cookie);
      return { role: grant.role as SessionFacts['role'], open: false };
    },
  );
  app.delete(
    '/session',
    { schema: { summary: 'Take the cookie back', response: { 204: Type.Null() } } },
    (request, reply) => reply.header('set-cookie', door.logout(request.raw)).code(204).send(null),
  );

  const feed = new Feed(source, () => performance.now());
  const timer = setInterval(() => feed.tick(), TICK_MS);
  timer.unref();
  app.addHook('preClose', async () => {
    clearInterval(timer);
    feed.close();
  });
  app.get(
    '/feed',
    {
      schema: { summary: 'What changes, as server-sent events; see FeedUpdate in shared/rest.ts' },
    },
    (request, reply) => {
      feed.mustHaveRoom();
      reply.hijack();
      const { raw } = reply;
      raw.writeHead(200, {
        ...(reply.getHeaders() as Record<string, string>),
        'content-type': 'text/event-stream',
        'x-accel-buffering': 'no',
      });
      const leave = feed.open({
        write: (text) => void raw.write(text),
        get waiting() {
          return raw.writableLength;
        },
        end: () => raw.end(),
        allowed: door.watch(request.raw),
      });
      raw.once('close', leave);
      raw.on('error', leave);
    },
  );
}
