/** Files of arrays, byte by byte, for tests of readers. */

/** An IDX file of numbers, written by DataView. */
export function idx(type: number, shape: readonly number[], numbers: readonly number[]): Buffer {
  const bytes = { 8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8 }[type]!;
  const buffer = Buffer.alloc(4 + 4 * shape.length + bytes * numbers.length);
  buffer[2] = type;
  buffer[3] = shape.length;
  shape.forEach((size, i) => {
    buffer.writeUInt32BE(size, 4 + 4 * i);
  });
  numbers.forEach((value, i) => {
    const at = 4 + 4 * shape.length + bytes * i;
    if (type === 8) buffer.writeUInt8(value, at);
    else if (type === 13) buffer.writeFloatBE(value, at);
    else if (type === 14) buffer.writeDoubleBE(value, at);
    else buffer.writeIntBE(value, at, bytes);
  });
  return buffer;
}

/** A .npy file, C order unless told. */
export function npy(
  descr: string,
  shape: readonly number[],
  numbers: readonly number[],
  { version = 1, fortran = false } = {},
): Buffer {
  const shapeText = shape.map((size) => `${size},`).join(' ');
  const dictionary = `{'descr': '${descr}', 'fortran_order': ${fortran ? 'True' : 'False'}, 'shape': (${shapeText}), }\n`;
  const prefix = Buffer.alloc(version === 1 ? 10 : 12);
  prefix.write('\x93NUMPY', 'latin1');
  prefix[6] = version;
  if (version === 1) prefix.writeUInt16LE(dictionary.length, 8);
  else prefix.writeUInt32LE(dictionary.length, 8);
  const bytes = Number(descr.at(-1));
  const little = descr[0] !== '>';
  const body = Buffer.alloc(bytes * numbers.length);
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  numbers.forEach((value, i) => {
    const at = i * bytes;
    if (descr[1] === 'f') {
      if (bytes === 4) view.setFloat32(at, value, little);
      else view.setFloat64(at, value, little);
    } else if (bytes === 1) view.setUint8(at, value);
    else if (bytes === 2) view.setInt16(at, value, little);
    else if (bytes === 4) view.setInt32(at, value, little);
    else view.setBigInt64(at, BigInt(value), little);
  });
  return Buffer.concat([prefix, Buffer.from(dictionary), body]);
}
