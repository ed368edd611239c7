import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import * as tf from '@tensorflow/tfjs-core';
import { expect, test } from 'vitest';
import { openEngine } from '../../worker/engine.ts';

test('a full wasm heap is an error that says so, and the engine goes on after it', async () => {
  await openEngine({ engine: 'wasm' });
  const backend = tf.backend() as BackendWasm;
  const quarters: tf.TensorInfo[] = [];
  const fill = () => {
    // Reserved, never written to: the pages cost nothing.
    for (let i = 0; i < 5; i++) quarters.push(backend.makeOutput([2 ** 28], 'float32'));
  };
  expect(fill).toThrow(expect.objectContaining({ code: 'DP_ENGINE_KERNEL' }));
  for (const tensor of quarters) backend.disposeData(tensor.dataId);
  const sum = tf.tidy(() => tf.sum(tf.ones([1000])).dataSync()[0]);
  expect(sum).toBe(1000);
});
