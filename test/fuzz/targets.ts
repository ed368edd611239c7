import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readCheckpoint, writeCheckpoint } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import type { CheckpointTensor } from '../../files/tensor-file.ts';
import { Parameters } from '../../server/core/parameters.ts';
import { checkFromShardControl, checkToShardControl } from '../../server/shards/protocol.ts';
import { checkFromStandby, checkToStandby } from '../../server/standby/protocol.ts';
import { decodeFrame, encodeFrame } from '../../shared/codec.ts';
import {
  ENCODINGS,
  encodeBf16,
  encodedBytes,
  encodeInt8,
  encodeTopk,
} from '../../shared/compression.ts';
import { resolveConfig } from '../../shared/config.ts';
import { decodeFacts, encodeFacts, packTransform } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { createLayout } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { checkServerMessage, checkWorkerMessage } from '../../shared/protocol.ts';
import {
  decodeRows,
  encodeRows,
  ROW_ENCODINGS,
  type RowShape,
  type TableRows,
} from '../../shared/rows.ts';
import { decodeSafetensorsHeader, encodeSafetensorsHeader } from '../../shared/safetensors.ts';
import { checkFromShard, checkToShard } from '../../shared/shard-messages.ts';
import { FRAME_HEAD_MAX, OPCODES, writeFrameHead } from '../../wire/frames.ts';
import { parseIdx } from '../../worker/data/idx.ts';
import { parseNpy } from '../../worker/data/npy.ts';
import { parseCsv } from '../../worker/data/tables/csv.ts';
import { acceptSilent } from '../support/silent-socket.ts';

/** All that reads bytes of others: what is put in, and real examples that are damaged for it. */
export interface Target {
  readonly name: string;
  readonly corpus: readonly Uint8Array[];
  /**
   * Throws a DownpourError for what it refuses; anything else that is thrown is a defect.
   * @param pieces at which places the bytes are cut, as shares of their length; for streams.
   */
  read(bytes: Uint8Array, pieces: readonly number[]): void | Promise<void>;
  /** Reads files: so many of its inputs cost as much time as one of the others'. */
  readonly cost?: number;
  close?(): void;
}

const lease = { id: 3, epoch: 1, start: 64, count: 64, part: 'train' };
const tensors = [
  { name: 'dense/kernel', shape: [3, 2], role: 'trainable' },
  { name: 'dense/bias', shape: [2], role: 'trainable' },
  { name: 'norm/mean', shape: [2], role: 'statistics', momentum: 0.99 },
];
const data = { trainCount: 100, validationCount: 20, testCount: 0, fingerprint: 'f', source: 's' };
const work = {
  type: 'work',
  run: 'r-1',
  phase: 'training',
  step: 40,
  generation: 1,
  acknowledgements: [
    {
      sequence: 7,
      outcome: 'rejected',
      staleness: 3,
      code: 'DP_PUSH_STALE',
      message: 'pull, then retry',
    },
  ],
  leases: [lease],
  evaluation: { id: 2, part: 'validation' },
  encoding: 'f32',
  pull: null,
};
const push = {
  type: 'push',
  run: 'r-1',
  sequence: 7,
  lease: 3,
  step: 39,
  generation: 1,
  loss: 0.25,
  computeMs: 12.5,
  encoding: 'f32',
};

const config = resolveConfig({});
const part = { run: 'r-1', session: '0123456789abcdef', sequence: 7 };
const apply = {
  ...{ kind: 'apply', ...part, worker: 'w/1', generation: 1 },
  ...{ clip: { limit: Number.POSITIVE_INFINITY, factor: 1 } },
  options: { step: 40, learningRate: 0.1 },
};
const calls = [
  { call: 'assign', worker: 'w/1', ahead: 2, now: 1.5 },
  { call: 'push', worker: 'w/1', push, now: 1.5 },
];

/** One message of each kind, as both ends write them. */
const messages: readonly (readonly [object, number])[] = [
  [
    {
      type: 'hello',
      worker: 'host-1',
      incarnation: '0123456789abcdef',
      run: null,
      experiments: { 'mnist-mlp': 'a'.repeat(64) },
      engine: 'wasm',
      device: 'cpu',
    },
    0,
  ],
  [{ type: 'join', run: 'r-1', experimentHash: 'h', tensors, data }, 0],
  [{ type: 'initialised', run: 'r-1', grant: 1 }, 10],
  [push, 10],
  [{ ...push, encoding: 'bf16', loss: null }, 6],
  [
    {
      type: 'evaluated',
      run: 'r-1',
      evaluation: 2,
      loss: 0.5,
      error: 0.1,
      examples: 20,
      metrics: { accuracy: 0.9 },
    },
    0,
  ],
  [{ type: 'leave', failure: { code: 'DP_DATA_MISSING', message: 'no data' } }, 0],
  [work, 100],
  [{ ...work, leases: [], acknowledgements: [] }, 0],
  [{ type: 'idle' }, 0],
  [{ type: 'initialise', run: 'r-1', grant: 1, seed: 5 }, 0],
  [{ type: 'end', run: 'r-1', phase: 'finished', reason: 'done' }, 0],
  [{ type: 'error', code: 'DP_LIMIT', message: 'too many' }, 0],
  [{ type: 'attach', session: '0123456789abcdef' }, 0],
  [{ type: 'part', run: 'r-1', sequence: 7, encoding: 'int8' }, 8],
  [{ type: 'parameters', run: 'r-1', pull: 9, encoding: 'bf16' }, 8],
  // Between servers.
  [{ type: 'take', index: 1, count: 2, token: 7 }, 0],
  [{ type: 'admit', session: '0123456789abcdef' }, 0],
  [{ type: 'command', command: { kind: 'create', run: 'r-1', tensors, config } }, 0],
  [{ type: 'command', command: { kind: 'write', run: 'r-1', name: '@a', start: 4 } }, 8],
  [{ type: 'command', command: apply }, 0],
  [{ type: 'read', request: 1, run: 'r-1', id: 2, name: '@parameters', start: 0, count: 9 }, 0],
  [{ type: 'landed', ...part, squares: Number.NaN, problem: null }, 0],
  [{ type: 'follow', version: '0', mode: 'sync', lagMax: 0, address: { host: null, port: 1 } }, 0],
  [{ type: 'carried', frames: 3 }, 0],
  [{ type: 'leading', version: '0', token: 7, leaseMs: 2_000 }, 0],
  [{ type: 'vector', run: 'r-1', name: '@parameters', start: 0, length: 10 }, 10],
  [{ type: 'calls', run: 'r-1', calls, step: 40, generation: 1 }, 10],
];
const frames = messages.map(([header, floats]) =>
  encodeFrame(
    header,
    Float32Array.from({ length: floats }, (_, i) => i / 3),
  ),
);
const checks = [
  ...[checkWorkerMessage, checkServerMessage, checkToShard, checkFromShard],
  ...[checkToShardControl, checkFromShardControl, checkFromStandby, checkToStandby],
];

/** Each message is one of at most one side; what no side takes is refused by all. */
function readMessage(bytes: Uint8Array): void {
  const { header } = decodeFrame(bytes);
  let refusal: unknown;
  for (const check of checks) {
    try {
      check(header);
      return;
    } catch (error) {
      refusal = error;
      if (!isExpected(error)) throw error;
    }
  }
  throw refusal;
}

const isExpected = (error: unknown) => error instanceof Error && error.name === 'DownpourError';

/** A message as a client sends it: in one frame or several, masked, with a ping between. */
function asSent(message: Uint8Array, parts: number): Uint8Array {
  const pieces: Uint8Array[] = [];
  for (let i = 0; i < parts; i++) {
    const payload = message.subarray(
      Math.floor((i * message.length) / parts),
      Math.floor(((i + 1) * message.length) / parts),
    );
    const opcode = i === 0 ? OPCODES.binary : OPCODES.continuation;
    pieces.push(frameOf(opcode, payload, i === parts - 1));
    if (i < parts - 1) pieces.push(frameOf(OPCODES.ping, Buffer.from('still there'), true));
  }
  return Buffer.concat(pieces);
}

function frameOf(opcode: number, payload: Uint8Array, final: boolean): Uint8Array {
  const head = new Uint8Array(FRAME_HEAD_MAX);
  const start = writeFrameHead(head, FRAME_HEAD_MAX, {
    opcode: opcode as never,
    length: payload.length,
    masked: true,
  });
  if (!final) head[start]! &= 0x7f;
  return Buffer.concat([head.subarray(start), payload]);
}

const streams = frames.flatMap((frame, i) => {
  const next = frames[(i + 1) % frames.length]!;
  return [Buffer.concat([asSent(frame, 1), asSent(next, 3)]), asSent(frame, 2)];
});
streams.push(
  Buffer.concat([asSent(frames[0]!, 1), frameOf(OPCODES.close, Buffer.from([3, 232]), true)]),
);

/** @throws what the connection, receiver and `ws`, said last, if it was a refusal. */
async function receive(bytes: Uint8Array, pieces: readonly number[]): Promise<void> {
  let refusal: Error | null = null;
  let waits = 2;
  const { connection } = acceptSilent({ frameBytesMax: 2 ** 24 });
  const closed = new Promise<void>((resolve) =>
    connection.start(
      {
        land: (_, payloadBytes) => {
          if (payloadBytes !== null && payloadBytes % 3 === 0 && waits-- > 0) return 'wait';
          if (payloadBytes === null || payloadBytes > 4096) return null;
          return { bytes: new Uint8Array(payloadBytes), release: () => {} };
        },
        message: (header, _, landing) => {
          landing?.release();
          try {
            checkWorkerMessage(header);
          } catch (error) {
            refusal = error as Error;
          }
        },
        malformed: (error) => {
          refusal = error;
        },
        broken: (error) => {
          refusal = error;
        },
        alive() {},
        closed: () => resolve(),
      },
      'straight',
    ),
  );
  const cuts = pieces.map((share) => Math.floor(share * bytes.length)).sort((a, b) => a - b);
  let from = 0;
  for (const to of [...cuts, bytes.length]) {
    // Masks are undone where the bytes are.
    connection.sink.feed(bytes.slice(from, to));
    for (let tries = 0; connection.waiting && tries < 5; tries++) connection.retry();
    from = to;
  }
  await new Promise(setImmediate);
  connection.terminate();
  await closed;
  if (refusal) throw refusal;
}

const text = (value: string) => new TextEncoder().encode(value);

const rowTables: readonly RowShape[] = [
  { name: 'item', width: 3, keysMax: LIMITS.rowIdsMax },
  { name: 'user', width: 8, keysMax: 100 },
];

/** Rows in each encoding, behind the number of the encoding. */
function rowFrames(): Uint8Array[] {
  const rowsOf = (keys: number[], width: number): TableRows => ({
    keys: Uint32Array.from(keys),
    values: Float32Array.from({ length: keys.length * width }, (_, i) => i / 7 - 1),
  });
  const tables = [rowsOf([0, 7, 2 ** 31 - 1], 3), rowsOf([5, 99], 8)];
  return ROW_ENCODINGS.map((encoding, i) =>
    Buffer.concat([Buffer.of(i), encodeRows(rowTables, tables, encoding)]),
  );
}

function readRowFrame(bytes: Uint8Array): void {
  const encoding = ROW_ENCODINGS[(bytes[0] ?? 0) % ROW_ENCODINGS.length]!;
  for (const { keys, values } of decodeRows(rowTables, bytes.subarray(1), encoding)) {
    if (keys.some((key, i) => i > 0 && key <= keys[i - 1]!)) throw new Error('keys do not rise');
    if (values.length > 8 * keys.length) throw new Error('more values than rows have');
  }
}

function idx(): Uint8Array[] {
  return [8, 9, 11, 12, 13, 14].map((type) => {
    const bytes = [1, 1, 2, 4, 4, 8][[8, 9, 11, 12, 13, 14].indexOf(type)]!;
    const file = Buffer.alloc(12 + 6 * bytes, 1);
    file.set([0, 0, type, 2]);
    file.writeUInt32BE(3, 4);
    file.writeUInt32BE(2, 8);
    return file;
  });
}

function npy(): Uint8Array[] {
  const types = ['<f4', '>f8', '|u1', '<i8', '|b1', '>i2'];
  return types.flatMap((type, i) => {
    const header = `{'descr': '${type}', 'fortran_order': ${i % 2 ? 'True' : 'False'}, 'shape': (2, 3), }\n`;
    return [1, 2, 3].map((version) => {
      const head = Buffer.alloc(version === 1 ? 10 : 12);
      head.write('\x93NUMPY', 'latin1');
      head[6] = version;
      if (version === 1) head.writeUInt16LE(header.length, 8);
      else head.writeUInt32LE(header.length, 8);
      return Buffer.concat([head, text(header), Buffer.alloc(6 * Number(type[2]))]);
    });
  });
}

function facts(): Uint8Array[] {
  return (['none', 'global', 'feature'] as const).map((kind, i) => {
    const values = [0.5, 2].slice(0, i);
    return encodeFacts({
      transform: packTransform({ kind, scale: 1, mean: values, deviation: values }),
      inputs: { kind: 'float32', shape: [2] },
      targets: { kind: 'int32', shape: [] },
      classCount: 2,
      ...{ classes: ['"no"', 'y\\es'], inputNames: i === 1 ? null : ['a', 'ä'], targetNames: null },
    });
  });
}

const table = text(
  'mpg,weight,origin,name\n18,3504,usa,"a ""b"""\n15,3693,"eu, west",b\n1e2,-4,usa,\n',
);

function safetensors(): Uint8Array[] {
  return [1, 2, 3].map((count) => {
    const entries = Array.from({ length: count }, (_, i) => ({
      name: `t${i}`,
      shape: [i + 1, 2],
      byteLength: 8 * (i + 1),
    }));
    const header = encodeSafetensorsHeader(entries, count === 2 ? { layout: 'abc' } : {});
    const bytes = entries.reduce((sum, { byteLength }) => sum + byteLength, 0);
    return Buffer.concat([header, new Uint8Array(bytes)]);
  });
}

/** Real checkpoint files, and a folder to put damaged ones into. */
async function checkpoints(): Promise<Target[]> {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-fuzz-'));
  const values = Float32Array.of(1, 2, 3, 4);
  const tensor: CheckpointTensor = { name: 'w', shape: [2, 2], values };
  const manifest = await writeCheckpoint(folder, {
    run: 'r-1',
    step: 40,
    kind: 'last',
    layoutHash: 'h',
    tensors: [tensor],
    state: { step: 40, workers: [['w/1', 7]], config: { learningRate: 0.1 } },
    now: new Date(0),
  });
  const tensorFile = join(folder, manifest.file);
  const manifestFile = tensorFile.replace(/\.safetensors$/, '.json');
  const originals = [manifestFile, tensorFile].map((path) => readFileSync(path));
  const target = (name: string, file: string, i: number): Target => ({
    name,
    corpus: [originals[i]!],
    cost: 20,
    async read(bytes) {
      writeFileSync(file, bytes);
      try {
        await listCheckpoints(folder, { onDamaged: () => {} });
        await readCheckpoint(folder, manifestFile);
      } finally {
        writeFileSync(file, originals[i]!);
      }
    },
    close: () => rmSync(folder, { recursive: true, force: true }),
  });
  return [
    target('manifest of a checkpoint', manifestFile, 0),
    target('tensors of a checkpoint', tensorFile, 1),
  ];
}

/**
 * Gradients as they are applied, by the same kernels: whatever comes, the parameters stay finite. The first
 * byte of an input says the encoding.
 */
function gradients(): Target {
  const size = 600;
  const layout = createLayout([
    { name: 'w', shape: [size], role: 'trainable' },
    { name: 'mean', shape: [2], role: 'statistics', momentum: 0.9 },
  ]);
  const parameters = new Parameters(layout, resolveConfig({ optimizer: { kind: 'adam' } }));
  parameters.initialise(new Float32Array(size + 2));
  const values = Float32Array.from({ length: size }, (_, i) => Math.sin(i));
  const statistics = new Uint8Array(8);
  const corpus = ENCODINGS.map((encoding, i) => {
    const bytes = new Uint8Array(encodedBytes(encoding, size, 20));
    if (encoding === 'f32') bytes.set(new Uint8Array(values.buffer));
    else if (encoding === 'bf16') encodeBf16(values, bytes);
    else if (encoding === 'int8') encodeInt8(values, new Float32Array(size), bytes);
    else encodeTopk(values, 20, bytes);
    return Buffer.concat([Uint8Array.of(i), bytes, statistics]);
  });
  let step = 0;
  return {
    name: 'gradient, applied',
    corpus,
    read(bytes) {
      const encoding = ENCODINGS[(bytes[0] ?? 0) % ENCODINGS.length]!;
      // The receiver has made sure of it.
      const payload = bytes.slice(1, 1 + 4 * Math.floor((bytes.length - 1) / 4));
      const staged = parameters.stage(payload, encoding);
      if (!Number.isFinite(parameters.squares(staged, Infinity))) {
        throw new DownpourError('DP_GRADIENT_NOT_FINITE', 'not finite');
      }
      const clip = { limit: Infinity, factor: 1 };
      const applied = parameters.update(staged, clip, { step: ++step, learningRate: 0.01 });
      if (!parameters.evaluated().every(Number.isFinite)) {
        throw new Error('a parameter is not finite');
      }
      if (applied) return;
      parameters.initialise(new Float32Array(size + 2));
      parameters.resetOptimizer();
      throw new DownpourError('DP_DIVERGED', 'overflowed');
    },
  };
}

export async function openTargets(): Promise<Target[]> {
  return [
    { name: 'frame and message', corpus: frames, read: readMessage },
    { name: 'WebSocket receiver', corpus: streams, read: receive },
    gradients(),
    { name: 'facts of data', corpus: facts(), read: (b) => void decodeFacts(b) },
    {
      name: 'safetensors header',
      corpus: safetensors(),
      read: (b) => void decodeSafetensorsHeader(b),
    },
    ...(await checkpoints()),
    { name: 'rows of tables', corpus: rowFrames(), read: readRowFrame },
    { name: 'npy', corpus: npy(), read: (b) => void parseNpy(b, 'f.npy') },
    { name: 'IDX', corpus: idx(), read: (b) => void parseIdx(b, 'f.idx') },
    {
      name: 'CSV',
      corpus: [table],
      cost: 4,
      read: (b) =>
        void parseCsv(Buffer.from(b), 'f.csv', {
          targets: ['mpg'],
          categorical: ['origin'],
          ignore: ['name'],
        }),
    },
  ];
}
