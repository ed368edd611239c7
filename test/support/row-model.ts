import type { RunConfig } from '../../shared/config.ts';
import { mix, STREAMS } from '../../shared/random.ts';
import { shardOfRow } from '../../shared/row-shards.ts';
import type { TableRows } from '../../shared/rows.ts';
import { rowShapes, type TableConfig } from '../../shared/tables.ts';

/**
 * Tables as they ought to be, to the bit: a map from keys to rows, copied whole for each capture, each rule written down a
 * second time without a thought of speed. Rows are of 4 numbers at most, since kernels add in another order than this for more.
 */

const f32 = Math.fround;

/** Initial values of `uniform`, the initializer of all tables here. */
function initialValues(table: string, seed: number, key: number, limit: number, width: number) {
  let base = mix(seed >>> 0, mix(Math.floor(seed / 2 ** 32) >>> 0, STREAMS.rows));
  for (const letter of table) base = mix(base, letter.charCodeAt(0));
  const row = mix(base, key);
  return Float32Array.from({ length: width }, (_, i) => limit * ((2 * mix(row, i)) / 2 ** 32 - 1));
}

/** Σ x² as the kernels add it: even and odd elements by themselves. */
function squaresOf(x: Float32Array): number {
  const [a = 0, b = 0, c = 0, d = 0] = x;
  return a * a + c * c + (b * b + d * d);
}

/** Never changed: an update makes another one, so that a copy of all rows is a copy of their map. */
interface ModelRow {
  readonly theta: Float32Array;
  readonly state: Float32Array;
  /** Row step of its last change. */
  readonly changed: number;
  /** Up to where it has decayed. */
  readonly decay: number;
}

/** Rows that nobody has updated, by table and key: of all that is read most are such. */
const initialRows = new Map<string, Map<number, ModelRow>>();

interface ModelTable {
  seed: number;
  began: number;
  decay: number;
  rows: Map<number, ModelRow>;
  readonly waiting: Map<number, number>;
  /** Keys whose rows began with the values of a file. */
  readonly pretrained: Set<number>;
  dropped: number;
}

/** What a capture keeps: all of it. */
type Captured = readonly CapturedTable[];

interface CapturedTable extends Pick<ModelTable, 'seed' | 'decay' | 'rows'> {
  /** Keys whose rows were kept for it by an update that was taken back: going back to it changes them. */
  readonly kept: ReadonlySet<number>;
  /** Keys of rows of a file, from the moment on that all rows went; null: those of the table. */
  readonly pretrained: ReadonlySet<number> | null;
}

interface ModelState {
  readonly tables: ModelTable[];
  readonly captures: Map<number, Captured>;
  rowStep: number;
}

/** What one push does to the rows. */
export interface RowUpdate {
  readonly rows: readonly TableRows[];
  readonly readStep: number;
  readonly rate: number;
  readonly clip: { readonly limit: number; readonly factor: number };
  readonly scaleOf: (staleness: number) => number;
}

function copyOf({ tables, captures, rowStep }: ModelState): ModelState {
  const copied = tables.map((table) => ({
    ...table,
    rows: new Map(table.rows),
    waiting: new Map(table.waiting),
    pretrained: new Set(table.pretrained),
  }));
  return { tables: copied, captures: new Map(captures), rowStep };
}

export class RowModel {
  readonly names: readonly string[];
  readonly #configs: readonly TableConfig[];
  readonly #shards: number;
  #state: ModelState;
  /** The state before the last push. */
  #before: ModelState | null = null;

  /** @param shards that have the rows together: each admits its share of new ones. */
  constructor(config: RunConfig, state: ModelState | null = null, shards = 1) {
    this.#shards = shards;
    this.names = rowShapes(config).map(({ name }) => name);
    this.#configs = this.names.map((name) => config.tables![name]!);
    const fresh = (): ModelTable => ({
      ...{ seed: config.seed, began: 0, decay: 0, dropped: 0 },
      ...{ rows: new Map(), waiting: new Map(), pretrained: new Set() },
    });
    this.#state = (state && copyOf(state)) ?? {
      tables: this.names.map(fresh),
      captures: new Map(),
      rowStep: 0,
    };
  }

  get rowStep(): number {
    return this.#state.rowStep;
  }

  /** A copy of all of it. */
  state(): ModelState {
    return copyOf(this.#state);
  }

  get captures(): readonly number[] {
    return [...this.#state.captures.keys()];
  }

  /** A checkpoint or a replica goes on: of the captures it has the best alone, under another number. */
  keepCapture(id: number | null, as: number): void {
    const kept = id === null ? undefined : this.#state.captures.get(id);
    this.#state.captures.clear();
    if (kept) this.#state.captures.set(as, kept);
  }

  /** @param shards of which those of the first one are wanted. */
  facts(shards = 1): { name: string; rows: number; pretrained: number; dropped: number }[] {
    const countOf = (keys: Iterable<number>) =>
      [...keys].filter((key) => shards === 1 || shardOfRow(key, shards) === 0).length;
    return this.#state.tables.map(({ rows, pretrained, dropped }, i) => ({
      ...{ name: this.names[i]!, rows: countOf(rows.keys()), pretrained: countOf(pretrained) },
      dropped: shards === 1 ? dropped : 0,
    }));
  }

  /** Row step of the last change of a row, 0: none. */
  changedAt(table: number, key: number): number {
    return this.#state.tables[table]!.rows.get(key)?.changed ?? 0;
  }

  // A push.

  /** @returns whether all rows are finite. If not, `undo` follows. */
  apply({ rows, readStep, rate, clip, scaleOf }: RowUpdate): boolean {
    this.#before = this.state();
    this.#state.rowStep++;
    let finite = true;
    for (const [t, { keys, values }] of rows.entries()) {
      const { learningRate, width } = this.#configs[t]!;
      if (learningRate === 0) continue;
      this.#passTime(t, rate * learningRate);
      for (const [i, key] of keys.entries()) {
        const g = values.slice(i * width, (i + 1) * width);
        if (clip.limit !== Infinity || clip.factor !== 1) {
          for (const [k, x] of g.entries()) {
            g[k] = f32(Math.max(-clip.limit, Math.min(clip.limit, x))) * f32(clip.factor);
          }
        }
        const row = this.#admitted(t, key);
        if (!row) continue;
        const last = row.changed;
        const { pretrainedRate } = this.#configs[t]!;
        const factor = this.#state.tables[t]!.pretrained.has(key) ? pretrainedRate : 1;
        if (factor === 0) continue;
        const own = rate * learningRate * factor * scaleOf(Math.max(0, last - readStep));
        if (!this.#update(t, key, row, g, own)) finite = false;
      }
    }
    return finite;
  }

  /** What all rows of a table undergo with an update. */
  #passTime(t: number, rate: number): void {
    const { weightDecay, expireAfter } = this.#configs[t]!;
    const table = this.#state.tables[t]!;
    const { rowStep } = this.#state;
    if (weightDecay > 0) table.decay += Math.log(Math.max(1e-30, 1 - rate * weightDecay));
    if (expireAfter === null || rowStep % Math.ceil(expireAfter / 4) !== 0) return;
    for (const [key, { changed }] of table.rows) {
      if (rowStep - changed <= expireAfter || table.pretrained.has(key)) continue;
      table.rows.delete(key);
    }
  }

  #admitted(t: number, key: number): ModelRow | null {
    const { rows: size, rowsMax, admitAfter } = this.#configs[t]!;
    const table = this.#state.tables[t]!;
    const found = table.rows.get(key);
    if (found) return found;
    if (size === 'hash') {
      const seen = (table.waiting.get(key) ?? 0) + 1;
      if (seen < admitAfter || this.#isFull(table, key, rowsMax)) {
        table.dropped++;
        if (admitAfter > 1) table.waiting.set(key, Math.min(seen, admitAfter));
        return null;
      }
      table.waiting.delete(key);
    }
    const row = this.#initialRow(t, table, key);
    table.rows.set(key, row);
    return row;
  }

  #isFull({ rows }: ModelTable, key: number, rowsMax: number): boolean {
    const count = this.#shards;
    if (count === 1) return rows.size >= rowsMax;
    const owner = shardOfRow(key, count);
    const own = [...rows.keys()].filter((each) => shardOfRow(each, count) === owner);
    return own.length >= Math.ceil(rowsMax / count);
  }

  #initialRow(t: number, { seed }: Pick<ModelTable, 'seed'>, key: number): ModelRow {
    const { width, initializer } = this.#configs[t]!;
    if (initializer.kind !== 'uniform') throw new Error('tables of the model begin as uniform');
    const { limit } = initializer;
    const table = `${this.names[t]} ${seed} ${limit} ${width}`;
    let rows = initialRows.get(table);
    if (!rows) {
      rows = new Map();
      initialRows.set(table, rows);
    }
    let row = rows.get(key);
    if (!row) {
      const theta = initialValues(this.names[t]!, seed, key, limit, width);
      row = { theta, state: new Float32Array(2 * width), changed: 0, decay: 0 };
      rows.set(key, row);
    }
    return row;
  }

  /** @returns whether the row is finite. */
  #update(t: number, key: number, old: ModelRow, g: Float32Array, rate: number): boolean {
    const { optimizer, weightDecay, maxNorm, width } = this.#configs[t]!;
    const table = this.#state.tables[t]!;
    const { rowStep } = this.#state;
    const theta = this.#decayed(t, old, table.decay);
    const state = old.state.slice();
    const decay = weightDecay > 0 ? table.decay : old.decay;
    table.rows.set(key, { theta, state, changed: rowStep, decay });
    const isNew = old.changed <= table.began;
    const age = isNew ? 0 : rowStep - old.changed;
    if (isNew) state.fill(optimizer.kind === 'adagrad' ? optimizer.initialAccumulator : 0);
    if (optimizer.kind === 'adam') {
      const { beta1, beta2, epsilon } = optimizer;
      const steps = rowStep - table.began;
      const step = f32(rate * (1 / (1 - beta1 ** steps)));
      const correction = f32(1 / (1 - beta2 ** steps));
      const [keep1, keep2] = [f32(beta1 ** age), f32(beta2 ** age)];
      const [fresh1, fresh2] = [f32(1 - beta1), f32(1 - beta2)];
      for (let i = 0; i < width; i++) {
        let m = f32(fresh1 * g[i]!);
        let v = f32(fresh2 * f32(g[i]! * g[i]!));
        if (!isNew) {
          m = f32(f32(keep1 * state[i]!) + m);
          v = f32(f32(keep2 * state[width + i]!) + v);
        }
        state[i] = m;
        state[width + i] = v;
        const root = f32(Math.sqrt(f32(v * correction)));
        theta[i] = theta[i]! - f32(f32(step * m) / f32(root + f32(epsilon)));
      }
    } else {
      let step = rate;
      if (optimizer.kind === 'adagrad') {
        state[0] = state[0]! + squaresOf(g) / width;
        step /= Math.sqrt(state[0]) + f32(optimizer.epsilon);
      }
      for (let i = 0; i < width; i++) theta[i] = theta[i]! - f32(f32(step) * g[i]!);
    }
    if (!theta.every(Number.isFinite)) return false;
    const norm = Math.sqrt(squaresOf(theta));
    if (maxNorm === null || norm <= maxNorm) return true;
    for (let i = 0; i < width; i++) theta[i] = theta[i]! * (maxNorm / norm);
    return true;
  }

  /** Takes the last push back, with what it has forgotten and seen. */
  undo(): void {
    const after = this.#state;
    const before = this.#before!;
    for (const [id, captured] of before.captures) {
      const kept = captured.map((then, t) => {
        const [old, now] = [before.tables[t]!.rows, after.tables[t]!.rows];
        const touched = [...then.rows.keys()].filter(
          (key) =>
            old.get(key) !== now.get(key) && old.get(key)?.changed === then.rows.get(key)!.changed,
        );
        return touched.length === 0 ? then : { ...then, kept: new Set([...then.kept, ...touched]) };
      });
      before.captures.set(id, kept);
    }
    this.#state = before;
  }

  // What the run decides.

  /** Rows that begin with values of a file, in f32. */
  begin(rows: readonly TableRows[]): void {
    this.#state.rowStep++;
    for (const [t, { keys, values }] of rows.entries()) {
      const { width } = this.#configs[t]!;
      const table = this.#state.tables[t]!;
      for (const [i, key] of keys.entries()) {
        const theta = values.slice(i * width, (i + 1) * width);
        const state = new Float32Array(2 * width);
        table.rows.set(key, { theta, state, changed: this.#state.rowStep, decay: table.decay });
        table.pretrained.add(key);
      }
    }
    this.resetOptimizer();
  }

  reset(seed: number): void {
    this.#keepPretrained();
    for (const table of this.#state.tables) {
      Object.assign(table, { seed, decay: 0, began: this.#state.rowStep, dropped: 0 });
      table.rows.clear();
      table.waiting.clear();
      table.pretrained.clear();
    }
  }

  /** All rows go: captures know which were those of a file. */
  #keepPretrained(): void {
    for (const [id, captured] of this.#state.captures) {
      const kept = captured.map((then, t) => {
        const pretrained = then.pretrained ?? new Set(this.#state.tables[t]!.pretrained);
        return { ...then, pretrained };
      });
      this.#state.captures.set(id, kept);
    }
  }

  resetOptimizer(): void {
    for (const table of this.#state.tables) table.began = this.#state.rowStep;
  }

  capture(id: number): void {
    const captured = this.#state.tables.map(({ seed, decay, rows }) => {
      return { seed, decay, rows: new Map(rows), kept: new Set<number>(), pretrained: null };
    });
    this.#state.captures.set(id, captured);
  }

  forget(id: number): void {
    this.#state.captures.delete(id);
  }

  /** All rows as they were then. Those that have changed since are changed by this, and the capture is of now. */
  replace(id: number): void {
    const then = this.#state.captures.get(id)!;
    this.#state.rowStep++;
    for (const [t, { seed, decay, rows, kept, pretrained }] of then.entries()) {
      const table = this.#state.tables[t]!;
      for (const [key, row] of table.rows) {
        const old = rows.get(key);
        if (!old) {
          table.rows.delete(key);
          table.pretrained.delete(key);
        } else if (old.changed !== row.changed || kept.has(key))
          this.#putBack(t, key, decay, old, row.state);
      }
      for (const [key, old] of rows) {
        if (!table.rows.has(key)) this.#putBack(t, key, decay, old, old.state);
      }
      table.seed = seed;
      table.decay = decay;
      if (!pretrained) continue;
      table.pretrained.clear();
      for (const key of pretrained) table.pretrained.add(key);
    }
    this.capture(id);
  }

  #putBack(t: number, key: number, decay: number, old: ModelRow, state: Float32Array): void {
    const theta = this.#decayed(t, old, decay);
    const changed = this.#state.rowStep;
    this.#state.tables[t]!.rows.set(key, { theta, state, changed, decay });
  }

  // Reading.

  #decayed(t: number, { theta, decay: own }: ModelRow, decay: number): Float32Array {
    if (this.#configs[t]!.weightDecay === 0) return theta.slice();
    return theta.map((x) => x * Math.exp(decay - own));
  }

  /** Rows of each table. @param capture null: as they are. */
  read(keys: readonly Uint32Array[], capture: number | null = null): TableRows[] {
    const tables = capture === null ? this.#state.tables : this.#state.captures.get(capture)!;
    return tables.map((table, t) => {
      const { width } = this.#configs[t]!;
      const values = new Float32Array(keys[t]!.length * width);
      for (const [i, key] of keys[t]!.entries()) {
        const row = table.rows.get(key) ?? this.#initialRow(t, table, key);
        values.set(this.#decayed(t, row, table.decay), i * width);
      }
      return { keys: keys[t]!, values };
    });
  }
}
