import { contactSheet, type SheetCard } from './figures.ts';
import { numberText, type Report, type ReportTable } from './report.ts';
import type { WordSpace } from './word-vectors.ts';

/** What a look at a model says of words: which have the highest loss, and which are near each other in its vectors. */

/** A word, and the mean of the losses where it occurs. */
export interface WordLoss {
  readonly word: string;
  /** How many losses it is the mean of. */
  readonly count: number;
  readonly loss: number;
}

/** A mean of fewer losses is chance. */
const LOSSES_MIN = 5;

/**
 * Words by the mean of the losses where they occur, the highest first; those that occur at least 5 times.
 * @param texts of ids. @param idsOf the ids that a loss belongs to. An id that occurs twice there counts once.
 */
export function wordLosses(
  texts: readonly string[],
  losses: ArrayLike<number>,
  idsOf: (i: number) => Iterable<number>,
): readonly WordLoss[] {
  const sums = new Float64Array(texts.length);
  const counts = new Uint32Array(texts.length);
  for (let i = 0; i < losses.length; i++) {
    if (!Number.isFinite(losses[i]!)) continue;
    for (const id of new Set(idsOf(i))) {
      if (!texts[id]) continue;
      sums[id]! += losses[i]!;
      counts[id]!++;
    }
  }
  return texts
    .flatMap((word, id) => {
      const count = counts[id]!;
      return count < LOSSES_MIN ? [] : [{ word, count, loss: sums[id]! / count }];
    })
    .sort((a, b) => b.loss - a.loss);
}

export interface LookedWords {
  /** The highest first; null: not known. */
  readonly losses: readonly WordLoss[] | null;
  /** What is meant by the losses: `examples with the word`. */
  readonly lossesOf: string;
  /** Vectors, by the name of the table or of the layer. */
  readonly spaces: Readonly<Record<string, WordSpace>>;
  /** Words whose neighbours are wanted; empty: some that are frequent, and some with a high loss. */
  readonly asked: readonly string[];
}

/** Words with the highest loss that are listed. */
const WORST = 20;
/** Words whose neighbours are listed: by their loss, and by their frequency. */
const SHOWN = { worst: 4, frequent: 12 };
const NEIGHBOURS = 8;
/** Lines that a card has room for. */
const CARD_LINES = 5;

/** A report with what is known of words behind it. */
export function withWords(
  report: Report,
  { losses, lossesOf, spaces, asked }: LookedWords,
): Report {
  const worst = (losses ?? []).slice(0, WORST);
  const more: ReportTable[] = [];
  if (worst.length > 0) {
    more.push({
      title: `Words with the highest mean loss (of ${lossesOf})`,
      headings: ['word', 'times', 'mean loss'],
      rows: worst.map(({ word, count, loss }) => [shown(word), String(count), numberText(loss)]),
    });
  }
  const all = Object.entries(spaces).map(([name, space]) => {
    const words = asked.length > 0 ? asked : chosen(space, worst);
    const near = words.flatMap((word) => {
      const found = space.near(word, NEIGHBOURS);
      return found ? [{ word, near: found }] : [];
    });
    return { name, near };
  });
  const cards: SheetCard[] = [];
  for (const { name, near } of all) {
    if (near.length === 0) continue;
    more.push({
      title: `Nearest neighbours in '${name}', by cosine`,
      headings: ['word', 'neighbours'],
      rows: near.map(({ word, near }) => [
        shown(word),
        near.map((each) => `${shown(each.word)} ${each.cosine.toFixed(2)}`).join(', '),
      ]),
    });
    for (const { word, near: neighbours } of near) {
      const text = neighbours
        .slice(0, CARD_LINES)
        .map((each) => `${shown(each.word)} ${each.cosine.toFixed(2)}`)
        .join('\n');
      const caption = [shown(word), ...(all.length > 1 ? [name] : [])];
      cards.push({ shown: { kind: 'text', text }, caption, wrong: false });
    }
  }
  if (more.length === 0) return report;
  return {
    ...report,
    more: [...(report.more ?? []), ...more],
    plots: {
      ...report.plots,
      ...(cards.length > 0 && {
        'neighbours.svg': contactSheet('Nearest neighbours of words', cards),
      }),
    },
    facts: {
      ...report.facts,
      words: {
        worst,
        near: Object.fromEntries(all.map(({ name, near }) => [name, near])),
      },
    },
  };
}

/** Words of all frequencies, where a vocabulary begins with the most frequent; and the worst ones. */
function chosen({ words }: WordSpace, worst: readonly WordLoss[]): readonly string[] {
  const places = Array.from({ length: SHOWN.frequent }, (_, i) =>
    Math.floor(words.length ** ((i + 1) / (SHOWN.frequent + 1))),
  );
  const frequent = places.map((place) => words[place]!);
  return [...new Set([...frequent, ...worst.slice(0, SHOWN.worst).map(({ word }) => word)])];
}

/** A token may be a space or a line break. */
const shown = (word: string) => (/^\S+$/u.test(word) ? word : JSON.stringify(word));
