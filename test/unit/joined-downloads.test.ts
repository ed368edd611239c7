import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { writeCheckpoint } from '../../files/checkpoint.ts';
import { JoinedDownloads } from '../../server/http/joined-downloads.ts';
import { LIMITS } from '../../shared/limits.ts';

/** How many checkpoints whose rows are in several files are sent at once. */

let folder = '';
afterEach(() => rm(folder, { recursive: true, force: true }));

test('so many downloads may be under way; one that ends, or fails to begin, makes room for another', async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  const input = {
    ...({ run: 'r', step: 1, kind: 'last', layoutHash: 'l', state: {}, now: new Date() } as const),
    tensors: [
      { name: 'keys', shape: [2], values: Float32Array.of(0, 7) },
      { name: 'values', shape: [1], values: Float32Array.of(3) },
    ],
  };
  const { file, sha256 } = await writeCheckpoint(folder, input);
  const rows = [{ keys: 'keys', fields: ['values'] }];
  const changed = await writeCheckpoint(folder, {
    ...input,
    continues: { after: [{ file, sha256 }], rows },
  });
  const downloads = new JoinedDownloads();
  const begin = (name = changed.file) => downloads.begin(folder, name);
  await expect(begin('step-000000009-last-0009.safetensors')).rejects.toMatchObject({
    code: 'DP_CHECKPOINT_MISSING',
  });
  const all = await Promise.all(Array.from({ length: LIMITS.joinedDownloadsMax }, () => begin()));
  await expect(begin()).rejects.toMatchObject({ code: 'DP_LIMIT', retryAfterSeconds: 5 });
  const [{ bytes, content }, other] = all as [(typeof all)[0], (typeof all)[0]];
  let read = 0;
  for await (const piece of content) read += (piece as Uint8Array).length;
  expect(read).toBe(bytes);
  // Its reader has gone.
  other.content.destroy();
  await new Promise((resolve) => other.content.once('close', resolve));
  for (const again of [await begin(), await begin()]) again.content.destroy();
  for (const { content } of all) content.destroy();
});
