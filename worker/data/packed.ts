import { DownpourError } from '../../shared/errors.ts';
import { type Dtype, decodeHeader, encodeHeader } from '../../shared/safetensors.ts';
import { type Column, type ExperimentData, kindOf } from './examples.ts';

/** The data of an experiment as one safetensors file: how a page gets them, which has no disk to read them from. */

const DTYPES = { float32: 'F32', int32: 'I32', uint8: 'U8' } as const;
const PARTS = ['train', 'validation', 'test'] as const;
const COLUMNS = ['inputs', 'targets'] as const;

/** @returns pieces of the file, the columns as views of the data. */
export function packData(data: ExperimentData): Uint8Array[] {
  const columns: { name: string; dtype: Dtype; column: Column }[] = [];
  for (const part of PARTS) {
    const examples = data[part];
    if (!examples) continue;
    for (const each of COLUMNS) {
      const column = examples[each];
      columns.push({ name: `${part}.${each}`, dtype: DTYPES[kindOf(column.values)], column });
    }
  }
  // Bytes last: what stands before them is then at multiples of 4.
  const isBytes = ({ dtype }: (typeof columns)[number]) => dtype === 'U8';
  const ordered = [...columns.filter((each) => !isBytes(each)), ...columns.filter(isBytes)];
  const head = encodeHeader(
    ordered.map(({ name, dtype, column: { values, shape } }) => ({
      ...{ name, dtype, shape, byteLength: values.byteLength },
    })),
    {
      source: data.source,
      ...(data.classCount === undefined ? {} : { classCount: String(data.classCount) }),
    },
  );
  return [
    head,
    ...ordered.map(
      ({ column: { values } }) =>
        new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    ),
  ];
}

/**
 * What `packData` packed, as views of the file.
 * @param file at a multiple of 4 in its memory.
 * @throws DownpourError DP_DATA_CORRUPT: it is something else.
 */
export function unpackData(file: Uint8Array): ExperimentData {
  const columns = new Map<string, Column>();
  const { tensors, metadata, dataStart } = header(file);
  for (const { name, dtype, shape, begin, end } of tensors) {
    const at = file.byteOffset + dataStart + begin;
    const length = end - begin;
    if (dtype === 'F64') throw corrupt(`${name} is of 64-bit numbers`);
    const values =
      dtype === 'U8'
        ? new Uint8Array(file.buffer, at, length)
        : new (dtype === 'I32' ? Int32Array : Float32Array)(
            file.buffer as ArrayBuffer,
            at,
            length / 4,
          );
    columns.set(name, { values, shape });
  }
  const examplesOf = (part: (typeof PARTS)[number]) => {
    const inputs = columns.get(`${part}.inputs`);
    const targets = columns.get(`${part}.targets`);
    return inputs && targets ? { count: inputs.shape[0]!, inputs, targets } : null;
  };
  const [train, validation, test] = PARTS.map(examplesOf);
  if (!train) throw corrupt('it has no training part');
  return {
    train,
    ...(validation ? { validation } : {}),
    ...(test ? { test } : {}),
    ...('classCount' in metadata ? { classCount: Number(metadata.classCount) } : {}),
    source: metadata.source ?? '',
  };
}

function header(file: Uint8Array): ReturnType<typeof decodeHeader> {
  try {
    return decodeHeader(file);
  } catch (cause) {
    throw corrupt(cause instanceof Error ? cause.message : String(cause), cause);
  }
}

const corrupt = (what: string, cause?: unknown) =>
  new DownpourError('DP_DATA_CORRUPT', `packed data cannot be read: ${what}`, { cause });
