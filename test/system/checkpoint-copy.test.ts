import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn, setTimeout as wait } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { sha256Of } from '../../files/atomic-file.ts';
import {
  checkpointFolder,
  newestValidCheckpoint,
  writeCheckpoint,
} from '../../files/checkpoint.ts';
import { Copier } from '../../server/checkpoints/elsewhere/copier.ts';
import { restoreInto } from '../../server/checkpoints/elsewhere/restore.ts';
import { Bucket, type S3Place } from '../../server/checkpoints/elsewhere/s3.ts';
import { BUNDLE_FOLDER } from '../../server/fleet/bundles.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { CheckpointKind } from '../../shared/trained-last.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { startProxy } from '../support/proxy.ts';
import { isLacking } from '../support/python.ts';
import { createProblem } from '../support/regression.ts';
import { type S3Server, startS3 } from '../support/s3-server.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';
import { mountSmallDisk, smallDiskMissing } from '../support/small-disk.ts';

/** Checkpoints in a bucket of a real S3 server: copied, verified, restored, and what goes wrong on the way. */

let s3: S3Server;
let proxy: Awaited<ReturnType<typeof startProxy>>;
let folder: string;
let place: S3Place;
let lines: string[];
const log = (line: string) => void lines.push(line);

const MIB = 2 ** 20;
const quick = { partBytes: 5 * MIB, requestMs: 60_000, retryMs: 10 };

describe.skipIf(isLacking(['moto']))('copies in a bucket', () => {
  beforeAll(async () => {
    s3 = await startS3();
    proxy = await startProxy(s3.port);
  });
  afterAll(async () => {
    await proxy?.close();
    await s3?.stop();
  });
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'downpour-copy-'));
    place = await s3.place(proxy.port);
    proxy.refusing = false;
    proxy.weather = null;
    lines = [];
  });
  afterEach(async () => {
    vi.unstubAllEnvs();
    await rm(folder, { recursive: true, force: true });
  });

  const bucketOf = (more: Partial<S3Place> = {}, limits = {}) =>
    new Bucket({ ...place, ...more }, { ...quick, ...limits });

  async function fileOf(bytes: number): Promise<{ path: string; sha256: string; all: Uint8Array }> {
    const all = randomFillSync(new Uint8Array(bytes));
    const path = join(folder, `file-${bytes}`);
    await writeFile(path, all);
    return { path, sha256: sha256Of(all), all };
  }

  async function failureOf(action: Promise<unknown>): Promise<DownpourError> {
    const error = await action.then(
      () => null,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(DownpourError);
    const { accessKeyId, secretAccessKey } = place;
    for (const secret of [accessKeyId, secretAccessKey]) {
      expect((error as DownpourError).message).not.toContain(secret);
    }
    return error as DownpourError;
  }

  describe('a bucket', () => {
    test.each([0, 1, 5 * MIB, 5 * MIB + 1, 12 * MIB])(
      'gives a file of %i bytes back as it was',
      async (bytes) => {
        const bucket = bucketOf();
        const { path, sha256, all } = await fileOf(bytes);
        expect(await bucket.put('a/file', path, sha256)).toBe(bytes);
        expect(await bucket.list('a/')).toEqual([{ key: 'a/file', bytes }]);
        expect(await bucket.get('a/file', join(folder, 'back'))).toBe(true);
        expect(sha256Of(await readFile(join(folder, 'back')))).toBe(sha256Of(all));
        await bucket.remove('a/file');
        expect(await bucket.list('')).toEqual([]);
        expect(await bucket.get('a/file', join(folder, 'none'))).toBe(false);
      },
    );

    test.each([1_000, 12 * MIB])(
      'gets nothing of a file of %i bytes that has another checksum on disk than the manifest says',
      async (bytes) => {
        const bucket = bucketOf();
        const { path } = await fileOf(bytes);
        const { code } = await failureOf(bucket.put('file', path, 'f'.repeat(64)));
        expect(code).toBe('DP_CHECKPOINT_CORRUPT');
        expect(await bucket.list('')).toEqual([]);
      },
    );

    test('refuses wrong credentials, and says where to look, not what they are', async () => {
      for (const wrong of [{ secretAccessKey: 'not-the-secret' }, { accessKeyId: 'AKIANOBODY' }]) {
        const error = await failureOf(bucketOf(wrong).list(''));
        expect(error.code).toBe('DP_S3_UNAVAILABLE');
        expect(error.message).toMatch(/answered 403 .*look at AWS_ACCESS_KEY_ID/);
        expect(error.message).not.toContain(Object.values(wrong)[0]);
      }
    });

    test('that is missing is named', async () => {
      const { path } = await fileOf(10);
      const missing = bucketOf({ bucket: 'nobody-made-it' });
      for (const action of [missing.list(''), missing.put('key', path, null)]) {
        const { code, message } = await failureOf(action);
        expect(code).toBe('DP_S3_UNAVAILABLE');
        expect(message).toContain("create the bucket 'nobody-made-it' first");
      }
    });

    test('that is away is said so, after a few tries', async () => {
      proxy.refusing = true;
      const { code, message } = await failureOf(bucketOf().list(''));
      expect(code).toBe('DP_S3_UNAVAILABLE');
      expect(message).toContain('cannot be reached');
    });

    test('gets the whole file though the connection is cut in the middle of it', async () => {
      const bucket = bucketOf({}, { partBytes: 8 * MIB });
      const { path, sha256 } = await fileOf(12 * MIB);
      let done = false;
      const put = bucket.put('file', path, sha256).finally(() => {
        done = true;
      });
      // A turn of the event loop takes 2 MiB of a connection, so none of 8 MiB is overlooked.
      const inPart = () => proxy.connections.some(({ near }) => near.bytesRead > MIB);
      let cuts = 0;
      while (cuts < 2 && !done) {
        await turn();
        if (!inPart()) continue;
        proxy.cut();
        cuts++;
        while (inPart()) await turn();
      }
      await put;
      expect(cuts).toBe(2);
      await bucket.get('file', join(folder, 'back'));
      expect(sha256Of(await readFile(join(folder, 'back')))).toBe(sha256);
    });

    test('that does not answer in time is given up', async () => {
      proxy.weather = { delayMs: 2_000, loss: 0, resendMs: 0 };
      const { message } = await failureOf(bucketOf({}, { requestMs: 50, tries: 2 }).list(''));
      expect(message).toContain('no answer within 0.05 s');
    });
  });

  /** A checkpoint of a run on disk. */
  function write(run: string, step: number, kind: CheckpointKind = 'last', more: object = {}) {
    const values = new Float32Array(1_000).fill(step);
    return writeCheckpoint(checkpointFolder(join(folder, 'state'), run), {
      ...{ run, step, kind, layoutHash: 'h', now: new Date() },
      tensors: [{ name: 'w', shape: [1_000], values }],
      state: { life: 1, options: { createdAt: 'monday' }, ...more },
    });
  }

  let mayWrite = async () => {};
  const copierOf = (bucket = bucketOf()) =>
    new Copier({
      ...{ bucket, root: join(folder, 'state'), keepLast: 2, retryMs: 10, log },
      ...{ mayWrite: () => mayWrite(), now: () => performance.now() },
    });
  const stems = async () =>
    (await bucketOf().list('')).map(({ key }) => key.replace(/^.*\/(life-\d+)\/step-0*/, '$1 '));
  const settled = async (copier: Copier) => {
    while (copier.facts().waiting > 0) await wait(5);
  };

  const state = () => join(folder, 'state');
  const lastOf = (run: string, root = state()) =>
    newestValidCheckpoint(checkpointFolder(root, run), { kinds: ['last'] });

  describe('a copier', () => {
    beforeEach(() => {
      mayWrite = async () => {};
    });

    test('copies each checkpoint, and keeps the newest of kind last, the best and the final', async () => {
      const copier = copierOf();
      for (const step of [10, 20, 30]) {
        copier.written(await write('r', step));
        await settled(copier);
      }
      for (const kind of ['best', 'final'] as const) copier.written(await write('r', 30, kind));
      copier.written(await write('r', 40, 'best'));
      await settled(copier);
      expect(await stems()).toEqual(
        ['20-last-0002', '30-final-0005', '30-last-0003', '40-best-0006'].flatMap((stem) => [
          `life-00001 ${stem}.json`,
          `life-00001 ${stem}.safetensors`,
        ]),
      );
      expect(copier.facts()).toMatchObject({
        ...{ to: `s3://${place.bucket}/team`, waiting: 0, failed: 0, away: null, refused: [] },
        runs: [{ run: 'r', step: 30 }],
      });
      await copier.close(1_000);
    });

    test('copies the newest of each run once the bucket is back, and nothing in between', async () => {
      const copier = copierOf(bucketOf({}, { tries: 1 }));
      proxy.refusing = true;
      proxy.cut();
      for (const step of [1, 2, 3]) {
        copier.written(await write('a', step));
        copier.written(await write('b', step));
      }
      while (copier.facts().failed < 2) await wait(5);
      expect(copier.facts()).toMatchObject({ waiting: 2, copied: 0 });
      expect(copier.facts().away?.why).toContain('cannot be reached');
      proxy.refusing = false;
      await settled(copier);
      expect(copier.facts()).toMatchObject({ copied: 2, away: null });
      expect((await stems()).filter((stem) => stem.endsWith('.json'))).toEqual([
        'life-00001 3-last-0003.json',
        'life-00001 3-last-0003.json',
      ]);
      expect(lines.some((line) => line.includes('trying again in'))).toBe(true);
      await copier.close(1_000);
    });

    test('copies one of changed rows as one file, and the bucket gives it back alone', async () => {
      const rows = (keys: number[], step: number) => [
        {
          name: 't.keys',
          shape: [2 * keys.length],
          values: Float32Array.from(keys.flatMap((k) => [0, k])),
        },
        {
          name: 't.values',
          shape: [keys.length],
          values: new Float32Array(keys.length).fill(step),
        },
      ];
      const input = { run: 'r', layoutHash: 'h', now: new Date(), kind: 'last' } as const;
      const place = checkpointFolder(state(), 'r');
      const known = { life: 1, options: { createdAt: 'monday' } };
      const whole = await writeCheckpoint(place, {
        ...{ ...input, step: 1, tensors: rows([1, 2, 3], 1), state: known },
      });
      const { file, sha256 } = whole;
      const group = { keys: 't.keys', fields: ['t.values'] };
      const links = { after: [{ file, sha256 }], rows: [group] };
      const changes = await writeCheckpoint(place, {
        ...{ ...input, step: 2, tensors: rows([2, 4], 2), state: known, continues: links },
      });
      const copier = copierOf();
      copier.written(changes);
      await copier.close(60_000);
      expect(copier.facts()).toMatchObject({ copied: 1, refused: [] });
      expect((await stems()).filter((stem) => stem.endsWith('.json'))).toHaveLength(1);
      await rm(state(), { recursive: true });
      await mkdir(state());
      await restoreInto(state(), bucketOf(), log);
      const { manifest, tensors } = (await lastOf('r'))!;
      expect(manifest).toMatchObject({ step: 2, version: 1, state: known });
      const [keys, values] = tensors.map((tensor) => [...tensor.values]);
      expect([keys, values]).toEqual([
        [0, 1, 0, 3, 0, 2, 0, 4],
        [1, 1, 2, 2],
      ]);
    });

    test('keeps those of a later life though it counts from 1 again', async () => {
      const first = copierOf();
      for (const step of [10, 20]) first.written(await write('r', step));
      await first.close(60_000);
      await rm(join(folder, 'state'), { recursive: true });
      const second = copierOf();
      for (const step of [15, 16]) {
        second.written(await write('r', step, 'last', { life: 2 }));
        await settled(second);
      }
      expect((await stems()).filter((stem) => stem.endsWith('.json'))).toEqual([
        'life-00002 15-last-0001.json',
        'life-00002 16-last-0002.json',
      ]);
      await second.close(1_000);
    });

    test('leaves the copies of another run of that name alone', async () => {
      const first = copierOf();
      first.written(await write('r', 10));
      await first.close(60_000);
      const second = copierOf();
      second.written(await write('r', 5, 'last', { life: 2, options: { createdAt: 'tuesday' } }));
      second.written(await write('other', 7));
      await settled(second);
      expect(second.facts().refused).toMatchObject([
        { run: 'r', why: expect.stringContaining('another run of that name, made at monday') },
      ]);
      expect(second.facts().runs).toEqual([{ run: 'other', step: 7 }]);
      await second.close(1_000);
    });

    test('copies nothing that the disk has damaged, and says so', async () => {
      const copier = copierOf();
      const manifest = await write('r', 10);
      const path = join(checkpointFolder(join(folder, 'state'), 'r'), manifest.file);
      const bytes = await readFile(path);
      bytes[bytes.length - 1]! ^= 1;
      await writeFile(path, bytes);
      copier.written(manifest);
      await settled(copier);
      expect(await stems()).toEqual([]);
      expect(copier.facts().refused[0]?.why).toContain('is damaged and was not copied');
      copier.written(await write('r', 20));
      await settled(copier);
      expect(copier.facts()).toMatchObject({ refused: [], copied: 1 });
      await copier.close(1_000);
    });

    test('copies one that the disk loses to newer ones meanwhile: a slow upload ends all the same', async () => {
      const copier = copierOf();
      const manifest = await write('r', 10);
      let asked = 0;
      mayWrite = async () => {
        // The last time is before the manifest, after the tensors.
        if (++asked === 3) await rm(join(folder, 'state'), { recursive: true });
      };
      copier.written(manifest);
      await copier.close(60_000);
      expect(asked).toBe(3);
      await mkdir(join(folder, 'state'));
      expect(await restoreInto(join(folder, 'state'), bucketOf(), log)).toEqual(['r']);
      expect((await lastOf('r'))?.manifest).toEqual(manifest);
    });

    test('passes one over that the disk has lost before its turn', async () => {
      const manifest = await write('r', 10);
      await rm(join(folder, 'state'), { recursive: true });
      const copier = copierOf();
      copier.written(manifest);
      await copier.close(60_000);
      expect(copier.facts()).toMatchObject({ copied: 0, failed: 0, waiting: 0, away: null });
      expect(await stems()).toEqual([]);
    });

    test('writes nothing more once another server owns the state', async () => {
      const copier = copierOf();
      mayWrite = () => Promise.reject(new DownpourError('DP_STATE_FENCED', 'another has it'));
      copier.written(await write('r', 10));
      await settled(copier);
      copier.written(await write('r', 20));
      await copier.close(1_000);
      expect(await stems()).toEqual([]);
    });

    test('removes what an upload that never ended has left', async () => {
      const bucket = bucketOf();
      const { path } = await fileOf(10);
      const half = 'r/checkpoints/life-00001/step-000000005-last-0001.safetensors';
      await bucket.put(half, path, null);
      const copier = copierOf();
      copier.written(await write('r', 10, 'last', { life: 2 }));
      await copier.close(60_000);
      expect((await bucket.list('')).map(({ key }) => key)).not.toContain(half);
      expect(copier.facts().copied).toBe(1);
    });

    test('that ends waits for the last copy, and says what did not arrive in time', async () => {
      const manifest = await write('r', 10);
      const copier = copierOf(bucketOf({}, { tries: 1 }));
      proxy.refusing = true;
      proxy.cut();
      copier.written(manifest);
      await copier.close(50);
      expect(lines.at(-1)).toMatch(
        /run r: its checkpoint of step 10 \(last\) was not copied to s3:.* within 0.05 s: it is on disk alone/,
      );
      proxy.refusing = false;
      const next = copierOf();
      await next.catchUp(['r']);
      await next.close(60_000);
      expect(next.facts()).toMatchObject({ copied: 1, waiting: 0 });
    });
  });

  describe('a restore', () => {
    beforeEach(async () => {
      mayWrite = async () => {};
      const copier = copierOf();
      for (const step of [10, 20]) {
        copier.written(await write('r', step));
        await settled(copier);
      }
      copier.written(await write('r', 15, 'best'));
      copier.written(await write('other', 7));
      await copier.close(60_000);
      await rm(state(), { recursive: true });
      await mkdir(state());
    });
    const newest = 'r/checkpoints/life-00001/step-000000020-last-0002';

    test('brings back the newest of each run and kind', async () => {
      expect(await restoreInto(state(), bucketOf(), log)).toEqual(['other', 'r']);
      const last = await lastOf('r');
      expect(last?.manifest.step).toBe(20);
      expect(last?.tensors[0]?.values).toEqual(new Float32Array(1_000).fill(20));
      expect((await readdir(checkpointFolder(state(), 'r'))).length).toBe(4);
      expect((await lastOf('other'))?.manifest.step).toBe(7);
      expect((await readdir(state())).sort()).toEqual(['other', 'r']);
    });

    test('brings back what the experiment of a run was sent as, of each run once, and nothing else in its name', async () => {
      const content = Buffer.from('// Downpour experiment {}');
      const sha256 = sha256Of(content);
      const options = { createdAt: 'monday', bundle: sha256 };
      const sent = join(state(), BUNDLE_FOLDER);
      await mkdir(sent);
      await writeFile(join(sent, sha256), content);
      const copier = copierOf();
      for (const run of ['sent', 'again']) {
        for (const step of [1, 2]) {
          copier.written(await write(run, step, 'last', { options }));
          await settled(copier);
        }
      }
      // The disk has lost that of another run, whose checkpoint is copied all the same.
      const lost = 'ab'.repeat(32);
      const without = { createdAt: 'monday', bundle: lost };
      copier.written(await write('without', 5, 'last', { options: without }));
      await copier.close(60_000);
      const bucket = bucketOf();
      const keys = (await bucket.list('')).map(({ key }) => key);
      expect(keys.filter((key) => key.includes('/bundles/'))).toEqual([
        `again/bundles/${sha256}`,
        `sent/bundles/${sha256}`,
      ]);
      expect(lines.join('\n')).toMatch(/run without: bundle (ab)+ of its experiment is not copied/);

      const restored = async () => {
        await rm(state(), { recursive: true });
        await mkdir(state());
        await restoreInto(state(), bucket, log);
        return readdir(sent).catch(() => []);
      };
      expect(await restored()).toEqual([sha256]);
      expect(await readFile(join(sent, sha256))).toEqual(content);
      expect((await lastOf('without'))?.manifest.step).toBe(5);
      expect(lines.join('\n')).toMatch(/bundles\/(ab)+, which .* run without .* is not there/);
      // Another content under its name.
      const other = join(folder, 'other');
      await writeFile(other, 'import "node:child_process"');
      for (const run of ['sent', 'again'])
        await bucket.put(`${run}/bundles/${sha256}`, other, null);
      expect(await restored()).toEqual([]);
      expect(lines.join('\n')).toMatch(/experiment of run sent was sent as, .* another SHA-256/);
      expect((await lastOf('sent'))?.manifest.step).toBe(2);
    });

    test('touches no folder that has a run', async () => {
      await write('mine', 3);
      expect(await restoreInto(state(), bucketOf(), log)).toEqual([]);
      expect(await readdir(state())).toEqual(['mine']);
    });

    test('passes damaged and half copies over for the next older whole one', async () => {
      const bucket = bucketOf();
      const path = join(folder, 'tensors');
      await bucket.get(`${newest}.safetensors`, path);
      const bytes = await readFile(path);
      bytes[bytes.length - 1]! ^= 1;
      await writeFile(path, bytes);
      await bucket.put(`${newest}.safetensors`, path, null);
      await bucket.put('r/checkpoints/life-00001/step-000000030-last-0009.safetensors', path, null);
      await restoreInto(state(), bucket, log);
      expect((await lastOf('r'))?.manifest.step).toBe(10);
      expect(lines.join('\n')).toMatch(/last-0009.safetensors has no manifest: passed over/);
      expect(lines.join('\n')).toMatch(/last-0002 is damaged: .*passed over for an older copy/);
    });

    test('does not begin anew beside copies of which none is whole', async () => {
      const bucket = bucketOf();
      await bucket.remove('other/checkpoints/life-00001/step-000000007-last-0001.safetensors');
      const { code } = await failureOf(restoreInto(state(), bucket, log));
      expect(code).toBe('DP_CHECKPOINT_CORRUPT');
      expect(await readdir(state())).toEqual([]);
    });

    test('that the server is stopped in says so, and leaves nothing', async () => {
      const { code, message } = await failureOf(
        restoreInto(state(), bucketOf(), log, AbortSignal.abort()),
      );
      expect(code).toBe('DP_SERVER_STOPPING');
      expect(message).toContain('the next start begins again');
      expect(await readdir(state())).toEqual([]);
    });

    test('that a death of the server cuts off is begun again, or ended', async () => {
      await mkdir(join(checkpointFolder(join(state(), '.restore'), 'r')), { recursive: true });
      await appendFile(join(checkpointFolder(join(state(), '.restore'), 'r'), 'half'), 'half');
      expect(await restoreInto(state(), bucketOf(), log)).toEqual(['other', 'r']);
      expect((await readdir(state())).sort()).toEqual(['other', 'r']);
      // All is there and one run is in its place already.
      const again = join(folder, 'again');
      await mkdir(join(again, '.restore'), { recursive: true });
      await restoreInto(join(again, '.restore'), bucketOf(), log);
      await writeFile(join(again, '.restore', 'complete.json'), '');
      await mkdir(join(again, 'r'));
      proxy.refusing = true;
      expect(await restoreInto(again, bucketOf(), log)).toEqual(['other', 'r']);
      expect((await lastOf('r', again))?.manifest.step).toBe(20);
      expect((await readdir(again)).sort()).toEqual(['other', 'r']);
    });

    test.skipIf(smallDiskMissing())(
      'onto a full disk leaves nothing that looks like a run',
      async () => {
        const disk = mountSmallDisk(MIB);
        try {
          const free = disk.fill();
          const { code } = await failureOf(restoreInto(disk.path, bucketOf(), log));
          expect(code).toBe('DP_DISK');
          free();
          expect(await restoreInto(disk.path, bucketOf(), log)).toEqual(['other', 'r']);
        } finally {
          disk.remove();
        }
      },
    );
  });

  describe('a server', () => {
    const problem = createProblem();
    const servers: ServerProcess[] = [];
    const start = async (state: string, ...more: string[]) => {
      const server = await startServerProcess(join(folder, state), 0, more);
      servers.push(server);
      return server;
    };
    const copying = () => ['--checkpoint-copy', `s3://${place.bucket}/team`];
    const secrets = () => {
      vi.stubEnv('AWS_ENDPOINT_URL_S3', place.endpoint);
      vi.stubEnv('AWS_ACCESS_KEY_ID', place.accessKeyId);
      vi.stubEnv('AWS_SECRET_ACCESS_KEY', place.secretAccessKey);
    };
    afterEach(async () => {
      for (const server of servers.splice(0)) await server.kill();
    });
    const create = ({ client }: ServerProcess) =>
      client.createRun({
        ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
        config: {
          ...{ seed: 5, minibatchSize: 4, learningRate: 0.01, evaluateEverySteps: 10_000 },
          checkpoint: { everySteps: 10, everySeconds: 1e6 },
        },
      });
    const trainTo = async ({ url }: ServerProcess, step: number) => {
      const worker = await ProtocolWorker.connect(url, { name: 'w' });
      await worker.trainTo(problem, await worker.enter(problem), step);
      return worker;
    };
    const tensorsOf = async (state: string) => {
      const last = await newestValidCheckpoint(checkpointFolder(join(folder, state), 'r'));
      return { step: last!.manifest.step, tensors: last!.tensors };
    };

    test('that is killed and loses its folder goes on from the copy, to the bit', async () => {
      const twin = await start('twin');
      await create(twin);
      await trainTo(twin, 40);
      await twin.client.stop('r');

      secrets();
      const first = await start('state', ...copying());
      await create(first);
      const worker = await trainTo(first, 23);
      const copied = async () => (await first.client.status()).copies?.runs[0]?.step ?? 0;
      while ((await copied()) < 20) await wait(20);
      const page = await (await fetch(`${first.url}/metrics`)).text();
      expect(page).toMatch(/downpour_run_copied_step\{run="r"\} 2\d/);
      await first.kill();
      worker.terminate();
      await rm(join(folder, 'state'), { recursive: true });

      const second = await start('state', ...copying());
      expect(second.log()).toContain('the state folder has no run: restoring r');
      const { step } = await second.client.run('r');
      expect(step).toBeGreaterThanOrEqual(20);
      await trainTo(second, 40);
      await second.client.stop('r');
      expect(await tensorsOf('state')).toEqual(await tensorsOf('twin'));

      // The last checkpoint is in the bucket when the process has ended.
      const ended = once(second.child, 'exit');
      second.child.kill('SIGTERM');
      await ended;
      const newest = (await lastOf('r'))!.manifest.file.replace('.safetensors', '.json');
      const keys = (await bucketOf().list('r/')).map(({ key }) =>
        key.slice(key.lastIndexOf('/') + 1),
      );
      expect(newest).toContain('step-000000040-last');
      expect(keys).toContain(newest);
      for (const { log: said } of [first, second]) {
        expect(said()).not.toContain(place.secretAccessKey);
        expect(said()).not.toContain(place.accessKeyId);
      }
    });

    test('with an empty folder does not begin without the bucket; with a run it does, and warns', async () => {
      const state = await start('state');
      await create(state);
      await (await trainTo(state, 3)).terminate();
      await state.client.stop('r');
      await state.kill();
      secrets();
      vi.stubEnv('AWS_SECRET_ACCESS_KEY', 'not-the-secret');
      await expect(start('empty', ...copying())).rejects.toThrow(
        /DP_S3_UNAVAILABLE: s3:.* answered 403/,
      );
      const running = await start('state', ...copying());
      const looked = async () => (await running.client.status()).alerts.map(({ text }) => text);
      while (!(await looked()).some((text) => text.includes('nothing is copied to')))
        await wait(20);
      expect((await running.client.run('r')).step).toBe(3);
      expect(running.log()).not.toContain('not-the-secret');
    });
  });
});
