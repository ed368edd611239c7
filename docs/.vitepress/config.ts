import { copyFileSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { defineConfig, type MarkdownOptions } from 'vitepress';
import { anchorOf } from '../../cli/docs/anchors.ts';

/**
 * `npm run docs:site`: a site of the same pages, with a search that runs in the browser. It loads nothing from other
 * hosts, and a link to a page that does not exist fails the build.
 */

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const FIRST = 'README.md';

/** Files that pages link and that are not pages themselves. */
const linked = new Set<string>();
/** Browsers show a file that ends in .txt, and download most other ones. */
const copyOf = (file: string) => `source/${file}${/\.png$/.test(file) ? '' : '.txt'}`;

/** The pages of a folder in docs/, named by their first heading. */
function pagesIn(folder: string) {
  return readdirSync(join(ROOT, 'docs', folder))
    .filter((name) => name.endsWith('.md'))
    .sort()
    .map((name) => {
      const path = join(folder, name);
      const [, text = name] =
        /^# (.+)$/m.exec(readFileSync(join(ROOT, 'docs', path), 'utf8')) ?? [];
      return page(text, path.replace(/\.md$/, ''));
    });
}

function page(text: string, name: string) {
  return { text, link: `/docs/${name}` };
}

const sidebar = [
  {
    text: 'Quick start',
    items: [
      { text: 'Overview', link: '/' },
      page('Getting started', 'getting-started'),
      page('Questions', 'questions'),
    ],
  },
  { text: 'Concepts', items: [page('Words and ideas', 'concepts')] },
  {
    text: 'Guides',
    items: [
      page('From a program', 'programs'),
      page('Data', 'data'),
      page('Training well', 'methodology'),
      page('Experiments', 'experiments'),
      page('Images', 'images'),
      page('Texts', 'text'),
      page('Layers and losses', 'layers'),
      page('Predict and export', 'export'),
      page('A cluster', 'cluster'),
      page('Many workers', 'asynchrony'),
      page('Workers in browsers', 'join'),
      page('The dashboard', 'dashboard'),
      page('Operations', 'operations'),
      { text: 'Security', link: '/SECURITY' },
      { text: 'A worker in Python', link: '/examples/python/README' },
    ],
  },
  {
    text: 'Reference',
    items: [
      page('Commands', 'cli'),
      page('Configuration', 'configuration'),
      page('REST', 'rest'),
      page('Errors', 'errors'),
      page('Advice and warnings', 'advice'),
      page('Protocol', 'protocol'),
      page('Messages of the protocol', 'protocol-messages'),
    ],
  },
  {
    text: 'Internals',
    items: [
      page('Architecture', 'architecture'),
      page('Reliability', 'reliability'),
      page('Benchmarks', 'benchmarks'),
      page('Results', 'results'),
      { text: 'Decisions', collapsed: true, items: pagesIn('decisions') },
      { text: 'Code style', link: '/STYLE' },
      { text: 'Changes', link: '/CHANGELOG' },
    ],
  },
];

const listed = sidebar.flatMap(({ items }) => items.map((item) => 'link' in item && item.link));
/** A page that the sidebar does not have yet is at the end of the guides. */
const guides = sidebar.find(({ text }) => text === 'Guides')?.items;
guides?.push(...pagesIn('.').filter(({ link }) => !listed.includes(link)));

/** Adapts the links of a page: the README is the site's first page, and other files are copies. */
const adaptLinks: MarkdownOptions['config'] = (md) => {
  md.core.ruler.push('adapt-links', ({ tokens, env }) => {
    for (const token of tokens.flatMap(({ children }) => children ?? [])) {
      const href = token.type === 'link_open' ? token.attrGet('href') : null;
      if (!href || /^([a-z]+:|#)/.test(href)) continue;
      const [path = '', anchor] = href.split('#');
      const file = relative(ROOT, join(dirname(env.path), path));
      if (file === FIRST) token.attrSet('href', anchor ? `/#${anchor}` : '/');
      if (file.endsWith('.md')) continue;
      if (!statSync(join(ROOT, file), { throwIfNoEntry: false })?.isFile()) {
        throw new Error(`${relative(ROOT, env.path)} links ${href}: there is no such file`);
      }
      linked.add(file);
      token.attrSet('href', `/${copyOf(file)}`);
      token.attrSet('target', '_blank');
    }
  });
};

export default defineConfig({
  title: 'Downpour',
  description: 'A distributed asynchronous-SGD parameter server for TensorFlow.js',
  srcDir: '..',
  srcExclude: ['!(docs|examples)/**/*.md', 'examples/data/**', 'docs/.vitepress/**'],
  rewrites: { [FIRST]: 'index.md' },
  metaChunk: true,
  markdown: { anchor: { slugify: anchorOf }, config: adaptLinks },
  themeConfig: { sidebar, outline: [2, 3], search: { provider: 'local' } },
  buildEnd: ({ outDir }) => {
    for (const file of linked) {
      const to = join(outDir, copyOf(file));
      mkdirSync(dirname(to), { recursive: true });
      copyFileSync(join(ROOT, file), to);
    }
  },
});
