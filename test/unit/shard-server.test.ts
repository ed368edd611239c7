import { expect, test } from 'vitest';
import { rangesOf } from '../../server/core/shard.ts';
import { ShardServer } from '../../server/shards/server.ts';
import { resolveConfig } from '../../shared/config.ts';
import { layoutSpecs } from '../../shared/layout.ts';
import type { ConnectionEvents, FrameHeader, Landing } from '../../wire/connection.ts';
import { LAYOUT } from '../support/shards.ts';

const SESSION = '0123456789abcdef';
const BYTES = 4 * (rangesOf(LAYOUT, 2, {})[1]!.end - rangesOf(LAYOUT, 2, {})[1]!.start);
const CREATE = {
  kind: 'create',
  run: 'r',
  tensors: layoutSpecs(LAYOUT),
  config: resolveConfig({}),
};
const NOTHING = new Uint8Array();

/** One of its connections, the other end of which is the test. */
function connected(server: ShardServer, path: '/ws' | '/control') {
  const said: FrameHeader[] = [];
  let events!: ConnectionEvents;
  const connection = {
    ...{ transport: 'tcp', bytes: { received: 0, sent: 0 }, bufferedBytes: 0, leftBytes: 0 },
    ...{ coming: null, waiting: false, holding: false, open: true },
    start: (own: ConnectionEvents) => {
      events = own;
    },
    send: (message: FrameHeader) => void said.push(message),
    ping: () => {},
    close: () => {
      connection.open = false;
    },
  };
  server.accept(path, connection as never, null);
  return { said, connection, events };
}

function shard() {
  const log: string[] = [];
  const server = new ShardServer({
    log: (line) => log.push(line),
    memoryBytesMax: 2 ** 28,
    now: () => 0,
    soon: (act) => act(),
  });
  const control = connected(server, '/control');
  const tell = (message: object) => control.events.message(message as FrameHeader, NOTHING, null);
  tell({ type: 'take', index: 1, count: 2, token: 1 });
  tell({ type: 'admit', session: SESSION });
  const worker = connected(server, '/ws');
  worker.events.message({ type: 'attach', session: SESSION }, NOTHING, null);
  expect(worker.said.map(({ type }) => type)).toEqual(['attached']);
  const header = { type: 'initialPart', run: 'r', grant: 1 };
  const told = () => control.said.filter(({ type }) => type === 'initialLanded');
  return { log, tell, worker, header, told };
}

const GRANT = { kind: 'grant', run: 'r', session: SESSION, grant: 1 };

test('a part whose run is here before it begins has landed', () => {
  const { tell, worker, header, told } = shard();
  tell({ type: 'command', command: CREATE });
  tell({ type: 'command', command: GRANT });
  const landing = worker.events.land(header, BYTES) as Landing;
  landing.bytes.fill(0);
  worker.events.message(header, landing.bytes, landing);
  expect(told()).toEqual([{ ...header, type: 'initialLanded', session: SESSION, problem: null }]);
  expect(worker.connection.open).toBe(true);
});

test('a part that was read past before its run was here is no part of NaN: its worker connects again', () => {
  const { tell, worker, header, told } = shard();
  expect(worker.events.land(header, BYTES)).toBe('nowhere');
  // The server's way to the shard was slower than the worker's.
  tell({ type: 'command', command: CREATE });
  worker.events.message(header, NOTHING, null);
  expect(told()).toEqual([]);
  expect(worker.said.at(-1)).toMatchObject({ type: 'error', code: 'DP_SHARD_LOST' });
  expect(worker.connection.open).toBe(false);
});

test('a part of a run that is not here is dropped, and its worker stays', () => {
  const { tell, worker, header, told } = shard();
  expect(worker.events.land(header, BYTES)).toBe('nowhere');
  worker.events.message(header, NOTHING, null);
  // What follows is not taken for it.
  tell({ type: 'command', command: CREATE });
  tell({ type: 'command', command: GRANT });
  const landing = worker.events.land(header, BYTES) as Landing;
  landing.bytes.fill(0);
  worker.events.message(header, landing.bytes, landing);
  expect(told()).toHaveLength(1);
  expect(worker.connection.open).toBe(true);
});

test('initial parameters land when their worker is known to be asked, unless those of another have taken their place', () => {
  const { tell, worker, header, told } = shard();
  tell({ type: 'command', command: CREATE });
  const give = (value: number) => {
    const landing = worker.events.land(header, BYTES) as Landing;
    new Float32Array(landing.bytes.buffer, landing.bytes.byteOffset, BYTES / 4).fill(value);
    worker.events.message(header, landing.bytes, landing);
  };
  give(Number.NaN);
  expect(told()).toEqual([]);
  tell({ type: 'command', command: GRANT });
  expect(told()).toMatchObject([
    { session: SESSION, problem: expect.stringMatching(/^hold NaN in tensor '/) },
  ]);
});
