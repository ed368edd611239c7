import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { type DataPackage, fetchedPackage } from '../../bench/packages.ts';

/** A real pretrained network of others: the MobileNetV2 that the npm package nsfwjs (MIT) carries, 2.6 MB. */

const NSFWJS: DataPackage = {
  registry: 'npm',
  name: 'nsfwjs',
  version: '4.3.0',
  sha512:
    'WTKDte0vp1X97N1h34P79G/hG+sVT3+TnDz9di1WseIJR93v11E4viNX7Vg9WsO6HYoR772Nzq2iM8jo3XBZ+g==',
};

/**
 * Writes it as `model.save` does: the package has the topology as a script, and the weights as base64.
 * @returns the path of the model.json.
 * @throws Error: the package cannot be fetched, or has another hash.
 */
export function writeNsfwjs(folder: string): string {
  const load = createRequire(import.meta.url);
  const from = join(fetchedPackage(NSFWJS), 'dist/models/mobilenet_v2');
  const json = load(join(from, 'model.min.js'));
  const path = join(folder, 'model.json');
  writeFileSync(path, JSON.stringify({ format: 'layers-model', ...json }));
  const [shard] = json.weightsManifest[0].paths;
  const weights: string = load(join(from, 'group1-shard1of1.min.js'));
  writeFileSync(join(folder, shard), Buffer.from(weights, 'base64'));
  return path;
}
