import {
  getKernel,
  type KernelFunc,
  registerKernel,
  unregisterKernel,
} from '@tensorflow/tfjs-core';

const replaced = new Set<KernelFunc>();

/**
 * Puts a kernel of ours in the place of tfjs's, once.
 * @param make gets the one of tfjs; undefined: it has none.
 */
export function replaceKernel(
  backendName: string,
  kernelName: string,
  make: (stock: KernelFunc | undefined) => KernelFunc,
): void {
  const stock = getKernel(kernelName, backendName);
  if (stock && replaced.has(stock.kernelFunc)) return;
  if (stock) unregisterKernel(kernelName, backendName);
  const kernelFunc = make(stock?.kernelFunc);
  replaced.add(kernelFunc);
  // The stock kernel's own set-up goes along: tfjs runs it when the backend starts, be that later.
  registerKernel({ ...stock, kernelName, backendName, kernelFunc });
}
