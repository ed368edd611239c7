import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { createRestClient } from '../../shared/rest-client.ts';

describe('the REST client of a primary and its standby', () => {
  const [STANDBY, PRIMARY] = ['http://first:1', 'http://second:2'] as const;

  /** The first of both is the standby, until it is told otherwise. */
  function servers() {
    let primary: string = PRIMARY;
    const asked: string[] = [];
    const answer = async (input: string | URL | Request): Promise<Response> => {
      const url = new URL(String(input));
      asked.push(url.href);
      // As long as another request needs to be on its way.
      await new Promise((resume) => setImmediate(resume));
      if (url.origin === primary) return Response.json({ path: url.pathname, runs: [] });
      const body = { code: 'DP_STANDBY', message: 'this server takes no work yet' };
      return Response.json(body, { status: 503 });
    };
    const client = createRestClient({ server: `${STANDBY},${PRIMARY}`, fetch: answer });
    return { client, asked, takeOver: () => (primary = STANDBY) };
  }

  test.each([2, 3, 4, 5])('%i requests at once all reach the primary', async (count) => {
    const { client, takeOver } = servers();
    const together = () => Promise.all(Array.from({ length: count }, () => client.runs()));
    expect(await together()).toEqual(Array(count).fill([]));
    expect(client.url).toBe(PRIMARY);
    takeOver();
    expect(await together()).toEqual(Array(count).fill([]));
    expect(client.url).toBe(STANDBY);
  });

  test('a file of a checkpoint comes from the primary too', async () => {
    const { client } = servers();
    const file = await client.checkpointFile('digits', 'model');
    expect(await new Response(file).json()).toMatchObject({
      path: '/runs/digits/checkpoints/model/file',
    });
    expect(client.url).toBe(PRIMARY);
  });

  test('the one that answered is asked first from then on', async () => {
    const { client, asked } = servers();
    await client.status();
    await client.status();
    expect(asked.map((url) => new URL(url).origin)).toEqual([STANDBY, PRIMARY, PRIMARY]);
  });

  test('an error names the server that gave it, and each is asked once', async () => {
    const asked: string[] = [];
    const client = createRestClient({
      server: `${STANDBY},${PRIMARY}`,
      fetch: async (input) => {
        asked.push(String(input));
        throw new TypeError('fetch failed', { cause: new Error(`ECONNREFUSED ${asked.length}`) });
      },
    });
    await expect(client.status()).rejects.toMatchObject({
      code: 'DP_SERVER_UNREACHABLE',
      message: expect.stringContaining(`no server at ${PRIMARY}`),
    });
    expect(asked).toEqual([`${STANDBY}/status`, `${PRIMARY}/status`]);
  });
});

describe('a request that is answered when a checkpoint is on disk', () => {
  beforeEach(() => vi.useFakeTimers());
  afterEach(() => vi.useRealTimers());
  const SERVER = 'http://only:1';

  /** A server that answers a stop after so long, and is asked meanwhile whether it is there. */
  function slow(answerMs: number, health: () => Promise<Response>) {
    const asked: string[] = [];
    const answer = (input: string | URL | Request, init?: RequestInit): Promise<Response> => {
      const { pathname } = new URL(String(input));
      asked.push(pathname);
      if (pathname === '/health') return health();
      return new Promise((resolve, reject) => {
        init?.signal?.addEventListener('abort', () => reject(init.signal!.reason));
        setTimeout(() => resolve(Response.json({ id: 'large' })), answerMs);
      });
    };
    const told: number[] = [];
    const client = createRestClient({ server: SERVER, fetch: answer, timeoutMs: 10_000 });
    return { client, asked, told, waiting: (seconds: number) => void told.push(seconds) };
  }

  test('waits for minutes while the server is there, and says for how long', async () => {
    const { client, told, waiting } = slow(95_000, async () => Response.json({}));
    const stopped = client.stop('large', waiting);
    await vi.advanceTimersByTimeAsync(94_000);
    expect(told).toEqual([10, 20, 30, 40, 50, 60, 70, 80, 90]);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await stopped).toEqual({ id: 'large' });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(told).toHaveLength(9);
  });

  test('ends when the server is gone', async () => {
    const { client } = slow(1e9, async () => {
      throw new TypeError('fetch failed');
    });
    const stopped = client.resume('large').catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(10_001);
    expect(await stopped).toMatchObject({ code: 'DP_SERVER_UNREACHABLE' });
  });

  test('is repeated when Node.js gives it up', async () => {
    let tries = 0;
    const client = createRestClient({
      server: SERVER,
      fetch: async () => {
        if (++tries < 3) {
          const cause = Object.assign(new Error('late'), { code: 'UND_ERR_HEADERS_TIMEOUT' });
          throw new TypeError('fetch failed', { cause });
        }
        return Response.json({ id: 'large' });
      },
    });
    expect(await client.checkpoint('large')).toEqual({ id: 'large' });
    expect(tries).toBe(3);
  });

  test('no other request asks whether the server is there', async () => {
    const { client, asked } = slow(20_000, async () => Response.json({}));
    const answer = client.run('large');
    await vi.advanceTimersByTimeAsync(20_000);
    await answer;
    expect(asked).toEqual(['/runs/large']);
  });
});
