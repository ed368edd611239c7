import { floatsOf } from '../../../shared/codec.ts';
import type { RowTableFacts } from '../../../shared/rest.ts';
import { cutKeys, cutRows } from '../../../shared/row-shards.ts';
import { decodeRows, encodeKeys, encodeRows, type TableRows } from '../../../shared/rows.ts';
import type { RowsLanded } from '../run/calls.ts';
import type { RunShards } from '../shard.ts';
import { fullTable } from './row-index.ts';
import type { PushedRows, RunTables } from './run-tables.ts';

/**
 * The rows of a run on several shards, as the coordinator sees them: some are here, and the shards that have the others
 * are told what to do with them. Commands arrive in order, so rows that are read together are of one row step.
 */
export class RowParts {
  readonly #run: string;
  readonly #tables: RunTables;
  readonly #shards: RunShards;
  /** Rows that have begun with values, of each table on each shard, since all rows were reset. */
  #begun: readonly number[][];
  /** What each of the other shards has told last, by index. */
  readonly #facts = new Map<number, readonly RowTableFacts[]>();

  constructor(run: string, tables: RunTables, shards: RunShards) {
    this.#run = run;
    this.#tables = tables;
    this.#shards = shards;
    this.#begun = this.#none();
  }

  #none(): number[][] {
    return this.#tables.shapes.map(() => new Array<number>(this.#shards.count).fill(0));
  }

  /** Those of all shards know their initial values by themselves. */
  reset(seed: number): void {
    this.#begun = this.#none();
    this.#shards.tell(this.#shards.count, { kind: 'resetRows', run: this.#run, seed });
  }

  /** Values that some rows begin with. @throws DownpourError as `RunTables.begin`: then no shard is told. */
  begin(payload: Uint8Array): void {
    const { shapes } = this.#tables;
    const { count } = this.#shards;
    const tables = decodeRows(shapes, payload, 'f32');
    this.#tables.mustBeFinite(tables);
    const cut = tables.map((rows, i) => cutRows(rows, shapes[i]!.width, count));
    this.#mustFit(cut);
    const partOf = (index: number) =>
      encodeRows(
        shapes,
        cut.map((parts) => parts[index]!),
        'f32',
      );
    for (let index = 1; index < count; index++) {
      const command = { kind: 'beginRows', run: this.#run } as const;
      this.#shards.tellOne(index, command, floatsOf(partOf(index)));
    }
    this.#tables.begin(partOf(0));
  }

  /** A shard could not say that rows do not fit before the run has begun without them. */
  #mustFit(cut: readonly (readonly TableRows[])[]): void {
    const begun = this.#begun.map((counts, t) =>
      counts.map((count, shard) => count + cut[t]![shard]!.keys.length),
    );
    for (const [t, counts] of begun.entries()) {
      const { name, capacity } = this.#tables.rooms[t]!;
      if (Math.max(...counts) > capacity) throw fullTable(name, capacity);
    }
    this.#begun = begun;
  }

  /** Has the other shards send the rows that a push wanted. */
  sendWanted(session: string, sequence: number, pull: number): void {
    const { count } = this.#shards;
    this.#shards.tell(count, { kind: 'sendRows', run: this.#run, session, pull, sequence });
  }

  /** Has the other shards send some rows. @returns keys of those that are here. */
  send(
    keys: readonly Uint32Array[],
    to: {
      readonly session: string;
      readonly pull: number;
      readonly encoding: 'f32' | 'bf16';
      readonly capture: number | null;
    },
  ): Uint32Array[] {
    const { count } = this.#shards;
    const cut = keys.map((each) => cutKeys(each, count));
    const partOf = (index: number) => cut.map((parts) => parts[index]!);
    for (let index = 1; index < count; index++) {
      const command = { kind: 'readRows', run: this.#run, ...to } as const;
      this.#shards.tellOne(index, command, floatsOf(encodeKeys(partOf(index))));
    }
    return partOf(0);
  }

  /** A shard tells what it has. */
  note(index: number, facts: readonly RowTableFacts[]): void {
    this.#facts.set(index, facts);
  }

  /** As `RunTables.facts`, of all shards. */
  facts(): RowTableFacts[] {
    return this.#tables.facts().map((own, i) => {
      const all = [own, ...[...this.#facts.values()].flatMap((facts) => facts[i] ?? [])];
      const sum = (of: (facts: RowTableFacts) => number) =>
        all.reduce((total, facts) => total + of(facts), 0);
      const updates = sum((facts) => facts.updates);
      const stale = sum(({ staleness, ...facts }) => facts.updates * (staleness?.mean ?? 0));
      return {
        ...{ name: own.name, width: own.width, rowsMax: own.rowsMax, updates },
        rows: sum((facts) => facts.rows),
        ...{ pretrained: sum((facts) => facts.pretrained), dropped: sum((facts) => facts.dropped) },
        ...{ admitted: sum((facts) => facts.admitted), forgotten: sum((facts) => facts.forgotten) },
        memoryBytes: sum((facts) => facts.memoryBytes),
        staleness:
          updates === 0
            ? null
            : { mean: stale / updates, max: Math.max(...all.map((f) => f.staleness?.max ?? 0)) },
      };
    });
  }
}

/**
 * What is wrong with the rows of a push on other shards, and how stale the stalest of them may be.
 * A shard that has not been told of the last updates does not know which rows they have changed. Then each of its rows
 * may have been: no row is ever staler than what is said here.
 * @param rowStep of now.
 */
export function rowsElsewhere(
  landed: readonly RowsLanded[],
  rows: PushedRows | undefined,
  rowStep: number,
): { readonly staleness: number; readonly problem: string | null } {
  let staleness = 0;
  let problem: string | null = null;
  for (const of of landed) {
    problem ??= of.problem;
    if (of.step !== (rows?.step ?? 0)) {
      problem ??= `a part of the push read rows of row step ${of.step}, and the push ${rows ? `of ${rows.step}` : 'has no rows'}: name one row step in all parts`;
    }
    const missed = of.rowStep < rowStep ? rowStep - of.step : 0;
    staleness = Math.max(staleness, of.staleness, missed);
  }
  return { staleness, problem };
}
