import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { type Serving, serve } from '../../server/main.ts';
import type { WorkerMessage } from '../../shared/protocol.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem, EXCHANGED, FACTS, TENSORS } from '../support/regression.ts';

/**
 * Valid messages in any order, from connections that nobody asked, over real sockets to a real server, while an honest
 * worker trains a run of its own. What that run comes to must equal, to the bit, what it comes to in peace; and a run that
 * an operator has stopped stays as it was.
 */

const TOKENS = { token: 'operator', workerToken: 'honest', others: 'hostile' } as const;
const problem = createProblem();
const CONFIG = {
  ...{ minibatchSize: 4, learningRate: 0.05, stepsMax: 15, evaluateEverySteps: 5, seed: 7 },
  ...{ workersMax: 1, earlyStopping: { enabled: false }, observe: { everySteps: 4 } },
} as const;

/** One thing that a hostile connection does. */
interface Act {
  /** Which connection. */
  readonly from: number;
  readonly what: (typeof WHATS)[number];
  /** The run that is named: the honest worker's, the stopped one, one that there is not. */
  readonly run: 0 | 1 | 2;
  /** Numbers of leases, evaluations, grants, sequences and steps. */
  readonly id: number;
  readonly value: number;
}

const WHATS = [
  ...(['connect', 'hello', 'helloAsHonest', 'join', 'push', 'evaluated', 'initialised'] as const),
  ...(['observed', 'leave', 'leaveInFailure', 'vanish'] as const),
];

const act: fc.Arbitrary<Act> = fc.record({
  from: fc.nat({ max: 2 }),
  // More often what would count.
  what: fc.constantFrom(...WHATS, 'evaluated', 'evaluated', 'evaluated', 'initialised', 'push'),
  run: fc.constantFrom(0, 0, 0, 1, 2),
  id: fc.oneof(fc.nat({ max: 16 }), fc.constantFrom(2 ** 40, Number.MAX_SAFE_INTEGER)),
  value: fc.constantFrom(0, -1e100, 1e100, 1e-300, 0.5),
});

/** The honest worker gets answers to 15 pushes, 3 evaluations and the test. */
const ANSWERS = 19;

/** What a run came to, that must not depend on others. */
interface Outcome {
  readonly run: unknown;
  readonly evaluations: unknown;
  readonly losses: unknown;
  readonly parameters: string;
}

/** A server on which sequences of messages are tried. */
export class SequenceBench {
  readonly #serving: Serving;
  readonly #folder: string;
  readonly #stop: AbortController;
  readonly #defects: readonly string[];
  readonly client: RestClient;
  #count = 0;

  private constructor(
    serving: Serving,
    folder: string,
    stop: AbortController,
    defects: readonly string[],
  ) {
    this.#defects = defects;
    this.#serving = serving;
    this.#folder = folder;
    this.#stop = stop;
    this.client = createRestClient({ server: serving.url, token: TOKENS.token });
  }

  static async open(): Promise<SequenceBench> {
    const folder = await mkdtemp(join(tmpdir(), 'downpour-sequences-'));
    const stop = new AbortController();
    const defects: string[] = [];
    const tokensFile = join(folder, 'tokens');
    await writeFile(tokensFile, `worker ${TOKENS.others} hostile\n`);
    const serving = await serve({
      ...{ host: '127.0.0.1', port: 0, state: join(folder, 'state'), localSocket: false },
      ...{ token: TOKENS.token, workerToken: TOKENS.workerToken, tokensFile },
      // Sequences come one right after the other.
      limits: { requestsPerSecondMax: 1e9, refusalsPerSecondMax: 1e9, handshakesPerSecondMax: 1e9 },
      signal: stop.signal,
      log: (line) => {
        if (line.startsWith('defect')) defects.push(line);
      },
    });
    return new SequenceBench(serving, folder, stop, defects);
  }

  /** What the honest worker's run comes to while these are done. */
  async outcome(acts: readonly Act[]): Promise<Outcome> {
    const [run, stopped] = [`run-${this.#count}`, `stopped-${this.#count++}`];
    const { client } = this;
    const experiment = { experiment: 'regression', experimentHash: 'hash' };
    await client.createRun({ id: run, ...experiment, config: CONFIG });
    const honest = await this.connect(TOKENS.workerToken, `honest-${run}`);
    honest.hello('hash', run);
    honest.join(await honest.expect('assign'), problem);
    honest.initialise(await honest.expect('initialise'));
    const first = await honest.expect('work');
    await client.createRun({ id: stopped, ...experiment, config: CONFIG });
    await client.stop(stopped);
    const still = JSON.stringify(await this.#lasting(stopped));
    const attack = new Attack(this, [run, stopped, 'nobodys'], honest);
    const left = [...acts];
    // Some before each answer of the honest worker, so that each state of its run has seen them.
    const some = Math.ceil(acts.length / ANSWERS);
    const last = await honest.work(problem, first, () => attack.carryOut(left.splice(0, some)));
    if (last.type !== 'end') throw new Error(`the honest worker heard ${JSON.stringify(last)}`);
    await attack.carryOut(left);
    attack.end();
    const now = JSON.stringify(await this.#lasting(stopped));
    if (now !== still) throw new Error(`the stopped run changed from ${still} to ${now}`);
    const outcome = await this.#lasting(run);
    if (this.#defects.length > 0) throw new Error(this.#defects.join('\n'));
    honest.close();
    // One that waits would be given the next run.
    while ((await client.status()).workers.some(({ state }) => state !== 'gone')) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return outcome;
  }

  async #lasting(id: string): Promise<Outcome> {
    const { client } = this;
    const [detail, metrics] = [await client.run(id), await client.metrics(id)];
    const { phase, reason, step, examples, pushes, rollbacks, data, hint } = detail;
    const { best, test, stepsLost, workers } = detail;
    const values = ({ step, loss, error }: { step: number; loss: unknown; error: unknown }) => ({
      ...{ step, loss, error },
    });
    return {
      run: {
        ...{ phase, reason, step, examples, rollbacks, data, hint, stepsLost },
        ...{ best: best && values(best), test: test && values(test) },
        pushes: { ...pushes, rejected: undefined },
        // Only the honest one, if any.
        others: workers > 1,
      },
      evaluations: metrics.evaluations.map(values),
      losses: metrics.training.loss,
      parameters: phase === 'finished' ? await this.#final(id) : '',
    };
  }

  async #final(id: string): Promise<string> {
    const { client } = this;
    // It is written beside the end of the run.
    while (!(await client.checkpoints(id)).some(({ kind }) => kind === 'final')) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const chunks: Uint8Array[] = [];
    for await (const chunk of await client.checkpointFile(id, 'final')) chunks.push(chunk);
    const file = Buffer.concat(chunks);
    // Without the header of safetensors, which has the run's name.
    return file.subarray(8 + Number(file.readBigUInt64LE())).toString('base64');
  }

  connect(token: string, name?: string): Promise<ProtocolWorker> {
    return ProtocolWorker.connect(this.#serving.url, { token, ...(name ? { name } : {}) });
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#serving.closed;
    await rm(this.#folder, { recursive: true, force: true });
  }
}

/** Hostile connections, and what they say. */
class Attack {
  readonly #bench: SequenceBench;
  readonly #runs: readonly string[];
  readonly #honest: ProtocolWorker;
  readonly #connections: (ProtocolWorker | null)[] = [null, null, null];

  constructor(bench: SequenceBench, runs: readonly string[], honest: ProtocolWorker) {
    this.#bench = bench;
    this.#runs = runs;
    this.#honest = honest;
  }

  async carryOut(acts: readonly Act[]): Promise<void> {
    for (const one of acts) {
      const { from, what } = one;
      let connection = this.#connections[from] ?? null;
      if (!connection?.open) {
        connection = await this.#bench.connect(TOKENS.others);
        this.#connections[from] = connection;
        // Most of what is said without it ends the connection.
        if (one.id % 4 !== 0) connection.hello('hash', this.#runs[one.run]!);
      }
      const message = this.#messageOf(one, connection);
      if (message) connection.send(...message);
      else {
        if (what === 'vanish') connection.terminate();
        else connection.close();
        this.#connections[from] = null;
      }
    }
    // By when it is answered the server has read what was sent before, as a rule.
    if (acts.length > 0) await this.#bench.client.health();
  }

  end(): void {
    for (const connection of this.#connections) connection?.close();
  }

  #messageOf(
    { what, run, id, value }: Act,
    connection: ProtocolWorker,
  ): [WorkerMessage, Float32Array?] | null {
    const about = { run: this.#runs[run]! };
    const { name, incarnation } = this.#honest;
    switch (what) {
      case 'hello':
      case 'helloAsHonest': {
        const own = what === 'hello' ? connection : { name, incarnation };
        const { name: worker } = own;
        const experiments = { regression: 'hash' };
        const rest = { experiments, engine: 'test', device: 'test' };
        const wanted = id % 2 === 0 ? about.run : null;
        return [{ type: 'hello', worker, incarnation: own.incarnation, run: wanted, ...rest }];
      }
      case 'join': {
        const said = { experimentHash: 'hash', tensors: TENSORS, data: problem.summary };
        const facts = new Float32Array(FACTS.buffer);
        return [{ type: 'join', ...about, ...said, facts: 'json' }, facts];
      }
      case 'push': {
        const at = { sequence: Math.max(1, id), lease: id, step: id % 20, generation: id % 3 };
        const measured = { loss: value, computeMs: 1, encoding: 'f32' } as const;
        const gradient = new Float32Array(EXCHANGED).fill(Math.fround(value));
        return [{ type: 'push', ...about, ...at, ...measured }, gradient];
      }
      case 'evaluated': {
        const examples = [10, 20, 30][id % 3]!;
        const measured = { loss: value, error: value, metrics: {} };
        return [{ type: 'evaluated', ...about, evaluation: id, examples, ...measured }];
      }
      case 'initialised':
        return [
          { type: 'initialised', ...about, grant: id },
          new Float32Array(EXCHANGED + 1).fill(Math.fround(value)),
        ];
      case 'observed': {
        const costs = { step: id % 20, updateSteps: 1, samples: 1, costMs: Math.abs(value % 1e9) };
        return [{ type: 'observed', ...about, ...costs, tensors: [], layers: [] }];
      }
      case 'leave':
        return [{ type: 'leave', failure: null }];
      case 'leaveInFailure':
        return [{ type: 'leave', failure: { code: 'DP_LAYOUT_MISMATCH', message: 'no' } }];
      default:
        return null;
    }
  }
}

/** A server has more runs to tell of with each sequence, and gets slower. */
const SEQUENCES_A_SERVER = 50;

/** @param count of sequences. @throws the shortest one that was found to change something, with the seed. */
export async function trySequences(count: number, seed?: number): Promise<void> {
  let bench = await SequenceBench.open();
  let tried = 0;
  try {
    const inPeace = JSON.stringify(await bench.outcome([]));
    await fc.assert(
      fc.asyncProperty(fc.array(act, { minLength: 20, maxLength: 80 }), async (acts) => {
        if (++tried % SEQUENCES_A_SERVER === 0) {
          await bench.close();
          bench = await SequenceBench.open();
        }
        const outcome = JSON.stringify(await bench.outcome(acts));
        if (outcome !== inPeace) throw new Error(`${outcome}\ninstead of\n${inPeace}`);
      }),
      { numRuns: count, ...(seed === undefined ? {} : { seed }) },
    );
  } finally {
    await bench.close();
  }
}
