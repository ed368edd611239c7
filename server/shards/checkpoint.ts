import { openCheckpointTensors } from '../../files/checkpoint.ts';
import type { CheckpointManifest } from '../../files/manifest.ts';
import type { OpenTensors, StreamedTensor } from '../../files/tensor-file.ts';
import { bytesOf } from '../../shared/codec.ts';
import { type Layout, layoutSpecs } from '../../shared/layout.ts';
import { type Range, rangeLayout } from '../../shared/partition.ts';
import { layoutOfState } from '../core/run/groups.ts';
import type { RunState } from '../core/run/state.ts';
import { RESTORED_BEST } from '../core/run/vector.ts';
import type { Run } from '../core/run.ts';
import { BEST, rangesOf } from '../core/shard.ts';
import type { SaveKind } from '../core/shard-command.ts';
import { isOfRows } from '../core/tables/run-tables.ts';
import { type CopyVector, type NamedTensor, VECTOR, vectorSizes } from '../core/vectors.ts';
import type { ShardPool } from './pool.ts';
import { restoreRows } from './restore-rows.ts';

/**
 * Checkpoints of runs on several shards: one file as ever, whatever the number of shards, so that it is
 * exported, inspected and resumed like any other, on any number of shards. Its tensors pass through the
 * coordinator in pieces.
 */

const PIECE_ELEMENTS = 2 ** 22;
const PRETRAINED = '.pretrained';
let saves = 0;

/** Copies of this moment for a checkpoint. */
interface SavedShards {
  /** All of them but rows. */
  readonly tensors: readonly StreamedTensor[];
  /** Rows of tables, when those that are here are copied. @throws DownpourError DP_SHARD_LOST. */
  rows(own: readonly NamedTensor[]): Promise<readonly StreamedTensor[]>;
  /** They are written, or never will be. */
  done(isWritten: boolean): void;
}

/** @param changes of the rows, those alone that the checkpoint on disk does not have. */
export function saveShards(
  pool: ShardPool,
  run: Run,
  what: SaveKind,
  { changes, copy }: { readonly changes: boolean; readonly copy: CopyVector },
): SavedShards {
  const id = ++saves;
  const own = run.save(id, what, { changes, copy });
  const layout = run.layout!;
  const state = run.state(run.nowMs).parameters ?? {};
  const sizes = vectorSizes(run.config, layout, state).set(BEST, layout.exchangedSize);

  /** Elements [start, end) of a vector that begins with the layout's, from all shards. */
  async function* pieces(name: string, start: number, end: number) {
    for (const [index, range] of run.vector.ranges.entries()) {
      const to = Math.min(end, range.end);
      for (let at = Math.max(start, range.start); at < to; ) {
        const count = Math.min(PIECE_ELEMENTS, to - at);
        const first = at - range.start;
        if (index > 0) yield await pool.read(index, { run: run.id, id, name, start: first, count });
        else {
          const { buffer, byteOffset } = own.get(name)!;
          yield new Uint8Array(buffer, byteOffset + 4 * first, 4 * count);
        }
        at += count;
      }
    }
  }
  const tensors: StreamedTensor[] = layout.tensors.map(({ name, shape, offset, size }) => ({
    name,
    shape,
    pieces: () => pieces(VECTOR, offset, offset + size),
  }));
  for (const name of own.keys()) {
    if (name === VECTOR) continue;
    const size = sizes.get(name)!;
    tensors.push({ name, shape: [size], pieces: () => pieces(name, 0, size) });
  }
  return {
    tensors,
    rows: (own) => {
      const named = new Map(own.map(({ name, values }) => [name, values]));
      return rowTensors(pool, run, id, named);
    },
    done: (isWritten) => run.vector.forgetSaved(id, isWritten),
  };
}

/** Rows of tables: those of each shard behind those of the one before. */
async function rowTensors(
  pool: ShardPool,
  run: Run,
  id: number,
  own: ReadonlyMap<string, Float32Array>,
): Promise<StreamedTensor[]> {
  const { ranges } = run.vector;
  const lists = await Promise.all(ranges.slice(1).map((_, i) => pool.list(i + 1, run.id, id)));
  const names = new Set([...own.keys(), ...lists.flat().map(({ name }) => name)]);
  const sizeOf = (index: number, name: string) =>
    index === 0
      ? (own.get(name)?.length ?? 0)
      : (lists[index - 1]!.find((each) => each.name === name)?.size ?? 0);
  return [...names].filter(isOfRows).map((name) => {
    let counts = ranges.map((_, index) => sizeOf(index, name));
    const isThere = counts.map((count) => count > 0);
    // A flag of each row, which shards without such a row leave out.
    if (name.endsWith(PRETRAINED) && isThere.includes(true)) {
      const keys = `${name.slice(0, -PRETRAINED.length)}.keys`;
      counts = ranges.map((_, index) => sizeOf(index, keys) / 2);
    }
    async function* pieces() {
      for (const [index, count] of counts.entries()) {
        if (!isThere[index]) {
          yield new Uint8Array(4 * count);
          continue;
        }
        for (let start = 0; start < count; start += PIECE_ELEMENTS) {
          const some = Math.min(PIECE_ELEMENTS, count - start);
          if (index === 0) yield bytesOf(own.get(name)!.subarray(start, start + some));
          else yield await pool.read(index, { run: run.id, id, name, start, count: some });
        }
      }
    }
    return { name, shape: [counts.reduce((sum, count) => sum + count, 0)], pieces };
  });
}

/**
 * Gives the shards their parts of a checkpoint, if the run has several.
 * @param manifest of the checkpoint, whose files are checked already.
 * @returns the tensors of the first range, as `Run.restore` takes them.
 */
export async function restoreShards(
  pool: ShardPool,
  folder: string,
  manifest: CheckpointManifest,
  state: RunState,
): Promise<NamedTensor[]> {
  const file = await openCheckpointTensors(folder, manifest);
  try {
    return await giveShards(pool, file, state);
  } finally {
    await file.close();
  }
}

/** The same from a file that is open. @returns as `restoreShards`. */
export async function giveShards(
  pool: ShardPool,
  file: Pick<OpenTensors, 'size' | 'read'>,
  state: RunState,
): Promise<NamedTensor[]> {
  if (!state.tensors || !state.parameters || state.initialisations === 0) return [];
  const { id: run, config } = state.options;
  const layout = layoutOfState(state)!;
  const tensors = layoutSpecs(layout);
  const ranges = rangesOf(layout, pool.count, config);
  const sizes = vectorSizes(config, layout, state.parameters);
  if (state.best) sizes.set(BEST, layout.exchangedSize);
  for (let index = 1; index < ranges.length; index++) {
    const range = ranges[index]!;
    pool.tellOne(index, { kind: 'create', run, tensors, config });
    for (const [name, size] of sizes) {
      for await (const { start, values } of readRange(file, layout, name, size, range)) {
        pool.tellOne(index, { kind: 'write', run, name, start: start - range.start }, values);
        await pool.drained(index);
      }
    }
    pool.tellOne(index, {
      kind: 'restore',
      run,
      state: state.parameters,
      best: state.best ? RESTORED_BEST : null,
      workers: state.workers.map(([worker, sequence]) => [worker, sequence]),
    });
  }
  const own = await ownTensors(file, layout, sizes, ranges[0]!);
  return ranges.length > 1 ? [...own, ...(await restoreRows(pool, file, state))] : own;
}

/** The numbers of a range of one of the vectors, piece by piece. @yields places in the whole vector. */
async function* readRange(
  file: Pick<OpenTensors, 'read'>,
  layout: Layout,
  name: string,
  size: number,
  range: Range,
) {
  const end = Math.min(range.end, size);
  if (name !== VECTOR) {
    for (let start = range.start; start < end; start += PIECE_ELEMENTS) {
      const values = await file.read(name, start, Math.min(PIECE_ELEMENTS, end - start));
      yield { start, values };
    }
    return;
  }
  for (const tensor of layout.tensors) {
    const to = Math.min(end, tensor.offset + tensor.size);
    for (let start = Math.max(range.start, tensor.offset); start < to; start += PIECE_ELEMENTS) {
      const count = Math.min(PIECE_ELEMENTS, to - start);
      yield { start, values: await file.read(tensor.name, start - tensor.offset, count) };
    }
  }
}

async function ownTensors(
  file: Pick<OpenTensors, 'read'>,
  layout: Layout,
  sizes: ReadonlyMap<string, number>,
  range: Range,
): Promise<NamedTensor[]> {
  const tensors: NamedTensor[] = [];
  for (const { name, shape, size, offset } of rangeLayout(layout, range).tensors) {
    const first = layout.tensors.find((tensor) => tensor.name === name)!.offset;
    tensors.push({
      name,
      shape,
      values: await file.read(name, range.start + offset - first, size),
    });
  }
  for (const [name, size] of sizes) {
    if (name === VECTOR) continue;
    const count = Math.max(0, Math.min(range.end, size) - range.start);
    tensors.push({ name, shape: [count], values: await file.read(name, range.start, count) });
  }
  return tensors;
}
