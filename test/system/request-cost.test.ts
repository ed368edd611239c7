import { afterEach, expect, test } from 'vitest';
import { errorCode } from '../../shared/errors.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { openTestServer } from '../support/open-server.ts';

/** What one token's requests may take of the server's time. */

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const TOKEN = 'operators';
const OBSERVER = 'observers';
const bearer = (token: string) => ({ headers: { authorization: `Bearer ${token}` } });

async function start(limits: object) {
  const { url, close } = await openTestServer({ token: TOKEN, observerToken: OBSERVER, limits });
  cleanUps.push(close);
  return url;
}

test('a token whose requests have taken too much is answered 429 with a time, and others go on', async () => {
  // What is taken does not come back while the test lasts.
  const url = await start({
    requestTimeShareMax: 1e-6,
    requestTimeBurstMs: 100,
    requestWaitMs: 20,
  });
  let answered = 0;
  let refusal: Response | null = null;
  // Bounded: an answer takes 10 µs at least.
  for (; answered < 10_000 && !refusal; answered++) {
    const answer = await fetch(`${url}/metrics`, bearer(OBSERVER));
    const text = await answer.text();
    if (answer.status === 200) continue;
    refusal = answer;
    expect(JSON.parse(text)).toMatchObject({
      code: 'DP_LIMIT',
      message: expect.stringContaining("% of this server's time"),
    });
  }
  expect(answered).toBeGreaterThan(1);
  expect(refusal?.status).toBe(429);
  expect(Number(refusal?.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
  const other = await fetch(`${url}/metrics`, bearer(TOKEN));
  expect(other.status).toBe(200);
  expect(await other.text()).toContain('downpour_errors_total{code="DP_LIMIT"} 1');
  expect((await fetch(`${url}/health`)).status).toBe(200);
});

test('one that asks more than it may waits for its turn, and is answered', async () => {
  const url = await start({
    requestTimeShareMax: 0.5,
    requestTimeBurstMs: 1,
    requestWaitMs: 60_000,
  });
  const statuses = await Promise.all(
    Array.from({ length: 40 }, async () => {
      const answer = await fetch(`${url}/status`, bearer(OBSERVER));
      await answer.text();
      return answer.status;
    }),
  );
  expect(new Set(statuses)).toEqual(new Set([200]));
});

test('the client waits as long as it is told to', async () => {
  const url = await start({ requestsPerSecondMax: 2 });
  const client = createRestClient({ server: url, token: OBSERVER });
  const seen = await Promise.all(Array.from({ length: 5 }, () => client.runs()));
  expect(seen).toEqual([[], [], [], [], []]);
  const impatient = createRestClient({ server: url, token: OBSERVER, timeoutMs: 500 });
  const asked = await Promise.allSettled(Array.from({ length: 5 }, () => impatient.runs()));
  const codes = asked.map((each) => (each.status === 'rejected' ? errorCode(each.reason) : null));
  expect(codes).toContain('DP_LIMIT');
});
