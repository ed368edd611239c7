import { readFile } from 'node:fs/promises';
import { IS_BUILT, ROOT as OWN_FILES } from '../../shared/own-files.ts';
import { bundleModule, ROOT } from './bundler.ts';

/** `predict.js`: what `export` writes beside a model, so that it can be used without Downpour. */

const NAME = 'predict.js';
/** Where the built package has it. */
export const BUILT_MODEL_SCRIPT = `dist/page/${NAME}`;

export async function modelScript(): Promise<string> {
  return IS_BUILT ? readFile(new URL(BUILT_MODEL_SCRIPT, OWN_FILES), 'utf8') : bundleModelScript();
}

/** For plain TensorFlow.js, in Node and browsers: one file that imports nothing. */
export async function bundleModelScript(): Promise<string> {
  const entry = {
    name: 'predict',
    contents: `export { openModel } from './worker/serving/exported-model.ts';`,
    folder: ROOT,
  };
  const { outputFiles } = await bundleModule(entry, NAME, {
    ...{ platform: 'neutral', target: 'es2022', external: ['node:*'] },
    banner: {
      js: '// Opens the model beside this file with TensorFlow.js. Written by `downpour export`.',
    },
  });
  return outputFiles![0]!.text;
}
