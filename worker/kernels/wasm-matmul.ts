import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import {
  type BatchMatMulAttrs,
  broadcast_util,
  type TensorInfo,
  util,
} from '@tensorflow/tfjs-core';
import { DownpourError } from '../../shared/errors.ts';
import { type OwnKernels, ownKernels, product, workspaceSize } from './wasm-own.ts';
import { floats, inWorkspace, type WasmKernel, type Workspace } from './wasm-workspace.ts';

/**
 * Multiplications in a matrix up to which a batch goes through the library's plain loop: setting up
 * its fast product takes about 5 µs (measured: 512 of 8×8·8×8 0.5 ms against 2.3, 64 of 16×16·16×16
 * equal, 64 of 32×32·32×32 2.2 ms against 0.7).
 */
const SMALL_MULTIPLICATIONS_MAX = 2048;

/**
 * Matrix products over the last two axes, earlier axes broadcast.
 *
 * Our own kernel takes either side as it lies: 1.2 to 3 times as fast as the library's where no side is transposed, 1.4
 * to 8 times where one is, as in every gradient of a dense layer. Where it is missing: the library uses its fast
 * kernel (XNNPACK) only for one matrix, neither side transposed; the rest goes through a plain loop. So transpose
 * first, and multiply a batch matrix by matrix.
 */
export const batchMatMul: WasmKernel = ({ inputs, attrs, backend }) => {
  const { transposeA, transposeB } = attrs as unknown as BatchMatMulAttrs;
  const own = ownKernels(backend);
  if (own) return ownMatMul(own, backend, inputs.a!, inputs.b!, transposeA, transposeB);
  return inWorkspace(backend, (w) => {
    const a = transposeA ? transposeLast(w, inputs.a!) : inputs.a!;
    const b = transposeB ? transposeLast(w, inputs.b!) : inputs.b!;
    const { rows, inner, columns, batchA, batchB, batch } = sizesOf(a.shape, b.shape);
    const out = w.make([...batch, rows, columns]);
    if (inner === 0) {
      floats(backend, out).fill(0);
      return out;
    }
    const count = util.sizeFromShape(batch);
    const equal = util.sizeFromShape(batchA) === count && util.sizeFromShape(batchB) === count;
    if (equal && rows * inner * columns <= SMALL_MULTIPLICATIONS_MAX) {
      const left = w.view(a, 0, [count, rows, inner]);
      const right = w.view(b, 0, [count, inner, columns]);
      multiply(backend, left, right, w.view(out, 0, [count, rows, columns]));
      return out;
    }
    for (let i = 0; i < count; i++) {
      const startA = broadcastIndex(i, batch, batchA) * rows * inner;
      const startB = broadcastIndex(i, batch, batchB) * inner * columns;
      const left = w.view(a, startA, [1, rows, inner]);
      const right = w.view(b, startB, [1, inner, columns]);
      const product = w.view(out, i * rows * columns, [1, rows, columns]);
      multiply(backend, left, right, product);
      for (const view of [left, right, product]) w.release(view);
    }
    return out;
  });
};

function ownMatMul(
  own: OwnKernels,
  backend: BackendWasm,
  a: TensorInfo,
  b: TensorInfo,
  transposeA: boolean,
  transposeB: boolean,
): TensorInfo {
  mustBeFloats(a, b);
  const turned = ({ shape }: TensorInfo, isTurned: boolean) =>
    isTurned ? [...shape.slice(0, -2), shape.at(-1)!, shape.at(-2)!] : shape;
  const { rows, inner, columns, batchA, batchB, batch } = sizesOf(
    turned(a, transposeA),
    turned(b, transposeB),
  );
  return inWorkspace(backend, (w) => {
    const out = w.make([...batch, rows, columns]);
    if (inner === 0) {
      floats(backend, out).fill(0);
      return out;
    }
    const sizes = { m: rows, n: columns, k: inner };
    const workspace = w.make([workspaceSize(sizes)]);
    const at = ({ dataId }: TensorInfo) => backend.getMemoryOffset(dataId);
    const [outAt, aAt, bAt, workspaceAt] = [at(out), at(a), at(b), at(workspace)];
    const strides = (isTurned: boolean, height: number, width: number) =>
      isTurned ? { row: 1, column: height } : { row: width, column: 1 };
    const [aStrides, bStrides] = [
      strides(transposeA, rows, inner),
      strides(transposeB, inner, columns),
    ];
    const count = util.sizeFromShape(batch);
    for (let i = 0; i < count; i++) {
      product(
        own,
        { at: outAt + 4 * i * rows * columns, row: columns },
        { at: aAt + 4 * broadcastIndex(i, batch, batchA) * rows * inner, ...aStrides },
        { at: bAt + 4 * broadcastIndex(i, batch, batchB) * inner * columns, ...bStrides },
        workspaceAt,
        sizes,
      );
    }
    return out;
  });
}

function sizesOf(a: number[], b: number[]) {
  const [rows, inner] = a.slice(-2) as [number, number];
  const [innerB, columns] = b.slice(-2) as [number, number];
  util.assert(
    inner === innerB,
    () => `matMul: [${a}] · [${b}], inner sizes ${inner} and ${innerB} must be equal`,
  );
  const [batchA, batchB] = [a.slice(0, -2), b.slice(0, -2)];
  const batch = broadcast_util.assertAndGetBroadcastShape(batchA, batchB);
  return { rows, inner, columns, batchA, batchB, batch };
}

function mustBeFloats(a: TensorInfo, b: TensorInfo): void {
  if (a.dtype === 'float32' && b.dtype === 'float32') return;
  throw new DownpourError(
    'DP_ENGINE_KERNEL',
    `wasm: matMul of ${a.dtype} and ${b.dtype}, takes float32; cast them in the model`,
  );
}

/** `out` = `a` · `b`, shapes [n, i, k], [n, k, j], [n, i, j], into memory that `out` already has. */
export function multiply(
  backend: BackendWasm,
  a: TensorInfo,
  b: TensorInfo,
  out: TensorInfo,
): void {
  mustBeFloats(a, b);
  const id = (tensor: TensorInfo) => backend.dataIdMap.get(tensor.dataId).id;
  nativeMatMul(backend)(id(a), bytes(a.shape), 3, id(b), bytes(b.shape), 3, 0, 0, id(out));
}

/** Swaps the last two axes. */
export function transposeLast(w: Workspace, x: TensorInfo): TensorInfo {
  const rank = x.shape.length;
  const [rows, columns] = x.shape.slice(-2) as [number, number];
  // A vector transposed is the same memory.
  if (rank === 2 && (rows === 1 || columns === 1)) return w.view(x, 0, [columns, rows]);
  const perm = x.shape.map((_, axis) => axis);
  [perm[rank - 2], perm[rank - 1]] = [rank - 1, rank - 2];
  return w.run('Transpose', { x }, { perm });
}

/** Where element `index` of an array of shape `batch` lies in one of shape `own`, broadcast to it. */
function broadcastIndex(index: number, batch: number[], own: number[]): number {
  let rest = index;
  let stride = 1;
  let at = 0;
  for (let axis = 1; axis <= own.length; axis++) {
    const size = batch[batch.length - axis]!;
    const ownSize = own[own.length - axis]!;
    if (ownSize !== 1) at += (rest % size) * stride;
    stride *= ownSize;
    rest = Math.floor(rest / size);
  }
  return at;
}

type NativeMatMul = (
  a: number,
  shapeA: Uint8Array,
  rankA: number,
  b: number,
  shapeB: Uint8Array,
  rankB: number,
  transposeA: number,
  transposeB: number,
  out: number,
) => void;

interface Emscripten {
  cwrap(name: string, result: null, parameters: ('number' | 'array')[]): NativeMatMul;
}

const nativeMatMuls = new WeakMap<BackendWasm, NativeMatMul>();

function nativeMatMul(backend: BackendWasm): NativeMatMul {
  let native = nativeMatMuls.get(backend);
  if (!native) {
    const module = backend.wasm as unknown as Emscripten;
    const [n, shape] = ['number', 'array'] as const;
    native = module.cwrap('BatchMatMul', null, [n, shape, n, n, shape, n, n, n, n]);
    nativeMatMuls.set(backend, native);
  }
  return native;
}

function bytes(shape: number[]): Uint8Array {
  return new Uint8Array(new Int32Array(shape).buffer);
}
