/** Dates as tables have them. */

/** How a date with the month in the middle or first is written: 31/12/2024 or 12/31/2024. */
export const DATE_ORDERS = ['dayFirst', 'monthFirst'] as const;
export type DateOrder = (typeof DATE_ORDERS)[number];

export interface DateParts {
  readonly year: number;
  /** 1 to 12. */
  readonly month: number;
  /** 1 to 31. */
  readonly day: number;
  /** Monday 1 to Sunday 7 (ISO 8601). */
  readonly weekday: number;
  /** 0 to below 24, with minutes and seconds as a fraction; null: the cell has no time. */
  readonly hour: number | null;
}

const TIME =
  '(?:(?:[T ]|,? +)(?<hour>\\d{1,2}):(?<minute>\\d{2})(?::(?<second>\\d{2}(?:[.,]\\d+)?))? *(?<half>[AP]M)?(?: *(?:Z|UTC|GMT|[+-]\\d{2}:?(?:\\d{2})?))?)?';
const YEAR_FIRST = new RegExp(
  `^(?<year>\\d{4})(?<mark>[-/.])(?<month>\\d{1,2})\\k<mark>(?<day>\\d{1,2})${TIME}$`,
  'i',
);
/** pandas writes a column of whole numbers with gaps as 20241231.0. */
const COMPACT = /^(?<year>\d{4})(?<month>\d{2})(?<day>\d{2})(?:\.0+)?$/;
export const YEAR_LAST = new RegExp(
  `^(?<first>\\d{1,2})(?<mark>[-/.])(?<second_>\\d{1,2})\\k<mark>(?<year>\\d{4})${TIME}$`,
  'i',
);

/**
 * The parts of a date: 2024-12-31, 2024/12/31, 20241231, and with `order` 31.12.2024 or 12/31/2024; each with a time
 * or without. A point always has the day first.
 * @param text trimmed. @returns null: it is no date, or one that does not exist.
 */
export function dateParts(text: string, order?: DateOrder): DateParts | null {
  const groups = (YEAR_FIRST.exec(text) ?? COMPACT.exec(text))?.groups ?? yearLast(text, order);
  if (!groups) return null;
  const [year, month, day] = [Number(groups.year), Number(groups.month), Number(groups.day)];
  if (month < 1 || month > 12 || day < 1 || day > daysIn(year, month)) return null;
  const hour = hourOf(groups);
  if (Number.isNaN(hour)) return null;
  return { year, month, day, weekday: weekdayOf(year, month, day), hour };
}

function daysIn(year: number, month: number): number {
  if (month === 2) return (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0 ? 29 : 28;
  return [4, 6, 9, 11].includes(month) ? 30 : 31;
}

/** Sakamoto's method, of the Gregorian calendar. Monday is 1. */
function weekdayOf(year: number, month: number, day: number): number {
  const y = month < 3 ? year - 1 : year;
  const shift = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][month - 1]!;
  const leaps = Math.floor(y / 4) - Math.floor(y / 100) + Math.floor(y / 400);
  return ((y + leaps + shift + day + 6) % 7) + 1;
}

function yearLast(text: string, order: DateOrder | undefined): Groups | null {
  const groups = YEAR_LAST.exec(text)?.groups;
  if (!groups) return null;
  const how = groups.mark === '.' ? 'dayFirst' : order;
  if (how === undefined) return null;
  const { first, second_ } = groups;
  const [day, month] = how === 'dayFirst' ? [first, second_] : [second_, first];
  return { ...groups, day, month };
}

type Groups = Readonly<Record<string, string | undefined>>;

/** Null: there is no time; NaN: none that exists. */
function hourOf({ hour, minute, second = '0', half }: Groups): number | null {
  if (hour === undefined) return null;
  const [minutes, seconds] = [Number(minute), Number(second.replace(',', '.'))];
  let hours = Number(hour);
  if (half !== undefined) {
    if (hours < 1 || hours > 12) return Number.NaN;
    hours = (hours % 12) + (half.toLowerCase() === 'pm' ? 12 : 0);
  }
  if (hours > 23 || minutes > 59 || seconds >= 61) return Number.NaN;
  return hours + minutes / 60 + seconds / 3600;
}
