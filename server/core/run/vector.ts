import { bytesOf, floatsOf } from '../../../shared/codec.ts';
import type { Encoding } from '../../../shared/compression.ts';
import type { RunConfig } from '../../../shared/config.ts';
import { shardsProblem } from '../../../shared/consistency.ts';
import { DownpourError } from '../../../shared/errors.ts';
import { fragmentsProblem } from '../../../shared/fragments.ts';
import { groupShardsProblem, groupsOf, layoutWhile } from '../../../shared/groups.ts';
import { type Layout, layoutSpecs, type TensorSpec } from '../../../shared/layout.ts';
import { fragmentsOf, type PushKind } from '../../../shared/local-steps.ts';
import { type Range, rangeLayout } from '../../../shared/partition.ts';
import { ALL_ROWS } from '../../../shared/row-shards.ts';
import { trainsRows } from '../../../shared/tables.ts';
import type { CompensationUse } from '../compensation.ts';
import type { Clip } from '../fused.ts';
import type { PushWeight } from '../gathered.ts';
import { copyTensors, type ParametersState } from '../kept-vectors.ts';
import type { LandingRoom, StagedPush } from '../landing-rooms.ts';
import { normBounds } from '../max-norm.ts';
import { Parameters } from '../parameters.ts';
import { BEST, type RunShards, rangesOf, saveVectors } from '../shard.ts';
import type { RowsUpdate, SaveKind, ShardCommand } from '../shard-command.ts';
import { Snapshot } from '../snapshot.ts';
import type { StepOptions } from '../step-options.ts';
import type { RoomFor } from '../tables/row-copy.ts';
import { RowParts } from '../tables/row-parts.ts';
import { createRunTables, type RunTables, type RunTablesState } from '../tables/run-tables.ts';
import type { TablesCopy } from '../tables/tables-copy.ts';
import {
  type CopyVector,
  flatTensor,
  isSent,
  type NamedTensor,
  notFiniteIn,
  slice,
  takeTensor,
  type VectorPlaces,
  vectorPlaces,
} from '../vectors.ts';
import type { InitialLanded, PushPartsLanded, SentTo } from './calls.ts';

/**
 * The vector of a run, wherever its ranges lie: the first one is here, as a rule all of it, and the shards that have the
 * others are told what is decided. Copies of a moment (captures) have the same number on all of them.
 */

/** What is under evaluation, among the vectors of a replica. */
const EVALUATED = '@evaluated';
/** The number of the best parameters of a run that has been restored. */
export const RESTORED_BEST = 1;

/** Captures that are in use. */
export interface CapturesInUse {
  readonly best: number | null;
  readonly evaluated: number | null;
}

export class Vector {
  readonly #run: string;
  readonly #config: RunConfig;
  readonly #shards: RunShards | null;
  /** The other shards have let go of it, and are told nothing more. */
  #isRemoved = false;
  /** The tensors with the roles that the model gives them. */
  #specs: readonly TensorSpec[] | null = null;
  /** Groups that are frozen. */
  #frozen: readonly string[] = [];
  /** Layout of the whole model, with the frozen groups behind all others. */
  #layout: Layout | null = null;
  #ranges: readonly Range[] = [];
  #parameters: Parameters | null = null;
  /**
   * By their numbers: shape [exchangedSize] of the first range; [size] of those whose frozen parameters are others now, where all
   * of the vector is here.
   */
  readonly #captures = new Map<number, Float32Array>();
  /** Rows beside the vector; null: the run has no tables. */
  readonly tables: RunTables | null;
  /** Rows on other shards; null: all are here. */
  readonly rowParts: RowParts | null;

  /** @param shards that share the vector; null: all of it is here. */
  constructor(run: string, config: RunConfig, shards: RunShards | null) {
    this.#run = run;
    this.#config = config;
    this.#shards = shards;
    this.tables = createRunTables(config, shards ? { index: 0, count: shards.count } : ALL_ROWS);
    this.rowParts = shards && this.tables && new RowParts(run, this.tables, shards);
  }

  get layout(): Layout | null {
    return this.#layout;
  }

  get specs(): readonly TensorSpec[] | null {
    return this.#specs;
  }

  /** The groups that are frozen in the layout, by name. */
  get frozen(): readonly string[] {
    return this.#frozen;
  }

  /** One for each shard, fewer of a small model. */
  get ranges(): readonly Range[] {
    return this.#ranges;
  }

  /** Parameters of the first range; null: no worker has told the model. */
  get parameters(): Parameters | null {
    return this.#parameters;
  }

  get mustParameters(): Parameters {
    if (!this.#parameters) throw new Error(`run ${this.#run} has no parameters yet`);
    return this.#parameters;
  }

  #tell(command: ShardCommand): void {
    if (this.#ranges.length > 1 && !this.#isRemoved)
      this.#shards!.tell(this.#ranges.length, command);
  }

  /**
   * Cuts the vector into ranges and makes room for the first one.
   * @param specs with the roles that the model gives them. @param frozen names of groups.
   * @returns what there is room for besides.
   * @throws DownpourError DP_LAYOUT_INVALID.
   */
  place(specs: readonly TensorSpec[], frozen: readonly string[]): VectorPlaces {
    const groups = groupsOf(this.#config);
    const layout = layoutWhile(specs, groups, frozen, trainsRows(this.#config));
    const ranges = rangesOf(layout, this.#shards?.count ?? 1, this.#config);
    // Here, where a worker is told, not on the other shards.
    for (const range of ranges)
      normBounds(this.#config.maxNorm, rangeLayout(layout, range).tensors);
    const unfit =
      (ranges.length > 1
        ? (shardsProblem(this.#config) ?? groupShardsProblem(this.#config))
        : null) ?? fragmentsProblem(layout, fragmentsOf(this.#config));
    if (unfit !== null) throw new DownpourError('DP_LAYOUT_INVALID', unfit);
    const places = vectorPlaces(this.#config, layout);
    this.#parameters = new Parameters(rangeLayout(layout, ranges[0]!), this.#config, places);
    this.#specs = specs;
    this.#frozen = frozen;
    this.#layout = layout;
    this.#ranges = ranges;
    return places;
  }

  /**
   * Lays the vector out anew, since other groups are frozen now: parameters, optimizer and average go on as they are, and
   * state of parameters that were frozen begins. Not with several shards.
   * @returns what there is room for besides.
   */
  refit(frozen: readonly string[]): VectorPlaces {
    const before = this.mustParameters;
    const places = this.place(this.#specs!, frozen);
    const parameters = this.mustParameters;
    parameters.kept.takeOver(before.kept, places);
    for (const [id, values] of this.#captures) {
      this.#captures.set(id, moved(values, before.layout, parameters));
    }
    return places;
  }

  /** The other shards make room for theirs. */
  createParts(): void {
    const tensors = layoutSpecs(this.#layout!);
    this.#tell({ kind: 'create', run: this.#run, tensors, config: this.#config });
  }

  /** The run is removed: the other shards let go of their parts, and have no such run from now on. */
  removeParts(): void {
    this.#tell({ kind: 'remove', run: this.#run });
    this.#isRemoved = true;
  }

  // What a worker sends and is sent.

  /** Room for a push's payload, as of `Parameters.land`. */
  land(byteLength: number, encoding: Encoding | null): LandingRoom | null {
    return this.#parameters?.land(byteLength, encoding) ?? null;
  }

  /** Nobody will decide about this push: the other shards let go of their parts, if they have them. */
  dropParts(session: string, sequence: number): void {
    this.#tell({ kind: 'drop', run: this.#run, session, sequence });
  }

  /** The other shards take initial parameters from this worker, and from nobody else. */
  grantParts(session: string, grant: number): void {
    this.#tell({ kind: 'grant', run: this.#run, session, grant });
  }

  /** They take none from it any more. */
  revokeParts(session: string): void {
    this.#tell({ kind: 'revoke', run: this.#run, session });
  }

  /**
   * Has the other shards send a worker what belongs to an assignment.
   * @param capture that is evaluated; null: the present parameters. @param whole with the frozen tensors.
   * @param fragment that is sent alone; null: all.
   * @returns the number that they send it under; null: nobody else has anything to send.
   */
  sendParts(
    to: SentTo | null,
    capture: number | null,
    whole: boolean,
    fragment: number | null,
  ): number | null {
    if (!to || this.#ranges.length === 1) return null;
    const { session } = to;
    const pull = to.pulls + 1;
    const part = fragment === null ? {} : { fragment };
    this.#tell({ kind: 'send', run: this.#run, session, pull, capture, whole, ...part });
    return pull;
  }

  /**
   * Initial parameters of a worker.
   * @param payload in f32, shape [rangeLayout.size]. @throws DownpourError DP_TENSOR_SIZE or DP_GRADIENT_NOT_FINITE.
   */
  readInitial(payload: Uint8Array, worker: string, others: InitialLanded | null): Float32Array {
    const { layout } = this.mustParameters;
    const { size } = layout;
    if (payload.length !== 4 * size) {
      throw new DownpourError(
        'DP_TENSOR_SIZE',
        `the initial parameters have ${payload.length / 4} elements; this run's layout needs ${size}`,
      );
    }
    const values = floatsOf(payload);
    const problem = notFiniteIn(layout, values) ?? others?.problem ?? null;
    if (problem === null) return values;
    throw new DownpourError(
      'DP_GRADIENT_NOT_FINITE',
      `the initial parameters of worker ${worker} ${problem}: look at the model's initialisers`,
    );
  }

  // What the run decides.

  /** All rows of tables begin anew. */
  resetRows(seed: number): void {
    this.tables?.reset(seed);
    this.rowParts?.reset(seed);
  }

  /** @throws DownpourError as `RunTables.begin`. */
  beginRows(payload: Uint8Array): void {
    if (this.rowParts) this.rowParts.begin(payload);
    else this.tables?.begin(payload);
  }

  /** @param values of the first range, shape [size]. */
  initialise(values: Float32Array, others: InitialLanded | null): void {
    const parameters = this.mustParameters;
    const { size, exchangedSize } = parameters.layout;
    // Frozen parameters begin with other values too, after another seed.
    if (size > exchangedSize && this.#ranges.length === 1) {
      for (const [id, captured] of this.#captures) {
        if (captured.length < size) this.#captures.set(id, parameters.whole(captured));
      }
    }
    parameters.initialise(values);
    if (others) this.#tell({ kind: 'initialise', run: this.#run, session: others.session });
  }

  /** An update that was made here, of a push in parts. */
  applyParts(
    { session }: PushPartsLanded,
    what: {
      readonly worker: string;
      readonly sequence: number;
      readonly kindOfPush: PushKind;
      readonly clip: Clip;
      readonly options: StepOptions;
      readonly generation: number;
      readonly rows?: RowsUpdate;
    },
  ): void {
    this.#tell({ kind: 'apply', run: this.#run, session, ...what });
  }

  /** Keeps a push for a step of several. @param others where its other parts lie. */
  collect(
    staged: StagedPush,
    others: PushPartsLanded | null,
    what: {
      readonly worker: string;
      readonly sequence: number;
      readonly kindOfPush: PushKind;
      readonly weight: PushWeight;
      readonly compensation: CompensationUse | null;
      readonly rows?: RowsUpdate;
    },
  ): void {
    this.mustParameters.collect(staged, what.weight, what.compensation);
    if (!others) return;
    this.#tell({ kind: 'collect', run: this.#run, session: others.session, ...what });
  }

  /** A step of several was made here. */
  combineParts(what: {
    readonly generation: number;
    readonly shares: number;
    readonly faulty: number;
    readonly clip: Clip;
    readonly options: StepOptions;
  }): void {
    this.#tell({ kind: 'combine', run: this.#run, ...what });
  }

  /** The pushes that were collected are of no more use. */
  discard(): void {
    this.mustParameters.discard();
    this.#tell({ kind: 'discard', run: this.#run });
  }

  /** A worker is sent the parameters as they are: they are kept for its push. @param fresh the slot was another one's. */
  remember({ slot, fresh }: { readonly slot: number; readonly fresh: boolean }): void {
    this.mustParameters.remember(slot, fresh);
    this.#tell({ kind: 'remember', run: this.#run, slot, fresh });
  }

  /** Other values for trainable and statistics: captured ones, or what is evaluated now. */
  replace(by: number | 'evaluated'): void {
    const parameters = this.mustParameters;
    if (by !== 'evaluated') this.tables?.replace(by);
    parameters.replace(by === 'evaluated' ? parameters.evaluated() : this.captured(by));
    this.#tell({ kind: 'replace', run: this.#run, by });
  }

  resetOptimizer(): void {
    this.mustParameters.resetOptimizer();
    this.tables?.resetOptimizer();
    this.#tell({ kind: 'resetOptimizer', run: this.#run });
  }

  // Captures.

  /** Keeps a copy of this moment. @param id that no other capture of this life of the server has. */
  capture(id: number, what: 'evaluated' | 'exchanged'): void {
    this.#tell({ kind: 'capture', run: this.#run, id, what });
    this.#captures.set(id, this.mustParameters[what]());
    this.tables?.capture(id);
  }

  /** Shape [exchangedSize] of the first range. */
  captured(id: number): Float32Array {
    return this.#captured(id).subarray(0, this.mustParameters.layout.exchangedSize);
  }

  /** Its shape is [size] where its frozen parameters are not those of now. */
  #captured(id: number): Float32Array {
    const values = this.#captures.get(id);
    if (!values) throw new Error(`run ${this.#run} has no capture ${id}`);
    return values;
  }

  /** Nobody needs it any more, unless it is in use. */
  forget(id: number, { best, evaluated }: CapturesInUse): void {
    if (id === best || id === evaluated) return;
    this.#captures.delete(id);
    this.tables?.forget(id);
    this.#tell({ kind: 'forget', run: this.#run, id });
  }

  // Checkpoints.

  /**
   * Has all shards keep copies of this moment for a checkpoint. Rows are copied by `copyRows`.
   * @param id under which the others give theirs. @param best its capture.
   * @param changes of the rows, those alone that the checkpoint on disk does not have.
   * @returns those of the first range; see `saveVectors`.
   */
  save(
    id: number,
    what: SaveKind,
    best: number | null,
    changes: boolean,
    copy: CopyVector,
  ): Map<string, Float32Array> {
    const kept = what === 'final' ? null : best;
    this.#tell({ kind: 'save', run: this.#run, id, what, best: kept, changes });
    const values = kept === null ? null : this.captured(kept);
    return saveVectors(this.mustParameters, what, values, copy);
  }

  /** The other shards need the copies no more. @param isWritten the checkpoint is on disk. */
  forgetSaved(id: number, isWritten: boolean): void {
    this.#tell({ kind: 'saved', run: this.#run, id, isWritten });
  }

  /** As `RunTables.beginCopy`, of the rows that are here; null: the run has no tables. */
  copyRows(
    what: SaveKind,
    best: number | null,
    how: { readonly changes: boolean; readonly room: RoomFor },
  ): TablesCopy | null {
    return this.tables?.beginCopy(what, what === 'final' ? null : best, how) ?? null;
  }

  /**
   * Private copies of what a checkpoint keeps: parameters by their names, optimizer state as `@optimizer.<symbol>`, that
   * of the average as `@average.<symbol>`, the best parameters: flat.
   */
  tensors(best: number | null, copy: CopyVector): NamedTensor[] {
    const tensors = this.withoutRows(best, copy);
    if (this.tables) tensors.push(...this.tables.tensors(best, null));
    return tensors;
  }

  /** The same without the rows of tables. */
  withoutRows(best: number | null, copy: CopyVector): NamedTensor[] {
    const tensors = this.mustParameters.kept.tensors(copy);
    if (best !== null) tensors.push(flatTensor(BEST, copy(this.#captured(best))));
    return tensors;
  }

  /** Parameters by their names. @param best its capture; null: the present ones. */
  named(best: number | null, copy: CopyVector = slice): NamedTensor[] {
    const tensors = this.namedWithoutRows(best, copy);
    return this.tables ? [...tensors, ...this.tables.named(best)] : tensors;
  }

  /** The same without the rows of tables. */
  namedWithoutRows(best: number | null, copy: CopyVector): NamedTensor[] {
    const values = best === null ? undefined : this.#captured(best);
    return this.mustParameters.kept.named(values, copy);
  }

  /**
   * Goes on from a checkpoint.
   * @param rows what is known of the tables; absent: there are none.
   * @param hasBest its best parameters are among the tensors; they get the number `RESTORED_BEST`.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size.
   */
  restore(
    state: ParametersState,
    rows: RunTablesState | undefined,
    tensors: readonly NamedTensor[],
    hasBest: boolean,
  ): void {
    const parameters = this.mustParameters;
    parameters.kept.restore(state, tensors);
    if (rows) this.tables?.restore(rows, tensors, hasBest ? RESTORED_BEST : null, null);
    if (!hasBest) return;
    const { exchangedSize, size } = parameters.layout;
    const isWhole = tensors.find(({ name }) => name === BEST)?.values.length === size;
    this.#captures.set(RESTORED_BEST, takeTensor(tensors, BEST, isWhole ? size : exchangedSize));
  }

  // A replica.

  /** The live vectors by name: those of the parameters, and the captures that are in use. */
  vectors({ best, evaluated }: CapturesInUse): (readonly [name: string, values: Float32Array])[] {
    const vectors = [
      ...this.mustParameters.kept.vectors(),
      ...this.mustParameters.kept.sentVectors(),
    ];
    if (best !== null) vectors.push([BEST, this.#captured(best)]);
    if (evaluated !== null && evaluated !== best)
      vectors.push([EVALUATED, this.captured(evaluated)]);
    return [...vectors, ...this.rowVectors({ best, evaluated })];
  }

  /** Rows of the tables among the live vectors. */
  rowVectors({ best, evaluated }: CapturesInUse): [name: string, values: Float32Array][] {
    const tensors = this.tables?.tensors(best, evaluated) ?? [];
    return tensors.map(({ name, values }) => [name, values]);
  }

  /**
   * Takes over another run's vectors; those that were captured are this one's own from now on.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a vector has another size.
   */
  replicate(
    tensors: readonly TensorSpec[],
    state: ParametersState | null,
    rows: RunTablesState | undefined,
    vectors: ReadonlyMap<string, Float32Array>,
    {
      best,
      evaluated,
      hasParameters,
      frozen,
    }: CapturesInUse & { readonly hasParameters: boolean; readonly frozen: readonly string[] },
  ): VectorPlaces {
    const places = this.place(tensors, frozen);
    const parameters = this.mustParameters;
    const taken = (name: string) => vectors.get(name) ?? new Float32Array();
    if (state) parameters.kept.restoreState(state);
    for (const [name] of hasParameters ? parameters.kept.vectors() : []) {
      parameters.kept.write(name, 0, taken(name));
    }
    for (const [name, values] of vectors) if (isSent(name)) parameters.kept.write(name, 0, values);
    if (best !== null) this.#captures.set(best, taken(BEST));
    if (evaluated !== null && evaluated !== best) this.#captures.set(evaluated, taken(EVALUATED));
    if (rows) {
      const named = [...vectors].map(([name, values]) => flatTensor(name, values));
      this.tables?.restore(rows, named, best, evaluated);
    }
    return places;
  }
}

/**
 * Captured values, in a new layout. Those of parameters that were frozen then are what they have been since. Where some are
 * frozen now that were not, the whole vector is kept: they begin with other values.
 */
function moved(values: Float32Array, from: Layout, parameters: Parameters): Float32Array {
  const isWhole = values.length > parameters.layout.exchangedSize;
  const now = isWhole ? parameters.whole() : parameters.exchanged();
  copyTensors(from, values, parameters.layout, now);
  return now;
}

/** A payload for one worker: nobody writes to these numbers. */
export const payloadOf = (values: Float32Array) => new Snapshot(bytesOf(values), 'f32');
