import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { type RawData, WebSocket } from 'ws';
import { bytesOf, decodeFrame, encodeFrame, floatsOf } from '../../shared/codec.ts';
import type {
  Assign,
  Initialise,
  Push,
  ServerMessage,
  Work,
  WorkerMessage,
} from '../../shared/protocol.ts';
import { random, STREAMS } from '../../shared/random.ts';
import { encodeKeys } from '../../shared/rows.ts';
import {
  EXCHANGED,
  examplesOf,
  FACTS,
  gradientOf,
  lossOf,
  type Problem,
  TENSORS,
} from './regression.ts';

/** What came in: a message with its payload, or the end of the connection. */
export type Incoming =
  | { readonly kind: 'message'; readonly message: ServerMessage; readonly payload: Float32Array }
  | { readonly kind: 'closed'; readonly code: number; readonly reason: string };

/** A worker that speaks the protocol by hand, for saying right and wrong things to a real server. */
export class ProtocolWorker {
  readonly #socket: WebSocket;
  readonly #inbox: Incoming[] = [];
  #wake: (() => void) | null = null;
  readonly name: string;
  readonly incarnation: string;
  sequence = 0;

  private constructor(socket: WebSocket, name: string, incarnation: string) {
    this.#socket = socket;
    this.name = name;
    this.incarnation = incarnation;
    socket.on('message', (data: RawData) => {
      const { header, payload } = decodeFrame(data as Buffer);
      this.#take({ kind: 'message', message: header as ServerMessage, payload: floatsOf(payload) });
    });
    socket.on('close', (code, reason) =>
      this.#take({ kind: 'closed', code, reason: String(reason) }),
    );
    socket.on('error', () => {});
  }

  static async connect(
    url: string,
    options: {
      name?: string;
      incarnation?: string;
      token?: string;
      /** Headers of the handshake, beside the token. */
      headers?: Record<string, string>;
    } = {},
  ): Promise<ProtocolWorker> {
    const { name = `w-${randomBytes(3).toString('hex')}`, token, headers = {} } = options;
    const incarnation = options.incarnation ?? randomBytes(8).toString('hex');
    const socket = new WebSocket(`${url.replace('http', 'ws')}/ws`, {
      headers: { ...headers, ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) },
      perMessageDeflate: false,
    });
    const worker = new ProtocolWorker(socket, name, incarnation);
    await new Promise<void>((resolve, reject) => {
      socket.once('open', resolve);
      socket.once('error', reject);
    });
    return worker;
  }

  get open(): boolean {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  #take(incoming: Incoming): void {
    this.#inbox.push(incoming);
    this.#wake?.();
  }

  async next(): Promise<Incoming> {
    while (this.#inbox.length === 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#inbox.shift()!;
  }

  /** The next message, which must be of this type. */
  async expect<T extends ServerMessage['type']>(
    type: T,
  ): Promise<Extract<ServerMessage, { type: T }> & { payload: Float32Array }> {
    const incoming = await this.next();
    if (incoming.kind === 'closed') {
      throw new Error(`closed with ${incoming.code} ${incoming.reason} instead of '${type}'`);
    }
    if (incoming.message.type !== type) {
      throw new Error(`${JSON.stringify(incoming.message)} instead of '${type}'`);
    }
    return { ...incoming.message, payload: incoming.payload } as never;
  }

  send(message: WorkerMessage | { type: string }, payload?: Float32Array): void {
    this.#socket.send(encodeFrame(message, payload));
  }

  sendBytes(bytes: Uint8Array | string): void {
    this.#socket.send(bytes);
  }

  get #below(): Socket {
    return (this.#socket as unknown as { readonly _socket: Socket })._socket;
  }

  /** Bytes of whatever frames, as they are. */
  write(bytes: Uint8Array): void {
    this.#below.write(bytes);
  }

  get isOpen(): boolean {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** That the server has not taken yet. */
  get unsentBytes(): number {
    return this.#below.writableLength;
  }

  /** What is sent meanwhile leaves with one system call. */
  together(send: () => void): void {
    const socket = this.#below;
    socket.cork();
    send();
    socket.uncork();
  }

  /** The beginning of a message. */
  sendFragment(bytes: Uint8Array): void {
    this.#socket.send(bytes, { fin: false });
  }

  hello(hash = 'hash', run: string | null = null): void {
    const { name: worker, incarnation } = this;
    const experiments = { regression: hash };
    this.send({
      type: 'hello',
      worker,
      incarnation,
      run,
      experiments,
      engine: 'test',
      device: 'test',
    });
  }

  join(assign: Assign, problem: Problem, changes: object = {}): void {
    const { run, experimentHash } = assign;
    const own = { tensors: TENSORS, data: problem.summary, facts: 'json' };
    const facts = new Float32Array(FACTS.buffer);
    this.send({ type: 'join', run, experimentHash, ...own, ...changes }, facts);
  }

  /** Says hello, joins, and creates the parameters when asked to. @returns the first work. */
  async enter(problem: Problem, changes: object = {}): Promise<Work & { payload: Float32Array }> {
    this.hello();
    this.join(await this.expect('assign'), problem, changes);
    const incoming = await this.next();
    if (incoming.kind === 'closed') throw new Error(`closed with ${incoming.code}`);
    if (incoming.message.type === 'initialise') {
      this.initialise(incoming.message);
      return this.expect('work');
    }
    return { ...(incoming.message as Work), payload: incoming.payload };
  }

  initialise({ run, grant, seed }: Initialise): void {
    const draw = random(seed, STREAMS.parameters);
    const values = Float32Array.from({ length: EXCHANGED + 1 }, () => draw.normal() * 0.1);
    this.send({ type: 'initialised', run, grant }, values);
  }

  /** Pushes the gradient of the work's first minibatch, read at its parameters. */
  push(problem: Problem, work: Work & { payload: Float32Array }, changes: object = {}): void {
    const lease = work.leases[0]!;
    const { payload, loss } = gradientOf(problem, 1, lease, work.payload);
    const { run, step, generation } = work;
    const sequence = ++this.sequence;
    const push = {
      type: 'push',
      run,
      sequence,
      lease: lease.id,
      step,
      generation,
      loss,
      computeMs: 1,
      encoding: 'f32',
    };
    this.send({ ...push, ...changes } as WorkerMessage, payload);
  }

  /** Asks for rows of the tables of a run, by their keys. */
  pullRows(run: string, keys: readonly Uint32Array[], evaluation: number | null = null): void {
    const payload = floatsOf(encodeKeys(keys));
    this.send({ type: 'pullRows', run, request: 7, evaluation }, payload);
  }

  /** Pushes as `push` does, with bytes of rows and keys that are wanted behind it. */
  pushRows(
    problem: Problem,
    work: Work & { payload: Float32Array },
    rows: NonNullable<Push['rows']>,
    bytes: Uint8Array,
  ): void {
    const lease = work.leases[0]!;
    const { payload, loss } = gradientOf(problem, 1, lease, work.payload);
    const { run, step, generation } = work;
    const sequence = ++this.sequence;
    const push: Push = {
      ...{ type: 'push', run, sequence, lease: lease.id, step, generation },
      ...{ loss, computeMs: 1, encoding: 'f32', rows },
    };
    this.send(push, floatsOf(Uint8Array.from([...bytesOf(payload), ...bytes])));
  }

  /** Works until the run ends. @param before each answer. @returns what was said last. */
  async work(
    problem: Problem,
    first: Work & { payload: Float32Array },
    before: () => Promise<void> = async () => {},
  ): Promise<ServerMessage> {
    let work = first;
    let theta = first.payload;
    for (;;) {
      if (work.payload.length > 0) theta = work.payload;
      await before();
      if (work.evaluation) {
        const { id, part } = work.evaluation;
        const loss = lossOf(problem, part, theta);
        const examples = examplesOf(problem, part);
        this.send({
          type: 'evaluated',
          run: work.run,
          evaluation: id,
          loss,
          error: loss,
          examples,
          metrics: {},
        });
      } else if (work.leases.length > 0) this.push(problem, { ...work, payload: theta });
      const incoming = await this.next();
      if (incoming.kind === 'closed') throw new Error(`closed with ${incoming.code}`);
      const { message } = incoming;
      if (message.type === 'initialise') {
        this.initialise(message);
        work = { ...work, leases: [], evaluation: null, payload: new Float32Array() };
      } else if (message.type === 'work') work = { ...message, payload: incoming.payload };
      else return message;
    }
  }

  /** Pushes minibatches until the server is at a step. @returns what it was told last. */
  async trainTo(
    problem: Problem,
    first: Work & { payload: Float32Array },
    step: number,
  ): Promise<Work & { payload: Float32Array }> {
    let work = first;
    while (work.step < step) {
      this.push(problem, work);
      const next = await this.expect('work');
      work = { ...next, payload: next.payload.length > 0 ? next.payload : work.payload };
    }
    return work;
  }

  close(): void {
    this.#socket.close();
  }

  /** As a killed process does. */
  terminate(): void {
    this.#socket.terminate();
  }
}
