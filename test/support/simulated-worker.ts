import { bytesOf, concatFloats, floatsOf } from '../../shared/codec.ts';
import { type Fragment, fragmentPieces, pieceSize } from '../../shared/fragments.ts';
import type { Layout } from '../../shared/layout.ts';
import type { Range } from '../../shared/partition.ts';
import type { Assign, Lease, LocalWork, Push, ServerMessage, Work } from '../../shared/protocol.ts';
import { encodeKeys, type RowEncoding } from '../../shared/rows.ts';
import type { PartMessage } from '../../shared/shard-messages.ts';
import { rowShapes } from '../../shared/tables.ts';
import { FragmentedParameters } from '../../worker/fragments.ts';
import type { RowsOfPush } from '../../worker/rows/rows-exchange.ts';
import { type Pull, type RowPull, rangesFor, ShardLinks } from '../../worker/shard-links.ts';
import { PlacedTensors } from './placed-tensors.ts';
import { EXCHANGED, examplesOf, FACTS, FEATURES, gradientOf, lossOf } from './regression.ts';
import { OWN, problem } from './simulated-cluster.ts';
import { type Sent, SimulatedConnection } from './simulated-connection.ts';
import { initialRows, LARGEST, mergedRows, OVERFLOWING, WorkerRows } from './simulated-rows.ts';
import type { Simulation } from './simulator.ts';
import { joinedBytes, type VirtualEnd, virtualDial } from './virtual-network.ts';

const NO_PAYLOAD = new Float32Array();
const NO_BYTES = new Uint8Array();

/** Parameters that gradients are computed at. */
interface Current {
  readonly theta: Float32Array;
  readonly step: number;
  readonly generation: number;
}

interface Kept {
  readonly push: Push;
  readonly payload: Uint8Array;
  /** For shards 1, 2, …; absent: there are none. */
  readonly parts?: readonly { readonly message: PartMessage; readonly payload: Uint8Array }[];
}

/** What the server has sent, of which parts may still be on their way from shards. */
interface Received extends Sent {
  readonly pull?: Pull;
  readonly rowPull?: RowPull;
}

/** @param ranges of the shards. */
export function fragmentOfVector(
  all: Float32Array,
  layout: Pick<Layout, 'trainableSize' | 'exchangedSize'>,
  ranges: readonly Range[],
  fragment: Fragment,
): Float32Array {
  const pieces = fragmentPieces(layout, ranges, fragment);
  return concatFloats(
    pieces.flatMap(({ gradient, statistics }) =>
      [gradient, statistics].map(({ start, end }) => all.subarray(start, end)),
    ),
  );
}

/** Does what worker/client.ts and trainer.ts do; a liar also does what they never would. */
export class SimulatedWorker {
  readonly #simulation: Simulation;
  readonly #name: string;
  readonly #liar: boolean;
  readonly #hangs: boolean;
  #incarnation = '';
  #sequence = 0;
  #connection: SimulatedConnection | null = null;
  #alive = false;
  /** For good. */
  #isGone = false;
  #haltedUntil = 0;
  /** It computes: messages wait. */
  #busy = false;
  #inbox: Received[] = [];
  #kept: Kept[] = [];
  #resend = false;
  #current: Current | null = null;
  readonly #placed: PlacedTensors;
  /** Its own parameters, where it pushes them; null: none yet. */
  #own: Float32Array | null = null;
  /** The same by fragments; null: all are exchanged together. */
  readonly #fragments: FragmentedParameters | null;
  /** Null: the run has no tables. */
  readonly #rows: WorkerRows | null;
  /** It waits for rows that it has asked for. */
  #pulled: { readonly request: number; then(): void } | null = null;
  #requests = 0;
  /** To the shards of the run; null: the server has all of it, or they are not opened yet. */
  #links: ShardLinks | null = null;
  #session = '';
  #ends: VirtualEnd[] = [];
  #attempt = 0;
  #life = 0;

  /** @param hangs some of its minibatches never end, while its connection stays. */
  constructor(simulation: Simulation, index: number, liar: boolean, hangs: boolean) {
    this.#simulation = simulation;
    this.#name = `w${index}`;
    this.#liar = liar;
    this.#hangs = hangs;
    const { layout, fragments, ranges } = simulation;
    this.#fragments = fragments > 1 ? new FragmentedParameters(layout, ranges, fragments) : null;
    this.#placed = new PlacedTensors(simulation.tensors, simulation.resolved);
    const shapes = rowShapes(simulation.resolved);
    this.#rows = shapes.length > 0 ? new WorkerRows(shapes, simulation.seed, index) : null;
  }

  get responds(): boolean {
    return this.#alive && this.#haltedUntil <= this.#simulation.now;
  }

  start(): void {
    if (this.#isGone) return;
    const { draw } = this.#simulation;
    this.#alive = true;
    this.#life++;
    this.#incarnation = Array.from({ length: 16 }, () => draw.below(16).toString(16)).join('');
    this.#sequence = 0;
    this.#kept = [];
    this.#current = null;
    this.#own = null;
    this.#fragments?.reset();
    this.#rows?.reset();
    this.#pulled = null;
    this.#busy = false;
    this.#connect();
  }

  /** @param downMs until it is started again; infinite: it is not. */
  die(downMs: number): void {
    if (downMs === Infinity) this.#isGone = true;
    if (!this.#alive) return;
    this.#alive = false;
    this.#life++;
    this.#connection?.hangUp();
    this.#connection = null;
    this.#inbox = [];
    for (const end of this.#ends) end.died();
    this.#ends = [];
    this.#links = null;
    if (downMs < Infinity) this.#simulation.at(downMs, () => this.start());
  }

  halt(ms: number): void {
    this.#haltedUntil = Math.max(this.#haltedUntil, this.#simulation.now + ms);
  }

  /** Acts in this life, when it does not stand still. */
  #later(ms: number, act: () => void): void {
    const life = this.#life;
    const simulation = this.#simulation;
    simulation.at(ms, () => {
      if (life !== this.#life) return;
      const { now } = simulation;
      if (this.#haltedUntil > now) this.#later(this.#haltedUntil - now, act);
      else act();
    });
  }

  #connect(): void {
    const pause = Math.min(5_000, 100 * 2 ** this.#attempt++) * this.#simulation.draw.uniform();
    this.#later(pause, () => {
      if (this.#connection) return;
      const { server } = this.#simulation;
      if (!server.coordinator) {
        this.#connect();
        return;
      }
      const connection = new SimulatedConnection(this.#simulation, this);
      this.#connection = connection;
      connection.send({
        ...{ type: 'hello', worker: this.#name, incarnation: this.#incarnation, run: null },
        ...{ experiments: { regression: 'hash' }, engine: 'none', device: 'none' },
      });
    });
  }

  disconnected(connection: SimulatedConnection): void {
    if (this.#connection !== connection) return;
    this.#connection = null;
    this.#inbox = [];
    this.#pulled = null;
    this.#links?.close();
    this.#links = null;
    if (this.#alive) this.#connect();
  }

  receive(connection: SimulatedConnection, sent: Sent): void {
    if (this.#connection !== connection || !this.#alive) return;
    this.#inbox.push({ ...sent, ...this.#partsOf(sent) });
    this.#read();
  }

  /** Parameters and rows of which shards send the other parts: the first ones are put to them. */
  #partsOf({ header, payload }: Sent): Pick<Received, 'pull' | 'rowPull'> {
    const links = this.#links;
    const message = header as unknown as ServerMessage;
    if (!links || (message.type !== 'work' && message.type !== 'rows')) return {};
    if (message.type === 'rows') {
      const rowPull = links.rows(message.pull!);
      links.takeRows(0, message.pull!, payload);
      return { rowPull };
    }
    const { pull: number, rows, encoding } = message;
    const end = payload.length - (rows?.bytes ?? 0);
    const rowPull = rows && links.rows(rows.pull!);
    if (rows) links.takeRows(0, rows.pull!, payload.subarray(end));
    if (number === null) return { ...(rowPull && { rowPull }) };
    const { fragment = null } = message;
    const pull = links.pull(number, fragment);
    links.take(0, number, payload.subarray(0, end), encoding, fragment);
    return { pull, ...(rowPull && { rowPull }) };
  }

  /** Acts of its process, when it does not stand still. */
  readonly #enter = (life: number) => (act: () => unknown) => {
    const enter = (): void => {
      if (life !== this.#life || !this.#alive) return;
      const { now } = this.#simulation;
      if (this.#haltedUntil > now) this.#simulation.at(this.#haltedUntil - now, enter);
      else act();
    };
    enter();
  };

  /** Connects to the shards, and then joins. */
  #attach({ session, shards, config }: Assign, join: () => void): void {
    const simulation = this.#simulation;
    const connection = this.#connection!;
    const { layout, fragments } = simulation;
    this.#links?.close();
    this.#session = session;
    const opened = ({ near }: { near: VirtualEnd }) => void this.#ends.push(near);
    const links: ShardLinks = new ShardLinks({
      ...{ shards, server: 'ws://server:7000/ws', session, layout, fragments, headers: {} },
      ranges: rangesFor(layout, { shards, config }),
      ...{ localSocket: false, handshakeMs: 10_000, closeMs: 2_000, now: () => simulation.now },
      dial: virtualDial(simulation, simulation.shards, this.#enter(this.#life), opened),
      complete: () => this.#read(),
      lost: () => {
        if (this.#links !== links || this.#connection !== connection) return;
        connection.hangUp();
        this.disconnected(connection);
      },
    });
    this.#links = links;
    const isMine = () => this.#links === links && this.#connection === connection;
    links.open().then(
      () => isMine() && join(),
      () => {},
    );
  }

  #read(): void {
    const [first] = this.#inbox;
    if (this.#busy || !first || first.pull?.missing || first.rowPull?.missing) return;
    const sent = this.#inbox.shift()!;
    const { now } = this.#simulation;
    if (this.#haltedUntil > now) {
      this.#inbox.unshift(sent);
      this.#later(this.#haltedUntil - now, () => this.#read());
      return;
    }
    const message = sent.header as unknown as ServerMessage;
    if (message.type !== 'error') this.#attempt = 0;
    if (message.type === 'assign') {
      this.#resend = true;
      const join = { type: 'join', run: 'r', experimentHash: 'hash' };
      const { tensors, shardCount } = this.#simulation;
      if (message.shards.length !== shardCount - 1) {
        this.#simulation.violate(
          6,
          `a worker is told of ${message.shards.length} shards beside the server; there are ${shardCount - 1}`,
        );
      }
      const told = { ...join, tensors, data: problem.summary, facts: 'json' };
      if (message.shards.length === 0) this.#connection?.send(told, FACTS);
      else this.#attach(message, () => this.#connection?.send(told, FACTS));
    } else if (message.type === 'initialise') {
      const { grant } = message;
      const own = this.#rows ? initialRows(this.#simulation.resolved) : [];
      for (const bytes of own) {
        this.#connection?.send({ type: 'initialRows', run: 'r', grant }, bytes);
      }
      this.#initialise(grant);
    } else if (message.type === 'rows') {
      this.#tookRows(message, sent);
    } else if (message.type === 'work') {
      this.#pulled = null;
      this.#work(message, sent);
    } else if (message.type === 'end') {
      this.#kept = [];
    }
    this.#read();
  }

  #initialise(grant: number): void {
    const values = bytesOf(new Float32Array(this.#simulation.layout.size).fill(0.1));
    const message = { type: 'initialised', run: 'r', grant };
    const links = this.#links;
    if (!links) {
      this.#connection?.send(message, values);
      return;
    }
    const payloads = links.ranges.map(({ start, end }) => values.subarray(4 * start, 4 * end));
    this.#simulation.server.whole?.sends(this.#session, null, { rows: [], payloads });
    this.#connection?.send(message, payloads[0]!);
    for (const [k, payload] of payloads.entries()) {
      if (k > 0) links.send(k, { type: 'initialPart', run: 'r', grant }, [payload]);
    }
  }

  /** Asks for rows, for an evaluation if it has a number. What the server sends instead is dealt with instead. */
  #pullRows(keys: readonly Uint32Array[], evaluation: number | null, then: () => void): void {
    const request = evaluation === null ? 2 * ++this.#requests : 2 * evaluation + 1;
    this.#pulled = { request, then };
    this.#connection?.send({ type: 'pullRows', run: 'r', request, evaluation }, encodeKeys(keys));
  }

  #tookRows(message: Extract<ServerMessage, { type: 'rows' }>, sent: Received): void {
    const parts = this.#rowsOf(message, sent.rowPull, sent.payload);
    const pulled = this.#pulled;
    if (pulled?.request !== message.request) return;
    this.#pulled = null;
    if (message.request % 2 === 0) this.#rows!.receive(message, parts, message.generation);
    pulled.then();
  }

  /** The parts of all shards. */
  #rowsOf(
    { encoding, pull }: { readonly encoding: RowEncoding; readonly pull?: number },
    rowPull: RowPull | undefined,
    own: Uint8Array,
  ): readonly Uint8Array[] {
    if (!rowPull) return [own];
    const shapes = rowShapes(this.#simulation.resolved);
    const rows = mergedRows(shapes, rowPull.parts, encoding);
    this.#simulation.server.rows?.pulled(this.#session, pull!, rows);
    return rowPull.parts;
  }

  /** All parameters that have come, or the part of them. */
  #numbersOf({ pull }: Received, { pull: number }: Work, own: Uint8Array): Float32Array {
    if (!pull) return floatsOf(own);
    const values = pull.values.slice(0, pull.elements);
    pull.release();
    this.#simulation.server.pulled(this.#session, number!, values);
    return values;
  }

  #work(message: Work, sent: Received): void {
    const simulation = this.#simulation;
    const bytes = sent.payload;
    const end = bytes.length - (message.rows?.bytes ?? 0);
    const payload = this.#numbersOf(sent, message, bytes.subarray(0, end));
    this.#placed.place(message.frozen ?? []);
    const theta = this.#placed.took(message.fragment === undefined ? payload : NO_PAYLOAD);
    if (payload.length > 0) {
      const isPart = message.fragment !== undefined;
      simulation.server.checkPayload(message, isPart ? payload : theta);
    }
    const { acknowledgements, leases, evaluation, step, generation } = message;
    for (const acknowledgement of acknowledgements) {
      this.#kept = this.#kept.filter(({ push }) => push.sequence > acknowledgement.sequence);
      this.#fragments?.settled(acknowledgement.outcome !== 'rejected');
      if (acknowledgement.outcome === 'rejected') this.#rows?.reset();
    }
    if (message.rows) {
      const parts = this.#rowsOf(message.rows, sent.rowPull, bytes.slice(end));
      this.#rows!.receive(message.rows, parts, generation);
    }
    if (this.#resend) {
      this.#resend = false;
      for (const kept of this.#kept) this.#send(kept);
    }
    if (evaluation) {
      if (this.#hangs && simulation.hanging.uniform() < 0.1) {
        this.#busy = true;
        return;
      }
      const evaluate = () =>
        this.#compute(200, () => {
          const loss = lossOf(problem, evaluation.part, theta);
          this.#connection?.send({
            ...{ type: 'evaluated', run: 'r', evaluation: evaluation.id, loss, error: loss },
            ...{ examples: examplesOf(problem, evaluation.part), metrics: {} },
          });
        });
      if (this.#rows) this.#pullRows(this.#rows.all, evaluation.id, evaluate);
      else evaluate();
      return;
    }
    if (generation !== this.#current?.generation) {
      this.#own = null;
      this.#fragments?.reset();
    }
    if (payload.length > 0 && message.local?.fragment !== undefined) {
      this.#fragments!.receive(payload, message.fragment ?? null);
    }
    if (payload.length > 0) this.#current = { theta, step, generation };
    const current = this.#current;
    const lease = leases.find(({ id }) => !this.#kept.some(({ push }) => push.lease === id));
    if (!current || !lease || this.#kept.length > 0) return;
    if (this.#hangs && simulation.hanging.uniform() < 0.1) {
      this.#busy = true;
      return;
    }
    const push = () => this.#compute(100, () => this.#push(lease, current, message));
    const rows = this.#rows;
    if (!rows || rows.heldFor(lease, generation)) push();
    // Rows of other parameters: what the server sends next says what is to be done.
    else this.#pullRows(rows.keysOf(lease), null, () => rows.heldFor(lease, generation) && push());
  }

  #compute(usualMs: number, done: () => void): void {
    this.#busy = true;
    this.#later(this.#simulation.delayMs(usualMs), () => {
      this.#busy = false;
      done();
      this.#read();
    });
  }

  #push(lease: Lease, { theta, step, generation }: Current, { local, leases }: Work): void {
    const isElastic = local?.push === 'elastic';
    const isByFragments = local?.fragment !== undefined;
    const own = isByFragments ? this.#fragments!.own : isElastic ? this.#own : null;
    const at = own ?? theta;
    const { payload: given, loss } = gradientOf(problem, 0, lease, at);
    const { wide, own: ownLayout } = this.#simulation;
    const isWide = wide > 0 && !isByFragments;
    let payload: Float32Array = isWide ? this.#widened(given, at) : given;
    const trainable = isWide ? ownLayout.trainableSize : OWN;
    // An honest gradient is small beside this rate.
    if (this.#simulation.overflows) payload[FEATURES]! /= OVERFLOWING;
    // One large step is as good as several here.
    for (let i = 0; local && i < trainable; i++) payload[i]! *= local.learningRate;
    if (isByFragments) payload = this.#fragment(local, payload);
    if (isElastic) {
      // What is pushed is where it has come to; then it moves towards the server.
      for (let i = 0; i < trainable; i++) payload[i] = at[i]! - payload[i]!;
      const rate = local.movingRate!;
      this.#own = payload.map((x, i) => x - rate * (x - theta[i]!));
    }
    const more = this.#rows?.pushed(
      lease,
      this.#rows.heldFor(lease, generation)!,
      leases.find(({ id }) => id > lease.id) ?? null,
      this.#simulation.shardCount,
    );
    const push: Push = {
      ...{ type: 'push', run: 'r', sequence: ++this.#sequence, lease: lease.id, step, generation },
      ...{ loss: Number.isFinite(loss) ? loss : null, computeMs: 1, encoding: 'f32' },
      ...(local && { kind: local.push }),
      ...(isByFragments && { fragment: local.fragment! }),
      ...(more && { rows: more[0]!.rows }),
    };
    const placed = isByFragments
      ? payload
      : this.#placed.packed(payload, this.#placed.exchangedSize);
    const kept = this.#inParts(push, placed, more ?? []);
    this.#kept.push(kept);
    if (this.#liar && this.#simulation.chance(0.4)) this.#lie(kept);
    this.#send(kept);
    if (this.#liar && this.#simulation.chance(0.2)) this.#send(kept);
  }

  /** @param payload without rows. @param rows for each shard; empty: there are none. */
  #inParts(push: Push, payload: Float32Array, rows: readonly RowsOfPush[]): Kept {
    const tailOf = (k: number) => rows[k]?.tail ?? NO_BYTES;
    const { ranges, layout, fragments: count } = this.#simulation;
    if (ranges.length === 1) return { push, payload: joinedBytes([bytesOf(payload), tailOf(0)]) };
    const { run, sequence, encoding, kind, fragment } = push;
    // Those of a fragment lie one after the other.
    const sizes =
      fragment === undefined
        ? ranges.map(({ start, end }) => Math.max(0, Math.min(end, payload.length) - start))
        : fragmentPieces(layout, ranges, { index: fragment, count }).map(pieceSize);
    let at = 0;
    const cut = sizes.map((size, k) => {
      const own = payload.subarray(at, at + size);
      at += size;
      return joinedBytes([bytesOf(own), tailOf(k)]);
    });
    const of = { ...(kind && { kind }), ...(fragment !== undefined && { fragment }) };
    const parts = cut.slice(1).map((own, i) => {
      const told = { type: 'part', run, sequence, encoding, ...of } as const;
      const more = rows[i + 1];
      return { message: more ? { ...told, rows: more.rows } : told, payload: own };
    });
    return { push, payload: cut[0]!, parts };
  }

  #send({ push, payload, parts }: Kept): void {
    this.#connection?.send(push, payload);
    if (!parts) return;
    const rows = [push.rows, ...parts.map(({ message }) => message.rows)];
    const payloads = [payload, ...parts.map((part) => part.payload)];
    const { kind, sequence, fragment } = push;
    const of = { ...(kind && { kind }), ...(fragment !== undefined && { fragment }) };
    const sent = { rows, payloads, ...of };
    this.#simulation.server.whole?.sends(this.#session, sequence, sent);
    for (const [i, part] of parts.entries()) {
      this.#links?.send(i + 1, part.message, [part.payload.slice()]);
    }
  }

  /** @returns the same with elements of the tensor beside the problem, which go where their index says. */
  #widened(given: Float32Array, at: Float32Array): Float32Array {
    const { own: layout, wide } = this.#simulation;
    const payload = new Float32Array(layout.exchangedSize);
    payload.set(given.subarray(0, OWN));
    for (let i = 0; i < wide; i++) payload[OWN + i] = at[OWN + i]! - i / wide;
    payload[layout.trainableSize] = given[OWN]!;
    return payload;
  }

  /** @param step of the elements of the problem, and the statistic. @returns what of a fragment is pushed. */
  #fragment({ fragment: index, learningRate }: LocalWork, step: Float32Array) {
    const { layout, fragments: count, wide, ranges } = this.#simulation;
    const after = this.#fragments!.own.slice();
    for (let i = 0; i < OWN; i++) after[i]! -= step[i]!;
    for (let i = 0; i < wide; i++) after[OWN + i]! -= learningRate * (after[OWN + i]! - i / wide);
    const change = new Float32Array(layout.exchangedSize);
    change[layout.trainableSize] = step[OWN]!;
    this.#fragments!.push(index!, after, change);
    const parts = fragmentPieces(layout, ranges, { index: index!, count }).flatMap(
      ({ gradient, statistics }) => [gradient, statistics],
    );
    return concatFloats(parts.map(({ start, end }) => change.subarray(start, end)));
  }

  /** The same with shards: its parts may be of different pushes. */
  #lieInParts(kept: Kept & Required<Pick<Kept, 'parts'>>): void {
    const { draw } = this.#simulation;
    const { push, payload, parts } = kept;
    const links = this.#links;
    const victim = draw.below(parts.length);
    const changed = (change: (part: Uint8Array) => Uint8Array): Kept['parts'] =>
      parts.map((part, i) =>
        i === victim ? { ...part, payload: change(part.payload.slice()) } : part,
      );
    const { message } = parts[victim]!;
    const lies: (() => void)[] = [
      () => {
        const bad = (part: Uint8Array) => {
          const values = floatsOf(part);
          if (values.length > 0) values[draw.below(values.length)] = Number.NaN;
          return part;
        };
        this.#send({ push, payload, parts: changed(bad)! });
      },
      () => this.#send({ push, payload, parts: changed((part) => part.slice(0, -4))! }),
      () => this.#send({ ...kept, push: { ...push, lease: push.lease + 1 + draw.below(5) } }),
      () => this.#send({ ...kept, push: { ...push, step: push.step + 1 + draw.below(3) } }),
      () => this.#send({ ...kept, push: { ...push, generation: push.generation + 1 } }),
      () => this.#send({ ...kept, push: { ...push, loss: null } }),
      () => links?.send(victim + 1, { ...message, sequence: push.sequence + 7 }, []),
      () => links?.send(victim + 1, { ...message, run: 'nobody' }, [parts[victim]!.payload]),
      () => links?.send(victim + 1, { type: 'attach', session: this.#session }, []),
      () => this.#connection?.send({ type: 'nonsense' }),
    ];
    if (this.#simulation.overflowsOnShards) {
      const large = (part: Uint8Array) => {
        // The last one is a statistic.
        floatsOf(part).fill(draw.below(2) === 0 ? -LARGEST : LARGEST, 0, -1);
        return part;
      };
      const overflow = () => this.#send({ push, payload, parts: changed(large)! });
      lies.push(overflow, overflow, overflow, overflow);
    }
    const { rows } = message;
    if (rows) {
      const told = (change: Partial<typeof rows>) =>
        parts.map((part, i) =>
          i === victim ? { ...part, message: { ...message, rows: { ...rows, ...change } } } : part,
        );
      // All claim rows that this worker was not sent.
      const claim = () => {
        const step = Math.max(rows.step + 1, this.#simulation.server.rowSteps);
        const claiming = parts.map((part) => ({
          ...part,
          message: { ...part.message, rows: { ...part.message.rows!, step } },
        }));
        this.#send({ push: { ...push, rows: { ...push.rows!, step } }, payload, parts: claiming });
      };
      lies.push(
        ...[claim, claim, claim],
        () => this.#send({ push, payload, parts: told({ step: rows.step + 1 }) }),
        () => this.#send({ push, payload, parts: told({ bytes: rows.bytes + 4 }) }),
        () => this.#send({ push, payload, parts: told({ bytes: 0, wanted: 0 }) }),
        // Each shard gets the rows of another one.
        () => {
          const others = parts.map((part, i) => ({ ...part, ...parts[(i + 1) % parts.length]! }));
          this.#send({ push, payload, parts: others });
        },
      );
    }
    this.#simulation.pick(lies)();
  }

  /** What an honest worker never does, before what it does. */
  #lie(kept: Kept): void {
    const { push, payload, parts } = kept;
    if (parts) {
      this.#lieInParts({ ...kept, parts });
      return;
    }
    const { draw } = this.#simulation;
    const connection = this.#connection;
    const values = floatsOf(payload.slice());
    if (this.#rows && draw.below(2) === 0) {
      const lie = this.#rows.lie(push, payload, this.#simulation.server.rowSteps);
      connection?.send(lie.push, lie.payload);
      return;
    }
    if (this.#simulation.overflows && draw.below(3) === 0) {
      const bad = payload.slice();
      const isNegative = draw.below(2) === 0;
      floatsOf(bad).fill(isNegative ? -LARGEST : LARGEST, 0, EXCHANGED);
      connection?.send(push, bad);
      return;
    }
    const lies: (() => void)[] = [
      () => {
        values[draw.below(values.length)] = this.#simulation.pick([Number.NaN, Infinity]);
        connection?.send({ ...push, sequence: push.sequence }, bytesOf(values));
      },
      () => connection?.send({ ...push, lease: push.lease + 1 + draw.below(5) }, payload),
      () => connection?.send({ ...push, lease: Math.max(0, push.lease - 1) }, payload),
      () => connection?.send({ ...push, step: push.step + 1 + draw.below(3) }, payload),
      () => connection?.send({ ...push, generation: push.generation + 1 }, payload),
      () => connection?.send({ ...push, loss: null }, payload),
      () => connection?.send(push, payload.slice(0, 8)),
      () => connection?.send({ ...push, sequence: Math.max(1, push.sequence - 1) }, payload),
      () => connection?.send({ ...push, run: 'nobody' }, payload),
      () => connection?.send({ type: 'nonsense' }),
      () => connection?.send({ type: 'join', run: 'r' }),
    ];
    this.#simulation.pick(lies)();
  }
}
