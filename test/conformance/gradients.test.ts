/**
 * Every engine gives the same outputs and gradients: the repaired cpu engine agrees with finite
 * differences, the others with the cpu engine. `DOWNPOUR_CONFORMANCE_ENGINES=wasm,native` names the
 * engines to check; without it those that npm installs.
 */
import { readFileSync } from 'node:fs';
import * as tf from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import {
  claimedSlope,
  type GradientCase,
  type Gradients,
  gradientsOf,
  slopesOf,
} from './gradient-check.ts';
import { GRADIENT_CASES } from './gradients.ts';

const ENGINES = (process.env.DOWNPOUR_CONFORMANCE_ENGINES ?? 'cpu,wasm').split(',') as EngineName[];

/** Relative to the slope's size, at least 1: float32 and the rule of differences; see `STEP`. */
const DIFFERENCES_TOLERANCE = 2e-3;

/** Relative to a tensor's largest value, at least 1e-3: engines add up in another order. */
const ENGINES_TOLERANCE = 1e-4;

/** The shading language of WebGPU promises sin and cos to 2⁻¹¹; GPUs do better, programs in their place need it. */
const COARSE_TOLERANCE = 5e-4;
const toleranceOf = (backend: string, name: string): number =>
  backend === 'webgpu' && /^(sin|cos|tan)$/.test(name) ? COARSE_TOLERANCE : ENGINES_TOLERANCE;

/** What an engine refuses, said aloud at the first forward pass; layers never ask for it. */
const REFUSED: Readonly<Record<string, { readonly cases: RegExp; readonly error: RegExp }>> = {
  tensorflow: {
    cases: /padding (1|wider than the filter|of its own on each side.*)$/,
    error: /supports only 'valid' and 'same' padding/,
  },
  webgpu: { cases: /^maxPool3d/, error: /3-D max pooling is wrong by WebGPU/ },
};

/** Tensors of the reference are kept: several engines are compared with them. */
const references = new Map<string, Promise<Gradients>>();

test('names of cases are unique', () => {
  expect(new Set(GRADIENT_CASES.map(({ name }) => name)).size).toBe(GRADIENT_CASES.length);
});

test('README.md says how many cases there are', () => {
  const text = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
  const [, said] = /checked by (\d+) cases/.exec(text)!;
  expect(Number(said)).toBe(GRADIENT_CASES.length);
});

describe.each(ENGINES)('gradients on %s', (name) => {
  let backend: string;
  beforeAll(async () => {
    await openEngine({ engine: 'cpu' });
    backend = (await openEngine({ engine: name })).backend;
  });

  if (name === 'cpu') {
    const cases = GRADIENT_CASES.filter(({ differences }) => differences);
    test.each(cases)('$name: as by finite differences', async (testCase) => {
      await tf.setBackend('cpu');
      const gradients = await gradientsOf(testCase);
      for (const slope of await slopesOf(testCase)) {
        const claimed = claimedSlope(gradients, slope);
        const error = Math.abs(claimed - slope.slope) / Math.max(1, Math.abs(slope.slope));
        const text = `${slope.variable}: gradient says ${claimed}, differences ${slope.slope}`;
        expect(error, text).toBeLessThan(DIFFERENCES_TOLERANCE);
      }
    });
  } else {
    test.each(GRADIENT_CASES)('$name: as on the cpu engine', async (testCase) => {
      const expected = await referenceOf(testCase);
      await tf.setBackend(backend);
      const tensors = tf.memory().numTensors;
      const buffers = tf.engine().backend.numDataIds();
      const refused = REFUSED[backend];
      if (refused?.cases.test(testCase.name)) {
        await expect(gradientsOf(testCase)).rejects.toThrow(refused.error);
        return;
      }
      const found = await gradientsOf(testCase);
      const tolerance = toleranceOf(backend, testCase.name);
      expect(difference(found.outputs, expected.outputs), 'output').toBeLessThan(tolerance);
      for (const [variable, gradient] of found.byVariable) {
        const other = expected.byVariable.get(variable)!;
        expect(difference(gradient, other), variable).toBeLessThan(tolerance);
      }
      expect(tf.memory().numTensors, 'tensors leaked').toBe(tensors);
      expect(tf.engine().backend.numDataIds(), 'buffers leaked').toBe(buffers);
    });
  }
});

function referenceOf(testCase: GradientCase): Promise<Gradients> {
  let reference = references.get(testCase.name);
  if (!reference) {
    reference = tf.setBackend('cpu').then(() => gradientsOf(testCase));
    references.set(testCase.name, reference);
  }
  return reference;
}

/** The largest difference, relative to the largest value expected. */
function difference(found: Float32Array, expected: Float32Array): number {
  if (found.length !== expected.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  let scale = 1e-3;
  for (let i = 0; i < expected.length; i++) {
    const gap = Math.abs(found[i]! - expected[i]!);
    if (!(gap <= worst)) worst = gap;
    scale = Math.max(scale, Math.abs(expected[i]!));
  }
  return worst / scale;
}
