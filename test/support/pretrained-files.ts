import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { io } from '@tensorflow/tfjs-core';
import { type LayersModel, tf } from '../../worker/tf.ts';

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
