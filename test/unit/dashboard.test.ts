import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { DASHBOARD_PATHS, dashboard } from '../../server/http/dashboard.ts';

test('all of the dashboard is at most 150 KB, compressed as it travels', async () => {
  const files = await dashboard();
  expect([...files.keys()].sort()).toEqual([...DASHBOARD_PATHS].sort());
  let gzipped = 0;
  for (const [path, file] of files) if (path !== '/join.js') gzipped += file.gzipped.length;
  expect(gzipped).toBeLessThanOrEqual(150_000);
});

test('the page of browsers that train is at most 20 KB, without what it trains with', async () => {
  const { gzipped } = (await dashboard()).get('/join.js')!;
  expect(gzipped.length).toBeLessThanOrEqual(20_000);
});

test('its picture in the documentation is a picture, and small', () => {
  // Renewed by hand from test/output, where test/system/dashboard.test.ts writes it.
  const bytes = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'dashboard.png'));
  expect(bytes.subarray(1, 4).toString()).toBe('PNG');
  expect(bytes.length).toBeLessThanOrEqual(150_000);
});

test('nothing of it asks another host, and no script or style stands in the page', async () => {
  const files = await dashboard();
  for (const [path, { bytes }] of files) {
    // A name space is a name, nothing that is asked.
    const text = bytes.toString().replaceAll('http://www.w3.org/2000/svg', '');
    expect(text.match(/(?:https?:)?\/\/[a-z0-9-]+\.[a-z]{2,}[/"'`)]/gi), path).toBeNull();
  }
  for (const path of ['/', '/join'] as const) {
    const page = files.get(path)!.bytes.toString();
    expect(page, path).not.toMatch(/<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)/);
  }
});
