import { DownpourError } from '../../shared/errors.ts';
import {
  DTYPE_BYTES,
  type Dtype,
  decodeSafetensorsHeader,
  encodeSafetensorsHeader,
} from '../../shared/safetensors.ts';
import { type Column, kindOf } from './columns.ts';
import { DATA_PARTS, type DataPart, type ExampleField, type ExperimentData } from './examples.ts';

/** The data of an experiment as one safetensors file: how a page gets them, which has no disk to read them from. */

const DTYPES = { float64: 'F64', float32: 'F32', int32: 'I32', uint8: 'U8' } as const;
const ARRAYS = { F64: Float64Array, F32: Float32Array, I32: Int32Array, U8: Uint8Array } as const;
const isPacked = (dtype: Dtype): dtype is keyof typeof ARRAYS => Object.hasOwn(ARRAYS, dtype);
const COLUMNS = ['inputs', 'targets'] as const;

/** Before the name of a field: no field can be taken for `inputs`. */
const FIELD = 'field.';

/** What a field has beside its numbers and texts, in the order of the fields. */
const rolesOf = (fields: Readonly<Record<string, ExampleField>>) =>
  Object.entries(fields).map(
    ([name, { role, classCount, pad }]) =>
      [
        name,
        {
          role,
          ...(classCount === undefined ? {} : { classCount }),
          ...(pad === undefined ? {} : { pad }),
        },
      ] as const,
  );

/** @returns pieces of the file, the columns as views of the data. */
export function packData(data: ExperimentData): Uint8Array[] {
  const columns: { name: string; dtype: Dtype; column: Column }[] = [];
  for (const part of DATA_PARTS) {
    const examples = data[part];
    if (!examples) continue;
    for (const each of COLUMNS) {
      const column = examples[each];
      columns.push({ name: `${part}.${each}`, dtype: DTYPES[kindOf(column.values)], column });
    }
    for (const [name, column] of Object.entries(examples.fields ?? {})) {
      columns.push({
        name: `${part}.${FIELD}${name}`,
        dtype: DTYPES[kindOf(column.values)],
        column,
      });
    }
  }
  // The widest first: each column then begins at a multiple of its element's size.
  const bytesOf = ({ dtype }: (typeof columns)[number]) => DTYPE_BYTES[dtype];
  const ordered = columns.sort((a, b) => bytesOf(b) - bytesOf(a));
  const head = encodeSafetensorsHeader(
    ordered.map(({ name, dtype, column: { values, shape } }) => ({
      ...{ name, dtype, shape, byteLength: values.byteLength },
    })),
    {
      source: data.source,
      ...(data.classCount === undefined ? {} : { classCount: String(data.classCount) }),
      ...(data.classes ? { classes: JSON.stringify(data.classes) } : {}),
      ...Object.fromEntries(
        ordered.flatMap(({ name, column: { names, classes, vocabulary, reading } }) =>
          names || classes || vocabulary || reading
            ? [[name, JSON.stringify({ names, classes, vocabulary, reading })]]
            : [],
        ),
      ),
      ...(data.train.fields && { fields: JSON.stringify(rolesOf(data.train.fields)) }),
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
 * @param file at a multiple of 8 in its memory.
 * @throws DownpourError DP_DATA_CORRUPT: it is something else.
 */
export function unpackData(file: Uint8Array): ExperimentData {
  const columns = new Map<string, Column>();
  const { tensors, metadata, dataStart } = header(file);
  for (const { name, dtype, shape, begin, end } of tensors) {
    const at = file.byteOffset + dataStart + begin;
    if (!isPacked(dtype)) throw corrupt(`its tensor '${name}' is ${dtype}`);
    const Values = ARRAYS[dtype];
    const values = new Values(
      file.buffer as ArrayBuffer,
      at,
      (end - begin) / Values.BYTES_PER_ELEMENT,
    );
    columns.set(name, { values, shape, ...textsOf(metadata[name]) });
  }
  const examplesOf = (part: DataPart) => {
    const inputs = columns.get(`${part}.inputs`);
    const targets = columns.get(`${part}.targets`);
    if (!inputs || !targets) return null;
    const examples = { count: inputs.shape[0]!, inputs, targets };
    if (!('fields' in metadata)) return examples;
    const roles = parsed(metadata.fields!) as ReturnType<typeof rolesOf>;
    const fields = roles.map(([name, told]): [string, ExampleField] => {
      const column = columns.get(`${part}.${FIELD}${name}`);
      if (!column) throw corrupt(`it has no field '${name}' in the ${part} part`);
      return [name, { ...column, ...told }];
    });
    return { ...examples, fields: Object.fromEntries(fields) };
  };
  const [train, validation, test] = DATA_PARTS.map(examplesOf);
  if (!train) throw corrupt('it has no training part');
  return {
    train,
    ...(validation ? { validation } : {}),
    ...(test ? { test } : {}),
    ...('classCount' in metadata ? { classCount: Number(metadata.classCount) } : {}),
    ...('classes' in metadata ? { classes: parsed(metadata.classes!) as string[] } : {}),
    source: metadata.source ?? '',
  };
}

/** What a column has beside its numbers, as the metadata have it. */
function textsOf(
  text: string | undefined,
): Pick<Column, 'names' | 'classes' | 'vocabulary' | 'reading'> {
  return text === undefined ? {} : (parsed(text) as ReturnType<typeof textsOf>);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw corrupt(`its metadata are not JSON: ${text.slice(0, 40)}`, cause);
  }
}

function header(file: Uint8Array): ReturnType<typeof decodeSafetensorsHeader> {
  try {
    return decodeSafetensorsHeader(file);
  } catch (cause) {
    throw corrupt(cause instanceof Error ? cause.message : String(cause), cause);
  }
}

const corrupt = (what: string, cause?: unknown) =>
  new DownpourError('DP_DATA_CORRUPT', `packed data cannot be read: ${what}`, { cause });
