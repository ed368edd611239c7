import { type OpenTensors, openTensors, type StreamedTensor } from '../../files/checkpoint.ts';
import { type Layout, layoutSpecs } from '../../shared/layout.ts';
import { type Range, rangeLayout } from '../../shared/partition.ts';
import { layoutOfState } from '../core/run/groups.ts';
import type { RunState } from '../core/run/state.ts';
import { RESTORED_BEST } from '../core/run/vector.ts';
import type { Run } from '../core/run.ts';
import { BEST, rangesOf } from '../core/shard.ts';
import type { SaveKind } from '../core/shard-command.ts';
import { type CopyVector, type NamedTensor, VECTOR, vectorSizes } from '../core/vectors.ts';
import type { ShardPool } from './pool.ts';

/**
 * Checkpoints of runs on several shards: one file as ever, whatever the number of shards, so that it is
 * exported, inspected and resumed like any other, on any number of shards. Its tensors pass through the
 * coordinator in pieces.
 */

const PIECE_ELEMENTS = 2 ** 22;
let saves = 0;

/** Tensors of a checkpoint of this moment; `done` when they are written, or will never be. */
export function saveShards(
  pool: ShardPool,
  run: Run,
  what: SaveKind,
  copy: CopyVector,
): { readonly tensors: readonly StreamedTensor[]; done(): void } {
  const id = ++saves;
  const own = run.save(id, what, copy);
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
  return { tensors, done: () => run.vector.forgetSaved(id) };
}

/**
 * Gives the shards their parts of a checkpoint, if the run has several.
 * @param path of the tensor file, checked already.
 * @returns the tensors of the first range, as `Run.restore` takes them.
 */
export async function restoreShards(
  pool: ShardPool,
  path: string,
  state: RunState,
): Promise<NamedTensor[]> {
  const file = await openTensors(path);
  try {
    if (!state.tensors || !state.parameters || state.initialisations === 0) return [];
    const { id: run, config } = state.options;
    const layout = layoutOfState(state)!;
    const tensors = layoutSpecs(layout);
    const ranges = rangesOf(layout, pool.count);
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
    return await ownTensors(file, layout, sizes, ranges[0]!);
  } finally {
    await file.close();
  }
}

/** The numbers of a range of one of the vectors, piece by piece. @yields places in the whole vector. */
async function* readRange(
  file: OpenTensors,
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
  file: OpenTensors,
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
