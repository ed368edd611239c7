import { type ColumnReading, DATE_PARTS } from '../../../shared/reading.ts';
import { corrupt } from '../files.ts';
import { cellText, isMissing, nameOf, shown, type TableCell } from './cells.ts';
import { type DateOrder, type DateParts, dateParts, YEAR_LAST } from './dates.ts';
import {
  type CellOptions,
  type CellPlace,
  type ColumnRole,
  type Feature,
  Gaps,
  type InputColumn,
  lineOf,
  NumberList,
} from './table-columns.ts';

/**
 * An input column of dates: each becomes its year, month, day and weekday, and its hour where any cell has a time.
 * They are those that stand in the cell: no time zone is applied.
 */

type DateReading = Extract<ColumnReading, { as: 'date' }>;

export class DateColumn implements InputColumn {
  readonly name: string;
  readonly #options: CellOptions;
  readonly #order: DateOrder | undefined;
  readonly #lists = DATE_PARTS.map(() => new NumberList());
  readonly #hours = new NumberList();
  #hasHours = false;
  readonly gaps: Gaps;

  constructor(name: string, options: CellOptions, role: ColumnRole, order?: DateOrder) {
    this.name = name;
    this.#options = options;
    this.#order = order;
    this.gaps = new Gaps(name, options, role);
  }

  lacks(cell: TableCell): boolean {
    return isMissing(nameOf(cellText(cell)), this.#options.missingTexts);
  }

  add(cell: TableCell, place: CellPlace): void {
    const text = nameOf(cellText(cell));
    if (this.lacks(cell)) {
      this.gaps.add(this.#hours.length, text, place);
      this.#push(null);
      return;
    }
    const parts = dateParts(text, this.#order);
    if (parts === null) throw corrupt(place.file, this.#problem(text, place));
    this.#push(parts);
  }

  #push(parts: DateParts | null): void {
    DATE_PARTS.forEach((part, i) => {
      this.#lists[i]!.push(parts ? parts[part] : Number.NaN);
    });
    this.#hours.push(parts ? (parts.hour ?? 0) : Number.NaN);
    if (parts && parts.hour !== null) this.#hasHours = true;
  }

  #problem(text: string, place: CellPlace): string {
    const where = `${lineOf(place)}, column '${this.name}': '${shown(text)}'`;
    if (this.#order === undefined && YEAR_LAST.test(text)) {
      return `${where} may be a day and a month or a month and a day; set \`dateOrder: 'dayFirst'\` or \`dateOrder: 'monthFirst'\``;
    }
    return `${where} is not a date that exists, such as 2024-12-31 or 2024-12-31T18:30; correct it, or name the column in \`ignore\``;
  }

  forget(): void {
    for (const list of this.#lists) list.clear();
    this.#hours.clear();
    this.gaps.forget();
  }

  reading(): DateReading {
    const order = this.#order === undefined ? {} : { order: this.#order };
    return {
      name: this.name,
      as: 'date',
      time: this.#hasHours,
      gap: this.gaps.areMarked,
      ...order,
    };
  }

  features(reading: ColumnReading): Feature[] {
    const parts: Feature[] = DATE_PARTS.map((part, i) => ({
      name: `${this.name}: ${part}`,
      at: (row) => this.#lists[i]!.at(row),
    }));
    if (reading.as === 'date' && reading.time) {
      parts.push({ name: `${this.name}: hour`, at: (row) => this.#hours.at(row) });
    }
    return parts;
  }
}
