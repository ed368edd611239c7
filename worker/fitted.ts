import { readFile } from 'node:fs/promises';
import type { io } from '@tensorflow/tfjs-core';
import { unpackData } from './data/packed.ts';
import type { ClassWeights, Experiment, LossName, ModelArguments } from './experiment.ts';
import type { LayersModel } from './tf.ts';

/** An experiment made of a model and arrays that a program had: both lie in files beside the experiment's own. */

/** What the experiment's file says. */
export interface FittedSpec {
  readonly loss: LossName;
  /** `packData` wrote it. */
  readonly data: URL;
  /** JSON of `modelTopology` and `weightSpecs`. */
  readonly model: URL;
  /** `weightData`: what training begins with. */
  readonly weights: URL;
  readonly classWeights?: ClassWeights;
}

export function fittedExperiment({
  loss,
  data,
  model,
  weights,
  classWeights,
}: FittedSpec): Experiment {
  let artifacts: Promise<io.ModelArtifacts> | null = null;
  const read = async (): Promise<io.ModelArtifacts> => {
    const [json, bytes] = await Promise.all([readFile(model, 'utf8'), readFile(weights)]);
    return { ...(JSON.parse(json) as io.ModelArtifacts), weightData: memoryOf(bytes) };
  };
  return {
    data: async () => unpackData(new Uint8Array(memoryOf(await readFile(data)))),
    async model({ tf }: ModelArguments): Promise<LayersModel> {
      artifacts ??= read();
      return tf.loadLayersModel(tf.io.fromMemory(await artifacts));
    },
    loss,
    ...(classWeights && { classWeights }),
  };
}

/** A copy in memory of its own, where arrays of any type begin at a multiple of their element size. */
const memoryOf = ({ buffer, byteOffset, byteLength }: Buffer) =>
  buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer;
