import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, expect, test } from 'vitest';
import { copyLine } from '../../cli/runs/status.ts';
import type { CheckpointManifest } from '../../files/manifest.ts';
import {
  copiesAmong,
  copiesTooMany,
  copyOf,
  MANIFEST,
  TENSORS,
} from '../../server/checkpoints/elsewhere/places.ts';
import { Bucket, s3PlaceOf } from '../../server/checkpoints/elsewhere/s3.ts';

const keys = { AWS_ACCESS_KEY_ID: 'AKIAEXAMPLE', AWS_SECRET_ACCESS_KEY: 'a-secret' };

test('an address and the environment say where copies go', () => {
  expect(s3PlaceOf('s3://backups', keys)).toMatchObject({
    ...{ bucket: 'backups', prefix: '', region: 'us-east-1' },
    endpoint: 'https://s3.us-east-1.amazonaws.com',
  });
  const elsewhere = {
    ...{ ...keys, AWS_REGION: 'eu-central-1', AWS_ENDPOINT_URL: 'http://other:1' },
    DOWNPOUR_S3_ENDPOINT: 'http://minio:9000/',
  };
  expect(s3PlaceOf('s3://backups/team/a/', elsewhere)).toMatchObject({
    ...{ bucket: 'backups', prefix: 'team/a/', region: 'eu-central-1' },
    endpoint: 'http://minio:9000',
  });
});

test.each([
  ['backups', keys],
  ['s3://', keys],
  ['s3://B', keys],
  ['https://backups', keys],
  ['s3://backups//a', keys],
  ['s3://backups/../a', keys],
  ['s3://backups/ä', keys],
  ['s3://backups/a?b', keys],
  ['s3://me:a-secret@backups', keys],
  ['s3://backups', {}],
  ['s3://backups', { AWS_ACCESS_KEY_ID: 'AKIAEXAMPLE' }],
  ['s3://backups', { ...keys, DOWNPOUR_S3_ENDPOINT: 'minio:9000' }],
  ['s3://backups', { ...keys, DOWNPOUR_S3_ENDPOINT: 'http://me:a-secret@minio' }],
])('%s is refused with what is allowed, and without the secret', (url, env) => {
  let message = '';
  try {
    s3PlaceOf(url, env);
  } catch (error) {
    expect(error).toMatchObject({ code: 'DP_USAGE' });
    message = (error as Error).message;
  }
  expect(message).toMatch(/write s3:|AWS_|DOWNPOUR_S3_ENDPOINT/);
  expect(message).not.toContain('a-secret');
});

let server: Server | null = null;
afterEach(() => {
  server?.closeAllConnections();
  server?.close();
});

async function bucketThat(answer: Parameters<typeof createServer>[1]): Promise<Bucket> {
  const listening = createServer(answer as never);
  server = listening;
  await new Promise<void>((resolve) => listening.listen(0, '127.0.0.1', resolve));
  const { port } = listening.address() as { port: number };
  const env = { ...keys, DOWNPOUR_S3_ENDPOINT: `http://127.0.0.1:${port}` };
  return new Bucket(s3PlaceOf('s3://backups/team', env), { retryMs: 1, tries: 2 });
}

async function failureOfPut(bucket: Bucket): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-put-'));
  try {
    await writeFile(join(folder, 'file'), 'what is sent');
    await bucket.put('key', join(folder, 'file'), null);
    return 'none';
  } catch (error) {
    expect(error).toMatchObject({ code: 'DP_S3_UNAVAILABLE' });
    return (error as Error).message;
  } finally {
    await rm(folder, { recursive: true });
  }
}

test('a file that arrived otherwise than it was sent is no copy', async () => {
  const other = await bucketThat((request, response) => {
    request.resume().on('end', () => response.setHeader('etag', `"${'0'.repeat(32)}"`).end());
  });
  expect(await failureOfPut(other)).toContain('arrived with ETag');
  server!.close();
  const shorter = await bucketThat((request, response) => {
    request.resume().on('end', () => response.setHeader('content-length', '0').end());
  });
  expect(await failureOfPut(shorter)).toContain('has 0 bytes of key instead of 12');
});

test('a server that answers with the credentials does not bring them into an error', async () => {
  const bucket = await bucketThat((request, response) => {
    const body = `<Error><Code>No</Code><Message>AKIAEXAMPLE has a-secret</Message></Error>`;
    request.resume().on('end', () => response.writeHead(403).end(body));
  });
  expect(await failureOfPut(bucket)).toMatch(/answered 403 No: … has …; look at AWS_ACCESS_KEY_ID/);
});

test('a bucket of another region is said with what to set', async () => {
  const bucket = await bucketThat((request, response) => {
    request.resume().on('end', () => {
      response.writeHead(301, { 'x-amz-bucket-region': 'eu-west-1', location: 'http://x.invalid' });
      response.end();
    });
  });
  expect(await failureOfPut(bucket)).toContain('the bucket is in eu-west-1: set AWS_REGION');
});

test('status has a line of copies, and why there are none', () => {
  const copies = {
    ...{ to: 's3://b/p', waiting: 0, copied: 1200, bytes: 9, failed: 0, removed: 1 },
    ...{ away: null, refused: [], runs: [] },
  };
  expect(copyLine(copies)).toBe('copies to s3://b/p: 1,200 made, 0 waiting');
  const away = { seconds: 240, why: 'DP_S3_UNAVAILABLE no' };
  const refused = [{ run: 'r', why: 'DP_RUN_EXISTS other' }];
  expect(copyLine({ ...copies, failed: 3, waiting: 2, away, refused })).toBe(
    'copies to s3://b/p: 1,200 made, 2 waiting, 3 attempts failed; none for 4:00: DP_S3_UNAVAILABLE no; r is not copied: DP_RUN_EXISTS other',
  );
});

const manifests = fc
  .array(
    fc.record({
      kind: fc.constantFrom('last', 'best', 'final'),
      step: fc.integer({ min: 0, max: 5_000 }),
      anew: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
    }),
    { minLength: 1, maxLength: 40 },
  )
  .map((written) => {
    let [life, sequence] = [1, 0];
    return written.map(({ kind, step, anew }) => {
      // Another server counts from 1 again.
      if (anew) [life, sequence] = [life + 1, 0];
      sequence++;
      const stem = `step-${String(step).padStart(9, '0')}-${kind}-${String(sequence).padStart(4, '0')}`;
      const file = stem + TENSORS;
      const run = 'r';
      return { run, step, kind, sequence, file, state: { life } } as unknown as CheckpointManifest;
    });
  });

test('whatever is written in whatever lives: places tell the order, and the newest of each kind stay', () => {
  fc.assert(
    fc.property(
      manifests,
      fc.integer({ min: 1, max: 4 }),
      fc.infiniteStream(fc.nat()),
      (all, keep, draw) => {
        const written = all.map(copyOf);
        const objects = written.flatMap(({ key }) =>
          [TENSORS, MANIFEST].map((ending) => ({ key: key + ending, bytes: 1 })),
        );
        const shuffled = objects
          .map((object) => ({ object, at: draw.next().value as number }))
          .sort((a, b) => a.at - b.at)
          .map(({ object }) => object);
        const { copies, halves } = copiesAmong([...shuffled, { key: 'r/notes.txt', bytes: 3 }]);
        expect(copies).toEqual(written);
        expect(halves).toEqual([]);
        const gone = copiesTooMany(copies, keep);
        const left = copies.filter((copy) => !gone.includes(copy));
        for (const [kind, count] of [
          ['last', keep],
          ['best', 1],
          ['final', Infinity],
        ] as const) {
          const of = (some: typeof copies) => some.filter((copy) => copy.kind === kind);
          expect(of(left)).toEqual(of(written).slice(-count));
        }
      },
    ),
  );
});
