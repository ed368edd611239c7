import type { RunSummary } from '../shared/rest.ts';
import { errorFormat } from '../shared/text.ts';

/** Numbers as people read them; the same words and units as the command line. */

const grouped = new Intl.NumberFormat('en');

export const count = (value: number) => grouped.format(Math.round(value));

/** Three or four digits that count, whatever the size; null: a dash. */
export function short(value: number | null | undefined): string {
  if (value === null || value === undefined) return '–';
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace('e+', 'e');
  if (size >= 1000) return count(value);
  return String(Number(value.toPrecision(4)));
}

/** How the errors of a run are told. */
export const errorOf = ({ errorMeasure }: Pick<RunSummary, 'errorMeasure'>) =>
  errorFormat(errorMeasure, short);

/** For ticks. */
export const roundPercent = (share: number) => `${Number((100 * share).toPrecision(3))} %`;

/** As 4 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60)
    return s % 60 === 0 || minutes >= 10 ? `${minutes} min` : `${minutes} min ${s % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const BYTE_UNITS = ['bytes', 'KB', 'MB', 'GB', 'TB'];

export function bytes(value: number): string {
  let unit = 0;
  let left = value;
  while (left >= 1000 && unit < BYTE_UNITS.length - 1) {
    left /= 1000;
    unit++;
  }
  return `${unit === 0 ? left : Number(left.toPrecision(3))} ${BYTE_UNITS[unit]}`;
}

/** For ticks of axes: 12k, 3.4M. */
export function compact(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(4))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential().replace('e-', 'e−');
  return String(Number(value.toPrecision(4)));
}

/** How long ago a time of the wall clock was. */
export function ago(iso: string, now = Date.now()): string {
  const seconds = (now - Date.parse(iso)) / 1000;
  return seconds < 5 ? 'just now' : `${duration(seconds).replace(/ \d+ s$/, '')} ago`;
}

export const plural = (n: number, one: string, many = `${one}s`) =>
  `${count(n)} ${n === 1 ? one : many}`;
