/** What a benchmark found, as tables and verdicts. Pure: the same rows give the same text. */

export type Cell = string | number | null;

export interface Column {
  readonly key: string;
  /** With the unit. */
  readonly title: string;
  /** After the point; default: three significant digits. */
  readonly digits?: number;
}

export interface Table {
  readonly name: string;
  readonly question: string;
  readonly columns: readonly Column[];
  readonly rows: readonly Readonly<Record<string, Cell>>[];
  /** What the reader must know to read it right. */
  readonly note?: string;
}

/** What a measured value is held against. */
export interface Target {
  readonly what: string;
  readonly unit: string;
  /** `atMost`: smaller is better. */
  readonly bound: 'atLeast' | 'atMost';
  readonly wanted: number;
  /** Null: was not measured. */
  readonly seen: number | null;
}

export interface Verdict extends Target {
  /** Above 1: better than wanted. Null: not measured. */
  readonly ratio: number | null;
  readonly met: boolean | null;
}

/** @returns the target with how far it is met; a value that is no number is as good as not measured. */
export function judge(target: Target): Verdict {
  const { bound, wanted, seen } = target;
  if (seen === null || !Number.isFinite(seen))
    return { ...target, seen: null, ratio: null, met: null };
  const ratio = bound === 'atLeast' ? seen / wanted : wanted / seen;
  return { ...target, ratio, met: bound === 'atLeast' ? seen >= wanted : seen <= wanted };
}

/** A table for a terminal and for a page: Markdown with its columns aligned. */
export function formatTable({ columns, rows }: Pick<Table, 'columns' | 'rows'>): string {
  const numeric = columns.map(({ key }) => rows.some((row) => typeof row[key] === 'number'));
  const lines = [
    columns.map(({ title }) => title),
    ...rows.map((row) => columns.map(({ key, digits }) => formatCell(row[key] ?? null, digits))),
  ];
  const widths = columns.map((_, i) => Math.max(3, ...lines.map((line) => line[i]!.length)));
  const [head, ...body] = lines.map((line) => {
    const cells = line.map((text, i) =>
      numeric[i] ? text.padStart(widths[i]!) : text.padEnd(widths[i]!),
    );
    return `| ${cells.join(' | ')} |`;
  });
  const rule = widths.map((width, i) =>
    numeric[i] ? `${'-'.repeat(width + 1)}:` : '-'.repeat(width + 2),
  );
  return [head, `|${rule.join('|')}|`, ...body].join('\n');
}

/** @param digits after the point; undefined: three significant ones. */
export function formatCell(value: Cell, digits?: number): string {
  if (value === null || value === '') return '–';
  if (typeof value === 'string') return value;
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  const after = digits ?? (size >= 100 || size === 0 ? 0 : 2 - Math.floor(Math.log10(size)));
  const [whole, fraction] = value.toFixed(Math.max(0, Math.min(20, after))).split('.');
  const grouped = whole!.replace(/\B(?=(\d{3})+$)/g, ',');
  return fraction === undefined ? grouped : `${grouped}.${fraction}`;
}

export function verdictTable(verdicts: readonly Verdict[]): Table {
  return {
    name: 'targets',
    question: 'Which targets are met?',
    columns: [
      { key: 'what', title: 'target' },
      { key: 'wanted', title: 'wanted' },
      { key: 'seen', title: 'seen' },
      { key: 'ratio', title: 'ratio', digits: 2 },
      { key: 'verdict', title: 'verdict' },
    ],
    rows: verdicts.map(({ what, unit, bound, wanted, seen, ratio, met }) => ({
      what,
      wanted: `${bound === 'atLeast' ? '≥' : '≤'} ${formatCell(wanted)} ${unit}`.trim(),
      seen: seen === null ? null : `${formatCell(seen)} ${unit}`.trim(),
      ratio,
      verdict: met === null ? 'not measured' : met ? 'met' : 'not met',
    })),
    note: 'A ratio above 1 is better than wanted.',
  };
}

/** `1 KB`, `64 KB`, `100 MB`: powers of ten, as rates are. */
export function formatBytes(bytes: number): string {
  const [size, unit] = bytes >= 1e6 ? [bytes / 1e6, 'MB'] : [bytes / 1e3, 'KB'];
  return `${formatCell(size).replace(/\.0+$/, '')} ${unit}`;
}

/** A page with what stands between two marks replaced. @throws when the marks are not there. */
export function writeBetween(page: string, mark: string, text: string): string {
  const pattern = new RegExp(`(<!-- ${mark} -->\\n)[\\s\\S]*?(<!-- /${mark} -->)`);
  if (!pattern.test(page)) throw new Error(`the page has no marks <!-- ${mark} -->`);
  return page.replace(pattern, (_, start: string, end: string) => `${start}\n${text}\n\n${end}`);
}
