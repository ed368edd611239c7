import type { Histogram } from '../shared/observed.ts';

/**
 * Event files as TensorBoard reads them: records with checksums, each a protobuf `Event`. Only the fields that are
 * used; their numbers are those of event.proto, summary.proto and tensor.proto of TensorFlow.
 */

export interface EventPlace {
  /** Seconds since 1970. */
  readonly wallTime: number;
  readonly step: number;
}

/** The first record of a file: which version of the format it has. */
export const fileVersion = (wallTime: number): Buffer =>
  record(event({ wallTime, step: 0 }, text(3, 'brain.Event:2')));

/** From here on everything is told anew: what older files say of these steps and later ones is void. */
export const sessionStart = ({ wallTime, step }: EventPlace): Buffer =>
  record(event({ wallTime, step }, message(7, varintField(1, 1))));

/** Numbers by their tags. */
export function scalars(place: EventPlace, values: Readonly<Record<string, number>>): Buffer {
  const all = Object.entries(values).map(([tag, value]) =>
    message(1, Buffer.concat([text(1, tag), floatField(2, value)])),
  );
  return record(event(place, message(5, Buffer.concat(all))));
}

/** Counts of values in equal parts; sums are those of the middles of the parts. */
export function histograms(place: EventPlace, values: Readonly<Record<string, Histogram>>): Buffer {
  const all = Object.entries(values).map(([tag, histogram]) =>
    message(1, Buffer.concat([text(1, tag), message(5, histogramProto(histogram))])),
  );
  return record(event(place, message(5, Buffer.concat(all))));
}

function histogramProto({ low, high, counts }: Histogram): Buffer {
  const width = (high - low) / counts.length;
  const middles = counts.map((_, i) => low + (i + 0.5) * width);
  const sum = (of: (middle: number) => number) =>
    counts.reduce((total, count, i) => total + count * of(middles[i]!), 0);
  // Its readers want rising limits, also where all values are the same.
  const limits = counts.map((_, i) => (width > 0 ? low + (i + 1) * width : high + i * 1e-12));
  return Buffer.concat([
    doubleField(1, low),
    doubleField(2, high),
    doubleField(
      3,
      sum(() => 1),
    ),
    doubleField(
      4,
      sum((m) => m),
    ),
    doubleField(
      5,
      sum((m) => m * m),
    ),
    doublesField(6, limits),
    doublesField(7, counts),
  ]);
}

export interface EventPicture {
  readonly width: number;
  readonly height: number;
  /** 1: grey, 3: RGB, 4: RGBA. */
  readonly channels: 1 | 3 | 4;
  readonly png: Uint8Array;
}

export function pictures(
  place: EventPlace,
  values: Readonly<Record<string, EventPicture>>,
): Buffer {
  const all = Object.entries(values).map(([tag, { width, height, channels, png }]) => {
    const image = [
      varintField(1, height),
      varintField(2, width),
      varintField(3, channels),
      bytesField(4, png),
    ];
    return message(1, Buffer.concat([text(1, tag), message(4, Buffer.concat(image))]));
  });
  return record(event(place, message(5, Buffer.concat(all))));
}

/** Markdown, for the tab of texts. */
export function note(place: EventPlace, tag: string, markdown: string): Buffer {
  const plugin = message(1, text(1, 'text'));
  const shape = message(2, message(2, varintField(1, 1)));
  // DT_STRING, one element.
  const tensor = Buffer.concat([varintField(1, 7), shape, text(8, markdown)]);
  const value = [text(1, tag), message(8, tensor), message(9, plugin)];
  return record(event(place, message(5, message(1, Buffer.concat(value)))));
}

// Events and records.

function event({ wallTime, step }: EventPlace, what: Buffer): Buffer {
  return Buffer.concat([doubleField(1, wallTime), varintField(2, step), what]);
}

/** Length, its checksum, the bytes, their checksum. */
function record(bytes: Buffer): Buffer {
  const framed = Buffer.alloc(12 + bytes.length + 4);
  framed.writeBigUInt64LE(BigInt(bytes.length), 0);
  framed.writeUInt32LE(masked(crc32c(framed.subarray(0, 8))), 8);
  framed.set(bytes, 12);
  framed.writeUInt32LE(masked(crc32c(bytes)), 12 + bytes.length);
  return framed;
}

/** As TFRecord does, since a checksum of bytes that hold checksums is a weak one. */
const masked = (crc: number) => (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;

/** Castagnoli's polynomial, reflected. */
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let crc = n;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ TABLE[(crc ^ bytes[i]!) & 255]!;
  return (crc ^ 0xffffffff) >>> 0;
}

// Fields of protobuf: a key of number and kind, then the value.

const VARINT = 0;
const DOUBLE = 1;
const BYTES = 2;
const FLOAT = 5;

const key = (field: number, kind: number) => Buffer.of((field << 3) | kind);

/** @param value natural. */
function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  while (rest > 127) {
    bytes.push((rest % 128) | 128);
    rest = Math.floor(rest / 128);
  }
  bytes.push(rest);
  return Buffer.from(bytes);
}

function varintField(field: number, value: number): Buffer {
  return Buffer.concat([key(field, VARINT), varint(value)]);
}

function doubleField(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(9);
  bytes[0] = (field << 3) | DOUBLE;
  bytes.writeDoubleLE(value, 1);
  return bytes;
}

function floatField(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes[0] = (field << 3) | FLOAT;
  bytes.writeFloatLE(value, 1);
  return bytes;
}

function doublesField(field: number, values: readonly number[]): Buffer {
  return bytesField(field, new Uint8Array(Float64Array.from(values).buffer));
}

function bytesField(field: number, bytes: Uint8Array): Buffer {
  return Buffer.concat([key(field, BYTES), varint(bytes.length), bytes]);
}

const message = bytesField;

const text = (field: number, value: string) => bytesField(field, Buffer.from(value));

/** Ends a session; always the same bytes, so that it is known whether a file is whole. */
export const SESSION_STOP: Buffer = record(
  event({ wallTime: 0, step: 0 }, message(7, varintField(1, 2))),
);
