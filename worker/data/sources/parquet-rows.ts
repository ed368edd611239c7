import { LIMITS } from '../../../shared/limits.ts';
import type { TableCell } from '../tables/cells.ts';
import { Kept } from './kept.ts';
import { lastNotAbove } from './offsets.ts';
import type { ColumnCells, ParquetFile, RowBlock, RowGroup } from './parquet-file.ts';

/** Rows of a Parquet file: in any order by columns that are decoded and kept, in their own order page by page. */

/** A file, and the columns of it that are used. */
export interface ChosenColumns {
  readonly parquet: ParquetFile;
  /** All, as options name them. */
  readonly names: readonly string[];
  /** The places of the used ones in `names`, in their order. */
  readonly places: readonly number[];
}

/** Their names in the file. */
export const usedOf = ({ parquet, places }: ChosenColumns): string[] =>
  places.map((place) => parquet.names[place]!);

/** The decoded columns of all files of a source: those used last, up to 64 MiB. */
export class KeptColumns extends Kept<string, ColumnCells> {
  /** Bytes of all columns of all row groups. */
  all = 0;

  constructor() {
    super(LIMITS.sourceCacheBytes);
  }
}

/** Reads after which it is clear whether columns are decoded again and again. */
const READS_TOLD = 20;
/** At least as many rows in order are no minibatch by chance. */
const ORDERED_ROWS_MIN = 8;
/** The most rows of the file for one that is asked for, in order: a tenth of the rows may be a validation part. */
const ORDERED_STRIDE_MAX = 64;

export class ParquetRows {
  readonly #chosen: ChosenColumns;
  readonly #used: readonly string[];
  readonly #kept: KeptColumns;
  readonly #starts: readonly number[];
  readonly #log: ((line: string) => void) | undefined;
  readonly #ordered: OrderedRows;
  #reads = 0;
  #misses = 0;

  constructor(chosen: ChosenColumns, kept: KeptColumns, log?: (line: string) => void) {
    const { parquet } = chosen;
    this.#chosen = chosen;
    this.#used = usedOf(chosen);
    this.#kept = kept;
    this.#log = log;
    this.#starts = parquet.groups.map(({ start }) => start);
    this.#ordered = new OrderedRows(chosen, this.#used);
    for (const group of parquet.groups) {
      for (const name of this.#used) kept.all += parquet.bytesOf(group, name);
    }
  }

  /** @param rows of the file, in any order. @throws DownpourError as `ParquetFile.decode` */
  async cells(
    rows: readonly number[],
    signal: AbortSignal,
  ): Promise<readonly (readonly TableCell[])[]> {
    // What is kept as a whole is decoded once anyway.
    const isOrdered = this.#kept.all > LIMITS.sourceCacheBytes && areOrdered(rows);
    return isOrdered ? this.#ordered.take(rows, signal) : this.#anywhere(rows, signal);
  }

  async #anywhere(rows: readonly number[], signal: AbortSignal): Promise<TableCell[][]> {
    const { parquet, names, places } = this.#chosen;
    const found = rows.map(() => new Array<TableCell>(names.length).fill(''));
    const byGroup = new Map<RowGroup, number[]>();
    rows.forEach((row, i) => {
      const group = parquet.groups[lastNotAbove(this.#starts, row)]!;
      const others = byGroup.get(group);
      if (others) others.push(i);
      else byGroup.set(group, [i]);
    });
    const wanted = [...byGroup].flatMap(([group, own]) =>
      places.map((place, column) => ({ group, own, place, name: this.#used[column]! })),
    );
    // Forward and backward by turns: with more than is kept, each turn begins with what the last one has left.
    if (this.#reads % 2 === 1) wanted.reverse();
    const before = this.#kept.misses;
    for (const { group, own, place, name } of wanted) {
      signal.throwIfAborted();
      const key = `${parquet.file.path}: ${group.start}: ${name}`;
      // Another read may wait for the same column, so no signal ends the decoding of one.
      const cells = await this.#kept.get(key, parquet.bytesOf(group, name), () =>
        parquet.decode(group, name),
      );
      for (const i of own) found[i]![place] = cells[rows[i]! - group.start]!;
    }
    this.#misses += this.#kept.misses - before;
    if (++this.#reads === READS_TOLD && this.#misses > 2 * READS_TOLD * places.length) {
      this.#log?.(
        `${parquet.file.path}: ${this.#misses} columns of row groups were decoded for ${READS_TOLD} minibatches, since each has examples of many row groups. To decode each once, write the examples to a file: spooled(source, { folder, name })`,
      );
    }
    return found;
  }
}

/** Whether rows are asked for from the first to the last, as a pass over a part does. */
function areOrdered(rows: readonly number[]): boolean {
  const [first, last] = [rows[0]!, rows.at(-1)!];
  return (
    rows.length >= ORDERED_ROWS_MIN &&
    last - first <= ORDERED_STRIDE_MAX * rows.length &&
    rows.every((row, i) => i === 0 || row > rows[i - 1]!)
  );
}

/** Rows in order: where the last ones ended, the next ones go on. */
class OrderedRows {
  readonly #chosen: ChosenColumns;
  readonly #used: readonly string[];
  #scan: AsyncGenerator<RowBlock, void> | null = null;
  #block: RowBlock | null = null;
  /** Reads may overlap; one after the other they go on with the same scan. */
  #before: Promise<unknown> = Promise.resolve();

  constructor(chosen: ChosenColumns, used: readonly string[]) {
    this.#chosen = chosen;
    this.#used = used;
  }

  take(rows: readonly number[], signal: AbortSignal): Promise<TableCell[][]> {
    const own = this.#before.then(() => this.#take(rows, signal));
    this.#before = own.catch(() => this.#end());
    return own;
  }

  async #take(rows: readonly number[], signal: AbortSignal): Promise<TableCell[][]> {
    const { parquet, names, places } = this.#chosen;
    const first = rows[0]!;
    const block = this.#block;
    const isNear =
      block !== null &&
      first >= block.start &&
      first <= block.start + block.count + ORDERED_STRIDE_MAX * rows.length;
    if (!isNear) {
      await this.#end();
      this.#scan = parquet.scan(this.#used, first);
    }
    const found: TableCell[][] = [];
    for (const row of rows) {
      while (this.#block === null || row >= this.#block.start + this.#block.count) {
        signal.throwIfAborted();
        const next = await this.#scan!.next();
        if (next.done) throw new Error(`the scan has ended before row ${row}`);
        this.#block = next.value;
      }
      const { start, cellOf } = this.#block;
      const cells = new Array<TableCell>(names.length).fill('');
      places.forEach((place, column) => {
        cells[place] = cellOf(column, row - start);
      });
      found.push(cells);
    }
    // At the end nothing decoded stays.
    if (rows.at(-1) === parquet.count - 1) await this.#end();
    return found;
  }

  async #end(): Promise<void> {
    const scan = this.#scan;
    this.#scan = null;
    this.#block = null;
    await scan?.return();
  }
}
