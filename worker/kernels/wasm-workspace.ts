import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import {
  getKernel,
  type NamedAttrMap,
  type NamedTensorInfoMap,
  type TensorInfo,
  util,
} from '@tensorflow/tfjs-core';
import { DownpourError } from '../../shared/errors.ts';

/** What tfjs hands to a kernel; `attrs` is read by each kernel as the attributes of its name. */
export interface WasmCall {
  readonly inputs: NamedTensorInfoMap;
  readonly attrs: NamedAttrMap;
  readonly backend: BackendWasm;
}

export type WasmKernel = (call: WasmCall) => TensorInfo;

/**
 * Tensors that one kernel makes on its way. All are freed when the kernel returns or throws, except
 * the one it returns: `inWorkspace(backend, (w) => w.run('Transpose', { x }, { perm }))`.
 */
export class Workspace {
  readonly backend: BackendWasm;
  readonly #owned = new Set<TensorInfo>();
  readonly #views = new Set<TensorInfo>();

  constructor(backend: BackendWasm) {
    this.backend = backend;
  }

  /** Calls the kernel registered for wasm under `kernelName`, by-passing tape and tidy. */
  run(kernelName: string, inputs: NamedTensorInfoMap, attrs: object): TensorInfo {
    const kernel = getKernel(kernelName, 'wasm');
    const out = kernel.kernelFunc({ inputs, attrs: attrs as NamedAttrMap, backend: this.backend });
    const tensor = Array.isArray(out) ? out[0]! : out;
    this.#owned.add(tensor);
    return tensor;
  }

  /** A new tensor, its content arbitrary. */
  make(shape: number[], dtype: TensorInfo['dtype'] = 'float32'): TensorInfo {
    const tensor = this.backend.makeOutput(shape, dtype);
    this.#owned.add(tensor);
    return tensor;
  }

  /** The elements from `start` on of `tensor`, in place: valid as long as `tensor` is. */
  view(tensor: TensorInfo, start: number, shape: number[]): TensorInfo {
    const offset = this.backend.getMemoryOffset(tensor.dataId);
    const byteOffset = offset + start * util.bytesPerElement(tensor.dtype);
    const view = this.backend.makeOutput(shape, tensor.dtype, byteOffset);
    this.#views.add(view);
    return view;
  }

  /** The same data under another shape. */
  reshape(tensor: TensorInfo, shape: number[]): TensorInfo {
    return this.view(tensor, 0, shape);
  }

  /** Frees an intermediate before the kernel ends, to keep the peak of memory low. */
  release(tensor: TensorInfo): void {
    if (this.#owned.delete(tensor)) this.backend.disposeData(tensor.dataId);
    if (this.#views.delete(tensor)) {
      // Not `disposeData`: it would free the memory, which belongs to the tensor that is viewed.
      this.backend.wasm.tfjs.disposeData(this.backend.dataIdMap.get(tensor.dataId).id);
      this.backend.dataIdMap.delete(tensor.dataId);
    }
  }

  /** Frees everything but `result`, which must be a tensor of this workspace and not a view. */
  close(result?: TensorInfo): void {
    if (result) this.#owned.delete(result);
    for (const view of this.#views) this.release(view);
    for (const tensor of this.#owned) this.release(tensor);
  }
}

export function inWorkspace(
  backend: BackendWasm,
  body: (workspace: Workspace) => TensorInfo,
): TensorInfo {
  const workspace = new Workspace(backend);
  let result: TensorInfo | undefined;
  try {
    result = body(workspace);
    return result;
  } finally {
    workspace.close(result);
  }
}

/**
 * The floats of `tensor` on the heap. Take it after all allocations of the kernel: a heap that grows
 * moves, and leaves earlier arrays empty.
 */
export function floats(backend: BackendWasm, tensor: TensorInfo): Float32Array {
  if (tensor.dtype !== 'float32') {
    throw new DownpourError(
      'DP_ENGINE_KERNEL',
      `wasm: a training kernel got a tensor of ${tensor.dtype}, takes float32; cast it in the model`,
    );
  }
  return backend.typedArrayFromHeap(tensor) as Float32Array;
}
