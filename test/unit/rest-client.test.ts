import { describe, expect, test } from 'vitest';
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
