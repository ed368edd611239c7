import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { createProgram } from '../../cli/main.ts';
import { RunConfigSchema } from '../../shared/config.ts';
import type { JsonSchema } from '../../shared/json-schema.ts';

/**
 * What made a reader stop and read a sentence twice, each with the better wording. A new find is one line here; then
 * every page and every help text is searched for it.
 */

interface Finding {
  /** A space stands for any white space, so that a phrase is found across the end of a line. */
  readonly phrase: string;
  readonly hint: string;
}

const FINDINGS: readonly Finding[] = [
  { phrase: 'who(ever|so)|whatever who', hint: 'name the person: "anyone who", "an operator"' },
  { phrase: 'who only', hint: 'name the person: "viewers", "observers"' },
  { phrase: 'of (which|whom|whose)', hint: 'start a new sentence' },
  {
    phrase:
      '(at most|one of|lacks?|among|every|for|in|has) so (many|much|long)|so many (parts|shards|pushes|parameters|seconds|trials|steps)',
    hint: 'say the number: "up to this many", "after this many seconds"',
  },
  { phrase: '(is|are|was|were|been|be) told', hint: '"receives", "gets", "the error says"' },
  { phrase: 'for good', hint: '"permanently", "for the rest of the run"' },
  { phrase: 'in the midst', hint: '"during", "in the middle of"' },
  { phrase: 'is other', hint: '"differs", "holds the X-specific parts"' },
  { phrase: 'anew', hint: '"again", "new"' },
  { phrase: 'sets? apart', hint: '"hold out"' },
  { phrase: '(learns?|learnt) (\\w+ )?by heart', hint: '"memorise"' },
  { phrase: 'that there (is|are)', hint: 'leave it out, or "existing"' },
  { phrase: 'one behind the other', hint: '"one after the other", "concatenated"' },
  { phrase: 'in the place of', hint: '"instead of"' },
  { phrase: 'lets? in (only|who)', hint: '"require", "accept only"' },
  { phrase: 'goes on where', hint: '"continues"' },
  { phrase: 'has the word', hint: '"decides"' },
  { phrase: 'where you say so', hint: '"if you enable it"' },
  { phrase: 'an own', hint: '"its own", "a separate"' },
  { phrase: 'mend(s|ed)?', hint: '"fix", "correct", "repair"' },
  { phrase: 'and who \\w+', hint: 'name the person' },
  { phrase: 'wants an? (token|host|address)', hint: '"requires"' },
  {
    phrase:
      '(lines?|folders?|files?|counts?|tokens?|objects?|rows?|examples|minutes) an? (run|class|line|gradient|step|minibatch|worker)',
    hint: '"per": one line per step',
  },
  { phrase: 'beside', hint: '"next to", "in addition to", "with"' },
  { phrase: 'any more', hint: '"no longer"' },
  { phrase: 'so as to', hint: '"to"' },
  { phrase: 'the ones? that', hint: 'repeat the noun' },
  { phrase: '(is|are) such', hint: 'say what it is' },
  { phrase: '(is|are|was|were|be|been) said', hint: '"the log says", "the message says"' },
  { phrase: 'as ever', hint: '"as before"' },
  { phrase: 'to be (had|seen|watched|found)', hint: '"is at", "see"' },
  { phrase: 'gets? to know', hint: '"learns", "receives"' },
  { phrase: '(is|are|was|were) had', hint: '"exists"' },
  { phrase: 'the like', hint: '"and similar"' },
  { phrase: 'but for', hint: '"except"' },
  { phrase: '(goes|go|went|gone) on', hint: '"continues"' },
  { phrase: '(gives?|gave|given) out', hint: '"issue", "hand out", "assign"' },
  { phrase: 'wherever|whichever', hint: '"if", "in every"' },
];

/** A description that begins like this leans on the name of its option or field. */
const LEANING =
  /^(of|that|which|at which|in which|as|so|by|after|before|between|beyond|beside|at most|in a|among|its|the same|for so|those|these)\b/i;

const ROOT = resolve(import.meta.dirname, '../..');
const pages = [
  'README.md',
  'SECURITY.md',
  ...readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

interface Found {
  readonly at: number;
  readonly text: string;
  readonly hint: string;
}

function findingsOf(text: string): Found[] {
  return FINDINGS.flatMap(({ phrase, hint }) => {
    const pattern = new RegExp(`\\b(?:${phrase.replaceAll(' ', '\\s+')})\\b`, 'gi');
    return [...text.matchAll(pattern)].map((match) => ({ at: match.index, text: match[0], hint }));
  });
}

/** `page:line: "phrase": hint`, in the order of the lines. */
function linesOf(page: string, text: string): string[] {
  return findingsOf(text)
    .sort((a, b) => a.at - b.at)
    .map(({ at, text: phrase, hint }) => {
      const line = text.slice(0, at).split('\n').length;
      return `${page}:${line}: "${phrase.replace(/\s+/g, ' ')}": ${hint}`;
    });
}

describe('the list of findings', () => {
  test.each([
    ['it may lack so many pushes', 1],
    ['not heard of for so long', 1],
    ['let in only who has a certificate', 1],
    ['is what is other in a page', 1],
    ['a part of\nwhich is kept', 1],
    ['Whoever asks is told', 2],
    ['So many people do this', 0],
    ['the amendment of another letter', 0],
  ])('finds in %j: %i', (text, count) => {
    expect(findingsOf(text)).toHaveLength(count);
  });

  test('names page, line and hint', () => {
    expect(linesOf('a.md', 'one\ntwo is\ntold')).toEqual([
      'a.md:2: "is told": "receives", "gets", "the error says"',
    ]);
  });
});

test.each(pages)('%s is in plain English', (page) => {
  expect(linesOf(page, readFileSync(join(ROOT, page), 'utf8'))).toEqual([]);
});

describe('--help', () => {
  function textsOf(command: Command, path: string): [where: string, text: string][] {
    return [
      [path, command.description()],
      ...command.registeredArguments.map((each): [string, string] => [
        `${path} <${each.name()}>`,
        each.description,
      ]),
      ...command.options.map((each): [string, string] => [
        `${path} ${each.long}`,
        each.description,
      ]),
      ...command.commands.flatMap((each) => textsOf(each, `${path} ${each.name()}`)),
    ];
  }
  const texts = textsOf(createProgram({ exitCode: 0 }), 'downpour');

  test('is in plain English', () => {
    expect(texts.length).toBeGreaterThan(200);
    expect(texts.flatMap(([where, text]) => linesOf(where, text))).toEqual([]);
  });

  test('describes each option by itself, without leaning on its name', () => {
    expect(texts.filter(([, text]) => LEANING.test(text))).toEqual([]);
  });
});

describe('descriptions of the configuration', () => {
  function textsOf(schema: JsonSchema, path: string): [where: string, text: string][] {
    const inner = [...Object.entries(schema.properties ?? {})].flatMap(([name, field]) =>
      textsOf(field, path === '' ? name : `${path}.${name}`),
    );
    const branches = (schema.anyOf ?? []).flatMap((branch) => textsOf(branch, path));
    const own: [string, string][] = schema.description ? [[path, schema.description]] : [];
    return [...own, ...inner, ...branches];
  }
  const texts = textsOf(RunConfigSchema as unknown as JsonSchema, '');

  test('are in plain English', () => {
    expect(texts.length).toBeGreaterThan(70);
    expect(texts.flatMap(([where, text]) => linesOf(where, text))).toEqual([]);
  });

  test('describe each field by itself, without leaning on its name', () => {
    expect(texts.filter(([, text]) => LEANING.test(text))).toEqual([]);
  });
});
