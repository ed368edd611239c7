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

  test('names paths of code that there are', () => {
    // The log of changes tells of what was.
    if (page === 'CHANGELOG.md') return;
    const code = /`((?:bin|cli|files|server|shared|study|test|web|wire|worker)\/[\w./-]+)`/g;
    const paths = [...text.matchAll(code)].map(([, path]) => path!);
    expect(paths.filter((path) => !existsSync(join(ROOT, path)))).toEqual([]);
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

describe('docs/architecture.md', () => {
  const text = readFileSync(join(ROOT, 'docs/architecture.md'), 'utf8');

  /** Cells of the rows of a section's table. */
  function rowsOf(heading: string): string[][] {
    const [, section = ''] = text.split(`\n## ${heading}\n`);
    const [table = ''] = section.split('\n## ');
    const rows = table.split('\n').filter((line) => /^\| [^-]/.test(line));
    return rows.slice(1).map((row) =>
      row
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
  }

  test('has every room of the server', () => {
    const rooms = rowsOf('The rooms').map(([folder]) => folder!.replace(/[`/]/g, ' ').trim());
    const folders = readdirSync(join(ROOT, 'server'), { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => `server ${name}`);
    expect(folders.filter((folder) => !rooms.includes(folder))).toEqual([]);
  });

  test('answers each question by a path', () => {
    const rows = rowsOf('Where do I find …');
    expect(rows.length).toBeGreaterThanOrEqual(20);
    for (const [question, answer] of rows) {
      expect(question).toMatch(/\?$/);
      const [, path] = /^`([^`]+)`/.exec(answer!) ?? [];
      expect(existsSync(join(ROOT, path ?? 'missing')), `${question} ${answer}`).toBe(true);
    }
  });
});
