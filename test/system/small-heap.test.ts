import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { HEAP_MB, trainFrom, writePictures } from '../../bench/sources.ts';

test('data four times larger than the heap train from a source, and do not lie in memory', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-heap-'));
  try {
    await writePictures(folder);
    const read = await trainFrom('source', folder, 20, 'cpu');
    const kept = await trainFrom('memory', folder, 20, 'cpu');
    expect(read.loss).toBe(kept.loss);
    // 392 MB of pictures.
    expect(kept.moreMegabytes).toBeGreaterThan(4 * HEAP_MB);
    expect(read.moreMegabytes).toBeLessThan(160);
  } finally {
    await rm(folder, { recursive: true });
  }
});
