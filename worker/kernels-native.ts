import {
  BatchMatMul,
  type BatchMatMulAttrs,
  GatherV2,
  type KernelBackend,
  type KernelFunc,
  type TensorInfo,
} from '@tensorflow/tfjs-core';
import { replaceKernel } from './kernels/replace.ts';

/** What keeps a step from being recorded (`graph.ts`) with tfjs-node 4.22's own kernels, and what makes it slow. */

interface NodeBackend extends KernelBackend {
  readonly isUsingGpuDevice: boolean;
  readonly binding: Readonly<Record<string, number>>;
  executeSingleOutput(name: string, attrs: readonly object[], inputs: TensorInfo[]): TensorInfo;
}

type Replacement = (call: Call, stock: KernelFunc) => ReturnType<KernelFunc>;
type Call = Parameters<KernelFunc>[0];

/**
 * tfjs-node reads the indices of each gather back to compare them with the size, so no model with an embedding
 * could be recorded. TensorFlow compares them itself on a processor, and throws; on a GPU it puts zeros in
 * silence, so there the comparison stays.
 */
const gather: Replacement = (call, stock) => {
  const unread = Object.create(call.backend as NodeBackend, { readSync: { value: () => [] } });
  return stock({ ...call, backend: unread as NodeBackend });
};

/**
 * A product of two matrices is TensorFlow's `MatMul`. Its `BatchMatMulV2`, which tfjs-node takes for all products, costs more
 * for each call. Those of a recurrent layer, 32 × 128 · 128 × 512, take 52 → 43 µs, and its weights' gradient, aᵀ · b, 3.6 → 3.2 ms.
 * For a · bᵀ `MatMul` is slower.
 */
const product: Replacement = (call, stock) => {
  const { a, b } = call.inputs as { a: TensorInfo; b: TensorInfo };
  const { transposeA, transposeB } = call.attrs as unknown as BatchMatMulAttrs;
  const areMatrices = [a, b].every(({ shape, dtype }) => shape.length === 2 && dtype === 'float32');
  if (!areMatrices || transposeB) return stock(call);
  const backend = call.backend as NodeBackend;
  const { TF_ATTR_TYPE, TF_ATTR_BOOL, TF_FLOAT } = backend.binding;
  const attrs = [
    { name: 'T', type: TF_ATTR_TYPE, value: TF_FLOAT },
    { name: 'transpose_a', type: TF_ATTR_BOOL, value: transposeA },
    { name: 'transpose_b', type: TF_ATTR_BOOL, value: false },
  ];
  return backend.executeSingleOutput('MatMul', attrs, [a, b]);
};

/** Puts them in the place of tfjs-node's kernels, on a processor. */
export function repairNativeKernels(): void {
  for (const [name, kernel] of [
    [GatherV2, gather],
    [BatchMatMul, product],
  ] as const) {
    replaceKernel('tensorflow', name, (stock) => (call) => {
      const { isUsingGpuDevice } = call.backend as NodeBackend;
      return isUsingGpuDevice ? stock!(call) : kernel(call, stock!);
    });
  }
}
