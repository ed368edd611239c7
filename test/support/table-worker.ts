import type { Run } from '../../server/core/run.ts';
import type { Lease, Push } from '../../shared/protocol.ts';
import { random } from '../../shared/random.ts';
import { decodeRows, encodeRows, type RowEncoding, type TableRows } from '../../shared/rows.ts';
import { type Problem, VirtualWorker } from './regression.ts';

/** Rows of a minibatch, the same for each worker that computes it: some of the table, some of them in many minibatches. */
export function keysOf({ epoch, start }: Lease, keysMax: number): Uint32Array {
  const draw = random(1000 * epoch + start, 99);
  const keys = new Set([0]);
  for (let i = 0; i < 6; i++) keys.add(draw.below(keysMax));
  return Uint32Array.from(keys).sort();
}

/** The value that an element of a row is to have in the end. */
export const aimOf = (key: number, i: number): number => Math.sin(key + 2 * i);

/** A worker that trains tables too: each row is to become that of `aimOf`. */
export class TableWorker extends VirtualWorker {
  readonly #its: Run;
  readonly #keysMax: number;
  readonly #encoding: RowEncoding;
  #rowStep = 0;
  /** Rows as they were at the last pull, by their minibatches. */
  readonly #rows = new Map<string, readonly TableRows[]>();

  constructor(
    run: Run,
    problem: Problem,
    key = 'w/1',
    keysMax = 40,
    encoding: RowEncoding = 'f32',
  ) {
    super(run, problem, key);
    this.#its = run;
    this.#keysMax = keysMax;
    this.#encoding = encoding;
  }

  /** The first rows of tables with a `pretrainedRate` of their own come from a file, every second one. */
  protected override begin(grant: number): void {
    const { shapes } = this.#its.tables!;
    const tables = this.#its.config.tables!;
    if (Object.values(tables).every(({ pretrainedRate }) => pretrainedRate === 1)) return;
    const rows = shapes.map(({ name, width }): TableRows => {
      const isGiven = tables[name]!.pretrainedRate !== 1;
      const keys = Uint32Array.from({ length: isGiven ? 10 : 0 }, (_, i) => 2 * i);
      return { keys, values: Float32Array.from({ length: keys.length * width }, (_, i) => i / 8) };
    });
    const payload = encodeRows(shapes, rows, 'f32');
    this.#its.call({ call: 'initialRows', worker: this.key, grant }, payload);
  }

  override pull(now = 0, ahead = 2): boolean {
    const had = super.pull(now, ahead);
    const { shapes, pullEncoding, rowStep } = this.#its.tables!;
    this.#rowStep = rowStep;
    this.#rows.clear();
    for (const lease of this.leases) {
      const keys = shapes.map(() => keysOf(lease, this.#keysMax));
      const bytes = this.#its.tables!.read(keys, pullEncoding, null);
      this.#rows.set(leaseName(lease), decodeRows(shapes, bytes, pullEncoding));
    }
    return had;
  }

  protected override dress(push: Push, payload: Uint8Array, lease: Lease) {
    const { shapes } = this.#its.tables!;
    const rows = this.#rows.get(leaseName(lease))!;
    const gradients = rows.map(({ keys, values }, table): TableRows => {
      const { width } = shapes[table]!;
      const own = values.map((x, i) => x - aimOf(keys[Math.floor(i / width)]!, i % width));
      return { keys, values: own };
    });
    const bytes = encodeRows(shapes, gradients, this.#encoding);
    const joined = new Uint8Array(payload.length + bytes.length);
    joined.set(payload);
    joined.set(bytes, payload.length);
    const { length } = bytes;
    const told = { step: this.#rowStep, encoding: this.#encoding, bytes: length, wanted: 0 };
    return { push: { ...push, rows: told }, payload: joined };
  }
}

const leaseName = ({ epoch, start, part }: Lease) => `${epoch}:${start}:${part}`;
