import { corrupt } from '../files.ts';
import { checkOptions, checkPath, isText, oneOf, optional } from '../reader-options.ts';
import { isMissing, nameList, nameOf, numberReader } from '../tables/cells.ts';
import { lacks } from '../tables/csv-columns.ts';
import { tableFiles } from '../tables/table-files.ts';
import { keptOptions, readRows, TABLE_FIELDS, type TableOptions } from '../tables/table-rows.ts';
import {
  TEXT_FIELDS,
  type TextData,
  type TextExampleOptions,
  textExamples,
} from './text-examples.ts';

/** Tables with a column of texts. */

export interface TextTableOptions extends TextExampleOptions, TableOptions {
  /** Name of the column of texts. */
  readonly text: string;
  /** Name of the column that is predicted. */
  readonly target: string;
  /** Default: classification. */
  readonly task?: 'classification' | 'regression';
}

/**
 * Reads the texts of one column and predicts another one. Rows without a target are left out.
 *
 *     data: ({ log }) => loadTextTable('reviews.csv', { text: 'review', target: 'stars', length: 100, log })
 *
 * @param file a table as text, a folder of them, or a pattern
 * @throws DownpourError as `loadCsv` does
 */
export async function loadTextTable(file: string, options: TextTableOptions): Promise<TextData> {
  checkPath('loadTextTable', file);
  const name = { allowed: 'the name of a column', test: isText };
  checkOptions('loadTextTable', options, {
    ...{ ...TABLE_FIELDS, ...TEXT_FIELDS, text: name, target: name },
    task: optional(oneOf('classification', 'regression')),
  });
  const { task = 'classification' } = options;
  const [text, target] = [nameOf(options.text), nameOf(options.target)];
  const read = numberReader(options);
  const texts: string[] = [];
  const labels: string[] = [];
  const numbers: number[] = [];
  let missing = 0;
  for (const path of await tableFiles(file)) {
    await readRows(path, options, (cells, line, { names }) => {
      const [at, of] = [text, target].map((column) => {
        const index = names.indexOf(column);
        if (index < 0) throw lacks(path, column, names, '');
        return index;
      });
      const cell = nameOf(cells[of!]!);
      const value = read(cell);
      if (isMissing(cell) && Number.isNaN(value)) {
        missing++;
        return;
      }
      if (task === 'regression' && Number.isNaN(value)) {
        throw corrupt(
          path,
          `line ${line}, column '${target}': '${cell.slice(0, 40)}' is not a number; correct it, or use task: 'classification'`,
        );
      }
      texts.push(cells[at!]!);
      if (task === 'regression') numbers.push(value);
      else labels.push(cell);
    });
  }
  if (texts.length === 0) throw corrupt(file, `no row has a value in column '${target}'`);
  const list = nameList([...new Set(labels)], read);
  if (list.conflict) {
    const [a, b] = list.conflict;
    throw corrupt(
      file,
      `column '${target}': '${a}' and '${b}' are the same number in two spellings; write them in the same way`,
    );
  }
  const targets =
    task === 'regression'
      ? { values: Float64Array.from(numbers), names: [target] }
      : {
          values: Int32Array.from(labels, list.indexOf),
          names: [target],
          classes: list.names,
        };
  const data = textExamples(file, { train: { texts, targets } }, options, {
    column: text,
    ...keptOptions(options),
  });
  if (missing === 0) return data;
  return { ...data, source: `${data.source}; ${missing} rows without ${target} are left out` };
}
