/**
 * What a case of the gradient conformance suite is, and how its gradients are taken: by the engine
 * that is set, and by finite differences.
 */
import * as tf from '@tensorflow/tfjs-core';
import type { layers } from '@tensorflow/tfjs-layers';
import { type Random, random } from '../../shared/random.ts';

export interface GradientCase {
  readonly name: string;
  /** False where finite differences would take minutes: the case compares engines only. */
  readonly differences: boolean;
  /** Makes the case on the engine that is set. */
  open(): OpenCase;
}

interface OpenCase {
  /** What is differentiated with respect to, by name. */
  readonly variables: ReadonlyMap<string, tf.Variable>;
  forward(): tf.Tensor;
  dispose(): void;
}

export interface Gradients {
  readonly outputs: Float32Array;
  readonly byVariable: ReadonlyMap<string, Float32Array>;
}

/** Values of one tensor, drawn by the suite: same name, same values, on every engine. */
export interface Draw {
  readonly shape: readonly number[];
  readonly values: (size: number, draws: Random) => Float32Array;
}

/** Uniform in [from, to). */
export function uniform(shape: readonly number[], from = -1, to = 1): Draw {
  return {
    shape,
    values: (size, draws) =>
      Float32Array.from({ length: size }, () => from + draws.uniform() * (to - from)),
  };
}

/**
 * Shuffled numbers 0.1 apart, none nearer to zero than 0.05: no kink (relu, abs) and no tie (max) is
 * within a step of the differences, nor decided by rounding.
 */
export function apart(shape: readonly number[], offset = 0): Draw {
  return {
    shape,
    values: (size, draws) => {
      const order = Array.from({ length: size }, (_, i) => i);
      for (let i = size - 1; i > 0; i--) {
        const j = draws.below(i + 1);
        [order[i], order[j]] = [order[j]!, order[i]!];
      }
      return Float32Array.from(order, (rank) => (rank - Math.floor(size / 2) + 0.5) * 0.1 + offset);
    },
  };
}

type Tensors<K extends string> = Readonly<Record<K, tf.Tensor>>;

/** A case of a function of tensors; all of them are differentiated. */
export function op<K extends string>(
  name: string,
  inputs: Readonly<Record<K, Draw>>,
  forward: (tensors: Tensors<K>) => tf.Tensor,
  options: { readonly differences: boolean } = { differences: true },
): GradientCase {
  return {
    name,
    differences: options.differences,
    open() {
      const variables = draw(name, inputs);
      return {
        variables,
        forward: () => forward(Object.fromEntries(variables) as unknown as Tensors<K>),
        dispose: () => tf.dispose([...variables.values()]),
      };
    },
  };
}

/** A case of a layer: its input (if that is drawn) and its weights are differentiated. */
export function layer(
  name: string,
  make: () => layers.Layer,
  input: Draw | (() => tf.Tensor),
  training = false,
): GradientCase {
  return {
    name: `layer ${name}`,
    differences: true,
    open() {
      const made = make();
      const fixed = typeof input === 'function' ? input() : undefined;
      const variables = new Map(fixed ? [] : draw(name, { x: input as Draw }));
      const x = fixed ?? variables.get('x')!;
      const forward = () => made.apply(x, { training }) as tf.Tensor;
      tf.dispose(forward());
      made.trainableWeights.forEach((weight, i) => {
        const variable = weight.read() as tf.Variable;
        const key = `weight ${i}`;
        const values = drawn(`${name} ${key}`, uniform(variable.shape, -0.6, 0.6));
        tf.tidy(() => variable.assign(tf.tensor(values, variable.shape)));
        variables.set(key, variable);
      });
      return {
        variables,
        forward,
        dispose() {
          made.dispose();
          tf.dispose([x, fixed].filter((tensor) => tensor !== undefined));
        },
      };
    },
  };
}

function draw(name: string, inputs: Readonly<Record<string, Draw>>): Map<string, tf.Variable> {
  return new Map(
    Object.entries(inputs).map(([key, input]) => {
      const values = drawn(`${name} ${key}`, input);
      return [key, tf.tidy(() => tf.variable(tf.tensor(values, [...input.shape])))];
    }),
  );
}

function drawn(name: string, { shape, values }: Draw): Float32Array {
  const size = shape.reduce((product, n) => product * n, 1);
  return values(size, draws(name));
}

function draws(name: string): Random {
  let seed = 0;
  for (const character of name) seed = (Math.imul(seed, 31) + character.codePointAt(0)!) | 0;
  return random(seed >>> 0, 0);
}

/** Weights of the outputs in the number that is differentiated: Σ weight · output. */
function cotangent(size: number): Float32Array {
  return drawn(`cotangent ${size}`, uniform([size]));
}

/** Output and gradients of `testCase` on the engine that is set. */
export async function gradientsOf(testCase: GradientCase): Promise<Gradients> {
  const open = testCase.open();
  try {
    const outputs = await values(() => open.forward());
    const taken = tf.tidy(() => {
      const weighted = () => {
        const output = open.forward();
        const weights = tf.tensor(cotangent(output.size), output.shape);
        return tf.sum(tf.mul(output, weights)) as tf.Scalar;
      };
      return tf.variableGrads(weighted, [...open.variables.values()]).grads;
    });
    const byVariable = new Map<string, Float32Array>();
    for (const [key, variable] of open.variables) {
      const gradient = taken[variable.name]!;
      byVariable.set(key, Float32Array.from(await gradient.data()));
    }
    tf.dispose(taken);
    return { outputs, byVariable };
  } finally {
    open.dispose();
  }
}

/** The slope of Σ weight · output along one direction in the space of one variable. */
export interface Slope {
  readonly variable: string;
  readonly direction: Float32Array;
  readonly slope: number;
}

/** Single elements tried of each variable, spread over it; as many random directions besides. */
const ELEMENTS = 8;
const DIRECTIONS = 2;

/**
 * Step of the differences. With the five-point rule the error of the rule goes as step⁴ (1e-8) and
 * that of float32 as 1e-7 / step (1e-5): about even, and far below what a wrong gradient shows.
 */
const STEP = 0.01;

/** Slopes of `testCase` by central differences (five points) on the engine that is set. */
export async function slopesOf(testCase: GradientCase): Promise<Slope[]> {
  const open = testCase.open();
  const slopes: Slope[] = [];
  try {
    for (const [name, variable] of open.variables) {
      const start = Float32Array.from(await variable.data());
      for (const direction of directions(`${testCase.name} ${name}`, start.length)) {
        const at = async (step: number) => {
          const moved = start.map((value, i) => value + step * direction[i]!);
          tf.tidy(() => variable.assign(tf.tensor(moved, variable.shape)));
          return weightedSum(await values(() => open.forward()));
        };
        const near = (await at(STEP)) - (await at(-STEP));
        const far = (await at(2 * STEP)) - (await at(-2 * STEP));
        slopes.push({ variable: name, direction, slope: (8 * near - far) / (12 * STEP) });
      }
      tf.tidy(() => variable.assign(tf.tensor(start, variable.shape)));
    }
    return slopes;
  } finally {
    open.dispose();
  }
}

/** The slope that `gradients` claims along the direction of `slope`. */
export function claimedSlope(gradients: Gradients, { variable, direction }: Slope): number {
  const gradient = gradients.byVariable.get(variable)!;
  let sum = 0;
  for (let i = 0; i < direction.length; i++) sum += gradient[i]! * direction[i]!;
  return sum;
}

/** Single elements, first and last among them (borders), then directions that move all at once. */
function directions(name: string, size: number): Float32Array[] {
  const result: Float32Array[] = [];
  const elements = Math.min(size, ELEMENTS);
  for (let i = 0; i < elements; i++) {
    const element = elements === 1 ? 0 : Math.round((i * (size - 1)) / (elements - 1));
    const direction = new Float32Array(size);
    direction[element] = 1;
    result.push(direction);
  }
  const random = draws(name);
  for (let i = 0; i < DIRECTIONS && size > elements; i++) {
    result.push(Float32Array.from({ length: size }, () => random.uniform() * 2 - 1));
  }
  return result;
}

function weightedSum(outputs: Float32Array): number {
  const weights = cotangent(outputs.length);
  let sum = 0;
  for (let i = 0; i < outputs.length; i++) sum += outputs[i]! * weights[i]!;
  return sum;
}

async function values(make: () => tf.Tensor): Promise<Float32Array> {
  const tensor = tf.tidy(make);
  // A copy: the cpu engine hands out its own memory.
  const copy = Float32Array.from(await tensor.data());
  tensor.dispose();
  return copy;
}
