import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';
import { loadLayersModel } from '@tensorflow/tfjs-layers';

/**
 * What a program does with an exported model that knows nothing of Downpour: TensorFlow.js, and what
 * `downpour.json` says of the inputs. Nothing here is imported from the project.
 */

interface Facts {
  readonly inputNames: readonly string[];
  readonly inputTransform: {
    readonly kind: 'none' | 'global' | 'feature';
    readonly scale: number;
    readonly mean: readonly number[];
    readonly deviation: readonly number[];
  };
  readonly classes: readonly string[] | null;
}

export interface Predictions {
  /** One row an example, as the model gives them. */
  readonly outputs: readonly (readonly number[])[];
  /** As the table has them. */
  readonly inputs: readonly (readonly number[])[];
  /** As text, as the table has them. */
  readonly targets: readonly string[];
  readonly facts: Facts;
}

/** @param folder with model.json, weights.bin, downpour.json. @param table without quotes, numbers only */
export async function predict(folder: string, table: string): Promise<Predictions> {
  await tf.setBackend('cpu');
  const facts = JSON.parse(readFileSync(join(folder, 'downpour.json'), 'utf8')) as Facts;
  const model = await loadLayersModel(fromFolder(folder));
  const [header, ...rows] = readFileSync(table, 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(','));
  const columns = facts.inputNames.map((name) => {
    const column = header!.indexOf(name);
    if (column < 0) throw new Error(`${table} has no column ${name}`);
    return column;
  });
  const { kind, scale, mean, deviation } = facts.inputTransform;
  const inputs = rows.map((row) => columns.map((column) => Number(row[column])));
  const transformed = inputs.map((row) =>
    row.map((value, j) => {
      const at = kind === 'global' ? 0 : j;
      return kind === 'none' ? value * scale : (value * scale - mean[at]!) / deviation[at]!;
    }),
  );
  const outputs = tf.tidy(() => {
    const answer = model.predict(tf.tensor2d(transformed)) as tf.Tensor2D;
    return answer.arraySync();
  });
  const target = header!.indexOf('target');
  return { outputs, inputs, targets: rows.map((row) => row[target]!), facts };
}

/** Share of wrong classes, or mean absolute error. */
export function errorOf({ outputs, targets, facts }: Predictions): number {
  const { classes } = facts;
  const wrong = outputs.map((output, i) => {
    if (classes === null) return Math.abs(output[0]! - Number(targets[i]));
    // The numbers 1 and 1.0 are one class.
    const name = classes[output.indexOf(Math.max(...output))]!;
    return name === targets[i] || Number(name) === Number(targets[i]) ? 0 : 1;
  });
  return wrong.reduce((a, b) => a + b, 0) / wrong.length;
}

/** Reads model.json and its weights as a browser would. */
export function fromFolder(path: string): tf.io.IOHandler {
  return {
    load: async () => {
      const json = JSON.parse(readFileSync(join(path, 'model.json'), 'utf8')) as tf.io.ModelJSON;
      const [manifest] = json.weightsManifest;
      const bytes = readFileSync(join(path, manifest!.paths[0]!));
      return {
        modelTopology: json.modelTopology,
        weightSpecs: manifest!.weights,
        weightData: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length),
      } as tf.io.ModelArtifacts;
    },
  };
}
