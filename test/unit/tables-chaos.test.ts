import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import type { PartialConfig } from '../../shared/config.ts';
import type { Acknowledgement, Lease, Push } from '../../shared/protocol.ts';
import { encodeRows, type TableRows } from '../../shared/rows.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';
import { keysOf } from '../support/table-worker.ts';

/**
 * Whatever happens to workers and to the server: each row is updated once for each minibatch that has it, and never by a
 * push that read it too long ago. Rows begin at 0 and each push adds exactly 1, so a row counts its updates.
 */

const KEYS = 12;
const RATE = 0.0625;
const STALENESS_MAX = 3;
const problem = createProblem();

const configOf = (more: PartialConfig): PartialConfig => ({
  ...{ minibatchSize: 4, learningRate: RATE, epochsMax: 50, evaluateEverySteps: 6 },
  ...{ testAtEnd: false, earlyStopping: { enabled: false } },
  tables: {
    word: {
      ...{ rows: KEYS, width: 2, initializer: { kind: 'zeros' } },
      ...{ optimizer: { kind: 'sgd' } },
    },
  },
  ...more,
});

/** What a test knows of the rows by itself. */
interface Shadow {
  /** Updates of each row. */
  readonly counts: number[];
  /** Row step of the last update of each row. */
  readonly changed: number[];
  rowStep: number;
}

/** A worker whose gradients add 1 to each row of a minibatch. */
class CountingWorker extends VirtualWorker {
  readonly #its: Run;
  #readStep = 0;
  /** The last push, to be sent again. */
  last: { readonly push: Push; readonly payload: Uint8Array; readonly lease: Lease } | null = null;

  constructor(run: Run, key: string) {
    super(run, problem, key);
    this.#its = run;
  }

  override pull(): boolean {
    const had = super.pull();
    this.#readStep = this.#its.tables!.rowStep;
    return had;
  }

  protected override dress(push: Push, payload: Uint8Array, lease: Lease) {
    const keys = keysOf(lease, KEYS);
    const rows: TableRows = { keys, values: new Float32Array(2 * keys.length).fill(-1 / RATE) };
    const bytes = encodeRows(this.#its.tables!.shapes, [rows], 'f32');
    const told = {
      ...{ step: this.#readStep, encoding: 'f32' as const },
      ...{ bytes: bytes.length, wanted: 0 },
    };
    const joined = Uint8Array.from([...payload, ...bytes]);
    this.last = { push: { ...push, rows: told }, payload: joined, lease };
    return this.last;
  }
}

/** Notes an answer in the shadow, and checks the bound. */
function note(shadow: Shadow, worker: CountingWorker, answer: Acknowledgement | null): void {
  if (answer?.outcome !== 'applied' && answer?.outcome !== 'damped') return;
  const { push, lease } = worker.last!;
  shadow.rowStep++;
  for (const key of keysOf(lease, KEYS)) {
    expect(shadow.changed[key]! - push.rows!.step).toBeLessThanOrEqual(STALENESS_MAX);
    shadow.counts[key]!++;
    shadow.changed[key] = shadow.rowStep;
  }
}

function expectCounts(run: Run, { counts, rowStep }: Shadow): void {
  const keys = Uint32Array.from({ length: KEYS }, (_, i) => i);
  const bytes = run.tables!.read([keys], 'f32', null);
  const values = new Float32Array(bytes.buffer, 4 + 4 * KEYS, 2 * KEYS);
  expect([...values]).toEqual(counts.flatMap((count) => [count, count]));
  expect(run.tables!.rowStep).toBe(rowStep);
}

const RARE = ['twice', 'leave', 'save', 'stop', 'restart'] as const;
const events = fc.array(
  fc.tuple(
    fc.oneof(
      { weight: 6, arbitrary: fc.constant('pull' as const) },
      { weight: 9, arbitrary: fc.constant('push' as const) },
      { weight: 2, arbitrary: fc.constantFrom(...RARE) },
    ),
    fc.nat({ max: 2 }),
  ),
  { minLength: 100, maxLength: 160 },
);

test.each<[string, PartialConfig]>([
  ['asynchronous', { consistency: { stalenessMax: STALENESS_MAX, correction: 'none' } }],
  [
    'bounded',
    { consistency: { mode: 'bounded', stalenessMax: STALENESS_MAX, correction: 'none' } },
  ],
  ['buffered', { consistency: { mode: 'buffered', bufferSize: 3, stalenessMax: STALENESS_MAX } }],
])('no row twice, none lost, none too stale: %s', (_, more) => {
  let applied = 0;
  let rejected = 0;
  fc.assert(
    fc.property(events, (all) => {
      let run = createRun(configOf(more));
      const fresh = (): Shadow => ({
        ...{ counts: new Array(KEYS).fill(0), changed: new Array(KEYS).fill(0), rowStep: 0 },
      });
      let shadow = fresh();
      let saved: { state: string; tensors: ReturnType<Run['tensors']>; shadow: Shadow } | null =
        null;
      let process = 0;
      const come = (i: number) => new CountingWorker(run, `w${i}/${++process}`);
      let workers = [0, 1, 2].map(come);
      workers[0]!.pull();
      for (const [what, i] of all) {
        const worker = workers[i]!;
        if (run.phase === 'stopped') run.call({ call: 'resume' });
        if (run.over) break;
        if (what === 'pull') worker.pull();
        else if (what === 'push') {
          const answer = worker.push();
          if (answer?.outcome === 'rejected') rejected++;
          if (answer?.outcome === 'applied') applied++;
          note(shadow, worker, answer);
        } else if (what === 'twice' && worker.last) {
          const { push, payload } = worker.last;
          const again = run.call({ call: 'push', worker: worker.key, push, now: 0 }, payload);
          // One that was refused may be taken now, once.
          note(shadow, worker, again);
        } else if (what === 'leave') {
          run.call({ call: 'leave', worker: worker.key });
          workers[i] = come(i);
        } else if (what === 'save' && run.hasParameters) {
          const state = JSON.stringify(run.state(0));
          saved = { state, tensors: run.tensors(), shadow: structuredClone(shadow) };
        } else if (what === 'stop') run.call({ call: 'stop', reason: 'by a user' });
        else if (what === 'restart') {
          run = saved
            ? Run.restore(JSON.parse(saved.state), saved.tensors)
            : createRun(configOf(more));
          shadow = saved ? structuredClone(saved.shadow) : fresh();
          workers = [0, 1, 2].map(come);
        }
        expectCounts(run, shadow);
      }
    }),
    { numRuns: 40 },
  );
  expect(applied).toBeGreaterThan(300);
  expect(rejected).toBeGreaterThan(0);
});
