import { Run } from '../../server/core/run.ts';
import { fragmentBytes, type Snapshot } from '../../server/core/snapshot.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import type { Layout } from '../../shared/layout.ts';
import { fragmentsOf } from '../../shared/local-steps.ts';
import type {
  Acknowledgement,
  DataSummary,
  Evaluated,
  Join,
  Lease,
  LeasePart,
  LocalWork,
  Push,
} from '../../shared/protocol.ts';
import type { Metrics, RunSummary } from '../../shared/rest.ts';
import { decodeRows, type RowShape, type TableRows } from '../../shared/rows.ts';
import { createDecoder } from '../../worker/compressor.ts';

/**
 * The server of a simulation: the production run with its kernels, and nothing between it and the virtual workers
 * but this file.
 */

/** What a worker is to do next. Parameters are to be read before anything else happens. */
export type VirtualWork =
  | { readonly kind: 'initialise'; readonly grant: number; readonly seed: number }
  | {
      readonly kind: 'gradient';
      readonly lease: Lease;
      /** How to take local steps; null: one gradient is pushed. */
      readonly local: LocalWork | null;
      readonly step: number;
      readonly generation: number;
      /** Shape [exchangedSize] or, with frozen tensors, [size]; of a fragment, as on the wire. */
      readonly parameters: Float32Array;
      /** That the parameters are of; null: all. */
      readonly fragment: number | null;
      /** On the wire. */
      readonly bytes: number;
    }
  | {
      readonly kind: 'evaluation';
      readonly id: number;
      readonly part: LeasePart;
      readonly parameters: Float32Array;
      readonly bytes: number;
    }
  | { readonly kind: 'wait' }
  | { readonly kind: 'end' };

/** Rows of tables, the step of them, and what they take on the wire. */
export interface VirtualRows {
  readonly rows: readonly TableRows[];
  readonly step: number;
  readonly bytes: number;
}

type JoinFacts = Pick<Join, 'tensors' | 'data' | 'errorMeasure'>;

export class VirtualServer {
  readonly #run: Run;
  readonly #agreement: JoinFacts;
  /** Where parameters that travel in two bytes each are spread out. */
  #decoded = new Float32Array(0);
  readonly #decoder = createDecoder();

  constructor(config: PartialConfig, agreement: JoinFacts) {
    this.#agreement = agreement;
    this.#run = new Run({
      ...{ id: 'virtual', experiment: 'virtual', experimentHash: 'virtual' },
      config: resolveConfig(config),
      createdAt: '2026-01-01T00:00:00.000Z',
    });
  }

  get step(): number {
    return this.#run.step;
  }
  get over(): boolean {
    return this.#run.over;
  }
  get phase(): string {
    return this.#run.phase;
  }
  get config() {
    return this.#run.config;
  }
  /** When it is to be called again, though nothing happens; null: it need not. */
  get deadline(): number | null {
    return this.#run.deadline;
  }
  /** By name; null: no group is ever frozen. */
  get frozenGroups(): readonly string[] | null {
    return this.#run.frozenGroups;
  }
  get layout(): Layout {
    return this.#run.layout!;
  }
  /** Size of what each push and pull holds; only after the first worker has joined. */
  get exchangedSize(): number {
    return this.#run.layout!.exchangedSize;
  }
  get trainableSize(): number {
    return this.#run.layout!.trainableSize;
  }
  get stepsMax(): number | null {
    return this.#run.summary(0).stepsMax;
  }
  get data(): DataSummary {
    return this.#agreement.data;
  }

  join(worker: string, nowMs: number): void {
    const join = { experimentHash: 'virtual', ...this.#agreement };
    this.#run.call({ call: 'join', worker, join, now: nowMs });
  }

  /** Its connection is lost; it may come back. */
  detach(worker: string, nowMs: number): void {
    this.#run.call({ call: 'detach', worker, now: nowMs });
  }

  leave(worker: string): void {
    this.#run.call({ call: 'leave', worker });
  }

  tick(nowMs: number): void {
    this.#run.call({ call: 'tick', now: nowMs });
  }

  /** @param base generation of the parameters that it goes on from by fragments; -1: it has none. */
  assign(worker: string, nowMs: number, base: number): VirtualWork {
    // The run is told of nothing else that the worker has, so that something is sent each time.
    const to = { session: worker, generation: -1, step: -1, base, pulls: 0 };
    const assignment = this.#run.call({ call: 'assign', worker, ahead: 1, now: nowMs, to });
    if (assignment.kind !== 'work') return assignment;
    const { evaluation, leases, step, local, fragment } = assignment;
    const payload = assignment.payload!;
    const sent = fragment === null ? payload.bytes : this.#joined(payload, fragment);
    const bytes = sent.length;
    let parameters: Float32Array;
    if (payload.encoding === 'f32') parameters = floatsOf(sent);
    else {
      const { exchangedSize } = this;
      if (this.#decoded.length < exchangedSize) this.#decoded = new Float32Array(exchangedSize);
      parameters = this.#decoded.subarray(0, Math.min(exchangedSize, bytes / 2));
      this.#decoder.decode(sent, parameters);
    }
    payload.release();
    if (evaluation) return { kind: 'evaluation', ...evaluation, parameters, bytes };
    const [lease] = leases;
    if (!lease) return { kind: 'wait' };
    const { generation } = this.#run;
    const what = { parameters, fragment, bytes };
    return { kind: 'gradient', lease, local, step, generation, ...what };
  }

  /** A fragment as it is sent. */
  #joined(payload: Snapshot, index: number): Uint8Array {
    const { rangeLayout, config } = this.#run;
    const parts = fragmentBytes(payload, rangeLayout!, { index, count: fragmentsOf(config) });
    const joined = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const part of parts) {
      joined.set(part, at);
      at += part.length;
    }
    return joined;
  }

  /** Tables of the run with their widths; empty: it has none. */
  get rowShapes(): readonly RowShape[] {
    return this.#run.tables?.shapes ?? [];
  }

  /** Rows as a worker is sent them. @param evaluation its rows as they were when it began; null: as they are now. */
  rows(worker: string, keys: readonly Uint32Array[], evaluation: number | null): VirtualRows {
    const tables = this.#run.tables!;
    const capture = this.#run.evaluatedCapture(worker, evaluation);
    const encoding = capture === null ? tables.pullEncoding : 'f32';
    const bytes = tables.read(keys, encoding, capture);
    const rows = decodeRows(tables.shapes, bytes, encoding);
    return { rows, step: tables.rowStep, bytes: bytes.length };
  }

  initialised(worker: string, grant: number, values: Float32Array, nowMs: number): void {
    this.#run.call({ call: 'initialised', worker, grant, now: nowMs }, bytesOf(values));
  }

  push(
    worker: string,
    push: Omit<Push, 'type' | 'run'>,
    payload: Uint8Array,
    nowMs: number,
  ): Acknowledgement {
    const whole: Push = { type: 'push', run: this.#run.id, ...push };
    return this.#run.call({ call: 'push', worker, push: whole, now: nowMs }, payload);
  }

  evaluated(
    worker: string,
    result: Omit<Evaluated, 'type' | 'run' | 'examples'> & { readonly part: LeasePart },
    nowMs: number,
  ): void {
    const { part, ...rest } = result;
    const { trainCount: train, validationCount: validation, testCount: test } = this.data;
    const examples = { train, validation, test, trainAndValidation: train + validation }[part];
    const whole: Evaluated = { type: 'evaluated', run: this.#run.id, examples, ...rest };
    this.#run.call({ call: 'evaluated', worker, result: whole, now: nowMs });
  }

  /** Those that had nothing to do may have something now. */
  takeWake(): boolean {
    return this.#run.takeEvents().some(({ kind }) => kind === 'wake');
  }

  summary(nowMs: number): Omit<RunSummary, 'checkpoint' | 'unwritten'> {
    return this.#run.summary(nowMs);
  }

  metrics(pointsMax?: number): Metrics {
    return this.#run.metrics(pointsMax);
  }
}
