#!/usr/bin/env node
// Plain JavaScript: an old Node must be able to read this file and say that it is too old.
import { existsSync } from 'node:fs';
import nodeModule from 'node:module';
import { nodeProblem } from './node-lines.js';

const problem = nodeProblem();
if (problem !== null) {
  console.error(`error DP_USAGE: ${problem}`);
  process.exit(2);
}
// From Node.js 22.1 on: what was compiled once is kept for the next time.
nodeModule.enableCompileCache?.();

const { main } = await load();
process.exit(await main(process.argv.slice(2)));

/**
 * The installed package has `dist/` alone. A checkout runs its sources as they are, whatever `npm run build` has left in
 * `dist/`: that may be older than they are.
 */
async function load() {
  const isCheckout = existsSync(new URL('../cli/main.ts', import.meta.url));
  try {
    if (!isCheckout) return await import('../dist/cli.js');
    const { register } = await import('tsx/esm/api');
    const { preload } = await import('./packages.js');
    await preload(process.argv[2]);
    register();
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    const remedy = isCheckout ? 'run `npm ci` in its folder' : 'install downpour again';
    console.error(
      `error DP_USAGE: a package that Downpour needs is not installed (${error.message.split(' imported from ')[0]}); ${remedy}, then try again.`,
    );
    process.exit(2);
  }
  return import('../cli/main.ts');
}
