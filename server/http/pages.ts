import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import Type from 'typebox';
import { DownpourError } from '../../shared/errors.ts';
import { JOIN_PATHS } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  type Login,
  type LoginFacts,
  LoginSchema,
  SessionSchema,
  type Ticket,
  TicketSchema,
} from '../../shared/rest.ts';
import { type Grant, mayDo } from '../access/access.ts';
import { DASHBOARD_PATHS, dashboard, PAGE_POLICY } from './dashboard.ts';
import { Feed, type FeedSource } from './feed.ts';
import { JOIN_POLICY, type JoinPageFiles, readJoinFile } from './join.ts';

/** What pages ask of whoever lets requests in. */
export interface PageDoor {
  /** Without a token: nobody's grant at a server that has tokens. @throws DownpourError DP_LIMIT. */
  look(request: IncomingMessage): LoginFacts;
  /**
   * @returns the cookie that stands for a token from now on.
   * @throws DownpourError DP_UNAUTHORIZED, DP_FORBIDDEN or DP_LIMIT.
   */
  login(
    request: IncomingMessage,
    token: string,
    needed: 'observer' | 'worker',
  ): { readonly grant: Grant; readonly cookie: string };
  logout(request: IncomingMessage): string;
  /** For the WebSocket of a page whose request was let in. @throws DownpourError DP_LIMIT. */
  ticket(request: IncomingMessage): string;
  /** Whether the grant that a request had is there still; call it often. */
  watch(request: IncomingMessage): () => boolean;
}

/** What the login of a grant can be used for. */
export const sessionOf = (grant: Grant): Pick<LoginFacts, 'role' | 'works'> => ({
  role: grant.role === 'worker' ? null : grant.role,
  works: mayDo(grant, 'worker'),
});

/** Where no token is asked for: they tell nothing of the runs. */
export const FOR_ANYBODY: ReadonlySet<string> = new Set([...DASHBOARD_PATHS, '/session']);

const TICK_MS = 1_000;

/** The dashboard: its files, its login and its live feed; and what workers in pages need. */
export function addPages(
  app: FastifyInstance,
  door: PageDoor,
  source: FeedSource,
  join: JoinPageFiles | null,
): void {
  for (const path of DASHBOARD_PATHS) {
    app.get(path, { schema: { hide: true } }, async (request, reply) => {
      // The page names its files as beside it. A prefix alone is a path without a slash at its end.
      const [own] = request.url.split('?', 1);
      if (path === '/' && !own!.endsWith('/')) return reply.redirect(`${own}/`);
      const { type, bytes, gzipped, tag } = (await dashboard()).get(path)!;
      reply
        .type(type)
        .headers({ etag: tag, vary: 'accept-encoding', 'cache-control': 'no-cache' })
        .header('content-security-policy', PAGE_POLICY);
      if (request.headers['if-none-match'] === tag) return reply.code(304).send();
      if (!acceptsGzip(request)) return bytes;
      return reply.header('content-encoding', 'gzip').send(gzipped);
    });
  }

  app.get(
    '/session',
    { schema: { summary: 'Role of this token or cookie', response: { 200: SessionSchema } } },
    (request) => door.look(request.raw),
  );
  app.post<{ Body: Login }>(
    '/session',
    {
      schema: {
        summary: 'Log in: exchange a token for an HttpOnly cookie',
        body: LoginSchema,
        response: { 200: SessionSchema },
      },
    },
    (request, reply) => {
      const { token, work = false } = request.body;
      const { grant, cookie } = door.login(request.raw, token, work ? 'worker' : 'observer');
      reply.header('set-cookie', cookie);
      return { ...sessionOf(grant), open: false };
    },
  );
  app.delete(
    '/session',
    { schema: { summary: 'Log out: delete the cookie', response: { 204: Type.Null() } } },
    (request, reply) => reply.header('set-cookie', door.logout(request.raw)).code(204).send(null),
  );

  addJoin(app, door, join);
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
      schema: { summary: 'Stream changes as server-sent events; see FeedUpdate in shared/rest.ts' },
    },
    (request, reply) => {
      // Who asks for the head alone would wait for an end that never comes.
      if (request.method === 'HEAD') return reply.type('text/event-stream').send();
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

/** For workers in pages. The page itself is one of the dashboard's files. */
function addJoin(app: FastifyInstance, door: PageDoor, join: JoinPageFiles | null): void {
  app.post(
    JOIN_PATHS.ticket,
    {
      schema: {
        summary: 'Get a short-lived, single-use ticket for the WebSocket handshake of a page',
        response: { 200: TicketSchema },
      },
    },
    (request): Ticket => ({ ticket: door.ticket(request.raw), seconds: LIMITS.ticketSeconds }),
  );
  app.get<{ Params: { name: string } }>(
    `${JOIN_PATHS.files}:name`,
    {
      schema: {
        summary: 'Get a file of the browser worker: code, an engine or data',
        params: Type.Object({ name: Type.String({ maxLength: 200 }) }),
      },
    },
    (request, reply) => {
      const { name } = request.params;
      const file = join?.files.get(name);
      if (!join || !file) {
        throw new DownpourError(
          'DP_NOT_FOUND',
          join
            ? 'the browser worker has no such file: reload the page'
            : 'this server lets no pages train: start it with --join and the experiments they may',
        );
      }
      const gzipped = acceptsGzip(request);
      reply
        .type(file.type)
        .headers({ etag: file.tag, vary: 'accept-encoding', 'cache-control': 'private, no-cache' })
        .header('content-security-policy', JOIN_POLICY);
      if (request.headers['if-none-match'] === file.tag) return reply.code(304).send();
      if (gzipped) reply.header('content-encoding', 'gzip');
      return reply.send(readJoinFile(join, name, gzipped));
    },
  );
}

const acceptsGzip = ({ headers }: FastifyRequest) =>
  /\bgzip\b/.test(String(headers['accept-encoding'] ?? ''));
