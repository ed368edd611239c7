import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { serve } from '../../server/main.ts';
import { standBy } from '../../server/standby/standby.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import type { StateStore } from '../../server/store/state-store.ts';

test('a standby whose own store answers late never takes over beside a primary that lives', async () => {
  const root = await mkdtemp(join(tmpdir(), 'downpour-standby-store-'));
  const ending = new AbortController();
  const { signal } = ending;
  const common = { host: '127.0.0.1', port: 0 };
  const primary = await serve({ ...common, state: join(root, 'primary'), signal });
  let introduced = () => {};
  const whole = new Promise<void>((resolve) => {
    introduced = resolve;
  });
  const own = openFileStore({ folder: join(root, 'own') });
  let asked = 0;
  const store: StateStore = {
    ...own,
    // When all runs, here none, have come.
    newestToken: () => whole.then(() => own.newestToken()),
    acquire: (...words) => {
      asked++;
      return own.acquire(...words);
    },
  };
  const standby = await standBy({
    ...{ ...common, primary: primary.url.replace('http', 'ws'), store, owner: 'standby' },
    ...{ follow: { mode: 'sync', lagMax: 0 }, advertise: null, tls: null, token: () => null },
    ttlMs: 2_000,
    log: (line) => {
      if (line.startsWith('following')) introduced();
    },
    signal,
  });
  await expect(standby.taken).rejects.toThrow(/the state store of this standby is not that of/);
  expect(asked).toBe(0);
  ending.abort();
  await primary.closed;
  await rm(root, { recursive: true });
});
