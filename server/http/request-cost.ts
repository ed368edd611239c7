import type { IncomingMessage } from 'node:http';
import { performance } from 'node:perf_hooks';
import type { FastifyInstance } from 'fastify';
import type { Budget } from '../access/budget.ts';

/**
 * What requests take of the main thread, charged to the budgets of those who ask: from the moment that a request is read
 * until its answer has been written, without what is done for others meanwhile.
 */

/** Taken on account by a request that has waited for its turn, so that not all who wait go on at once. */
const ON_ACCOUNT_MS = 1;

interface Span {
  budget: Budget | null;
  /** Not charged yet: what has been done since then in this turn of the event loop. */
  from: number;
  turn: number;
  paidMs: number;
}

export class RequestCosts {
  readonly #spans = new WeakMap<IncomingMessage, Span>();
  /** Counts turns of the event loop with requests in them. */
  #turn = 0;
  #turns: NodeJS.Immediate | null = null;

  /** Call before there are routes. */
  constructor(app: FastifyInstance) {
    app.server.prependListener('request', (request: IncomingMessage) => {
      const turn = this.#here();
      this.#spans.set(request, { budget: null, from: performance.now(), turn, paidMs: 0 });
    });
    const costs = this;
    app.addHook('onRoute', (route) => {
      const { handler } = route;
      route.handler = function (request, reply) {
        costs.#goOn(request.raw);
        try {
          return handler.call(this, request, reply);
        } finally {
          // What a promise of it does later is seen when its answer is sent.
          costs.#charge(request.raw);
        }
      };
    });
    app.addHook('preSerialization', (request, _reply, payload, done) => {
      this.#goOn(request.raw);
      done(null, payload);
    });
    app.addHook('onSend', (request, _reply, payload, done) => {
      this.#goOn(request.raw);
      // When it has been written.
      process.nextTick(() => this.#charge(request.raw));
      done(null, payload);
    });
  }

  /**
   * Says whose request it is; while that one is in debt it waits for its turn, among all that they send.
   * @param waitMs at most. @returns whether its turn has come.
   */
  async mayGoOn(request: IncomingMessage, budget: Budget, waitMs: number): Promise<boolean> {
    const span = this.#spans.get(request);
    if (span) span.budget = budget;
    if (budget.hasTime) return true;
    this.#charge(request);
    const came = await turnOf(budget, request, waitMs);
    if (span && came) span.paidMs = ON_ACCOUNT_MS;
    this.#goOn(request);
    return came;
  }

  /** The same until the end of a turn of the event loop. */
  #here(): number {
    this.#turns ??= setImmediate(() => {
      this.#turns = null;
      this.#turn++;
    });
    return this.#turn;
  }

  /** Others may have been dealt with since. */
  #goOn(request: IncomingMessage): void {
    const span = this.#spans.get(request);
    const turn = this.#here();
    if (!span || span.turn === turn) return;
    span.turn = turn;
    span.from = performance.now();
  }

  #charge(request: IncomingMessage): void {
    const span = this.#spans.get(request);
    if (!span || span.turn !== this.#turn) return;
    const now = performance.now();
    span.budget?.charge(now - span.from - span.paidMs);
    span.paidMs = 0;
    span.from = now;
  }
}

/** Resolves with whether it came in time, and while the client was there. */
function turnOf(budget: Budget, { socket }: IncomingMessage, waitMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const end = (came: boolean) => {
      clearTimeout(timer);
      socket.off('close', giveUp);
      budget.leave(turn);
      resolve(came);
    };
    const turn = () => {
      budget.charge(ON_ACCOUNT_MS);
      end(true);
    };
    const giveUp = () => end(false);
    const timer = setTimeout(giveUp, waitMs);
    socket.once('close', giveUp);
    budget.await(turn);
  });
}
