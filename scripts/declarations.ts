import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative, sep } from 'node:path';

/**
 * The declarations of the built package, in the folders of their sources below `dist/types/`.
 *
 * Those of TensorFlow.js have errors that every strict program gets which does not skip the check of libraries: index
 * signatures that their own fields do not fit, a class that does not fit what it implements, names of other packages. So
 * ours have copies of them without these, and without private members: a model that a program has made with its own
 * TensorFlow.js fits then, since what is left is compared by structure.
 */

/** What is wrong with them, and what stands there instead. */
const REPAIRS: readonly (readonly [RegExp, string])[] = [
  [/^\/\/\/ <(reference|amd-module).*$/gm, ''],
  [/ implements [^{]+(?=\{)/g, ' '],
  [/ extends PyJsonDict\b/g, ''],
  [/\bT extends PyJson<Extract<keyof T, string>>/g, 'T'],
  // What `this` is would be compared with the copy's own class.
  [/\bthis: T(, )?/g, ''],
  [/\bLong\b/g, 'object'],
  [
    /\b(WebGLTexture|WebGLContextAttributes|WebGLRenderingContext|WebGL2RenderingContext)\b/g,
    'object',
  ],
  [
    /\b(IDBFactory|Navigator|ImageData|ImageBitmap|HTML\w+Element|OffscreenCanvas|GPUBuffer)\b/g,
    'object',
  ],
];
const PACKAGES = ['tfjs-core', 'tfjs-layers'] as const;

/**
 * @param root the folder of Downpour. @param types the folder to write to.
 * @param entries what the package exports: paths in it.
 */
export async function declare(
  root: string,
  types: string,
  entries: readonly string[],
): Promise<void> {
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const { status } = spawnSync(process.execPath, [tsc, '--project', 'tsconfig.build.json'], {
    ...{ cwd: root, stdio: 'inherit' },
  });
  if (status !== 0) throw new Error('no declarations: see above');
  for (const file of await declarationsIn(types)) {
    await rewrite(join(types, file), (text) => ownImports(text, file));
  }
  for (const name of PACKAGES) {
    const from = join(root, 'node_modules/@tensorflow', name, 'dist');
    const to = join(types, name);
    for (const file of await declarationsIn(from)) {
      if (/_test\.d\.ts$/.test(file)) continue;
      await mkdir(dirname(join(to, file)), { recursive: true });
      await cp(join(from, file), join(to, file));
      await rewrite(join(to, file), (text) => repaired(text, join(name, file)));
    }
    // Imports in them have no endings, which modules of CommonJS need not have.
    await writeFile(join(to, 'package.json'), '{ "type": "commonjs" }\n');
  }
  await prune(types, entries);
}

/** Leaves those that a program reaches. */
async function prune(types: string, entries: readonly string[]): Promise<void> {
  const reached = new Set<string>();
  const waiting = entries.map((entry) => join(types, entry));
  for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
    if (reached.has(file)) continue;
    reached.add(file);
    const text = await readFile(file, 'utf8');
    for (const [, target] of text.matchAll(/(?:from |import\(?)\s*['"](\.[^'"]*)['"]/g)) {
      const path = join(dirname(file), target!.replace(/\.js$/, ''));
      const found = [`${path}.d.ts`, join(path, 'index.d.ts')].find((each) => existsSync(each));
      if (found === undefined) throw new Error(`${file} imports ${target}, which is not there`);
      waiting.push(found);
    }
  }
  for (const file of await declarationsIn(types)) {
    if (!reached.has(join(types, file))) await rm(join(types, file));
  }
}

async function declarationsIn(folder: string): Promise<string[]> {
  const files = await readdir(folder, { recursive: true });
  return files.filter((file) => file.endsWith('.d.ts'));
}

async function rewrite(file: string, change: (text: string) => string): Promise<void> {
  await writeFile(file, change(await readFile(file, 'utf8')));
}

/** TypeScript leaves the endings of imports as they are written, and `.ts` is none that a user has. */
function ownImports(text: string, file: string): string {
  const own = text.replace(/(['"]\.{1,2}\/[^'"]*)\.ts(['"])/g, '$1.js$2');
  return copiedImports(own, file, '/index.js');
}

/** @param ending of a package's own name; deeper paths are written out. */
function copiedImports(text: string, file: string, ending: string): string {
  const up = relative(dirname(file), '.').split(sep).join('/') || '.';
  const names = PACKAGES.join('|');
  return text.replace(
    new RegExp(`(['"])@tensorflow/(${names})(?:/dist/([^'"]+))?\\1`, 'g'),
    (_all, quote, name, path) => `${quote}${up}/${name}${path ? `/${path}` : ending}${quote}`,
  );
}

function repaired(text: string, file: string): string {
  const open = withoutHidden(text);
  return copiedImports(
    REPAIRS.reduce((now, [wrong, right]) => now.replace(wrong, right), open),
    ...[file, '/index'],
  );
}

/** Without private and protected members, which may have several lines. */
function withoutHidden(text: string): string {
  const kept: string[] = [];
  let depth = 0;
  let hidden = false;
  for (const line of text.split('\n')) {
    if (!hidden && /^\s+(private|protected)\b/.test(line)) hidden = true;
    if (!hidden) {
      kept.push(line);
      continue;
    }
    depth += (line.match(/[({[]/g) ?? []).length - (line.match(/[)}\]]/g) ?? []).length;
    if (depth === 0 && line.trimEnd().endsWith(';')) hidden = false;
  }
  return kept.join('\n');
}
