import { join } from 'node:path';
import { ROOT, run, setup } from './setup.js';

// npm start [-- experiment.ts --option …]: installs what is needed and trains an example.
if (!(await setup())) process.exit(1);

const given = process.argv.slice(2);
const args = ['train'];
if (given[0] === undefined || given[0].startsWith('-')) args.push('examples/mnist-mlp.ts');
if (!given.some((arg) => /^(-w|--workers)/.test(arg) || arg === '--help' || arg === '-h')) {
  args.push('--workers', '2');
}
args.push(...given);
process.exit(await run(process.execPath, [join(ROOT, 'bin/downpour.js'), ...args]));
