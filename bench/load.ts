import type { NetConnectOpts } from 'node:net';
import { performance } from 'node:perf_hooks';
import { bytesOf } from '../shared/codec.ts';
import { encodeBf16, encodedBytes, encodeInt8, encodeTopk } from '../shared/compression.ts';
import type { PushCompression } from '../shared/config.ts';
import { createLayout } from '../shared/layout.ts';
import { random } from '../shared/random.ts';
import { webSocketAddress } from '../shared/rest-client.ts';
import { encodeKeys, encodeRows } from '../shared/rows.ts';
import type { Landing } from '../wire/connection.ts';
import { Client } from '../worker/client.ts';
import { rangesFor } from '../worker/shard-links.ts';
import { type Answered, type Exchange, type Link, openPlain } from './limits.ts';
import { obey, startTold, type Told } from './processes.ts';

/**
 * Simulated workers: they speak the real protocol through the worker's own client, with a gradient
 * that is ready, and without TensorFlow. A process holds one or many of them, or the same number of
 * plain sockets, for the limit.
 */

/** The experiment that runs of the benchmark claim to train. */
export const EXPERIMENT = { experiment: 'bench', experimentHash: 'simulated' } as const;

/** The parameters of the MLP 784-256-10. */
export const MLP_PARAMETERS = 203_530;

export interface LoadOptions {
  /** How many in this process. */
  readonly count: number;
  /** The number of the first one; the others count up. */
  readonly index?: number;
  /** Round trips that one worker has under way. */
  readonly inFlight?: number;
  readonly to: ServerEnd | PlainEnd;
}
export interface ServerEnd {
  readonly url: string;
  readonly run: string;
  readonly transport: 'tcp' | 'unix';
  readonly elements: number;
  readonly push: PushCompression['kind'];
  readonly token?: string;
  /** Each push has gradients of rows of one table too, and wants as many for the next one. */
  readonly rows?: TouchedRows;
}
/** Rows of the table `word` that a push has: drawn from all of them. */
export interface TouchedRows {
  readonly rows: number;
  readonly width: number;
  readonly touched: number;
}
export interface PlainEnd {
  readonly plain: NetConnectOpts;
  readonly exchange: Exchange;
}

export interface LoadResult {
  /** Answers with parameters: fewer than pushes where several are answered with one pull. */
  readonly pulls: number;
  /** Round trips of all workers of the process together. */
  readonly roundTripsPerSecond: number;
  /** Round trips of each worker. */
  readonly counts: readonly number[];
  /** How long each round trip took, ms. */
  readonly latencies: Float64Array;
}

/** A process of simulated workers. */
export interface Load {
  open(options: LoadOptions): Promise<void>;
  /** All of them push for so long, each as fast as it gets answers. */
  run(seconds: number): Promise<LoadResult>;
  /** Takes its workers off; the process stays. */
  disconnect(): Promise<void>;
  close(): Promise<void>;
}

export function startLoad(): Load {
  const told: Told = startTold(import.meta.filename, ['--load']);
  return {
    open: (options) => told.ask({ open: options }),
    run: (seconds) => told.ask({ run: seconds }),
    disconnect: () => told.ask({ disconnect: true }),
    close: () => told.close(),
  };
}

/** Several processes together, as one. */
export async function runTogether(loads: readonly Load[], seconds: number): Promise<LoadResult> {
  const results = await Promise.all(loads.map((load) => load.run(seconds)));
  const latencies = new Float64Array(results.reduce((sum, r) => sum + r.latencies.length, 0));
  let at = 0;
  for (const each of results) {
    latencies.set(each.latencies, at);
    at += each.latencies.length;
  }
  return {
    roundTripsPerSecond: results.reduce((sum, each) => sum + each.roundTripsPerSecond, 0),
    counts: results.flatMap(({ counts }) => counts),
    latencies,
    pulls: results.reduce((sum, { pulls }) => sum + pulls, 0),
  };
}

/** Different minibatches of a worker, one after the other. */
const MINIBATCHES = 16;

/** @returns gradients of the rows of a minibatch, and the keys of those of the next one, as a push ends with them. */
export function touchedRows({ rows, width, touched }: TouchedRows, minibatch: number) {
  const keysOf = (seed: number) => {
    const draw = random(seed % MINIBATCHES, 1);
    const keys = new Set<number>();
    while (keys.size < touched) keys.add(draw.below(rows));
    return Uint32Array.from(keys).sort();
  };
  const values = new Float32Array(touched * width).fill(1e-3);
  const shape = { name: 'word', width, keysMax: rows };
  const gradients = encodeRows([shape], [{ keys: keysOf(minibatch), values }], 'f32');
  const keys = encodeKeys([keysOf(minibatch + 1)]);
  const tail = new Uint8Array(gradients.length + keys.length);
  tail.set(gradients);
  tail.set(keys, gradients.length);
  return { tail, bytes: gradients.length, wanted: keys.length };
}
// Inside the process.

/** One worker, and what it does now. */
class Simulated {
  readonly #inFlight: number;
  #link: Link | null = null;
  /** When the round trips under way began; they end in their order. */
  readonly #begun: number[] = [];
  #until = 0;
  #last = 0;
  #latencies: number[] = [];
  #pulls = 0;
  #done: (() => void) | null = null;

  private constructor(inFlight: number) {
    this.#inFlight = inFlight;
  }

  static async open(to: LoadOptions['to'], index: number, inFlight: number): Promise<Simulated> {
    const worker = new Simulated(inFlight);
    const answered: Answered = (pulled) => worker.#answered(pulled);
    worker.#link =
      'plain' in to
        ? await openPlain(to.plain, to.exchange, answered)
        : await openClient(to, `w-${index}`, answered);
    return worker;
  }

  #ask(now: number): void {
    this.#begun.push(now);
    this.#link!.ask();
  }

  #answered(pulled: boolean): void {
    if (pulled) this.#pulls++;
    const now = performance.now();
    this.#latencies.push(now - this.#begun.shift()!);
    this.#last = now;
    if (now < this.#until) this.#ask(now);
    else if (this.#begun.length === 0) this.#done?.();
  }

  async run(seconds: number): Promise<{ latencies: number[]; perSecond: number; pulls: number }> {
    const start = performance.now();
    this.#until = start + 1000 * seconds;
    this.#latencies = [];
    this.#pulls = 0;
    const done = new Promise<void>((resolve) => {
      this.#done = resolve;
    });
    for (let i = 0; i < this.#inFlight; i++) this.#ask(start);
    await done;
    const latencies = this.#latencies;
    const perSecond = (1000 * latencies.length) / (this.#last - start);
    return { latencies, perSecond, pulls: this.#pulls };
  }

  close(): Promise<void> {
    return this.#link!.close();
  }
}

/** A worker of the real protocol. Resolves when it has joined and holds minibatches. */
function openClient(to: ServerEnd, worker: string, answered: Answered): Promise<Link> {
  const { url, run, transport, elements, push, token, rows: touched } = to;
  const tails = touched
    ? Array.from({ length: MINIBATCHES }, (_, i) => touchedRows(touched, i))
    : undefined;
  let rowStep = 0;
  let pushes = 0;
  const gradient = gradientOf(elements);
  const tensors = [{ name: 'weights', shape: [elements], role: 'trainable' as const }];
  const payloadOf = (values: Float32Array): Landing => {
    const bytes = encodedOf(values, push);
    return { bytes, release() {} };
  };
  /** One for each shard. */
  let payloads = [payloadOf(gradient)];
  const client = new Client({
    server: webSocketAddress(url),
    hello: {
      ...{ worker, run, engine: 'none', device: 'none' },
      experiments: { [EXPERIMENT.experiment]: EXPERIMENT.experimentHash },
    },
    signal: new AbortController().signal,
    log: () => {},
    ...(token === undefined ? {} : { token }),
    localSocket: transport === 'unix',
    localSocketBytesMin: transport === 'unix' ? 0 : Number.POSITIVE_INFINITY,
  });
  let current = { step: 0, generation: 0 };
  let leases: readonly { readonly id: number }[] = [];
  /** Minibatches pushed and not answered; pushes are answered in their order. */
  const underWay: number[] = [];
  const link: Link = {
    ask() {
      const free = leases.find(({ id }) => !underWay.includes(id));
      if (!free) throw new Error(`${worker} has no minibatch for another push`);
      underWay.push(free.id);
      const { step, generation } = current;
      const lease = free.id;
      // Each object is written in one piece: to copy one, and to read the copy, would take two microseconds of a push.
      if (!tails) {
        client.pushReady(
          { run, lease, step, generation, loss: 1, computeMs: 0, encoding: push },
          payloads,
        );
        return;
      }
      const { tail, bytes, wanted } = tails[pushes++ % MINIBATCHES]!;
      const rows = { step: rowStep, encoding: 'f32' as const, bytes, wanted };
      client.pushReady(
        { run, lease, step, generation, loss: 1, computeMs: 0, encoding: push, rows },
        payloads,
        [{ rows, tail }],
      );
    },
    close: () => client.close(),
  };
  return new Promise((resolve, reject) => {
    const follow = async () => {
      for (;;) {
        const { message, payload, release } = await client.next();
        let pulled = payload.length > 0;
        release?.();
        if (message.type === 'end') throw new Error(`the run ended: ${message.reason}`);
        if (message.type === 'assign') {
          const layout = createLayout(tensors);
          if (!(await client.attach(message, layout))) continue;
          const ranges = rangesFor(layout, message);
          if (ranges.length > 1) {
            payloads = ranges.map(({ start, end }) => payloadOf(gradient.subarray(start, end)));
          }
          client.send({
            ...{ type: 'join', run, experimentHash: message.experimentHash, tensors },
            data: {
              // So many that no epoch ends.
              ...{ trainCount: 2 ** 31 - 1, validationCount: 1, testCount: 0 },
              ...{ fingerprint: '0'.repeat(64), source: 'simulated' },
            },
          });
        } else if (message.type === 'initialise') {
          client.initialise({ type: 'initialised', run, grant: message.grant }, gradient);
        } else if (message.type === 'work') {
          const { step, generation, acknowledgements } = message;
          if (message.rows) rowStep = message.rows.step;
          leases = message.leases;
          current = { step, generation };
          if (acknowledgements.length === 0 && leases.length > 0) resolve(link);
          const newest = acknowledgements.at(-1);
          if (newest) client.acknowledge(newest);
          underWay.splice(0, acknowledgements.length);
          for (const { outcome, message: why } of acknowledgements) {
            if (outcome !== 'applied') throw new Error(`a push was ${outcome}: ${why}`);
            answered(pulled);
            pulled = false;
          }
        }
      }
    };
    follow().catch((error: unknown) => {
      reject(error);
      // Nobody waits for the link any more: the process must not go on as if all were well.
      process.nextTick(() => {
        throw error;
      });
    });
  });
}

// Large ones take long to make, and all workers of a process push the same.
let lastGradient = new Float32Array();
let lastEncoded: { kind: PushCompression['kind']; bytes: Uint8Array } | null = null;

/** Small numbers of both signs, none of them like its neighbours. */
function gradientOf(elements: number): Float32Array {
  if (lastGradient.length === elements) return lastGradient;
  lastEncoded = null;
  lastGradient = new Float32Array(elements);
  for (let i = 0; i < elements; i++) lastGradient[i] = 1e-6 * (((i * 7919) % 2001) - 1000);
  return lastGradient;
}

function encodedOf(gradient: Float32Array, kind: PushCompression['kind']): Uint8Array {
  const whole = lastGradient === gradient;
  if (whole && lastEncoded?.kind === kind) return lastEncoded.bytes;
  const k = Math.max(1, Math.floor(0.01 * gradient.length));
  const bytes = new Uint8Array(encodedBytes(kind, gradient.length, k));
  if (kind === 'f32') bytes.set(bytesOf(gradient));
  else if (kind === 'bf16') encodeBf16(gradient, bytes);
  else if (kind === 'int8') encodeInt8(gradient, null, bytes);
  else encodeTopk(gradient, k, bytes);
  if (whole) lastEncoded = { kind, bytes };
  return bytes;
}

type Message = { open: LoadOptions } | { run: number } | { disconnect: true };

function beLoad(): void {
  let workers: Simulated[] = [];
  obey(async (message: Message) => {
    if ('open' in message) {
      const { count, index = 0, inFlight = 1, to } = message.open;
      for (let i = 0; i < count; i++) workers.push(await Simulated.open(to, index + i, inFlight));
      return null;
    }
    if ('run' in message) {
      const results = await Promise.all(workers.map((worker) => worker.run(message.run)));
      return {
        pulls: results.reduce((sum, { pulls }) => sum + pulls, 0),
        roundTripsPerSecond: results.reduce((sum, { perSecond }) => sum + perSecond, 0),
        counts: results.map(({ latencies }) => latencies.length),
        latencies: Float64Array.from(results.flatMap(({ latencies }) => latencies)),
      } satisfies LoadResult;
    }
    await Promise.all(workers.map((worker) => worker.close()));
    workers = [];
    return null;
  });
}

if (process.argv[2] === '--load') beLoad();
