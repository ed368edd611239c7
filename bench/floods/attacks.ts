import { setPriority } from 'node:os';
import { setTimeout as wait } from 'node:timers/promises';
import { obey, startTold, type Told } from '../processes.ts';
import { FloodClient, type FloodRun, helloOf, joinOf, pushOf } from './client.ts';

/**
 * What hostile clients do to a server, each as a program of its own that goes on until it is stopped: a connection that
 * the server closes is opened again. A new flood is one more entry of `ATTACKS`.
 */

export interface Target extends FloodRun {
  readonly url: string;
  readonly token?: string;
}

export interface Attack {
  readonly name: string;
  readonly what: string;
  readonly connections: number;
  /** One connection, from its opening on; it ends when `going` is false, or the server closes it. */
  run(client: FloodClient, target: Target, going: () => boolean): Promise<void>;
}

/** Sent again and again; what is in it does not matter. */
const CHUNK = new Uint8Array(2 ** 16);

/** Writes so many bytes, as fast as the server takes them. */
async function pour(client: FloodClient, bytes: number, going: () => boolean): Promise<void> {
  for (let left = bytes; left > 0 && going() && !client.ended; left -= CHUNK.length) {
    client.write(left < CHUNK.length ? CHUNK.subarray(0, left) : CHUNK);
    if (client.unsentBytes > 2 ** 20) await client.drained();
  }
}

async function stay(client: FloodClient, going: () => boolean): Promise<void> {
  while (going() && !client.ended) await wait(50);
}

const beginPush = async (client: FloodClient, target: Target) => {
  const { leases, step, generation } = await client.enter(target);
  client.begin(
    pushOf(target, { lease: leases[0]?.id ?? 0, step, generation }),
    4 * target.elements,
  );
};

const KIB_64 = 2 ** 16;

export const ATTACKS: readonly Attack[] = [
  {
    name: 'rooms, stopped',
    what: 'begin a push of the run’s size and send 300 bytes of it',
    connections: 64,
    async run(client, target, going) {
      await beginPush(client, target);
      client.write(CHUNK.subarray(0, 300));
      await stay(client, going);
    },
  },
  {
    name: 'rooms, dripping',
    what: 'the same, and 100 bytes more each 50 ms',
    connections: 64,
    async run(client, target, going) {
      await beginPush(client, target);
      while (going() && !client.ended) {
        client.write(CHUNK.subarray(0, 100));
        await wait(50);
      }
    },
  },
  {
    name: 'answers unread',
    what: 'push nothing again and again, and do not read the parameters that come with each rejection',
    connections: 16,
    async run(client, target, going) {
      const { leases, step, generation } = await client.enter(target);
      client.deafen();
      const push = { lease: leases[0]?.id ?? 0, step, generation };
      for (let i = 1; i < 20_000 && going() && !client.ended; i++) {
        client.send(pushOf(target, push, i));
        if (client.unsentBytes > KIB_64) await Promise.race([client.drained(), wait(500)]);
        if (client.unsentBytes > 2 ** 20) break;
      }
      await stay(client, going);
    },
  },
  {
    name: 'payloads where none belong',
    what: 'an observation with a payload of 200 MB, but for its end',
    connections: 16,
    async run(client, target, going) {
      client.send(helloOf(client, target));
      client.begin({ type: 'observed' }, 200e6);
      await pour(client, 190e6, going);
      await stay(client, going);
    },
  },
  {
    name: 'pushes too large',
    what: 'a push of 400 MB, but for its end',
    connections: 8,
    async run(client, target, going) {
      const { leases, step, generation } = await client.enter(target);
      client.begin(pushOf(target, { lease: leases[0]?.id ?? 0, step, generation }), 400e6);
      await pour(client, 390e6, going);
      await stay(client, going);
    },
  },
  {
    name: 'facts without end',
    what: 'a join whose facts take 64 MB, but for their end',
    connections: 32,
    async run(client, target, going) {
      client.send(helloOf(client, target));
      await client.expect('assign');
      client.begin({ ...joinOf(target), facts: 'json' }, 64e6);
      await pour(client, 63e6, going);
      await stay(client, going);
    },
  },
  {
    name: 'headers without end',
    what: 'a header of 1 MB, but for its end',
    connections: 256,
    async run(client, _target, going) {
      client.beginHeader(1_000_000, 999_000);
      await stay(client, going);
    },
  },
];

function attackOf(name: string): Attack {
  const attack = ATTACKS.find((each) => each.name === name);
  if (!attack) throw new Error(`there is no flood '${name}'`);
  return attack;
}

export interface AttackProcess {
  /** Resolves when all its connections have done what they do first, or the server has refused them. */
  start(name: string, target: Target): Promise<void>;
  /** How often the server has closed a connection, by close code. */
  stop(): Promise<Readonly<Record<string, number>>>;
  close(): Promise<void>;
}

export function startAttacker(): AttackProcess {
  const told: Told = startTold(import.meta.filename, ['--flood']);
  return {
    start: (name, target) => told.ask({ start: { name, target } }),
    stop: () => told.ask({ stop: true }),
    close: () => told.close(),
  };
}

// Inside the process.

const PAUSE_MS = 20;
/** A flood is to take rooms and memory, not the processor of the machine that measures it. */
const LEAST_PRIORITY = 19;

/** Begins an attack. @returns what ends it. */
function attack(
  { connections, run }: Attack,
  target: Target,
): () => Promise<Record<string, number>> {
  const codes: Record<string, number> = {};
  const clients = new Set<FloodClient>();
  let going = true;
  const { url, token } = target;
  const one = async () => {
    while (going) {
      try {
        const client = await FloodClient.open(url, token === undefined ? {} : { token });
        clients.add(client);
        await run(client, target, () => going).catch(() => {});
        clients.delete(client);
        if (client.ended && going) codes[client.ended.code] = (codes[client.ended.code] ?? 0) + 1;
        client.destroy();
      } catch {
        codes.refused = (codes.refused ?? 0) + 1;
      }
      await wait(PAUSE_MS);
    }
  };
  const all = Array.from({ length: connections }, one);
  return async () => {
    going = false;
    for (const client of clients) client.destroy();
    await Promise.all(all);
    return codes;
  };
}

type Message = { start: { name: string; target: Target } } | { stop: true };

function beAttacker(): void {
  setPriority(LEAST_PRIORITY);
  let end: (() => Promise<Record<string, number>>) | null = null;
  obey(async (message: Message) => {
    if ('start' in message) {
      end = attack(attackOf(message.start.name), message.start.target);
      return null;
    }
    const codes = await end?.();
    end = null;
    return codes ?? {};
  });
}

if (process.argv[2] === '--flood') beAttacker();
