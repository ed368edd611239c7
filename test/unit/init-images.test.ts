import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PNG } from 'pngjs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { InitOptions } from '../../cli/init/init.ts';
import { initCommand } from '../../cli/init/init.ts';
import { loadWritten, printedBy } from '../support/written-experiments.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-init-images-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function pictures(name: string, classes: readonly string[], count: number, side: number): string {
  for (const [c, label] of classes.entries()) {
    mkdirSync(join(folder, name, label), { recursive: true });
    for (let i = 0; i < count; i++) {
      const png = new PNG({ width: side, height: side });
      png.data.fill(40 * c + i).fill(255, png.data.length - 1);
      writeFileSync(join(folder, name, label, `${i}.png`), PNG.sync.write(png));
    }
  }
  return join(folder, name);
}

/** @returns what is said, and the path. */
async function init(file: string, options: InitOptions) {
  const path = join(folder, file);
  return { said: await printedBy(() => initCommand(path, { ...options, yes: true })), path };
}

describe('init on folders of images', () => {
  test('writes models that can be built, whatever the size of the pictures', async () => {
    const files: string[] = [];
    for (const side of [1, 2, 3, 9]) {
      const data = pictures(`side${side}`, ['a', 'b'], 3, side);
      for (const model of ['mlp', 'cnn'] as const) {
        // JavaScript may be asked for, too: no type stands in the file.
        const { path } = await init(`side${side}-${model}.mjs`, { data, model });
        expect(readFileSync(path, 'utf8')).toContain('minibatchSize: 5,');
        files.push(path);
      }
    }
    const sizes = loadWritten(files, true).map(({ parameters }) => parameters);
    expect(Math.min(...sizes)).toBeGreaterThan(0);
  });

  test('say classes with their counts, what was passed over, and which have few', async () => {
    const data = pictures('odd', ['it\u2019s', '*/ end', 'c'], 12, 4);
    rmSync(join(data, 'c', '1.png'));
    for (let i = 2; i < 12; i++) rmSync(join(data, 'c', `${i}.png`));
    writeFileSync(join(data, 'c', 'notes.txt'), 'no picture');
    const { said } = await init('odd.ts', { data });
    expect(said).toMatch(/25 images of 4 × 4; classes .*it’s \(12\)/);
    expect(said).toMatch(/class c: fewer than 10 training images/);
    expect(said).toContain('notes.txt');
    expect(said).not.toMatch(/classes? .*it’s: fewer/);
  });

  test('take a convolutional network for large pictures, and refuse what belongs to tables', async () => {
    const small = pictures('small', ['a', 'b'], 2, 8);
    const large = pictures('large', ['a', 'b'], 1, 80);
    const source = (path: string) => readFileSync(path, 'utf8');
    expect(source((await init('small.ts', { data: small })).path)).not.toContain('conv2d');
    expect(source((await init('large.ts', { data: large })).path)).toContain('conv2d');
    await expect(init('x.ts', { data: small, target: 'price' })).rejects.toThrow(
      '--target is only for tables',
    );
  });
});
