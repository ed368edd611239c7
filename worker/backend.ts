import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import * as tf from '@tensorflow/tfjs-core';
import * as layers from '@tensorflow/tfjs-layers';
import { repairGradients } from './gradients.ts';
import { repairCpuKernels } from './kernels-cpu.ts';
import { guardWasmMemory, registerWasmKernels } from './kernels-wasm.ts';
// For the methods of tensors, which layers and gradients lean on.
import './tf.ts';

/** What engines are opened with in Node and in a page alike. */

/** An engine that is ready to compute. */
export interface LoadedEngine {
  /** tfjs's name of the backend that is set. */
  readonly backend: string;
  /** The processor or the GPU that computes. */
  readonly device: string;
  readonly versions: Readonly<Record<string, string>>;
  /** What the log should say of it; with `auto` also why each better engine was not taken. */
  readonly notes: readonly string[];
}

/** @param device that computes, in words. */
export async function openWasm(device: string): Promise<LoadedEngine> {
  await import('@tensorflow/tfjs-backend-wasm');
  registerWasmKernels();
  const simd = await tf.env().getAsync('WASM_HAS_SIMD_SUPPORT');
  await setBackend('wasm');
  guardWasmMemory(tf.backend() as BackendWasm);
  return {
    backend: 'wasm',
    device,
    versions: ourVersions(),
    notes: [simd ? 'SIMD, one thread' : 'no SIMD here: slow'],
  };
}

/** @param device that computes, in words. */
export async function openCpu(device: string): Promise<LoadedEngine> {
  await import('@tensorflow/tfjs-backend-cpu');
  repairCpuKernels();
  await setBackend('cpu');
  // Keeps tfjs from printing its advice on other packages at the first operation.
  (tf.backend() as unknown as { firstUse: boolean }).firstUse = false;
  return {
    backend: 'cpu',
    device,
    versions: ourVersions(),
    notes: ['plain JavaScript: for tests and tiny models'],
  };
}

/** @throws Error when tfjs does not take it. */
export async function setBackend(name: string): Promise<void> {
  if (!(await tf.setBackend(name))) throw new Error(`tfjs can't start its backend '${name}'`);
  await tf.ready();
  // tfjs falls back to another backend without a word.
  if (tf.getBackend() !== name) throw new Error(`tfjs fell back to '${tf.getBackend()}'`);
}

export function ourVersions(): Record<string, string> {
  return { 'tfjs-core': tf.version_core, 'tfjs-layers': layers.version_layers };
}

/** @throws Error: the engine that has been loaded computes a wrong gradient, or leaks. */
export async function prove(): Promise<void> {
  // After loading: a native engine brings tfjs's own gradients along once more.
  repairGradients();
  await proveGradient();
}

/** loss = mean((relu(x·w) − y)²) has a gradient that can be worked by hand: 2/n · xᵀ(relu(xw) − y)·[xw > 0]. */
async function proveGradient(): Promise<void> {
  const before = tf.memory().numTensors;
  const { value, grads } = tf.tidy(() => {
    const x = tf.tensor2d([1, 2, 3, 4], [2, 2]);
    const y = tf.tensor2d([0, 1], [2, 1]);
    const w = tf.tensor2d([0.5, 0.25], [2, 1]);
    const loss = (weights: tf.Tensor) =>
      tf.mean(tf.square(tf.sub(tf.relu(tf.matMul(x, weights as tf.Tensor2D)), y))) as tf.Scalar;
    const result = tf.valueAndGrad(loss)(w);
    return { value: result.value, grads: result.grad };
  });
  // Before anything is waited for: another worker of this process may compute meanwhile.
  const kept = tf.memory().numTensors - before;
  const seen = [...(await value.data()), ...(await grads.data())];
  tf.dispose([value, grads]);
  const expected = [1.625, 5.5, 8];
  if (!expected.every((each, i) => Math.abs(seen[i]! - each) < 1e-4)) {
    throw new Error(`it computes a wrong gradient: [${seen}], by hand [${expected}]`);
  }
  if (kept !== 2) throw new Error(`it leaks tensors: ${kept} are left, of 2`);
}

// WebGPU.

export interface Adapter {
  readonly isFallbackAdapter?: boolean;
  readonly info: {
    readonly vendor: string;
    readonly architecture: string;
    readonly device: string;
    readonly description: string;
    readonly isFallbackAdapter?: boolean;
  };
}

/** What an adapter of WebGPU is, in words, and whether it is a program and no GPU. */
export function describeAdapter({ info, isFallbackAdapter = false }: Adapter) {
  const { vendor, architecture, description } = info;
  const device = description || [vendor, architecture, info.device].join(' ').trim();
  const software =
    (info.isFallbackAdapter ?? isFallbackAdapter) ||
    /swiftshader|llvmpipe|lavapipe|software|basic render/i.test(
      `${device} ${vendor} ${architecture}`,
    );
  return { device, software };
}
