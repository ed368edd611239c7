import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import type { Command } from 'commander';
import { beforeAll, describe, expect, test } from 'vitest';
import { anchorOf } from '../../cli/docs/anchors.ts';
import { glossaryPages, glossaryTerms, linkGlossary } from '../../cli/docs/glossary.ts';
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

/** The ids of a page's headings. A heading that comes again gets a number. */
function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  const withoutCode = markdown.replace(/^```[\s\S]*?^```/gm, '');
  for (const [, heading] of withoutCode.matchAll(/^#{1,6} (.+)$/gm)) {
    const slug = anchorOf(heading!);
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

  test('begins with a command or an example, before any long table', () => {
    // Decisions, the log of changes and the rules of style have nothing to try.
    if (/decisions|CHANGELOG|STYLE/.test(page)) return;
    const lines = text.split('\n');
    const example = lines.findIndex((line) => /^```|^ {4}\S|`npx downpour/.test(line));
    const isRow = (line: string | undefined) => line?.startsWith('|') ?? false;
    const longTable = lines.findIndex((_, i) => lines.slice(i, i + 16).every(isRow));
    expect(example).toBeGreaterThan(-1);
    expect(example).toBeLessThan(24);
    if (longTable !== -1) expect(example).toBeLessThan(longTable);
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

test('docs/cli.md has the options for TLS once for clients and once for servers', () => {
  const text = readFileSync(join(ROOT, 'docs/cli.md'), 'utf8');
  for (const option of ['--tls-ca', '--tls-cert', '--tls-key', '--token-file']) {
    const sections = text.split('\n## ').filter((section) => section.includes(`\n  ${option} <`));
    const titles = sections.map((section) => section.split('\n')[0]);
    expect(titles, option).toEqual(['Connection options', 'Access and TLS options']);
  }
});

describe('the glossary of docs/concepts.md', () => {
  const terms = glossaryTerms();

  test('has the words that a stranger does not know, in the order of the alphabet', () => {
    const needed = ['lease', 'staleness', 'generation', 'incarnation', 'life', 'phase', 'refit'];
    for (const term of [...needed, 'shard', 'standby']) expect(terms).toContain(term);
    expect(terms).toEqual([...terms].sort());
  });

  test('is linked where prose first uses a word, once, and not in code or another link', () => {
    const page = '# Lease\n\n`lease`, [the lease](x.md), Leases and a lease.\n\n    stale\n';
    const linked = page.replace('Leases', '[Leases](concepts.md#lease)');
    expect(linkGlossary(page, 'docs/a.md')).toBe(linked);
    expect(linkGlossary(linked, 'docs/a.md')).toBe(linked);
    const late = page.replace('a lease', 'a [lease](concepts.md#lease)');
    expect(linkGlossary(late, 'docs/a.md')).toBe(linked);
    expect(linkGlossary('A push.', 'README.md')).toBe('A [push](docs/concepts.md#push).');
  });

  test.each(glossaryPages())(
    'is linked at the first use of its words in %s; `npm run docs` links them',
    (page) => {
      const text = readFileSync(join(ROOT, page), 'utf8');
      expect(linkGlossary(text, page, terms)).toBe(text);
    },
  );
});

describe('a newcomer', () => {
  const read = (page: string) => readFileSync(join(ROOT, page), 'utf8');
  const linksOf = (page: string) =>
    [...read(page).matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
      .map(([, target]) => target!)
      .filter((target) => /\.md$/.test(target) && !/^https?:/.test(target))
      .map((target) => join(dirname(page), target));
  const [, asked] = /\n(\| question[\s\S]*?)\n\n|$/.exec(`${read('docs/questions.md')}\n\n`)!;
  const rows = (asked ?? '').split('\n').slice(2);

  test('asks ten questions', () => {
    expect(rows).toHaveLength(10);
    for (const row of rows) expect(row).toMatch(/^\| .+\? \| .+\. \| \[.+\]\(.+\) \|$/);
  });

  test('is at most two clicks from each answer', () => {
    const first = linksOf('README.md');
    const second = new Set([...first, ...first.flatMap(linksOf)]);
    const answers = rows.map((row) => /\]\(([^)#]+)[^)]*\) \|$/.exec(row)![1]!);
    expect(first).toContain('docs/questions.md');
    expect(answers.filter((page) => !second.has(join('docs', page)))).toEqual([]);
  });

  test('finds every page of the documentation by two clicks', () => {
    const first = linksOf('README.md');
    const second = new Set(['README.md', ...first, ...first.flatMap(linksOf)]);
    expect(pages.filter((page) => !second.has(page) && !/decisions/.test(page))).toEqual([]);
  });

  test('has a short README, which ends with the way to all pages', () => {
    expect(read('README.md').split('\n').length).toBeLessThanOrEqual(82);
    expect(read('README.md').indexOf('## More')).toBeGreaterThan(0);
  });
});
