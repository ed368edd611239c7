import { bytesOfBase64 } from '../../shared/base64.ts';
import { Memory, regionBytes } from '../../shared/memory.ts';
import type { LeasePart } from '../../shared/protocol.ts';
import { permutation, random, STREAMS } from '../../shared/random.ts';
import type { Examples } from '../../worker/data/examples.ts';
import { loadMnist } from '../../worker/data/mnist.ts';
import type { VirtualProblem } from '../simulate/virtual-cluster.ts';
import { BINARY } from './kernels/binary.ts';

/**
 * The network of examples/mnist-mlp.ts on MNIST with gradients by hand (kernels/assembly), about 2 ms a
 * minibatch of 64: hundreds of trainings in virtual time would take hours with a tensor library.
 */

interface DigitKernels {
  gradient(...args: number[]): number;
  evaluate(...args: number[]): number;
}

export interface DigitsOptions {
  readonly hidden: number;
  /** Share of hidden units that are left out in training. */
  readonly dropout: number;
  /** Seed of the order of examples and the split, as in a run. */
  readonly seed: number;
  readonly minibatchMax: number;
  /** Number of examples to learn from and to validate on; null: all. */
  readonly trainMax?: number | null;
  /** 14 × 14 pixels, each the mean of four. */
  readonly small?: boolean;
}

type Loaded = Awaited<ReturnType<typeof loadMnist>>;
let loaded: Promise<Loaded> | null = null;

export async function createDigits(options: DigitsOptions): Promise<VirtualProblem> {
  loaded ??= loadMnist();
  const data = await loaded;
  const { hidden, dropout, seed, small = false } = options;
  const side = small ? 14 : 28;
  const inputs = side * side;
  const classes = 10;
  const allTrain = data.train.count;
  const test = data.test!;
  const bytesIn = ({ values }: Examples['inputs']) => values as Uint8Array;
  const pixels = [bytesIn(data.train.inputs), bytesIn(test.inputs)];
  const labelsOf = [bytesIn(data.train.targets), bytesIn(test.targets)];
  const order = permutation(seed, STREAMS.split, allTrain);
  const given = Math.min(options.trainMax ?? allTrain, allTrain);
  const validationCount = Math.round(0.2 * given);
  const trainCount = given - validationCount;
  const rows = [
    ...Array.from(order.subarray(0, trainCount + validationCount), (row) => [0, row] as const),
    ...Array.from({ length: test.count }, (_, row) => [1, row] as const),
  ];
  const examples = rows.map(([part, row]) =>
    sparse(pixels[part]!.subarray(row * 784, (row + 1) * 784), side),
  );
  const count = examples.length;
  const lit = examples.reduce((sum, { columns }) => sum + columns.length, 0);
  const size = inputs * hidden + hidden + hidden * classes + classes;
  const sizes = {
    theta: 4 * size,
    g: 4 * size,
    columns: 2 * lit,
    values: 4 * lit,
    starts: 4 * (count + 1),
    labels: count,
    picked: 4 * Math.max(count, options.minibatchMax),
    room: 4 * (2 * hidden + 64),
  };
  const memory = new Memory(Object.values(sizes).reduce((sum, b) => sum + regionBytes(b), 0));
  const at = Object.fromEntries(
    Object.entries(sizes).map(([name, bytes]) => [name, memory.take(bytes)]),
  ) as Record<keyof typeof sizes, number>;
  const theta = memory.floats(at.theta, size);
  const g = memory.floats(at.g, size);
  const columns = new Uint16Array(memory.memory.buffer, at.columns, lit);
  const values = memory.floats(at.values, lit);
  const starts = new Uint32Array(memory.memory.buffer, at.starts, count + 1);
  const labels = memory.bytes(at.labels, count);
  const picked = new Uint32Array(memory.memory.buffer, at.picked, sizes.picked / 4);
  let next = 0;
  examples.forEach((example, i) => {
    const [part, row] = rows[i]!;
    starts[i] = next;
    columns.set(example.columns, next);
    values.set(example.values, next);
    labels[i] = labelsOf[part]![row]!;
    next += example.columns.length;
  });
  starts[count] = next;
  const module = new WebAssembly.Module(bytesOfBase64(BINARY));
  const kernels = new WebAssembly.Instance(module, {
    env: { memory: memory.memory, exp: Math.exp, log: Math.log },
  }).exports as unknown as DigitKernels;
  const range = (part: LeasePart): [number, number] => {
    if (part === 'train') return [0, trainCount];
    if (part === 'validation') return [trainCount, validationCount];
    if (part === 'trainAndValidation') return [0, trainCount + validationCount];
    return [trainCount + validationCount, test.count];
  };
  const orders = new Map<string, Int32Array>();
  const orderOf = (part: LeasePart, epoch: number): Int32Array => {
    const key = `${part} ${epoch}`;
    let known = orders.get(key);
    if (!known) {
      known = permutation(seed, STREAMS.epoch + epoch, range(part)[1]);
      orders.set(key, known);
      if (orders.size > 4) orders.delete(orders.keys().next().value!);
    }
    return known;
  };
  const shape = [inputs, hidden, classes] as const;
  return {
    tensors: [
      { name: 'hidden/kernel', shape: [inputs, hidden], role: 'trainable' },
      { name: 'hidden/bias', shape: [hidden], role: 'trainable' },
      { name: 'logits/kernel', shape: [hidden, classes], role: 'trainable' },
      { name: 'logits/bias', shape: [classes], role: 'trainable' },
    ],
    data: {
      trainCount,
      validationCount,
      testCount: test.count,
      fingerprint: 'digits',
      source: data.source,
    },
    initialise: (initial) => freshParameters(shape, initial),
    gradient(lease, parameters, payload, mask) {
      const [first] = range(lease.part);
      const order = orderOf(lease.part, lease.epoch);
      for (let i = 0; i < lease.count; i++) picked[i] = first + order[lease.start + i]!;
      theta.set(parameters);
      const loss = kernels.gradient(
        ...[at.theta, at.g, at.columns, at.values, at.starts, at.labels, at.picked, lease.count],
        ...[...shape, at.room, 1 - dropout, (mask | 1) >>> 0],
      );
      payload.set(g);
      return loss;
    },
    evaluate(part, parameters) {
      const [first, n] = range(part);
      for (let i = 0; i < n; i++) picked[i] = first + i;
      theta.set(parameters);
      const { theta: t, columns: c, values: v, starts: s, labels: l, picked: p } = at;
      const loss = kernels.evaluate(t, c, v, s, l, p, 0, n, ...shape, at.room);
      return { loss: loss / n, error: memory.floats(at.room, 1)[0]! / n };
    },
  };
}

/** Glorot's uniform, as tfjs-layers begins: kernel and bias of the hidden layer, then of the logits. */
function freshParameters(
  [inputs, hidden, classes]: readonly [number, number, number],
  seed: number,
): Float32Array {
  const draw = random(seed, STREAMS.parameters);
  const fresh = new Float32Array(inputs * hidden + hidden + hidden * classes + classes);
  const fill = (from: number, rows: number, units: number) => {
    const limit = Math.sqrt(6 / (rows + units));
    for (let i = 0; i < rows * units; i++) fresh[from + i] = limit * (2 * draw.uniform() - 1);
  };
  fill(0, inputs, hidden);
  fill(inputs * hidden + hidden, hidden, classes);
  return fresh;
}

/** Pixels that are not 0, as shares of the brightest; of the small ones each is the mean of four. */
function sparse(picture: Uint8Array, side: number): { columns: number[]; values: number[] } {
  const columns: number[] = [];
  const values: number[] = [];
  for (let i = 0; i < side * side; i++) {
    let sum = 0;
    if (side === 28) sum = picture[i]!;
    else {
      const at = 56 * Math.floor(i / 14) + 2 * (i % 14);
      sum = (picture[at]! + picture[at + 1]! + picture[at + 28]! + picture[at + 29]!) / 4;
    }
    if (sum === 0) continue;
    columns.push(i);
    values.push(sum / 255);
  }
  return { columns, values };
}
