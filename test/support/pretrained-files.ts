import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { io } from '@tensorflow/tfjs-core';
import { type LayersModel, tf } from '../../worker/tf.ts';
import { png } from './pictures.ts';

/** Files of layers models, as `model.save` and converters write them. */

async function artifactsOf(model: LayersModel): Promise<io.ModelArtifacts> {
  let saved: io.ModelArtifacts;
  await model.save(
    tf.io.withSaveHandler(async (artifacts) => {
      saved = artifacts;
      return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
    }),
  );
  return saved!;
}

export type ModelJson = Record<string, unknown> & {
  weightsManifest: { paths: string[]; weights: io.WeightsManifestEntry[] }[];
};

export interface WrittenModel {
  readonly json: ModelJson;
  readonly shards: readonly Uint8Array[];
}

/** What `model.save` writes, in several files. */
export async function writtenModel(model: LayersModel, shardCount = 1): Promise<WrittenModel> {
  const { modelTopology, weightSpecs = [], weightData } = await artifactsOf(model);
  const bytes = new Uint8Array(tf.io.CompositeArrayBuffer.join(weightData!));
  // Cut without regard to tensors and their elements, as converters do.
  const length = Math.ceil(bytes.length / shardCount);
  const shards = Array.from({ length: shardCount }, (_, i) =>
    bytes.slice(i * length, (i + 1) * length),
  );
  const paths = shards.map((_, i) => `group1-shard${i + 1}of${shardCount}.bin`);
  const weightsManifest = [{ paths, weights: weightSpecs }];
  return { json: { format: 'layers-model', modelTopology, weightsManifest }, shards };
}

/** @param file of the model.json; the others lie beside it. @returns the hash that the experiment needs. */
export function writeModel(file: string, { json, shards }: WrittenModel): string {
  const text = JSON.stringify(json);
  writeFileSync(file, text);
  const hash = createHash('sha256').update(text);
  for (const [i, path] of json.weightsManifest.flatMap(({ paths }) => paths).entries()) {
    writeFileSync(join(dirname(file), path), shards[i]!);
    hash.update(shards[i]!);
  }
  return hash.digest('hex');
}

/** Convolutions 1 to 4 of the trunk. */
export const PHOTO_BLOCKS = [1, 2, 3, 4];

/** A trunk of blocks with a head for ten other classes, saved while its layers are frozen, as Keras's examples do. */
export function photoModel(side: number | null = 12): LayersModel {
  const image = tf.input({ shape: [side, side, 3], name: 'image' });
  let x: unknown = image;
  const add = (layer: unknown) => {
    x = (layer as { apply(x: unknown): unknown }).apply(x);
  };
  for (const block of PHOTO_BLOCKS) {
    const filters = { filters: 4, kernelSize: 3, padding: 'same' } as const;
    add(tf.layers.conv2d({ ...filters, name: `block_${block}_conv`, trainable: false }));
    add(tf.layers.batchNormalization({ name: `block_${block}_norm`, trainable: false }));
    add(tf.layers.reLU({ maxValue: 6, name: `block_${block}_relu` }));
  }
  add(tf.layers.averagePooling2d({ poolSize: side ?? 2, name: 'pool' }));
  add(side === null ? tf.layers.globalAveragePooling2d({}) : tf.layers.flatten({ name: 'flat' }));
  add(tf.layers.dense({ units: 8, activation: 'relu', name: 'hidden' }));
  add(tf.layers.dropout({ rate: 0.5, name: 'drop' }));
  add(tf.layers.dense({ units: 10, activation: 'softmax', name: 'answers' }));
  const model = tf.model({ inputs: image, outputs: x as never, name: 'net' });
  let k = 0;
  for (const weight of model.weights) {
    const size = weight.shape.reduce<number>((product, d) => product * d!, 1);
    const values = Float32Array.from({ length: size }, () => 0.2 + Math.abs(Math.sin(++k)) / 3);
    weight.write(tf.tensor(values, weight.shape as number[]));
  }
  return model;
}

const PHOTOS = 10;

/** A folder for each class with pictures of several sizes, of one colour each. */
export function writePhotos(folder: string, classes: readonly string[]): void {
  for (const [c, label] of classes.entries()) {
    mkdirSync(join(folder, label), { recursive: true });
    for (let i = 0; i < PHOTOS; i++) {
      const picture = png(20 + (i % 3), 16, () => [80 * c + i, 9, 200]);
      writeFileSync(join(folder, label, `${i}.png`), picture);
    }
  }
}
