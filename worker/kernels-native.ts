import { GatherV2, type KernelBackend } from '@tensorflow/tfjs-core';
import { replaceKernel } from './kernels/replace.ts';

/** What keeps a step from being recorded (`graph.ts`) with tfjs-node 4.22's own kernels. */

type GatheringBackend = KernelBackend & { readonly isUsingGpuDevice: boolean };

/**
 * tfjs-node reads the indices of each gather back to compare them with the size, so no model with an embedding
 * could be recorded. TensorFlow compares them itself on a processor, and throws; on a GPU it puts zeros in
 * silence, so there the comparison stays.
 */
export function repairNativeKernels(): void {
  replaceKernel('tensorflow', GatherV2, (stock) => (call) => {
    const backend = call.backend as GatheringBackend;
    if (backend.isUsingGpuDevice) return stock!(call);
    const unread = Object.create(backend, { readSync: { value: () => [] } }) as GatheringBackend;
    return stock!({ ...call, backend: unread });
  });
}
