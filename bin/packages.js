// Packages that a command is going to need, loaded before TypeScript can be: once it can, each of their hundreds of
// files is looked at by another thread, which makes them three times as slow to load. What is missing
// here is loaded when it is needed.

const ALWAYS = ['commander', 'typebox', 'typebox/value', 'typebox/compile'];
const SERVER = ['fastify', '@fastify/swagger', 'msgpackr', 'pino', 'esbuild'];
const WORKER = [
  'msgpackr',
  '@tensorflow/tfjs-core',
  '@tensorflow/tfjs-core/dist/public/chained_ops/register_all_chained_ops.js',
  '@tensorflow/tfjs-layers',
];
const STUDIES = ['search', 'lr-find', 'folds', 'stopping', 'curve', 'ablate', 'ensemble', 'scale'];
export const SERVERS = ['serve', 'train', 'resume', 'check', ...STUDIES];
export const WORKERS = ['work', 'check', 'simulate', 'look', 'refuse', 'ensemble', 'doctor'];

/** @param {string | undefined} command */
export const packagesOf = (command) => [
  ...ALWAYS,
  ...(SERVERS.includes(command) ? SERVER : []),
  ...(WORKERS.includes(command) ? WORKER : []),
];

/** @param {string | undefined} command */
export async function preload(command) {
  // Who needs one that cannot be loaded says so.
  await Promise.allSettled(packagesOf(command).map((name) => import(name)));
}
