#!/usr/bin/env node
// Plain JavaScript: an old Node must be able to read this file and say that it is too old.
const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 11)) {
  console.error(
    `error DP_USAGE: Downpour needs Node.js 20.11 or newer; this is ${process.versions.node}. Get a newer one, then try again.`,
  );
  process.exit(2);
}

let register;
try {
  ({ register } = await import('tsx/esm/api'));
} catch (error) {
  if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
  console.error(
    'error DP_USAGE: the packages that Downpour needs are not installed; run `npm ci` in its folder, then try again.',
  );
  process.exit(2);
}
const { preload } = await import('./packages.js');
await preload(process.argv[2]);
// Runs TypeScript as it is: Downpour's own and the user's experiments.
register();
const { main } = await import('../cli/main.ts');
process.exit(await main(process.argv.slice(2)));
