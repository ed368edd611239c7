import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Links the words of docs/concepts.md where a page first uses them. */

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const CONCEPTS = 'concepts.md';

/** Other forms of a word, as a regular expression; without one: the word, and its plural with an s. */
const FORMS: Readonly<Record<string, string>> = {
  'early stopping': 'early\\s+stopping',
  lease: 'leases?',
  life: 'life',
  pull: 'pull|pulls',
  push: 'push|pushes',
  refit: 'refits?|refitting',
  staleness: 'staleness|stale|staler',
  standby: 'standbys?|standbies',
};

/** Made by programs, or with no reader who needs the link. */
const WITHOUT: readonly string[] = [
  CONCEPTS,
  ...['cli', 'configuration', 'errors', 'rest', 'protocol-messages'].map((name) => `${name}.md`),
];

/** Paths of the pages that link the words, from the root of the project. */
export function glossaryPages(): string[] {
  const pages = readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md') && !WITHOUT.includes(name))
    .map((name) => `docs/${name}`);
  return ['README.md', 'SECURITY.md', ...pages];
}

/** The words of the glossary, in its order, in small letters. */
export function glossaryTerms(): string[] {
  const page = readFileSync(join(ROOT, 'docs', CONCEPTS), 'utf8');
  const [, glossary = ''] = page.split('\n## Glossary\n');
  return [...glossary.matchAll(/^### (.+)$/gm)].map(([, term]) => term!.toLowerCase());
}

/**
 * The page with one link for each word of the glossary that it uses: at the first use in its prose. Linking twice changes nothing.
 * @param page its path from the root of the project.
 */
export function linkGlossary(
  markdown: string,
  page: string,
  terms: readonly string[] = glossaryTerms(),
): string {
  const target = page.startsWith('docs/') ? CONCEPTS : `docs/${CONCEPTS}`;
  const plain = markdown.replace(/\[([^\]]*)\]\([^)\s]*concepts\.md#[^)]*\)/g, '$1');
  return terms.reduce((text, term) => {
    const use = new RegExp(`\\b(?:${FORMS[term] ?? `${term}s?`})\\b`, 'i').exec(proseOf(text));
    if (!use) return text;
    const end = use.index + use[0].length;
    const link = `[${text.slice(use.index, end)}](${target}#${term.replaceAll(' ', '-')})`;
    return text.slice(0, use.index) + link + text.slice(end);
  }, plain);
}

/** A page in which code, headings, links and what a program writes are blank, every other character at its place. */
function proseOf(markdown: string): string {
  const parts = [
    /^```[\s\S]*?^```/gm,
    /<!-- ([\w-]+) -->[\s\S]*?<!-- \/\1 -->/g,
    /^(?: {4}|#).*$/gm,
    /`[^`]*`/g,
    /\[[^\]]*\]\([^)]*\)/g,
  ];
  return parts.reduce(
    (text, part) => text.replace(part, (whole) => whole.replace(/[^\n]/g, '\0')),
    markdown,
  );
}

/** Writes the links into all pages. */
export function writeGlossaryLinks(): void {
  const terms = glossaryTerms();
  for (const page of glossaryPages()) {
    const path = join(ROOT, page);
    const text = readFileSync(path, 'utf8');
    const linked = linkGlossary(text, page, terms);
    if (linked !== text) writeFileSync(path, linked);
  }
}
