// Compiles the AssemblyScript kernels to WASM SIMD and writes them as modules that need no build:
// `npm run kernels`. A test compiles them again and compares.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..');
export const LAYERS = ['server', 'shared', 'cli/paper', 'worker'];

/** @returns the text of a layer's `kernels/binary.ts`. */
export async function compile(layer) {
  const asc = await import('assemblyscript/asc');
  const folder = await mkdtemp(join(tmpdir(), 'downpour-kernels-'));
  try {
    const file = join(folder, 'kernels.wasm');
    const { error, stderr } = await asc.main(
      [
        join(ROOT, layer, 'kernels/assembly/index.ts'),
        ...['-O3', '--noAssert', '--runtime', 'stub', '--enable', 'simd', '--importMemory'],
        ...['--outFile', file],
      ],
      {},
    );
    if (error) throw new Error(`${layer}/kernels: ${error.message}\n${stderr.toString()}`);
    const text = (await readFile(file)).toString('base64');
    const lines = text.match(/.{1,90}/g).map((line) => `  '${line}'`);
    return `// Written by \`npm run kernels\` from assembly/index.ts.\nexport const BINARY =\n${lines.join(' +\n')};\n`;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Where the text of a layer's kernels lies. */
export const binaryPath = (layer) => join(ROOT, layer, 'kernels/binary.ts');

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  for (const layer of LAYERS) {
    await writeFile(binaryPath(layer), await compile(layer));
    console.log(`wrote ${layer}/kernels/binary.ts`);
  }
}
