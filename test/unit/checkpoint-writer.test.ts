import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, expect, test } from 'vitest';
import { type CheckpointInput, readCheckpoint } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { SharedCopies } from '../../server/checkpoints/copies.ts';
import { directWriter, ThreadedWriter } from '../../server/checkpoints/writer.ts';
import { bytesOf } from '../../shared/codec.ts';
import { errorCode } from '../../shared/errors.ts';

let folder: string;
/** One for all tests: in a checkout a thread that starts reads TypeScript for two seconds. */
const writer = new ThreadedWriter();
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-writer-'));
});
afterEach(() => rm(folder, { recursive: true }));
afterAll(() => writer.close());

/** Vitest compares a million numbers one by one, in a second. */
const isSame = (one: Float32Array, other: Float32Array) =>
  Buffer.compare(bytesOf(one), bytesOf(other)) === 0;

const kernel = Float32Array.from({ length: 300_000 }, (_, i) => Math.sin(i));
const tensors: CheckpointInput['tensors'] = [
  { name: 'kernel', shape: [300, 1000], values: kernel },
  { name: 'bias', shape: [3], values: Float32Array.of(1, -0, 1e-45) },
];

function input(step: number, changes: Partial<CheckpointInput> = {}): CheckpointInput {
  return {
    ...{
      run: 'r',
      step,
      kind: 'last',
      layoutHash: 'a1',
      tensors,
      state: { sequences: [['w', 3]] },
    },
    now: new Date('2024-05-01T12:00:00Z'),
    ...changes,
  };
}

test('a thread writes what this one would, to the byte', async () => {
  const there = await writer.write(join(folder, 'a'), input(7));
  const here = await directWriter.write(join(folder, 'b'), input(7));
  expect(there).toEqual(here);
  for (const name of [here.file, here.file.replace('.safetensors', '.json')]) {
    const written = await readFile(join(folder, 'a', name));
    expect(written.equals(await readFile(join(folder, 'b', name))), name).toBe(true);
  }
});

test('copies in shared memory are of their moment, and their memory is used again', async () => {
  const copies = new SharedCopies();
  const live = Float32Array.from(kernel);
  const values = copies.make(live);
  const write = writer.write(
    folder,
    input(1, { tensors: [{ name: 'k', shape: [300_000], values }] }),
  );
  live.fill(0);
  const { tensors: read } = await readCheckpoint(folder, await write);
  expect(isSame(read[0]!.values, kernel)).toBe(true);
  copies.written({ keep: true });
  const again = copies.make(live);
  expect(again.buffer).toBe(values.buffer);
  expect(copies.make(live).buffer).not.toBe(values.buffer);
  expect(copies.make(live.subarray(1))).toHaveLength(299_999);
});

test('memory of copies is kept for those that come again, not for each size that there ever was', () => {
  const copies = new SharedCopies();
  const bytes: number[] = [];
  for (let rows = 1; rows <= 20; rows++) {
    const vector = copies.room(100);
    copies.room(rows);
    copies.written({ keep: true });
    bytes.push(copies.idleBytes);
    expect(copies.room(100)).toBe(vector);
    copies.written({ keep: true });
  }
  expect(bytes.at(-1)!).toBeLessThan(4 * (100 + 3 * 20));
  copies.written({ keep: false });
  expect(copies.idleBytes).toBe(0);
});

test('what is streamed passes on in its order, two writes at a time', async () => {
  const asked: string[] = [];
  const streamed = (run: string): CheckpointInput['tensors'] =>
    ['first', 'second'].map((name, at) => ({
      name,
      shape: [200_000],
      async *pieces() {
        for (let i = 0; i < 4; i++) {
          asked.push(`${run} ${name} ${i}`);
          yield bytesOf(kernel.subarray(at * 50_000 + i * 50_000, at * 50_000 + (i + 1) * 50_000));
        }
      },
    }));
  const of = (run: string) => asked.filter((each) => each.startsWith(run));
  const [a, b] = await Promise.all(
    ['a', 'b'].map((run) =>
      writer.write(join(folder, run), input(2, { run, tensors: streamed(run) })),
    ),
  );
  for (const manifest of [a!, b!]) {
    const { tensors: read } = await readCheckpoint(join(folder, manifest.run), manifest);
    expect(isSame(read[0]!.values, kernel.subarray(0, 200_000))).toBe(true);
    expect(isSame(read[1]!.values, kernel.subarray(50_000, 250_000))).toBe(true);
    expect(of(manifest.run)).toEqual(
      ['first', 'second'].flatMap((name) =>
        [0, 1, 2, 3].map((i) => `${manifest.run} ${name} ${i}`),
      ),
    );
  }
});

test('a piece that cannot be had fails its write with its own error, and leaves nothing', async () => {
  const lost = new Error('the shard is lost');
  const pieces = async function* () {
    yield bytesOf(kernel.subarray(0, 10));
    throw lost;
  };
  const write = writer.write(folder, input(3, { tensors: [{ name: 'k', shape: [20], pieces }] }));
  await expect(write).rejects.toBe(lost);
  expect(await listCheckpoints(folder)).toEqual([]);
  expect((await writer.write(folder, input(4))).step).toBe(4);
});

test('errors come with their codes, and old checkpoints are pruned there too', async () => {
  const file = join(folder, 'no-folder');
  await writeFile(file, '');
  const code = await writer.write(join(file, 'x'), input(1)).catch(errorCode);
  expect(code).toBe(await directWriter.write(join(file, 'x'), input(1)).catch(errorCode));
  expect(code).toBe('DP_DISK');
  for (const step of [1, 2, 3]) await writer.write(folder, input(step));
  const gone = await writer.prune(folder, { keepLast: 1 });
  expect(gone.map((name) => name.slice(0, 14)).sort()).toEqual([
    'step-000000001',
    'step-000000002',
  ]);
  expect((await listCheckpoints(folder)).map(({ step }) => step)).toEqual([3]);
});

test('when the thread ends, what it was writing fails, and the next write gets a new one', async () => {
  let read = () => {};
  const begun = new Promise<void>((resolve) => {
    read = resolve;
  });
  const pieces = async function* () {
    read();
    await new Promise(() => {});
    yield new Uint8Array();
  };
  const write = writer
    .write(folder, input(5, { tensors: [{ name: 'k', shape: [20], pieces }] }))
    .catch((error: Error) => error);
  await begun;
  await writer.close();
  expect(errorCode(await write)).toBe('DP_DISK');
  expect((await writer.write(folder, input(6))).step).toBe(6);
  expect((await listCheckpoints(folder)).map(({ step }) => step)).toEqual([6]);
});
