import { encodeFrame } from '../../shared/codec.ts';
import type { Encoding } from '../../shared/compression.ts';
import { encodeBf16, encodedBytes, encodeInt8, encodeTopk } from '../../shared/compression.ts';
import { resolveConfig, workerConfig } from '../../shared/config.ts';
import { type DataFacts, encodeFacts, packTransform } from '../../shared/data-facts.ts';
import { createLayout, type TensorSpec } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Join, Lease, ServerMessage, WorkerMessage } from '../../shared/protocol.ts';
import { encodeKeys, encodeRows, type RowShape, type TableRows } from '../../shared/rows.ts';
import type { FromShard, ToShard } from '../../shared/shard-messages.ts';
import { factVectors } from './vector-facts.ts';
import { modelVectors } from './vector-models.ts';

/**
 * docs/protocol-vectors.json: every message as bytes, and what a worker must compute as others do, for people who write
 * a worker in another language. Maps may come in any order of their keys, numbers in any form of msgpack that holds them.
 */

export const VECTORS = new URL('../../docs/protocol-vectors.json', import.meta.url);

export interface TestVector {
  readonly what: string;
  readonly from: 'worker' | 'server' | 'shard';
  readonly header: WorkerMessage | ServerMessage | ToShard | FromShard;
  /** What the payload says: trainable, then statistics, then frozen elements; absent: no payload. */
  readonly numbers?: readonly number[];
  /** What rows of tables the payload says, in `encoding` or in that of `header.rows`: keys alone have no values. */
  readonly rows?: readonly {
    readonly keys: readonly number[];
    readonly values?: readonly number[];
  }[];
  /** The payload where it is text. */
  readonly text?: string;
  /** The whole frame, hexadecimal. */
  readonly frame: string;
}

const RUN = 'digits-1';
const HASH = '5f'.repeat(32);
const SESSION = '00112233445566aa';

const TENSORS: readonly TensorSpec[] = [
  { name: 'dense/kernel', shape: [2, 2], role: 'trainable' },
  { name: 'norm/mean', shape: [2], role: 'statistics', momentum: 0.99 },
  { name: 'embedding', shape: [1], role: 'frozen' },
];
const GRADIENT = [0.5, -1.25, 3, 0.0078125];
const STATISTICS = [0.25, 1];
const FROZEN = [7];

/** A gradient in an encoding, then statistics in f32. */
function pushed(encoding: Encoding): { bytes: Uint8Array; numbers: number[] } {
  const gradient = Float32Array.from(GRADIENT);
  const k = 2;
  const encoded = new Uint8Array(encodedBytes(encoding, gradient.length, k));
  if (encoding === 'f32') encoded.set(new Uint8Array(gradient.buffer));
  else if (encoding === 'bf16') encodeBf16(gradient, encoded);
  else if (encoding === 'int8') encodeInt8(gradient, null, encoded);
  else encodeTopk(gradient, k, encoded);
  const statistics = new Uint8Array(Float32Array.from(STATISTICS).buffer);
  const bytes = new Uint8Array(encoded.length + statistics.length);
  bytes.set(encoded);
  bytes.set(statistics, encoded.length);
  return { bytes, numbers: [...GRADIENT, ...STATISTICS] };
}

const FACTS: DataFacts = {
  transform: packTransform({
    ...{ kind: 'feature', scale: 1 },
    ...{ mean: [0.5, -3], deviation: [1, 0.1] },
  }),
  inputs: { kind: 'float32', shape: [2] },
  targets: { kind: 'int32', shape: [] },
  classCount: 2,
  classes: ['no', 'yes'],
  inputNames: ['width', 'height'],
  targetNames: null,
};

const bytesOf = (numbers: readonly number[]) => new Uint8Array(Float32Array.from(numbers).buffer);

const LEASES: Lease[] = [{ id: 1, epoch: 0, start: 64, count: 64, part: 'train' }];
const PUSH = {
  ...({ type: 'push', run: RUN, lease: 1, step: 12, generation: 1 } as const),
  ...{ loss: 2.25, computeMs: 3.5 },
};
const WORK = {
  ...({ type: 'work', run: RUN, phase: 'training', generation: 1 } as const),
  leases: LEASES,
  ...{ evaluation: null, acknowledgements: [], pull: null },
};

const WHOLE = [...GRADIENT, ...STATISTICS, ...FROZEN];
const FRESH = { bytes: bytesOf(WHOLE), numbers: WHOLE };

/** Adds a message to the vectors. */
type Add = (
  what: string,
  from: TestVector['from'],
  header: TestVector['header'],
  payload?: {
    bytes: Uint8Array;
    numbers?: readonly number[];
    rows?: TestVector['rows'];
    text?: string;
  },
) => void;

/** All vectors, in the order of a conversation. */
export function protocolVectors() {
  const vectors: TestVector[] = [];
  const add: Add = (what, from, header, payload) => {
    const { buffer, byteOffset, byteLength } = payload?.bytes ?? new Uint8Array();
    const frame = encodeFrame(header, new Float32Array(buffer, byteOffset, byteLength / 4));
    vectors.push({
      ...{ what, from, header },
      ...(payload?.numbers && { numbers: payload.numbers }),
      ...(payload?.rows && { rows: payload.rows }),
      ...(payload?.text && { text: payload.text }),
      frame: Buffer.from(frame).toString('hex'),
    });
  };
  addBeginning(add);
  addTraining(add);
  addTables(add);
  addOthers(add);
  addShards(add);
  return {
    about:
      'Every message of docs/protocol.md as bytes, and what a worker computes as all others do; written by `npm run docs`. Numbers of payloads are exact in f32; in other encodings the frame holds what is left of them. Losses, gradients and standardised inputs are right to 1e-5.',
    tensors: TENSORS,
    layoutHash: createLayout(TENSORS).hash,
    tables: ROW_SHAPES,
    vectors,
  };
}

/** A worker comes, joins a run and makes its parameters. */
function addBeginning(add: Add): void {
  add('who it is, and which experiments it has', 'worker', {
    ...{ type: 'hello', worker: 'w-1', incarnation: '0123456789abcdef', run: null },
    ...{ engine: 'native', device: 'cpu', experiments: { digits: HASH } },
  });
  add('a run to work for', 'server', {
    ...{ type: 'assign', run: RUN, experiment: 'digits', experimentHash: HASH, session: SESSION },
    ...{ config: workerConfig(resolveConfig({})), shards: [] },
  });
  const join: Join = {
    type: 'join',
    run: RUN,
    experimentHash: HASH,
    tensors: TENSORS.map((spec) => ({ ...spec, shape: [...spec.shape] })),
    data: {
      ...{ trainCount: 800, validationCount: 200, testCount: 0 },
      ...{ fingerprint: 'ab'.repeat(32), source: 'digits' },
    },
    seen: null,
  };
  add('its model and data', 'worker', join);
  const facts = encodeFacts(FACTS);
  add(
    'the same, with what the run is to keep of the data',
    'worker',
    {
      ...{ ...join, facts: 'json' },
      data: { ...join.data, rawFingerprint: 'cd'.repeat(8), depends: ['seed'] },
    },
    { bytes: facts, text: new TextDecoder().decode(facts) },
  );
  add('make fresh parameters', 'server', { type: 'initialise', run: RUN, grant: 1, seed: 0 });
  add('all of them, frozen ones too', 'worker', { type: 'initialised', run: RUN, grant: 1 }, FRESH);
}

/** Pushes, pulls and an evaluation. */
function addTraining(add: Add): void {
  add(
    'the first parameters, and a minibatch',
    'server',
    { ...WORK, step: 12, encoding: 'f32' },
    FRESH,
  );
  for (const [i, encoding] of (['f32', 'bf16', 'int8', 'topk'] as const).entries()) {
    const payload = pushed(encoding);
    add(
      `a gradient as ${encoding}${encoding === 'topk' ? ', its two largest elements' : ''}, and statistics`,
      'worker',
      { ...PUSH, sequence: i + 1, encoding },
      payload,
    );
  }
  add(
    'parameters, and a lease of four minibatches for local steps',
    'server',
    {
      ...{ ...WORK, step: 12, encoding: 'f32', local: { push: 'delta', learningRate: 0.5 } },
      leases: [{ id: 2, epoch: 0, start: 128, count: 256, part: 'train' }],
    },
    { bytes: bytesOf([...GRADIENT, ...STATISTICS]), numbers: [...GRADIENT, ...STATISTICS] },
  );
  add(
    'the change of the parameters after local steps',
    'worker',
    { ...PUSH, lease: 2, sequence: 5, encoding: 'f32', kind: 'delta' },
    pushed('f32'),
  );
  const numbers = [...GRADIENT, ...STATISTICS];
  add(
    'the values of the fragment that was pushed last, and a lease after which fragment 1 is pushed',
    'server',
    {
      ...{ ...WORK, step: 13, encoding: 'f32', fragment: 0 },
      local: { push: 'delta', learningRate: 0.5, fragment: 1 },
      leases: [{ id: 3, epoch: 0, start: 384, count: 128, part: 'train' }],
    },
    { bytes: bytesOf(numbers), numbers },
  );
  add(
    'the change of fragment 1 since it was last exchanged',
    'worker',
    { ...PUSH, lease: 3, sequence: 6, encoding: 'f32', kind: 'delta', fragment: 1 },
    pushed('f32'),
  );
  const applied = {
    sequence: 1,
    outcome: 'applied',
    staleness: 0,
    code: null,
    message: null,
  } as const;
  const exchanged = new Uint8Array(encodedBytes('bf16', 6));
  encodeBf16(Float32Array.from([...GRADIENT, ...STATISTICS]), exchanged);
  add(
    'what became of a push, and newer parameters as bf16',
    'server',
    { ...WORK, step: 13, encoding: 'bf16', acknowledgements: [applied] },
    { bytes: exchanged, numbers: [...GRADIENT, ...STATISTICS] },
  );
  add('a push that came too late; nothing has changed since', 'server', {
    ...{ ...WORK, step: 13, encoding: 'f32' },
    acknowledgements: [
      {
        ...{ sequence: 2, outcome: 'rejected', staleness: 0 },
        ...{ code: 'DP_PUSH_LEASE_LOST', message: 'it went to another worker' },
      },
    ],
  });
  add(
    'parameters to evaluate',
    'server',
    { ...WORK, step: 13, encoding: 'f32', leases: [], evaluation: { id: 1, part: 'validation' } },
    { bytes: bytesOf([...GRADIENT, ...STATISTICS]), numbers: [...GRADIENT, ...STATISTICS] },
  );
  add('how good they are', 'worker', {
    ...{ type: 'evaluated', run: RUN, evaluation: 1, loss: 0.25, error: 0.0625, examples: 200 },
    metrics: {},
  });
}

const ROW_SHAPES: readonly RowShape[] = [
  { name: 'item', width: 3, keysMax: LIMITS.rowIdsMax },
  { name: 'user', width: 2, keysMax: 10 },
];
const ROWS = [
  { keys: [7, 2_000_000_000], values: [0.5, -1.25, 3, 0.0078125, -2, 1] },
  { keys: [9], values: [0.25, -0.5] },
];
const ENCODED_ROWS: readonly TableRows[] = ROWS.map(({ keys, values }) => ({
  ...{ keys: Uint32Array.from(keys), values: Float32Array.from(values) },
}));
const WANTED = [{ keys: [3] }, { keys: [] }];

const joined = (...parts: readonly Uint8Array[]) =>
  Uint8Array.from(parts.flatMap((part) => [...part]));

/** Rows of tables: pushes with rows, pulls, and values to begin with. */
function addTables(add: Add): void {
  const wanted = encodeKeys(WANTED.map(({ keys }) => Uint32Array.from(keys)));
  const f32 = encodeRows(ROW_SHAPES, ENCODED_ROWS, 'f32');
  for (const [i, encoding] of (['f32', 'bf16', 'int8'] as const).entries()) {
    const rows = encodeRows(ROW_SHAPES, ENCODED_ROWS, encoding);
    add(
      `a gradient, gradients of rows as ${encoding}, and the keys of rows that are wanted: 3 of the first table`,
      'worker',
      {
        ...{ ...PUSH, sequence: i + 7, encoding: 'f32' },
        rows: { step: 11, encoding, bytes: rows.length, wanted: wanted.length },
      },
      {
        bytes: joined(pushed('f32').bytes, rows, wanted),
        numbers: pushed('f32').numbers,
        rows: ROWS,
      },
    );
  }
  const numbers = [...GRADIENT, ...STATISTICS];
  add(
    'newer parameters, and the rows that were wanted',
    'server',
    { ...WORK, step: 14, encoding: 'f32', rows: { step: 13, encoding: 'f32', bytes: f32.length } },
    { bytes: joined(bytesOf(numbers), f32), numbers, rows: ROWS },
  );
  add(
    'keys of rows that no answer has brought',
    'worker',
    { type: 'pullRows', run: RUN, request: 1, evaluation: null },
    {
      bytes: encodeKeys(ENCODED_ROWS.map(({ keys }) => keys)),
      rows: ROWS.map(({ keys }) => ({ keys })),
    },
  );
  add(
    'these rows',
    'server',
    { type: 'rows', run: RUN, request: 1, step: 13, generation: 1, encoding: 'f32' },
    { bytes: f32, rows: ROWS },
  );
  add(
    'rows with values of their own to begin with',
    'worker',
    { type: 'initialRows', run: RUN, grant: 1 },
    { bytes: f32, rows: ROWS },
  );
}

/** What is observed, and how work ends. */
function addOthers(add: Add): void {
  const values = { low: -1, high: 1, counts: [1, 0, 2, 1] };
  add('what a tensor and a layer look like', 'worker', {
    ...{ type: 'observed', run: RUN, step: 13, updateSteps: 10, samples: 2, costMs: 1.5 },
    tensors: [
      {
        ...{ name: 'dense/kernel', weights: values, gradients: values, updates: null },
        ...{ gradientNorm: 3.25, updateRatio: null, elements: 4, never: 0, rare: 1 },
      },
    ],
    layers: [{ layer: 'dense', activation: 'relu', values, saturated: null, dead: 0.5 }],
  });
  add('how busy its machine is', 'worker', {
    ...{ type: 'machine', cores: 8, cpuCores: 1.5, memoryBytes: 3e8, memoryBytesMax: 16e9 },
    ...{ tensorBytes: 1e6, gpuShare: null, gpuMemoryBytes: null, gpuMemoryBytesMax: null },
  });
  add('it cannot go on', 'worker', {
    ...{ type: 'leave', failure: { code: 'DP_DATA_MISSING', message: 'no such file' } },
  });
  add('nothing to do', 'server', { type: 'idle' });
  add('nothing to do, for lack of an experiment', 'server', {
    type: 'idle',
    missing: [{ run: 'vectors', experiment: 'mnist-mlp', experimentHash: '0'.repeat(64) }],
  });
  add('the same, to a worker that knows of bundles: it was sent', 'server', {
    type: 'idle',
    missing: [
      {
        ...{ run: 'vectors', experiment: 'mnist-mlp', experimentHash: '0'.repeat(64) },
        bundle: { sha256: '1'.repeat(64), bytes: 4096 },
      },
    ],
  });
  add('where to go when this server is not reached', 'server', {
    ...{ type: 'standby', servers: [{ host: '192.0.2.11', port: 7420 }] },
  });
  add('the run is over', 'server', {
    ...{ type: 'end', run: RUN, phase: 'finished', reason: 'reached epochsMax 30' },
  });
  add('an error', 'server', {
    ...{ type: 'error', code: 'DP_RUN_UNKNOWN', message: "no run 'digits-2' on this server" },
  });
}

/** What a worker and a shard say to each other. */
function addShards(add: Add): void {
  add('to a shard: who it is', 'worker', { type: 'attach', session: SESSION });
  add('it may join', 'shard', { type: 'attached' });
  add(
    'its part of a push',
    'worker',
    { type: 'part', run: RUN, sequence: 1, encoding: 'f32' },
    { bytes: bytesOf(GRADIENT.slice(2)), numbers: GRADIENT.slice(2) },
  );
  add(
    'its part of the first parameters',
    'worker',
    { type: 'initialPart', run: RUN, grant: 1 },
    { bytes: bytesOf(GRADIENT.slice(2)), numbers: GRADIENT.slice(2) },
  );
  add(
    'its part of a pull',
    'shard',
    { type: 'parameters', run: RUN, pull: 1, encoding: 'f32' },
    { bytes: bytesOf(GRADIENT.slice(2)), numbers: GRADIENT.slice(2) },
  );
}

/** The file, a vector a line. */
export async function vectorsPage(): Promise<string> {
  const { vectors, ...rest } = protocolVectors();
  const fields = Object.entries(rest).map(
    ([name, value]) => `  ${JSON.stringify(name)}: ${JSON.stringify(value)}`,
  );
  const lists = Object.entries({
    ...(await factVectors()),
    ...(await modelVectors()),
    vectors,
  }).map(([name, list]) => {
    const lines = list.map((each) => `    ${JSON.stringify(each)}`);
    return `  ${JSON.stringify(name)}: [\n${lines.join(',\n')}\n  ]`;
  });
  return `{\n${[...fields, ...lists].join(',\n')}\n}\n`;
}
