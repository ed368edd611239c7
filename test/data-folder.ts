import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * The folder with all of MNIST (`mnist/*.gz`): `DOWNPOUR_DATA`, else `shared/data` beside the
 * repository. Null when there is none, and the test that needs it is skipped; in CI that fails.
 */
export function sharedData(): string | null {
  const root = fileURLToPath(new URL('..', import.meta.url));
  const places = [process.env.DOWNPOUR_DATA, resolve(root, '../shared/data')];
  for (const place of places) {
    if (place && existsSync(resolve(place, 'mnist/train-images-idx3-ubyte.gz'))) {
      return resolve(place);
    }
  }
  if (process.env.CI) {
    throw new Error(`CI needs all of MNIST in one of ${places.filter(Boolean).join(', ')}`);
  }
  return null;
}
