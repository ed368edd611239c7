import { DownpourError } from '../../shared/errors.ts';
import type { Layout } from '../../shared/layout.ts';
import type { Average, AverageState } from './averaging.ts';
import type { FusedOptimizer } from './fused.ts';
import type { PushCollection, SentParameters } from './gathered.ts';
import type { MergedStatistics } from './merged-statistics.ts';
import {
  type CopyVector,
  flatTensor,
  type NamedTensor,
  named,
  slice,
  stateName,
  takeTensor,
  VECTOR,
  type VectorPlaces,
  type VectorsInUse,
} from './vectors.ts';

/** What the numbers of a run are made of. */
interface Contents {
  readonly layout: Layout;
  /** The parameters as they are, shape [layout.size]: only to be read. */
  now(): Float32Array;
  /** The same, to be written to; `changed` follows. */
  own(): Float32Array;
  changed(): void;
  readonly statistics: MergedStatistics;
  readonly optimizer: FusedOptimizer;
  readonly outer: FusedOptimizer | null;
  readonly average: Average | null;
  readonly collected: PushCollection | null;
  readonly sent: SentParameters | null;
}

/** What checkpoints, standbys and other runs are given of the numbers of a run, by names, and how it is taken back. */
export class KeptVectors {
  readonly #contents: Contents;

  constructor(contents: Contents) {
    this.#contents = contents;
  }

  /** The parameters by their names: private copies. @param exchanged instead of the present ones. */
  named(exchanged?: Float32Array, copy: CopyVector = slice): NamedTensor[] {
    const whole = copy(this.#contents.now());
    if (exchanged) whole.set(exchanged);
    return this.#contents.layout.tensors.map(({ name, shape, offset, size }) => ({
      name,
      shape,
      values: whole.subarray(offset, offset + size),
    }));
  }

  /** All that a checkpoint must keep besides `state()`: private copies. */
  tensors(copy: CopyVector = slice): NamedTensor[] {
    const tensors = this.named(undefined, copy);
    for (const [name, values] of this.#state()) tensors.push(flatTensor(name, copy(values)));
    return tensors;
  }

  /**
   * The live vectors by the names that `write` takes: all that a checkpoint must keep besides `state()`,
   * shape [layout.size] of the parameters, [trainableSize] and [exchangedSize] of the others.
   */
  vectors(): readonly (readonly [name: string, values: Float32Array])[] {
    return [[VECTOR, this.#contents.now()], ...this.#state()];
  }

  /** What a standby must keep besides: what workers were sent. */
  sentVectors(): readonly (readonly [name: string, values: Float32Array])[] {
    return named('sent', Object.fromEntries(this.#contents.sent?.sent ?? []));
  }

  /** Overwrites a piece of one of the `vectors`. */
  write(name: string, start: number, values: Float32Array): void {
    this.#contents.own();
    const vector = this.#vectorOf(name);
    if (!vector || start + values.length > vector.length) {
      throw new DownpourError(
        'DP_CHECKPOINT_CORRUPT',
        `there is no '${name}' of ${start + values.length} elements in this run: the configuration of the run is different`,
      );
    }
    vector.set(values, start);
    this.#contents.changed();
  }

  /** Finds a vector; `vectors` has only those numbered ones that are in use. */
  #vectorOf(name: string): Float32Array | undefined {
    for (const [prefix, of] of this.#numbered) {
      if (name.startsWith(prefix)) return of(Number(name.slice(prefix.length)));
    }
    return this.vectors().find(([known]) => known === name)?.[1];
  }

  readonly #numbered: readonly (readonly [
    prefix: string,
    of: (number: number) => Float32Array | undefined,
  ])[] = [
    [stateName('velocity', ''), (slot) => this.#contents.optimizer.velocity(slot)],
    [stateName('collected', ''), (place) => this.#contents.collected?.at(place)],
    [stateName('squares', ''), (slot) => this.#contents.sent?.squaresOf(slot)],
    [stateName('sent', ''), (slot) => this.#contents.sent?.sentOf(slot)],
  ];

  /** The live vectors of optimizer and average by their names in a checkpoint. */
  #state(): [string, Float32Array][] {
    return [
      ...named('optimizer', this.#contents.optimizer.slots),
      ...named('outer', this.#contents.outer?.slots ?? {}),
      ...named('velocity', Object.fromEntries(this.#contents.optimizer.velocities)),
      ...named('average', this.#contents.average?.slots ?? {}),
      ...named('collected', this.#contents.collected?.slots ?? {}),
      ...named('squares', Object.fromEntries(this.#contents.sent?.squares ?? [])),
    ];
  }

  state(): ParametersState {
    const velocities = [...this.#contents.optimizer.velocities.keys()].sort((a, b) => a - b);
    const collected = this.#contents.collected?.count ?? 0;
    const squares = [...(this.#contents.sent?.squares.keys() ?? [])].sort((a, b) => a - b);
    return {
      merges: this.#contents.statistics.merges,
      average: this.#contents.average?.state() ?? null,
      ...(velocities.length > 0 && { velocities }),
      ...(collected > 0 && { collected }),
      ...(squares.length > 0 && { squares }),
    };
  }

  /** @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size. */
  restore(state: ParametersState, tensors: readonly NamedTensor[]): void {
    for (const { name, offset, size } of this.#contents.layout.tensors) {
      this.#contents.own().set(takeTensor(tensors, name, size), offset);
    }
    this.restoreState(state);
    for (const [name, values] of this.#state())
      values.set(takeTensor(tensors, name, values.length));
  }

  /**
   * Takes over the parameters of another run and how far its statistics are; optimizer and average are
   * as new. @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size.
   */
  adopt(state: Pick<ParametersState, 'merges'> | null, tensors: readonly NamedTensor[]): void {
    for (const { name, offset, size } of this.#contents.layout.tensors) {
      this.#contents.own().set(takeTensor(tensors, name, size), offset);
    }
    this.#contents.statistics.merges = state?.merges ?? 0;
    this.#contents.changed();
  }

  /**
   * Goes on from parameters of the same model, of which other groups were frozen: all that both have is as it was there.
   * Nothing may wait for its update. @param places that there are here: what has none is forgotten.
   */
  takeOver(before: KeptVectors, places: VectorPlaces): void {
    const { layout: from } = before.#contents;
    copyTensors(from, before.#contents.now(), this.#contents.layout, this.#contents.own());
    const { collected: _, velocities = [], squares = [], ...state } = before.state();
    // The mean of parameters that did not move is what they are.
    if (state.average && state.average.count > 0) {
      const { values } = this.#contents.average!;
      values.set(this.#contents.now().subarray(0, values.length));
    }
    this.restoreState({
      ...state,
      velocities: velocities.filter((slot) => slot <= places.velocities),
      squares: squares.filter((slot) => slot <= places.sent),
    });
    const vectors = new Map(before.#state());
    for (const [name, values] of this.#state()) {
      const old = vectors.get(name);
      if (old) copyTensors(from, old, this.#contents.layout, values);
    }
  }

  /** Continues from a checkpoint; the numbers of the `vectors` come before or after. */
  restoreState(state: ParametersState): void {
    for (const slot of state.velocities ?? []) this.#contents.optimizer.velocity(slot);
    this.#contents.collected?.restore(state.collected ?? 0);
    for (const slot of state.squares ?? []) this.#contents.sent?.squaresOf(slot);
    if (state.average) this.#contents.average?.restore(state.average);
    this.#contents.statistics.merges = state.merges;
    this.#contents.changed();
  }
}

/** Copies the tensors that two vectors have in common. @param values of prefixes of their layouts. */
export function copyTensors(
  from: Layout,
  values: Float32Array,
  to: Layout,
  out: Float32Array,
): void {
  const places = new Map(from.tensors.map(({ name, offset }) => [name, offset]));
  for (const { name, offset, size } of to.tensors) {
    const start = places.get(name)!;
    if (start + size > values.length || offset + size > out.length) continue;
    out.set(values.subarray(start, start + size), offset);
  }
}

export interface ParametersState extends VectorsInUse {
  readonly merges: number;
  readonly average: AverageState | null;
}
