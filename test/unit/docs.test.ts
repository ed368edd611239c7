import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import type { Command } from 'commander';
import { beforeAll, describe, expect, test } from 'vitest';
import { createProgram } from '../../cli/main.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const pages = [
  'README.md',
  'STYLE.md',
  'SECURITY.md',
  'CHANGELOG.md',
  'examples/python/README.md',
  ...in_('docs'),
  ...in_('docs/decisions'),
];

function in_(folder: string): string[] {
  const path = join(ROOT, folder);
  if (!existsSync(path)) return [];
  return readdirSync(path)
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(folder, name));
}

/** How the program is called, with variables before it. */
const COMMAND = /^(\w+=\S+\s+)*(npx\s+|node\s+)?(bin\/downpour\.js|downpour)\s+/;

/** As GitHub makes them of headings; a heading that comes again gets a number. */
function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  const withoutCode = markdown.replace(/^```[\s\S]*?^```/gm, '');
  for (const [, heading] of withoutCode.matchAll(/^#{1,6} (.+)$/gm)) {
    const slug = heading!
      .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .toLowerCase()
      .replace(/[^\p{Letter}\p{Number} _-]/gu, '')
      .replaceAll(' ', '-');
    let anchor = slug;
    for (let i = 1; anchors.has(anchor); i++) anchor = `${slug}-${i}`;
    anchors.add(anchor);
  }
  return anchors;
}

let program: Command;
beforeAll(async () => {
  program = await createProgram({ exitCode: 0 });
});

describe.each(pages)('%s', (page) => {
  const text = readFileSync(join(ROOT, page), 'utf8');

  test('has no marks of a merge', () => {
    expect(text).not.toMatch(/^(<{7} |={7}$|>{7} )/m);
  });

  test('links to files that exist', () => {
    const targets = [...text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
      .map(([, target]) => target!)
      .filter((target) => !/^https?:/.test(target));
    const missing = targets.filter((target) => !existsSync(join(ROOT, dirname(page), target)));
    expect(missing).toEqual([]);
  });

  test('links to headings that there are', () => {
    const targets = [...text.matchAll(/\]\(([^)#\s]*)#([^)\s]+)\)/g)]
      .map(([, file, anchor]) => ({ file: file!, anchor: anchor! }))
      .filter(({ file }) => !/^https?:/.test(file));
    const missing = targets.filter(({ file, anchor }) => {
      const target = file === '' ? page : join(dirname(page), file);
      return !anchorsOf(readFileSync(join(ROOT, target), 'utf8')).has(anchor);
    });
    expect(missing).toEqual([]);
  });

  test('names commands and options that there are', () => {
    const blocks = [...text.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, block]) => block!);
    const lines = blocks
      .flatMap((block) => block.replaceAll('\\\n', ' ').split('\n'))
      .map((line) => line.replace(/\s+#.*$/, ''))
      .filter((line) => COMMAND.test(line));
    for (const line of lines) {
      const words = line.replace(COMMAND, '').split(/\s+/);
      let command = program;
      while (words[0] && command.commands.some((child) => child.name() === words[0])) {
        const name = words.shift();
        command = command.commands.find((child) => child.name() === name)!;
      }
      expect(command, `command of: ${line}`).not.toBe(program);
      const known = command.options.flatMap((option) => [option.long, option.short]);
      for (const word of words.filter((w) => w.startsWith('--'))) {
        expect(known, `${word} of: ${line}`).toContain(word.split('=')[0]);
      }
    }
  });
});
