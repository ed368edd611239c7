import { register } from 'tsx/esm/api';

// `downpour engine install` with nothing around it: the images build an engine from these few files, so that a
// change of any other builds none again.

register();
const { installEngine } = await import('../worker/engine-install.ts');
try {
  const { folder, manifest } = await installEngine({
    gpu: process.argv.includes('--gpu'),
    log: (line) => console.log(line),
  });
  console.log(`TensorFlow ${manifest.tensorflow}, ${manifest.variant}, in ${folder}`);
} catch (error) {
  console.error(`error ${error.code}: ${error.message}`);
  process.exitCode = 1;
}
