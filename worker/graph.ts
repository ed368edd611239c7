import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errorText } from '../shared/errors.ts';
import {
  drawNoise,
  type NoiseRequest,
  type NoiseSource,
  noiseTensor,
  noiseValues,
  seededDraws,
} from './noise.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * A computation of the native engine, recorded once and then run as one TensorFlow graph.
 *
 * tfjs runs each operation by itself: 16–22 µs of JavaScript, a gradient tape and a call into the
 * library. A step of the MLP has 112 such calls for about 1 ms of arithmetic. All of them pass through
 * one object, the binding's `executeOp`, under TensorFlow's own names; so a recording of it *is* a
 * graph, gradient included, and no kernel need be translated. The binding can load a SavedModel from a
 * folder and run it: one call, and TensorFlow's optimiser has folded constants and fused what it can.
 *
 * What was a number in JavaScript during the recording is a constant afterwards. Only computations that
 * depend on nothing but tensors fed may be recorded, and shapes must stay; the caller sees to that.
 */
export interface Graph {
  /**
   * @param feeds in the order of the recording: those given at its beginning, then those of `feed`.
   *   Same shapes. They stay as they are until it returns.
   * @returns all values of the one output, the caller's own.
   */
  run(feeds: readonly Fed[]): Float32Array;
  /** Frees the library's session. */
  dispose(): void;
}

/** What a tensor that is fed holds: float32 or int32. */
export interface Fed {
  readonly values: Float32Array | Int32Array;
  readonly shape: readonly number[];
}

export interface Recording {
  readonly result: Tensor;
  /** Null: it can't be a graph; `why` says so. */
  readonly graph: Graph | null;
  readonly why: string;
}

/** What TensorFlow's binding for Node offers; only this file looks inside. */
interface Binding {
  executeOp(name: string, attrs: Attr[], inputs: number[], outputs: number): { id: number }[];
  createTensor(shape: number[], dtype: number, values: TensorValues): number;
  deleteTensor(id: number): void;
  tensorDataSync(id: number): TensorValues;
  loadSavedModel(folder: string, tags: string): number;
  deleteSavedModel(session: number): void;
  runSavedModel(session: number, ids: number[], inputs: string, outputs: string): { id: number }[];
  readonly TF_FLOAT: number;
  readonly TF_INT32: number;
  readonly TF_BOOL: number;
  readonly TF_ATTR_INT: number;
  readonly TF_ATTR_FLOAT: number;
  readonly TF_ATTR_BOOL: number;
  readonly TF_ATTR_TYPE: number;
  readonly TF_ATTR_STRING: number;
  readonly TF_ATTR_SHAPE: number;
}
interface NativeBackend {
  binding: Binding;
  readonly isUsingGpuDevice: boolean;
  getInputTensorIds(tensors: readonly Tensor[]): number[];
}
type TensorValues = Float32Array | Int32Array | Uint8Array;
interface Attr {
  readonly name: string;
  readonly type: number;
  readonly value: unknown;
}

/**
 * Operations of tfjs-node whose results have as many elements as the numbers say. TensorFlow's optimiser drops a reshape to
 * the shape that was recorded, so the graph would give something else and not fail.
 */
const OF_NO_SHAPE = /^(Unique|NonMaxSuppression)/;
/** Operations with a generator of their own, which a graph does not begin anew in each run. */
const DRAWING = /^(Multinomial|Random)/;
/** Constants of a graph, bytes: they go through a file. */
const CONSTANT_BYTES_MAX = 64 * 2 ** 20;
/** The version of TensorFlow's graph format; 2.15 writes 1645 and reads all from 0. */
const GRAPH_PRODUCER = 1087;
const OUTPUT = 'output';

/** Whether the engine that is open can record. */
export function canRecord(): boolean {
  const backend = tf.backend() as Partial<NativeBackend>;
  return (
    tf.getBackend() === 'tensorflow' &&
    typeof backend.getInputTensorIds === 'function' &&
    typeof backend.binding?.executeOp === 'function' &&
    typeof backend.binding.runSavedModel === 'function'
  );
}

/**
 * Runs `compute` and records what it does.
 * @param feeds the tensors that will differ from run to run, made before.
 * @param compute gives one float32 tensor. It may make further tensors that will differ and tell of
 *   each by `feed`, before it is used.
 */
export function record(
  feeds: readonly Tensor[],
  compute: (feed: (tensor: Tensor) => void) => Tensor,
): Recording {
  const backend = tf.backend() as unknown as NativeBackend;
  const { binding } = backend;
  const nodes: Bytes[] = [];
  /** Where in the graph a tensor comes from, by the binding's number of it. */
  const sources = new Map<number, string>();
  const fed: string[] = [];
  let constantBytes = 0;
  let feeding = false;
  let why = '';

  const constant = (shape: readonly number[], dtype: number, values: TensorValues): string => {
    const name = `constant${nodes.length}`;
    constantBytes += values.byteLength;
    if (constantBytes > CONSTANT_BYTES_MAX) why ||= `it has ${constantBytes} bytes of constants`;
    else nodes.push(constantNode(name, shape, dtype, values));
    return name;
  };
  const feed = (tensor: Tensor): void => {
    const name = `feed${fed.length}`;
    fed.push(name);
    // May be what makes it.
    feeding = true;
    const id = backend.getInputTensorIds([tensor])[0]!;
    feeding = false;
    const [whole, real] = [binding.TF_INT32, binding.TF_FLOAT].map(typeValue) as [Bytes, Bytes];
    const isWhole = tensor.dtype === 'int32' || backend.isUsingGpuDevice;
    nodes.push(node(name, 'Placeholder', [], [attrBytes('dtype', isWhole ? whole : real)]));
    sources.set(id, name);
    if (tensor.dtype === 'int32' || !isWhole) return;
    // See `hostTensor`.
    const types = [attrBytes('T', whole), attrBytes('type', real)];
    nodes.push(node(`${name}_bits`, 'Bitcast', [name], types));
    sources.set(id, `${name}_bits`);
  };

  backend.binding = Object.create(binding, {
    executeOp: {
      value: (name: string, attrs: Attr[], inputs: number[], outputs: number) => {
        const results = binding.executeOp(name, attrs, inputs, outputs);
        const at = `op${nodes.length}`;
        const from = inputs.map((id) => sources.get(id));
        if (from.includes(undefined)) {
          why ||= `it uses a tensor that was made before the step, as an input of ${name}: make it inside`;
        }
        if (OF_NO_SHAPE.test(name))
          why ||= `the shape of what ${name} gives depends on its numbers`;
        if (DRAWING.test(name)) why ||= `${name} draws random numbers by TensorFlow`;
        const encoded = attrs.map((attr) => attrBytes(attr.name, attrValue(binding, attr)));
        nodes.push(node(at, name, from as string[], encoded));
        for (const [i, { id }] of results.entries()) sources.set(id, `${at}:${i}`);
        return results;
      },
    },
    createTensor: {
      value: (shape: number[], dtype: number, values: TensorValues) => {
        const id = binding.createTensor(shape, dtype, values);
        if (feeding) return id;
        if (ArrayBuffer.isView(values)) sources.set(id, constant(shape, dtype, values));
        else why ||= 'it has tensors of text';
        return id;
      },
    },
    tensorDataSync: {
      value: (id: number) => {
        why ||= 'it reads a tensor in its midst';
        return binding.tensorDataSync(id);
      },
    },
    runSavedModel: {
      value: (...args: Parameters<Binding['runSavedModel']>) => {
        why ||= 'it runs another graph';
        return binding.runSavedModel(...args);
      },
    },
  }) as Binding;
  let result: Tensor;
  try {
    for (const tensor of feeds) feed(tensor);
    result = compute(feed);
    const [id] = backend.getInputTensorIds([result]);
    nodes.push(
      node(OUTPUT, 'Identity', [sources.get(id!)!], [attrBytes('T', typeValue(binding.TF_FLOAT))]),
    );
  } finally {
    backend.binding = binding;
  }
  if (why !== '') return { result, graph: null, why };
  try {
    return { result, graph: load(backend, nodes, fed), why };
  } catch (error) {
    return { result, graph: null, why: errorText(error) };
  }
}

function load(backend: NativeBackend, nodes: readonly Bytes[], fed: readonly string[]): Graph {
  const { binding } = backend;
  const folder = mkdtempSync(join(tmpdir(), 'downpour-graph-'));
  let session: number;
  try {
    writeFileSync(join(folder, 'saved_model.pb'), savedModel(nodes));
    session = binding.loadSavedModel(folder, 'train');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const inputs = fed.map((name) => `${name}:0`).join(',');
  return {
    run(feeds) {
      const ids: number[] = [];
      try {
        for (const each of feeds) ids.push(hostTensor(backend, each));
        const [{ id }] = binding.runSavedModel(session, ids, inputs, `${OUTPUT}:0`) as [
          { id: number },
        ];
        const values = binding.tensorDataSync(id) as Float32Array;
        binding.deleteTensor(id);
        return values;
      } finally {
        for (const id of ids) binding.deleteTensor(id);
      }
    },
    dispose: () => binding.deleteSavedModel(session),
  };
}

/**
 * A tensor in the host's memory. Feeds pass through there: what lay on a GPU would be fetched, to be put there
 * again. The binding puts all but int32 on the GPU, so numbers are fed as the int32 of their bits.
 */
function hostTensor({ binding, isUsingGpuDevice }: NativeBackend, { values, shape }: Fed): number {
  const { buffer, byteOffset, length } = values;
  if (values instanceof Int32Array || isUsingGpuDevice) {
    const bits = new Int32Array(buffer, byteOffset, length);
    return binding.createTensor([...shape], binding.TF_INT32, bits);
  }
  return binding.createTensor([...shape], binding.TF_FLOAT, values);
}

// When to record, and when to believe a recording.

/** A step of some model: tensors fed and noise asked for in, one tensor out. */
export type Compute = (noise: NoiseSource) => Tensor;

/** A step and the tensors that are fed to it. */
export interface Opened {
  readonly feeds: readonly Tensor[];
  readonly compute: Compute;
  /** After `compute`: what it did in JavaScript that a graph would not do again; '': nothing. */
  readonly hostReads?: () => string;
}

/** Code of others takes part in a computation: it may do something else after a while. */
export interface OthersCode {
  /** Where each part of the result ends; the loss follows the last one. */
  readonly ends: readonly number[];
}

interface GraphPlan {
  runs: number;
  graph: Graph | null;
  noises: readonly NoiseRequest[];
  proved: boolean;
  /** Proofs that failed one after the other. */
  doubts: number;
  refused: boolean;
}

/** Shapes with a graph of their own: the minibatch, the smaller last one of an epoch, of a refit. */
const PLANS_MAX = 4;
/** A graph of others' code is compared with operations again so often: 0.2 % of the steps. */
const PROVED_EVERY = 500;
/** The same kernels on the same numbers; what is fused may round otherwise, and in 10 bits where that is asked for. */
const tolerance = (): number => (process.env.NVIDIA_TF32_OVERRIDE === '1' ? 1e-2 : 1e-3);

/**
 * Runs one kind of computation over and over: by single operations the first time, recorded the
 * second, both ways the third, on another minibatch, parameters and seed. If both agree the graph
 * alone runs from then on; if they don't, something in it was no tensor fed, and no graph ever does.
 */
export class Graphs {
  readonly #plans = new Map<string, GraphPlan>();
  #execution = 'operations: none repeated yet';
  readonly #others: OthersCode | null;

  #refusal: string | null = null;

  /** Why a computation is no graph; null: none was refused. */
  get refusal(): string | null {
    return this.#refusal;
  }

  /** @param others code of others takes part; null: none does. */
  constructor(others: OthersCode | null = null) {
    this.#others = others;
  }

  /** `graph`, or `operations: ` and why there is none. */
  get execution(): string {
    return this.#execution;
  }

  /**
   * @param key the same for the same shapes. @param fed all that may differ between two runs, in one order.
   * @param open makes tensors of it, in the same order, and what is computed with them.
   * @returns the values of what `compute` gives.
   */
  run(key: string, fed: readonly Fed[], open: () => Opened): Float32Array {
    const plan = this.#plan(key);
    if (!plan || plan.refused || plan.runs++ === 0) return readOff(open().compute(drawNoise));
    if (!plan.graph) return this.#record(plan, open());
    if (!plan.proved) return this.#prove(plan, plan.graph, fed, open());
    if (this.#others && (plan.doubts > 0 || plan.runs % PROVED_EVERY === 0)) {
      return this.#prove(plan, plan.graph, fed, open());
    }
    // Noise is drawn one after another from the same seed, so drawing it again needs it again.
    return plan.graph.run([...fed, ...plan.noises.map(fedNoise)]);
  }

  dispose(): void {
    for (const { graph } of this.#plans.values()) graph?.dispose();
    this.#plans.clear();
  }

  #plan(key: string): GraphPlan | undefined {
    let plan = this.#plans.get(key);
    if (!plan && this.#plans.size < PLANS_MAX) {
      plan = { runs: 0, graph: null, noises: [], proved: false, doubts: 0, refused: false };
      this.#plans.set(key, plan);
    }
    return plan;
  }

  #record(plan: GraphPlan, { feeds, compute, hostReads }: Opened): Float32Array {
    const noises: NoiseRequest[] = [];
    const before = seededDraws();
    const { result, graph, why } = record(feeds, (feed) =>
      compute((request) => {
        const noise = drawNoise(request);
        feed(noise);
        noises.push(request);
        return noise;
      }),
    );
    const others = seededDraws() - before - noises.filter((n) => n.seed === undefined).length;
    plan.graph = graph;
    plan.noises = noises;
    const host = hostReads?.() ?? '';
    if (!graph) this.#refuse(plan, why);
    else if (host !== '') this.#refuse(plan, host);
    else if (others > 0) this.#refuse(plan, 'a layer draws random numbers of its own');
    return readOff(result);
  }

  #prove(plan: GraphPlan, graph: Graph, fed: readonly Fed[], { compute }: Opened): Float32Array {
    const noises: Fed[] = [];
    const expected = readOff(
      compute((request) => {
        const noise = fedNoise(request);
        noises.push(noise);
        return noiseTensor(noise.values, request);
      }),
    );
    let given: Float32Array;
    try {
      given = graph.run([...fed, ...noises]);
    } catch (error) {
      this.#refuse(plan, errorText(error));
      return expected;
    }
    const distance = this.#others
      ? largestDistance(expected, given, this.#others.ends)
      : relativeDistance(expected, given);
    // Not a number: the model has diverged. That proves nothing, so the next step tries again.
    if (distance <= tolerance()) {
      // Which step it is that proves it again must not be seen in the numbers.
      const known = plan.proved;
      plan.proved = true;
      plan.doubts = 0;
      this.#execution = 'graph';
      if (known) return given;
    } else if (distance > tolerance()) {
      // Where random bits are compared with a computed probability, one of many may turn over by rounding.
      if (this.#others && plan.doubts++ === 0) return expected;
      this.#refuse(plan, `as a graph it gives something else, by ${distance.toPrecision(2)}`);
    }
    return expected;
  }

  #refuse(plan: GraphPlan, why: string): void {
    plan.graph?.dispose();
    plan.graph = null;
    plan.refused = true;
    this.#refusal = why;
    this.#execution = `operations: ${why}`;
  }
}

const fedNoise = (request: NoiseRequest): Fed => ({
  values: noiseValues(request),
  shape: request.shape,
});

function readOff(tensor: Tensor): Float32Array {
  const values = tensor.dataSync() as Float32Array;
  tensor.dispose();
  return values;
}

/**
 * The largest ‖a − b‖ / ‖a‖ of all parts, so that a small part is looked at as closely as a large one. Rounding is no
 * difference: that of a part of a gradient is measured against the whole gradient, that of the loss against 0.01.
 */
function largestDistance(a: Float32Array, b: Float32Array, ends: readonly number[]): number {
  const norms = (start: number, end: number) => {
    let [difference, norm] = [0, 0];
    for (let i = start; i < end; i++) {
      difference += (a[i]! - b[i]!) ** 2;
      norm += a[i]! ** 2;
    }
    return { difference: Math.sqrt(difference), norm: Math.sqrt(norm) };
  };
  const loss = ends.at(-1) ?? 0;
  const whole = norms(0, loss).norm;
  let largest = 0;
  let start = 0;
  for (const end of [...ends, a.length]) {
    const { difference, norm } = norms(start, end);
    const floor = start === loss ? 0.01 : tolerance() * whole;
    const distance = difference === 0 ? 0 : difference / (norm + floor);
    // Not a number stays.
    if (!(distance <= largest)) largest = distance;
    start = end;
  }
  return largest;
}

/** ‖a − b‖ / ‖a‖ */
function relativeDistance(a: Float32Array, b: Float32Array): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < a.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    norm += a[i]! ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}

// TensorFlow's `SavedModel` as protocol buffers: https://protobuf.dev/programming-guides/encoding and
// the field numbers of tensorflow/core/{protobuf/saved_model,framework/graph}.proto.

type Bytes = Uint8Array;

function savedModel(nodes: readonly Bytes[]): Bytes {
  const versions = integer(1, GRAPH_PRODUCER);
  const graph = concatenate([...nodes.map((n) => block(1, n)), block(4, versions)]);
  const meta = concatenate([block(1, block(4, text('train'))), block(2, graph)]);
  return concatenate([integer(1, 1), block(2, meta)]);
}

function node(name: string, op: string, inputs: readonly string[], attrs: Bytes[]): Bytes {
  return concatenate([
    block(1, text(name)),
    block(2, text(op)),
    ...inputs.map((input) => block(3, text(input))),
    ...attrs.map((attr) => block(5, attr)),
  ]);
}

function constantNode(name: string, shape: readonly number[], dtype: number, values: TensorValues) {
  const content = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const tensor = concatenate([integer(1, dtype), block(2, shapeBytes(shape)), block(4, content)]);
  const attrs = [attrBytes('dtype', typeValue(dtype)), attrBytes('value', block(8, tensor))];
  return node(name, 'Const', [], attrs);
}

const attrBytes = (name: string, value: Bytes) =>
  concatenate([block(1, text(name)), block(2, value)]);
const typeValue = (dtype: number) => integer(6, dtype);

function attrValue(binding: Binding, { type, value }: Attr): Bytes {
  const list = Array.isArray(value);
  const each = (of: (x: never) => Bytes) => block(1, concatenate((value as never[]).map(of)));
  if (type === binding.TF_ATTR_SHAPE) return block(7, shapeBytes(value as number[]));
  if (type === binding.TF_ATTR_TYPE)
    return list ? each((x) => integer(6, x)) : integer(6, value as number);
  if (type === binding.TF_ATTR_INT)
    return list ? each((x) => integer(3, x)) : integer(3, value as number);
  if (type === binding.TF_ATTR_FLOAT)
    return list ? each((x) => float(4, x)) : float(4, value as number);
  if (type === binding.TF_ATTR_BOOL)
    return list ? each((x) => integer(5, x ? 1 : 0)) : integer(5, value ? 1 : 0);
  if (type === binding.TF_ATTR_STRING) return block(2, text(value as string));
  throw new Error(`an attribute of type ${type}`);
}

function shapeBytes(shape: readonly number[]): Bytes {
  return concatenate(shape.map((size) => block(2, integer(1, size))));
}

const text = (value: string): Bytes => new TextEncoder().encode(value);

function varint(value: number | bigint): number[] {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return bytes;
}

const integer = (field: number, value: number): Bytes =>
  Uint8Array.from([field << 3, ...varint(value)]);

function float(field: number, value: number): Bytes {
  const bytes = new Uint8Array(5);
  bytes[0] = (field << 3) | 5;
  new DataView(bytes.buffer).setFloat32(1, value, true);
  return bytes;
}

/** A field of known length: a string, bytes, or a message. */
const block = (field: number, content: Bytes): Bytes =>
  concatenate([Uint8Array.from([(field << 3) | 2, ...varint(content.length)]), content]);

function concatenate(parts: readonly Bytes[]): Bytes {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}
