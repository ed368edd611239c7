import { type CheckpointInput, pruneCheckpoints, writeCheckpoint } from '../../files/checkpoint.ts';
import { Keeper } from '../../server/checkpoints/keeper.ts';
import type { CheckpointWriter } from '../../server/checkpoints/writer.ts';
import type { RunState } from '../../server/core/run/state.ts';
import type { Run } from '../../server/core/run.ts';
import type { ShardPool } from '../../server/shards/pool.ts';
import type { RunRecord, StateStore } from '../../server/store/state-store.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import type { DownpourError } from '../../shared/errors.ts';
import { type Random, random } from '../../shared/random.ts';
import { type Inode, SimulatedDisk } from './simulated-disk.ts';
import type { SavedRows } from './simulated-rows.ts';
import {
  areSameBytes,
  copyOfFields,
  type Enter,
  joinedBytes,
  type VirtualWorld,
} from './virtual-network.ts';

/**
 * The state of a simulated server: its folder on a disk that has faults, written and read by the server's own keeper, and what
 * ought to come back of it. Records in the state store have no faults here.
 */

type Violate = (invariant: number, what: string) => never;

/** A checkpoint as it ought to be. */
export interface Saved {
  readonly state: RunState;
  readonly tensors: ReturnType<Run['tensors']>;
  /** All parameters, which shards have together; null: they are in the tensors. */
  readonly ought?: Float32Array | null;
  readonly step: number;
  /** Null: the run has no tables. */
  readonly rows: SavedRows | null;
}

/** A checkpoint of kind `last` that was written, or begun. */
interface Written {
  /** Its files by name. */
  readonly files: Map<string, Inode>;
  readonly saved: Saved;
  /** What it continues. */
  readonly after: readonly Written[];
  /** The server was told that it is on disk. */
  isDone: boolean;
  /** Tensors that came in pieces; null: they are in `saved`. */
  streamed: Map<string, Uint8Array[]> | null;
}

/** Two files. */
const FILES = 2;
const CHECKPOINT_FILE = /^\/r\/checkpoints\/(step-\d+-last-\d+)\.(safetensors|json)\.\w+\.tmp$/;
const BYTES_LEFT_MAX = 4_000;

export interface StateOptions {
  readonly life: number;
  readonly enter: Enter;
  readonly shards: ShardPool | null;
  readonly now: () => number;
  readonly log: (line: string) => void;
}

export class SimulatedState {
  readonly disk: SimulatedDisk;
  readonly #draw: Random;
  readonly #violate: Violate;
  readonly #writer: CheckpointWriter;
  readonly #records = new Map<string, RunRecord>();
  /** Oldest first. */
  #written: Written[] = [];
  /** Somebody has removed the run, or is about to. */
  isRemoved = false;
  /** Checkpoints that were written, those among them that continue others, and files that faults have changed. */
  readonly counts = { written: 0, continuing: 0, spoilt: 0, back: 0 };

  constructor(
    world: VirtualWorld,
    violate: Violate,
    seed: number,
    prune: CheckpointWriter['prune'] = pruneCheckpoints,
  ) {
    this.#writer = {
      write: (folder, input) => this.#write(folder, input),
      prune,
      close: async () => {},
    };
    this.#draw = random(seed, 15);
    this.disk = new SimulatedDisk(world, this.#draw);
    this.#violate = violate;
  }

  /** The keeper of one life of a server. @returns what ends the life, too. */
  open(options: StateOptions): { readonly keeper: Keeper; end(): void } {
    const { life, enter, shards, now, log } = options;
    const mount = this.disk.mount(enter);
    let isAlive = true;
    const store = new VirtualStore(this.#records, () => isAlive);
    const keeper = new Keeper({
      ...{ root: mount.path, store: store as unknown as StateStore, shards, token: life, now, log },
      writer: this.#writer,
      changesBytesMin: 0,
      onFenced: (error: DownpourError) => this.#violate(6, `a server was fenced: ${error.message}`),
    });
    const end = () => {
      isAlive = false;
      mount.end();
    };
    return { keeper, end };
  }

  /** The moment of the next checkpoint of kind `last`. */
  #moment: Saved | null = null;

  /** @param moment what a checkpoint of now ought to hold. */
  watch(run: Run, moment: () => Saved): void {
    const copyRows = run.copyRows.bind(run);
    run.copyRows = (what, ...rest) => {
      if (what === 'last') this.#moment = moment();
      return copyRows(what, ...rest);
    };
  }

  async #write(folder: string, input: CheckpointInput) {
    if (input.kind !== 'last' || input.run !== 'r') return writeCheckpoint(folder, input);
    const after = (input.continues?.after ?? []).map(({ file }) => this.#continued(file));
    const moment = this.#moment!;
    const isStreamed = input.tensors.some((tensor) => !('values' in tensor));
    const streamed = isStreamed ? new Map<string, Uint8Array[]>() : null;
    const files = new Map<string, Inode>();
    const written: Written = { files, saved: moment, after, isDone: false, streamed };
    this.#written.push(written);
    this.disk.made = (path) => {
      const [, stem, end] = CHECKPOINT_FILE.exec(path) ?? [];
      const name = `${parentOf(path)}/${stem}.${end}`;
      if (stem !== undefined) files.set(name, this.disk.find(path, 'made'));
    };
    const manifest = await writeCheckpoint(folder, streamed ? teed(input, streamed) : input);
    written.isDone = true;
    this.#mustHold(savedOf(written));
    this.counts.written++;
    if (after.length > 0) this.counts.continuing++;
    return manifest;
  }

  #mustHold({ tensors, ought, step }: Saved): void {
    const dense = tensors.filter(({ name }) => !name.startsWith('@')).map(({ values }) => values);
    if (!ought || isJoined(ought, dense)) return;
    this.#violate(3, `a checkpoint of step ${step} has other parameters than the shards had`);
  }

  #continued(file: string): Written {
    const found = this.#written.findLast(({ files }) =>
      [...files.keys()].some((name) => name.endsWith(`/${file}`)),
    );
    return found ?? this.#violate(3, `a checkpoint continues ${file}, which was never written`);
  }

  // What ought to come back.

  #isWhole({ files, after }: Written): boolean {
    if (files.size < FILES || !after.every((each) => this.#isWhole(each))) return false;
    return [...files].every(([name, inode]) => this.disk.isAsWritten(name, inode));
  }

  #isSpoilt({ files, after }: Written): boolean {
    return (
      [...files.values()].some(({ spoilt }) => spoilt) || after.some((each) => this.#isSpoilt(each))
    );
  }

  /** The checkpoint that a server must go on from; null: there is none. What is on disk and undamaged must be there. */
  newest(): Saved | null {
    const done = this.#written.findLast(({ isDone }) => isDone);
    if (done && !this.isRemoved && !this.#isWhole(done) && !this.#isSpoilt(done)) {
      const name = [...done.files.keys()][0];
      this.#violate(2, `checkpoint ${name} was written, and is not on the disk any more`);
    }
    const whole = this.#written.findLast((each) => this.#isWhole(each)) ?? null;
    if (whole !== (done ?? null)) this.counts.back++;
    return whole && savedOf(whole);
  }

  /** The newest checkpoint that was written can be read. */
  get isSafe(): boolean {
    const done = this.#written.findLast(({ isDone }) => isDone);
    return done !== undefined && this.#isWhole(done);
  }

  /** @returns a number below `count`. */
  choose(count: number): number {
    return this.#draw.below(count);
  }

  // Faults.

  /** The server is dead, and its machine perhaps too. */
  die(): void {
    if (this.#draw.below(2) === 0) this.disk.loseUnsynced();
  }

  /** The same. Perhaps somebody spoils a file. */
  strike(): void {
    this.die();
    if (this.#draw.below(3) === 0) this.spoil();
  }

  /** Mostly one of the newest. */
  spoil(): void {
    const files = this.disk.filesIn('/r/checkpoints').filter((path) => !path.endsWith('.tmp'));
    if (files.length === 0) return;
    const recent = Math.min(files.length, this.#draw.below(2) === 0 ? 2 : files.length);
    this.counts.spoilt++;
    this.disk.spoil(files[files.length - 1 - this.#draw.below(recent)]!);
  }

  /** The disk is full, or nearly so. */
  fill(): void {
    this.disk.fill(this.#draw.below(BYTES_LEFT_MAX));
  }
}

const parentOf = (path: string) => path.slice(0, path.lastIndexOf('/'));

/** Whether a vector is these parts, one after the other. */
export function isJoined(all: Float32Array, parts: readonly Float32Array[]): boolean {
  const [first] = parts;
  if (parts.length === 1 && areSameBytes(bytesOf(all), bytesOf(first!))) return true;
  let at = 0;
  for (const part of parts) {
    for (let i = 0; i < part.length; i++) if (part[i] !== all[at++]) return false;
  }
  return at === all.length;
}

/** The same, of which what passes is kept. */
function teed(input: CheckpointInput, streamed: Map<string, Uint8Array[]>): CheckpointInput {
  const tensors = input.tensors.map((tensor) => {
    const parts: Uint8Array[] = [];
    streamed.set(tensor.name, parts);
    if ('values' in tensor) {
      parts.push(bytesOf(tensor.values).slice());
      return tensor;
    }
    const pieces = async function* () {
      for await (const piece of tensor.pieces()) {
        parts.push(piece.slice());
        yield piece;
      }
    };
    return { ...tensor, pieces };
  });
  return { ...input, tensors };
}

/** All of the files are on the disk: so all tensors have passed. */
function savedOf({ saved, streamed }: Written): Saved {
  if (!streamed) return saved;
  const tensors = [...streamed].map(([name, parts]) => {
    const values = floatsOf(joinedBytes(parts));
    return { name, shape: [values.length], values };
  });
  return { ...saved, tensors };
}

/** Records of runs. They are never lost, and a dead server writes none. */
class VirtualStore {
  readonly kind = 'files';
  readonly away = null;
  readonly #records: Map<string, RunRecord>;
  readonly #isAlive: () => boolean;

  constructor(records: Map<string, RunRecord>, isAlive: () => boolean) {
    this.#records = records;
    this.#isAlive = isAlive;
  }

  async mayWrite(): Promise<void> {
    if (!this.#isAlive()) throw new Error('the process is dead');
  }

  async putRun(_token: number, record: RunRecord): Promise<void> {
    await this.mayWrite();
    this.#records.set(record.id, copyOfFields(record));
  }

  async listRuns(): Promise<readonly RunRecord[]> {
    return [...this.#records.values()].map(copyOfFields);
  }

  async removeRun(_token: number, id: string): Promise<void> {
    await this.mayWrite();
    this.#records.delete(id);
  }

  async publishCheckpoint(): Promise<{ readonly moved: boolean }> {
    return { moved: true };
  }

  async lastCheckpoint(): Promise<null> {
    return null;
  }

  async forgetCheckpoints(): Promise<void> {}

  async recordBest(_token: number, _run: string, best: object): Promise<object> {
    return { kept: true, best };
  }

  async putEarlyStopping(): Promise<void> {}
}
