import { beforeAll, beforeEach, expect, test } from 'vitest';
import { openCpu } from '../../worker/backend.ts';
import type { Minibatch } from '../../worker/data/examples.ts';
import type { Engine } from '../../worker/engine.ts';
import { chosenText, FasterEngine } from '../../worker/faster-engine.ts';
import type { Model } from '../../worker/model.ts';
import type { RowSource } from '../../worker/rows/model-rows.ts';
import { tf } from '../../worker/tf.ts';

// The plain cpu engine plays the native one: both are set in tfjs by a name, and wasm is real.

let native: Engine;
beforeAll(async () => {
  native = { name: 'native', ...(await openCpu('a processor')) };
});

let built: string[] = [];
let disposed: string[] = [];
beforeEach(() => {
  built = [];
  disposed = [];
});

/** A model whose steps last as long as they are said to on each backend. */
function modelOf(stepMs: Readonly<Record<string, number>>, records = false) {
  return async (): Promise<Model> => {
    const backend = tf.getBackend();
    built.push(backend);
    if (!(backend in stepMs)) throw new Error(`Kernel 'Foo' not registered for '${backend}'`);
    const end = (ms: number) => new Promise((done) => setTimeout(done, ms));
    return {
      records,
      layout: { exchangedSize: 1 },
      initialise: async () => new Float32Array(1),
      load() {},
      async step() {
        await end(stepMs[backend]!);
        return { discard() {} };
      },
      dispose: () => disposed.push(backend),
    } as unknown as Model;
  };
}

const minibatch = () => ({}) as Minibatch;

test('a model whose steps are recorded stays on the native engine, and nothing is measured', async () => {
  const chosen = await new FasterEngine(native).choose('a', modelOf({ cpu: 1 }, true), minibatch);
  expect(chosen.engine).toBe('native');
  expect(chosen.why).toBe('engine native: it runs the steps of this model as one graph');
  expect(built).toEqual(['cpu']);
  expect(disposed).toEqual([]);
});

test('of a model with code of the user, both engines are measured, and the faster one computes', async () => {
  const faster = new FasterEngine(native);
  const slow = modelOf({ cpu: 100, wasm: 1 });
  const chosen = await faster.choose('slow', slow, minibatch);
  expect(chosen.engine).toBe('wasm');
  expect(chosen.why).toMatch(/^engine wasm: .* with wasm and .* with native$/);
  expect(tf.getBackend()).toBe('wasm');
  expect([built, disposed]).toEqual([['cpu', 'wasm'], ['cpu']]);

  // Another model in the same process, then the first one again.
  const quick = await faster.choose('quick', modelOf({ cpu: 1, wasm: 100 }), minibatch);
  expect(quick.engine).toBe('native');
  expect(tf.getBackend()).toBe('cpu');
  built = [];
  expect((await faster.choose('slow', slow, minibatch)).engine).toBe('wasm');
  expect(built).toEqual(['wasm']);
  await tf.setBackend('cpu');
});

test('a model that wasm cannot compute stays on the native engine, and the line says why', async () => {
  const chosen = await new FasterEngine(native).choose('b', modelOf({ cpu: 1 }), minibatch);
  expect(chosen.engine).toBe('native');
  expect(chosen.why).toContain("Kernel 'Foo' not registered for 'wasm'");
  expect(tf.getBackend()).toBe('cpu');
});

test('a model with tables is measured with made-up rows, which it does not keep', async () => {
  const sources: unknown[] = [];
  const build = modelOf({ cpu: 1, wasm: 100 });
  const withRows = async () => {
    const model = await build();
    let source: RowSource | null = null;
    const from = (given: RowSource | null) => {
      source = given;
      sources.push(given);
    };
    const step: Model['step'] = async (minibatch, seed) => {
      const [rows] = await source!([Uint32Array.of(3, 8)]);
      expect([rows!.keys.length, rows!.values.length]).toEqual([2, 10]);
      return model.step(minibatch, seed);
    };
    return {
      ...model,
      step,
      rows: { shapes: [{ name: 'town', width: 5, keysMax: 9 }], from },
    } as never;
  };
  const chosen = await new FasterEngine(native).choose('rows', withRows, minibatch);
  expect(chosen.engine).toBe('native');
  expect(chosen.why).toMatch(/with wasm and .* with native$/);
  expect(sources.at(-1)).toBeNull();
});

test('where the engine is another one, there is no choice', async () => {
  const wasm = new FasterEngine({ ...native, name: 'wasm' });
  const chosen = await wasm.choose('c', modelOf({ cpu: 1 }), minibatch);
  expect([chosen.engine, chosen.why]).toEqual(['wasm', null]);
});

test('wasm is chosen where it is clearly faster, since timings differ on a busy machine', () => {
  expect(chosenText('native', 12.4, 10)).toMatch(/^engine native: /);
  expect(chosenText('native', 12.6, 10)).toMatch(/^engine wasm: /);
  expect(chosenText('native', 3.2, 1.25)).toBe(
    'engine wasm: a step of this model, which has code of yours, takes 1.3 ms with wasm and 3.2 ms with native',
  );
});
