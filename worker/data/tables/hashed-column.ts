import type { ColumnReading } from '../../../shared/reading.ts';
import { cellText, isMissing, nameOf, type TableCell } from './cells.ts';
import {
  type CellOptions,
  type CellPlace,
  type ColumnRole,
  type Feature,
  Gaps,
  type InputColumn,
  NumberList,
} from './table-columns.ts';
import { placeOfWord, wordsOf } from './words.ts';

/**
 * An input column of texts of many kinds, by feature hashing (Weinberger et al. 2009): each word adds 1 or −1 to one of a
 * fixed number of inputs. Nothing is learnt from the data, so texts that were never seen can be read.
 */

export class HashedColumn implements InputColumn {
  readonly name: string;
  readonly size: number;
  readonly #options: CellOptions;
  /** The words of all rows one after the other: 2 · input, and 1 more where the word counts −1. */
  readonly #words = new NumberList();
  /** Where each row's words end. */
  readonly #ends = new NumberList();
  readonly gaps: Gaps;

  constructor(name: string, options: CellOptions, role: ColumnRole, size: number) {
    this.name = name;
    this.size = size;
    this.#options = options;
    this.gaps = new Gaps(name, options, role);
  }

  lacks(cell: TableCell): boolean {
    return isMissing(nameOf(cellText(cell)), this.#options.missingTexts);
  }

  add(cell: TableCell, place: CellPlace): void {
    if (this.lacks(cell)) {
      this.gaps.add(this.#ends.length, nameOf(cellText(cell)), place);
    } else {
      for (const word of wordsOf(cellText(cell))) {
        const { input, sign } = placeOfWord(word, this.size);
        this.#words.push(2 * input + (sign < 0 ? 1 : 0));
      }
    }
    this.#ends.push(this.#words.length);
  }

  forget(): void {
    this.#words.clear();
    this.#ends.clear();
    this.gaps.forget();
  }

  reading(): ColumnReading {
    return { name: this.name, as: 'hashed', size: this.size, gap: this.gaps.areMarked };
  }

  features(): Feature[] {
    return Array.from({ length: this.size }, (_, input) => ({
      name: `${this.name}#${input}`,
      at: (row) => this.#at(row, input),
    }));
  }

  #at(row: number, input: number): number {
    const end = this.#ends.at(row);
    let sum = 0;
    for (let i = row === 0 ? 0 : this.#ends.at(row - 1); i < end; i++) {
      const word = this.#words.at(i);
      if (word >> 1 === input) sum += (word & 1) === 0 ? 1 : -1;
    }
    return sum;
  }
}
