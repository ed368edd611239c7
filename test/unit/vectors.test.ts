import { readFileSync } from 'node:fs';
import { Compile } from 'typebox/compile';
import { expect, test } from 'vitest';
import { protocolVectors, type TestVector, VECTORS, vectorsPage } from '../../cli/docs/vectors.ts';
import { decodeFrame, floatsOf } from '../../shared/codec.ts';
import { decodeGradient, gradientBytes } from '../../shared/compression.ts';
import { decodeFacts } from '../../shared/data-facts.ts';
import { compile } from '../../shared/message-check.ts';
import { checkServerMessage, checkWorkerMessage, MESSAGES } from '../../shared/protocol.ts';
import { decodeKeys, decodeRows } from '../../shared/rows.ts';
import { checkFromShard, checkToShard, SHARD_MESSAGES } from '../../shared/shard-messages.ts';

const { vectors } = protocolVectors();

test('docs/protocol-vectors.json is what the code sends; `npm run docs` writes it anew', async () => {
  expect(readFileSync(VECTORS, 'utf8')).toBe(await vectorsPage());
});

const shapes = protocolVectors().tables;

/** The rows that a payload ends with, as the vectors write them. @returns the rest of the payload. */
function expectRows({ header, rows }: TestVector, payload: Uint8Array): Uint8Array {
  if (header.type === 'pullRows') {
    expect(decodeKeys(shapes, payload).map((keys) => ({ keys: [...keys] }))).toEqual(rows);
    return new Uint8Array();
  }
  const own = 'rows' in header ? header.rows : null;
  const wanted = header.type === 'push' ? header.rows!.wanted : 0;
  const end = payload.length - wanted;
  const start = own ? end - own.bytes : 0;
  const encoding = own?.encoding ?? 'f32';
  const read = decodeRows(shapes, payload.subarray(start, end), encoding);
  for (const [i, { keys, values }] of read.entries()) {
    expect([...keys]).toEqual(rows![i]!.keys);
    for (const [j, exact] of rows![i]!.values!.entries()) {
      expect(values[j]).toBeCloseTo(exact, encoding === 'int8' ? 1 : 7);
    }
  }
  if (wanted > 0) {
    expect(decodeKeys(shapes, payload.subarray(end)).map((keys) => [...keys])).toEqual([[3], []]);
  }
  return payload.subarray(0, start);
}

test.each(vectors)('$header.type: $what', (vector) => {
  const { from, header, numbers, rows, text, frame } = vector;
  const decoded = decodeFrame(Buffer.from(frame, 'hex'));
  expect(decoded.header).toEqual(header);
  const toShard = ['attach', 'part', 'initialPart'].includes(header.type);
  const check =
    from === 'server'
      ? checkServerMessage
      : from === 'shard'
        ? checkFromShard
        : toShard
          ? checkToShard
          : checkWorkerMessage;
  expect(check(decoded.header)).toEqual(header);
  const payload = rows ? expectRows(vector, decoded.payload) : decoded.payload;
  if (text) {
    expect(decodeFacts(decoded.payload)).toEqual(JSON.parse(text));
    return;
  }
  if (!numbers) {
    expect(payload).toHaveLength(0);
    return;
  }
  const encoding = 'encoding' in header ? header.encoding : 'f32';
  if (header.type === 'work' && encoding === 'bf16') {
    const values = new Float32Array(numbers.length);
    decodeGradient('bf16', payload.subarray(0, 2 * numbers.length), values);
    // They are exact in bf16.
    expect([...values]).toEqual(numbers);
    return;
  }
  if (header.type !== 'push') {
    expect([...floatsOf(payload)]).toEqual(numbers);
    return;
  }
  const gradient = new Float32Array(4);
  const bytes = gradientBytes(header.encoding, payload, 4, 8);
  decodeGradient(header.encoding, payload.subarray(0, bytes), gradient);
  const [a, b, c, d] = numbers as [number, number, number, number];
  if (header.encoding === 'topk') expect([...gradient]).toEqual([0, b, c, 0]);
  else for (const [i, exact] of [a, b, c, d].entries()) expect(gradient[i]).toBeCloseTo(exact, 1);
  if (header.encoding !== 'int8' && header.encoding !== 'topk') {
    expect([...gradient]).toEqual([a, b, c, d]);
  }
  expect([...floatsOf(payload.subarray(bytes))]).toEqual(numbers.slice(4));
});

test('every type of message has one', () => {
  const types = Object.keys(allSchemas());
  expect(types.length).toBeGreaterThan(12);
  expect(new Set(vectors.map(({ header }) => header.type))).toEqual(new Set(types));
});

/** The schemas of all messages, by their types. */
const allSchemas = () => ({
  ...MESSAGES.fromWorker,
  ...SHARD_MESSAGES.toShard,
  ...SHARD_MESSAGES.fromShard,
  ...MESSAGES.fromServer,
});

/** The same object with one field removed, added or undefined. */
function mutations(header: Record<string, unknown>): Record<string, unknown>[] {
  const names = [...Object.keys(header), 'kind', 'local', 'shown', 'toString', 'extra'];
  return names.flatMap((name) => {
    const { [name]: value, ...less } = header;
    return [
      less,
      { ...header, [name]: undefined },
      { ...header, [name]: 'x' },
      { ...less, other: value },
    ];
  });
}

test('counting the fields of a message finds what a closed schema refuses', () => {
  const verdicts = { accepted: 0, refused: 0 };
  for (const [type, schema] of Object.entries(allSchemas())) {
    const closed = Compile(schema);
    const counted = compile({ [type]: schema }).get(type)!;
    const headers = vectors.flatMap(({ header }) => (header.type === type ? [header] : []));
    for (const header of headers.flatMap((each) => [each, ...mutations({ ...each })])) {
      const expected = closed.Check(header);
      expect(counted.Check(header), JSON.stringify(header)).toBe(expected);
      verdicts[expected ? 'accepted' : 'refused']++;
    }
  }
  expect(verdicts.accepted).toBeGreaterThan(50);
  expect(verdicts.refused).toBeGreaterThan(1_000);
});
