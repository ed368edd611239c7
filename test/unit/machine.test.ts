import { beforeAll, expect, test } from 'vitest';
import { asidesOf } from '../../shared/asides.ts';
import { openCpu } from '../../worker/backend.ts';
import { nvidiaLoad } from '../../worker/engine-nvidia.ts';
import { MachineMeter } from '../../worker/machine.ts';

beforeAll(() => openCpu('a processor'));

const busy = { share: 0.5, memoryBytes: 2 ** 30, memoryBytesMax: 2 ** 34 };

test('a busy process keeps about one core busy, and has memory', async () => {
  const meter = new MachineMeter('cpu', async () => busy);
  const end = performance.now() + 200;
  while (performance.now() < end);
  const facts = await meter.read();
  expect(facts.cpuCores).toBeGreaterThan(0);
  expect(facts.cores).toBeGreaterThanOrEqual(1);
  expect(facts.memoryBytes).toBeGreaterThan(1e7);
  expect(facts.memoryBytesMax).toBeGreaterThanOrEqual(facts.memoryBytes!);
  // This engine computes on no GPU: none is asked.
  expect(facts).toMatchObject({ gpuShare: null, gpuMemoryBytes: null, gpuMemoryBytesMax: null });
});

test('a GPU is asked where the engine uses one, and not again when it has not answered', async () => {
  const meter = new MachineMeter('native-gpu', async () => busy);
  expect(await meter.read()).toMatchObject({ gpuShare: 0.5, gpuMemoryBytes: 2 ** 30 });
  let asked = 0;
  const silent = new MachineMeter('native-gpu', async () => {
    asked++;
    throw new Error('no such program');
  });
  for (let i = 0; i < 3; i++) expect(await silent.read()).toMatchObject({ gpuShare: null });
  expect(asked).toBe(1);
});

test("the driver's table is read for the GPU that the process sees", async () => {
  const table = [
    '0, GPU-a, 10, 1024, 81559',
    '1, GPU-b, 93, 2048, 81559',
    '2, GPU-c, [N/A], 16, 81559',
  ].join('\n');
  const load = (visible?: string) =>
    nvidiaLoad(async () => table, visible === undefined ? {} : { CUDA_VISIBLE_DEVICES: visible });
  expect(await load()).toEqual({
    ...{ share: 0.1, memoryBytes: 2 ** 30, memoryBytesMax: 81559 * 2 ** 20 },
  });
  expect(await load('GPU-b')).toMatchObject({ share: 0.93, memoryBytes: 2 ** 31 });
  expect(await load('2,0')).toMatchObject({ share: null, memoryBytes: 2 ** 24 });
  await expect(nvidiaLoad(async () => Promise.reject(new Error('none')))).rejects.toThrow('none');
  const empty = await nvidiaLoad(async () => '');
  expect(empty).toEqual({ share: null, memoryBytes: null, memoryBytesMax: null });
});

test('a server that names nothing in its handshake takes nothing', () => {
  expect([...asidesOf(undefined)]).toEqual([]);
  expect([...asidesOf('examples something')]).toEqual(['examples']);
  expect([...asidesOf('machine examples')]).toEqual(['machine', 'examples']);
});
