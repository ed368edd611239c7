import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { deflateRawSync, inflateRawSync } from 'node:zlib';
import type { io } from '@tensorflow/tfjs-core';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { type Dtype, decodeSafetensorsHeader } from '../../shared/safetensors.ts';
import { isRecord } from '../fields.ts';
import { tf } from '../tf.ts';
import type { Pretrained, PretrainedFile, PretrainedTensor } from './pretrained.ts';
import { topologyOf } from './topology.ts';

/** Opens files of pretrained models from this machine's disk. Nothing is ever fetched from anywhere. */

const HASH = /^[0-9a-f]{64}$/;
/** Bytes of an element, by the type that a manifest says. */
const ELEMENT_BYTES: Readonly<Record<string, number>> = { float32: 4, int32: 4, bool: 1 };
const QUANTISED_BYTES: Readonly<Record<string, number>> = { uint8: 1, uint16: 2, float16: 2 };

/** What the files of a pretrained model hold, before anything is compared or built. */
interface ReadPretrained {
  /** The hash of a safetensors file, or of a model.json and then its weight files. */
  readonly sha256: string;
  /** `modelTopology` of a model.json; null: a safetensors file. */
  readonly modelTopology: unknown;
  readonly tensors: PretrainedFile['tensors'];
}

/**
 * Reads a `model.json` of tfjs layers with its weights, or a safetensors file.
 * @param path absolute.
 * @param sha256 that the files must have; null: any.
 * @throws DownpourError DP_DATA_MISSING: a file is not there; DP_DATA_CORRUPT: it is damaged, truncated, too large or
 *   contradicts itself; DP_DATA_MISMATCH: it has another hash; DP_EXPERIMENT_INVALID: a model that cannot be trained.
 */
export async function readPretrained(path: string, sha256: string | null): Promise<ReadPretrained> {
  const isTensors = path.endsWith('.safetensors');
  const max = isTensors ? LIMITS.pretrainedBytesMax : LIMITS.topologyBytesMax;
  const bytes = await readWithin(path, max, `the pretrained file ${path}`);
  const hash = createHash('sha256').update(bytes);
  if (isTensors) {
    const seen = hash.digest('hex');
    if (sha256 !== null) mustHaveHash(path, seen, sha256);
    return { sha256: seen, modelTopology: null, tensors: readSafetensors(path, bytes) };
  }
  const json = parseModel(path, bytes);
  const { specs, paths } = readManifest(path, json.weightsManifest);
  const groups: Uint8Array[][] = [];
  let total = 0;
  for (const [i, names] of paths.entries()) {
    const expected = specs[i]!.reduce((sum, spec) => sum + bytesOf(path, spec), 0);
    const files = names.map((name) => join(dirname(path), name));
    const sizes = await Promise.all(files.map((file) => sizeOf(file, `a weight file of ${path}`)));
    const size = sizes.reduce((sum, each) => sum + each, 0);
    if (size !== expected) {
      throw corrupt(
        path,
        `its tensors take ${expected} bytes of ${names.join(', ')}, which ${names.length === 1 ? 'has' : 'have'} ${size}`,
      );
    }
    total += size;
    if (total > LIMITS.pretrainedBytesMax) throw tooLarge(path, total, LIMITS.pretrainedBytesMax);
    groups.push(await Promise.all(files.map((file) => readFile(file))));
  }
  for (const shard of groups.flat()) hash.update(shard);
  const seen = hash.digest('hex');
  if (sha256 !== null) mustHaveHash(path, seen, sha256);
  const tensors = new Map<string, PretrainedTensor>();
  for (const [i, shards] of groups.entries()) {
    for (const [name, tensor] of decode(path, specs[i]!, shards)) tensors.set(name, tensor);
  }
  return { sha256: seen, modelTopology: json.modelTopology, tensors };
}

/** What an experiment begins with. @throws DownpourError what `readPretrained` and `topologyOf` throw. */
export async function openPretrained(
  path: string,
  { sha256, ...cut }: Pick<Pretrained, 'sha256' | 'until' | 'inputShape'>,
): Promise<PretrainedFile> {
  const { modelTopology, tensors } = await readPretrained(path, sha256);
  const topology = path.endsWith('.safetensors') ? null : topologyOf(path, modelTopology, cut);
  return { topology, tensors };
}

/**
 * The architecture for a model whose parameters are loaded from a checkpoint: the weights of the file are not needed.
 * @param kept what the run has kept of it; null: nothing.
 * @throws DownpourError what `openPretrained` throws, with the reason for which the file is needed.
 */
export async function openArchitecture(
  path: string,
  pretrained: Pick<Pretrained, 'sha256' | 'until' | 'inputShape'>,
  kept: string | null,
): Promise<PretrainedFile> {
  if (path.endsWith('.safetensors')) return { topology: null, tensors: new Map() };
  if (kept !== null) return { topology: unpackArchitecture(kept), tensors: new Map() };
  try {
    const { topology } = await openPretrained(path, pretrained);
    return { topology, tensors: new Map() };
  } catch (cause) {
    if (!(cause instanceof DownpourError)) throw cause;
    throw new DownpourError(
      cause.code,
      `${cause.message}. The layers of the model are in this file: the run was trained by an older release, or the file has too many layers, so the checkpoint has the parameters alone`,
      { cause },
    );
  }
}

/** For the facts of a run: base64 of compressed JSON. @returns null: it is too large to be kept. */
export function packArchitecture(topology: PretrainedFile['topology']): string | null {
  if (topology === null) return null;
  const packed = deflateRawSync(JSON.stringify(topology)).toString('base64');
  return packed.length > LIMITS.keptArchitectureBytesMax ? null : packed;
}

function unpackArchitecture(packed: string): Record<string, unknown> {
  try {
    const bytes = inflateRawSync(Buffer.from(packed, 'base64'), {
      maxOutputLength: LIMITS.topologyBytesMax,
    });
    const topology: unknown = JSON.parse(bytes.toString('utf8'));
    if (isRecord(topology)) return topology;
    throw new Error('it is not an object');
  } catch (cause) {
    throw new DownpourError(
      'DP_CHECKPOINT_CORRUPT',
      `the architecture that the run has kept cannot be read (${errorText(cause)}): use another checkpoint of the run`,
      { cause },
    );
  }
}

/** The safe way to say which file is meant: every worker, and a run that is resumed, begin with the same numbers. */
function mustHaveHash(path: string, seen: string, wanted: string): void {
  if (seen === wanted) return;
  if (!HASH.test(wanted)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `pretrained.sha256 is ${JSON.stringify(wanted.slice(0, 80))}; allowed: the hash of the files, 64 digits and letters from a to f. If ${path} is the file that you mean, write sha256: '${seen}'`,
    );
  }
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `${path} and its weights have the SHA-256 ${seen}, and the experiment expects ${wanted}: use the file that the experiment was written for, or write the new hash into the experiment and start a new run`,
  );
}

async function sizeOf(file: string, what: string): Promise<number> {
  try {
    const entry = await stat(file);
    if (entry.isFile()) return entry.size;
  } catch (cause) {
    throw new DownpourError(
      'DP_DATA_MISSING',
      `${what} cannot be read: ${errorText(cause)}; put ${file} in its place on this machine`,
      { cause },
    );
  }
  throw new DownpourError('DP_DATA_MISSING', `${file} is not a file: name the file itself`);
}

async function readWithin(file: string, max: number, what: string): Promise<Uint8Array> {
  const size = await sizeOf(file, what);
  if (size > max) throw tooLarge(file, size, max);
  return readFile(file);
}

function parseModel(path: string, bytes: Uint8Array): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw corrupt(path, `it is not JSON (${errorText(cause)})`);
  }
  if (!isRecord(json)) throw corrupt(path, 'it is not an object');
  const { format, modelTopology } = json;
  if (format === 'graph-model' || (isRecord(modelTopology) && 'node' in modelTopology)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${path} is a graph model: a graph of single operations with frozen weights, which tfjs cannot train. Convert the original Keras model with tensorflowjs_converter --output_format=tfjs_layers_model, or export its weights as safetensors`,
    );
  }
  return json;
}

function readManifest(path: string, manifest: unknown) {
  if (!Array.isArray(manifest) || manifest.length === 0) {
    throw corrupt(path, 'it has no list weightsManifest, so there are no weights');
  }
  const names = new Set<string>();
  const specs: io.WeightsManifestEntry[][] = [];
  const paths: string[][] = [];
  for (const group of manifest as unknown[]) {
    if (!isRecord(group) || !Array.isArray(group.paths) || !Array.isArray(group.weights)) {
      throw corrupt(path, 'a group of its weightsManifest has no lists paths and weights');
    }
    for (const file of group.paths as unknown[]) {
      const isBeside =
        typeof file === 'string' &&
        file !== '' &&
        file.length <= LIMITS.nameLengthMax &&
        !/[\\:\0]/.test(file) &&
        !file.startsWith('/') &&
        !file.split('/').includes('..');
      if (isBeside) continue;
      throw corrupt(
        path,
        `it names the weight file ${quote(file)}; allowed: a relative path within its own folder`,
      );
    }
    for (const spec of group.weights as unknown[]) {
      if (!isRecord(spec) || typeof spec.name !== 'string') {
        throw corrupt(path, 'a tensor of its weightsManifest has no name');
      }
      if (names.has(spec.name)) throw corrupt(path, `it has two tensors ${quote(spec.name)}`);
      names.add(spec.name);
    }
    if (names.size > LIMITS.tensorCountMax) {
      throw corrupt(
        path,
        `it has ${names.size} tensors, at most ${LIMITS.tensorCountMax} are read`,
      );
    }
    specs.push(group.weights as io.WeightsManifestEntry[]);
    paths.push(group.paths as string[]);
  }
  return { specs, paths };
}

/** The bytes of a tensor in its file. @throws DownpourError DP_DATA_CORRUPT: its description cannot be true. */
function bytesOf(path: string, spec: io.WeightsManifestEntry): number {
  const { name, shape, dtype, quantization } = spec as Omit<typeof spec, 'quantization'> & {
    quantization?: unknown;
  };
  const isShape =
    Array.isArray(shape) &&
    shape.length <= LIMITS.rankMax &&
    shape.every((d) => Number.isSafeInteger(d) && d >= 0);
  const elements = isShape ? shape.reduce((product, d) => product * d, 1) : Number.NaN;
  if (!Number.isSafeInteger(elements)) {
    throw corrupt(path, `tensor ${quote(name)} has the shape ${quote(shape)}`);
  }
  const known = quantization === undefined ? ELEMENT_BYTES : QUANTISED_BYTES;
  const type = quantization === undefined ? dtype : isRecord(quantization) && quantization.dtype;
  const bytes = typeof type === 'string' && Object.hasOwn(known, type) ? known[type]! : null;
  if (bytes === null || !Object.hasOwn(ELEMENT_BYTES, dtype)) {
    throw corrupt(
      path,
      `tensor ${quote(name)} is ${quote(bytes === null ? type : dtype)}; read are ${Object.keys(known).join(', ')}`,
    );
  }
  const { min, scale } = (quantization ?? {}) as { min?: unknown; scale?: unknown };
  const isScaled = Number.isFinite(min) && Number.isFinite(scale);
  if (quantization !== undefined && type !== 'float16' && !isScaled) {
    throw corrupt(path, `tensor ${quote(name)} is quantised without numbers min and scale`);
  }
  return elements * bytes;
}

function decode(
  path: string,
  specs: io.WeightsManifestEntry[],
  shards: readonly Uint8Array[],
): [string, PretrainedTensor][] {
  const { buffer } = new Uint8Array(Buffer.concat(shards));
  let tensors: ReturnType<typeof tf.io.decodeWeights>;
  try {
    tensors = tf.io.decodeWeights(buffer, specs);
  } catch (cause) {
    throw corrupt(path, `its weights cannot be decoded (${errorText(cause)})`);
  }
  return Object.entries(tensors).map(([name, tensor]) => {
    const values = Float32Array.from(tensor.dataSync());
    const { shape } = tensor;
    tensor.dispose();
    mustBeFinite(path, name, values);
    return [name, { shape, values }];
  });
}

/** The elements of a tensor as float32. All of F16, BF16, I8, I16 and BOOL are exact; F64, I64 and I32 are rounded. */
const FLOATS: Readonly<Record<Dtype, (buffer: ArrayBuffer) => Float32Array>> = {
  F32: (buffer) => new Float32Array(buffer),
  F64: (buffer) => Float32Array.from(new Float64Array(buffer)),
  F16(buffer) {
    const shape = [buffer.byteLength / 2];
    const spec = { name: 'half', shape, dtype: 'float32', quantization: { dtype: 'float16' } };
    const { half } = tf.io.decodeWeights(buffer, [spec as io.WeightsManifestEntry]);
    const values = Float32Array.from(half!.dataSync());
    half!.dispose();
    return values;
  },
  // The upper half of a float32.
  BF16: (buffer) =>
    new Float32Array(Uint32Array.from(new Uint16Array(buffer), (bits) => bits << 16).buffer),
  I64: (buffer) => Float32Array.from(new BigInt64Array(buffer), Number),
  I32: (buffer) => Float32Array.from(new Int32Array(buffer)),
  I16: (buffer) => Float32Array.from(new Int16Array(buffer)),
  I8: (buffer) => Float32Array.from(new Int8Array(buffer)),
  U8: (buffer) => Float32Array.from(new Uint8Array(buffer)),
  BOOL: (buffer) => Float32Array.from(new Uint8Array(buffer)),
};

function readSafetensors(path: string, bytes: Uint8Array): Map<string, PretrainedTensor> {
  let header: ReturnType<typeof decodeSafetensorsHeader>;
  try {
    header = decodeSafetensorsHeader(bytes);
  } catch (error) {
    if (errorCode(error) !== 'DP_CHECKPOINT_CORRUPT') throw error;
    throw corrupt(path, errorText(error));
  }
  const tensors = new Map<string, PretrainedTensor>();
  for (const { name, dtype, shape, begin, end } of header.tensors) {
    // A copy: the place in the file may not be a multiple of the element's size.
    const [from, to] = [header.dataStart + begin, header.dataStart + end];
    const { buffer } = new Uint8Array(bytes.subarray(from, to));
    const values = FLOATS[dtype](buffer);
    mustBeFinite(path, name, values);
    tensors.set(name, { shape, values });
  }
  return tensors;
}

function mustBeFinite(path: string, name: string, values: Float32Array): void {
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at < 0) return;
  throw corrupt(path, `element ${at} of tensor ${quote(name)} is ${values[at]}`);
}

/** Names come from files: they are shortened, and escaped, before they reach a terminal. */
function quote(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 80) ?? 'undefined';
}

const corrupt = (path: string, what: string) =>
  new DownpourError(
    'DP_DATA_CORRUPT',
    `the pretrained file ${path} cannot be used: ${what}; copy it again from where it came`,
  );

const tooLarge = (path: string, size: number, max: number) =>
  new DownpourError(
    'DP_DATA_CORRUPT',
    `the pretrained file ${path} has ${size} bytes, at most ${max} are read: use a smaller model`,
  );
