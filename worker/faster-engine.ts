import { openWasm, prove, setBackend } from './backend.ts';
import type { Minibatch } from './data/examples.ts';
import type { Engine, EngineName } from './engine.ts';
import type { Model } from './model.ts';
import { madeUpRows } from './rows/model-rows.ts';
import { tf } from './tf.ts';

/**
 * Which of a processor's two good engines computes a model. A step that is recorded as a graph is several times
 * faster on the native engine than on wasm, recurrent layers included (docs/benchmarks.md). Steps with code of the
 * user's run operation by operation, and there wasm may win: it has less to do for each operation. So both are
 * measured for such a model, on its own minibatches.
 */

export interface ChosenModel {
  readonly model: Model;
  readonly engine: EngineName;
  /** One line for people: which engine, and why. Null: there was no choice. */
  readonly why: string | null;
}

const NATIVE: readonly EngineName[] = ['native', 'tfjs-node'];
/** The first steps of a model compile what they use. */
const WARM_STEPS = 2;
const TIMED_STEPS = 5;
/** Per engine; the step under way is finished. */
const TIMED_MS_MAX = 500;
/** Arithmetic fills a step that takes longer, and that is the native engine's. */
const STEP_MS_MAX = 1000;
/** On a busy machine timings differ by as much: the engine that is open stays unless the other is clearly faster. */
const CLEARLY = 1.25;

/** For one process, which trains one model at a time. */
export class FasterEngine {
  readonly #opened: Engine;
  /** What was measured, by what was measured. */
  readonly #known = new Map<string, Omit<ChosenModel, 'model'>>();
  #wasm: Promise<unknown> | null = null;

  /** @param opened by `auto`: an engine that was asked for by its name is not for this class. */
  constructor(opened: Engine) {
    this.#opened = opened;
  }

  /**
   * @param key of the experiment and of all that its model and its minibatches depend on.
   * @param build makes the model on the engine that is set, which is the chosen one afterwards.
   * @param minibatch as training has them.
   */
  async choose(
    key: string,
    build: () => Promise<Model>,
    minibatch: () => Minibatch | Promise<Minibatch>,
  ): Promise<ChosenModel> {
    const { name, backend } = this.#opened;
    if (!NATIVE.includes(name)) return { model: await build(), engine: name, why: null };
    const known = this.#known.get(key);
    if (known) return { ...known, model: await this.#buildOn(known.engine, build) };
    await this.#set(backend);
    const native = await build();
    if (native.records) {
      const why = `engine ${name}: it runs the steps of this model as one graph`;
      return { model: native, engine: name, why };
    }
    const nativeMs = await stepMs(native, await minibatch());
    if (nativeMs > STEP_MS_MAX) {
      const why = `engine ${name}: a step takes ${ms(nativeMs)}, which is mostly arithmetic`;
      return this.#keep(key, { model: native, engine: name, why });
    }
    native.dispose();
    let wasmMs = Number.POSITIVE_INFINITY;
    let failure = '';
    let wasm: Model | null = null;
    try {
      wasm = await this.#buildOn('wasm', build);
      wasmMs = await stepMs(wasm, await minibatch());
    } catch (error) {
      failure =
        error instanceof Error ? error.message.split('\n')[0]!.slice(0, 200) : String(error);
    }
    const text = chosenText(name, nativeMs, wasmMs);
    if (wasm && wasmMs * CLEARLY < nativeMs) {
      return this.#keep(key, { model: wasm, engine: 'wasm', why: text });
    }
    wasm?.dispose();
    const model = await this.#buildOn(name, build);
    const why =
      failure === '' ? text : `engine ${name}: wasm cannot compute this model: ${failure}`;
    return this.#keep(key, { model, engine: name, why });
  }

  #keep(key: string, chosen: ChosenModel): ChosenModel {
    this.#known.set(key, { engine: chosen.engine, why: chosen.why });
    return chosen;
  }

  async #buildOn(engine: EngineName, build: () => Promise<Model>): Promise<Model> {
    if (engine === 'wasm') {
      this.#wasm ??= openWasm(this.#opened.device).then(prove);
      await this.#wasm;
      await this.#set('wasm');
    } else await this.#set(this.#opened.backend);
    return build();
  }

  async #set(backend: string): Promise<void> {
    if (tf.getBackend() !== backend) await setBackend(backend);
  }
}

/** Which engine, and the milliseconds of a step on both. */
export function chosenText(native: EngineName, nativeMs: number, wasmMs: number): string {
  const times = `a step of this model, which has code of yours, takes ${ms(wasmMs)} with wasm and ${ms(nativeMs)} with ${native}`;
  if (wasmMs * CLEARLY < nativeMs) return `engine wasm: ${times}`;
  return `engine ${native}: ${times}`;
}

const ms = (value: number) => `${Number(value.toPrecision(2))} ms`;

/** The fastest of a few steps: others on the machine only ever add to it. */
async function stepMs(model: Model, minibatch: Minibatch): Promise<number> {
  model.load((await model.initialise(1)).slice(0, model.layout.exchangedSize));
  const { rows } = model;
  rows?.from(async (keys) => madeUpRows(rows.shapes, keys));
  const began = performance.now();
  let fastest = Number.POSITIVE_INFINITY;
  for (let i = 0; i < WARM_STEPS + TIMED_STEPS; i++) {
    const start = performance.now();
    (await model.step(minibatch, i)).discard();
    const took = performance.now() - start;
    // A slow model has time for its first step only.
    if (i >= WARM_STEPS || took > TIMED_MS_MAX) fastest = Math.min(fastest, took);
    if (performance.now() - began > TIMED_MS_MAX && fastest < Number.POSITIVE_INFINITY) break;
  }
  rows?.from(null);
  return fastest;
}
