import { createLayout } from '../../shared/layout.ts';
import type { Acknowledgement, Assign, Work } from '../../shared/protocol.ts';
import { random, STREAMS } from '../../shared/random.ts';
import { Client } from '../../worker/client.ts';
import { EXCHANGED, gradientOf, lossOf, type Problem, TENSORS } from './regression.ts';

/**
 * A worker with the real client, which finds its server again by itself, and gradients of plain arithmetic. It
 * works until it is stopped or its run has ended.
 */
export class ClientWorker {
  readonly name: string;
  readonly #problem: Problem;
  readonly #client: Client;
  readonly #stop = new AbortController();
  /** What the server has said of each push, in its order. */
  readonly acknowledgements: Acknowledgement[] = [];
  readonly log: string[] = [];
  /** Resolves when the run has ended, or with the reason that it cannot go on. */
  readonly done: Promise<unknown>;
  /** Called before each push, with the number of those that were applied. */
  pushing: (applied: number) => Promise<void> | void = () => {};
  /** Called before an evaluation is answered. */
  evaluating: () => Promise<void> | void = () => {};

  /** @param run it works for that one alone, and hears of its end also after it was away; null: for any. */
  constructor(server: string, name: string, problem: Problem, run: string | null = null) {
    this.name = name;
    this.#problem = problem;
    this.#client = new Client({
      server,
      hello: {
        ...{ worker: name, run, experiments: { regression: 'hash' } },
        ...{ engine: 'test', device: 'test' },
      },
      signal: this.#stop.signal,
      log: (line) => this.log.push(line),
      localSocket: false,
    });
    this.done = this.#work().catch((error: unknown) => error);
  }

  /** Name and incarnation, as push logs have it. */
  get key(): string {
    return `${this.name}/${this.#client.incarnation}`;
  }

  /** Pushes that the server has said to have applied, as push logs have them. */
  get applied(): string[] {
    return this.acknowledgements
      .filter(({ outcome }) => outcome === 'applied' || outcome === 'damped')
      .map(({ sequence }) => `${this.key} ${sequence}`);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.done;
    await this.#client.close();
  }

  async #work(): Promise<void> {
    const client = this.#client;
    let resend = false;
    let theta: Float32Array | null = null;
    let run = '';
    for (;;) {
      const { message, payload, release } = await client.next();
      if (message.type === 'assign') {
        run = message.run;
        await client.attach(message, createLayout(TENSORS));
        this.#join(message);
        resend = true;
      } else if (message.type === 'initialise') {
        const draw = random(message.seed, STREAMS.parameters);
        const values = Float32Array.from({ length: EXCHANGED + 1 }, () => draw.normal() * 0.1);
        client.initialise({ type: 'initialised', run, grant: message.grant }, values);
      } else if (message.type === 'end') return;
      else if (message.type === 'work') {
        this.acknowledgements.push(...message.acknowledgements);
        for (const each of message.acknowledgements) client.acknowledge(each);
        if (resend) client.resend(run);
        resend = false;
        const values = payload.slice();
        if (message.evaluation) await this.#evaluate(message, values);
        else {
          if (values.length > 0) theta = values;
          if (theta) await this.#push(message, theta);
        }
      }
      release?.();
    }
  }

  #join({ run, experimentHash }: Assign): void {
    const { summary: data } = this.#problem;
    const seen = this.#client.seen(run) ?? null;
    this.#client.send({ type: 'join', run, experimentHash, tensors: TENSORS, data, seen });
  }

  async #evaluate({ run, evaluation }: Work, theta: Float32Array): Promise<void> {
    await this.evaluating();
    const { id, part } = evaluation!;
    const loss = lossOf(this.#problem, part, theta);
    this.#client.send({
      ...{ type: 'evaluated', run, evaluation: id, loss, error: loss },
      ...{ examples: 10, metrics: {} },
    });
  }

  async #push({ run, leases, step, generation }: Work, theta: Float32Array): Promise<void> {
    const { unacknowledged } = this.#client;
    const lease = leases.find(({ id }) => !unacknowledged.some((push) => push.lease === id));
    if (!lease || unacknowledged.length > 0) return;
    await this.pushing(this.applied.length);
    const { payload, loss } = gradientOf(this.#problem, 1, lease, theta);
    this.#client.push(
      {
        ...{ run, lease: lease.id, step, generation, loss, computeMs: 1 },
        encoding: 'f32',
      },
      [payload.byteLength],
      ([bytes]) => bytes!.set(new Uint8Array(payload.buffer)),
    );
  }
}
