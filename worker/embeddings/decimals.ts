/** Decimal numbers from bytes, without a text for each: a file of word vectors has 40 million. */

const MINUS = 45;
const PLUS = 43;
const POINT = 46;
const ZERO = 48;
/** As many digits fit into a double, and so does each of these powers of ten, so that one division rounds once. */
const DIGITS_MAX = 15;
const POWERS = Array.from({ length: 23 }, (_, i) => 10 ** i);

/** The number at bytes [from, end), as `Number` reads it; NaN: there is none. */
export function decimalAt(bytes: Buffer, from: number, end: number): number {
  let at = from;
  const isNegative = bytes[at] === MINUS;
  if (isNegative || bytes[at] === PLUS) at++;
  let digits = 0;
  let behind = -1;
  let whole = 0;
  for (; at < end; at++) {
    const digit = bytes[at]! - ZERO;
    if (digit >= 0 && digit <= 9) {
      // Zeros at the beginning are no digits of the number.
      if (whole > 0 || digit > 0) digits++;
      whole = 10 * whole + digit;
      if (behind >= 0) behind++;
    } else if (bytes[at] === POINT && behind < 0) behind = 0;
    else break;
  }
  if (at === end && digits <= DIGITS_MAX && behind < POWERS.length && end > from) {
    const isNumber = digits > 0 || bytes[end - 1] === ZERO;
    if (isNumber) {
      const size = behind > 0 ? whole / POWERS[behind]! : whole;
      return isNegative ? -size : size;
    }
  }
  // Many digits, an exponent, or no number.
  const text = bytes.toString('latin1', from, end).trim();
  return /^[-+.\d]/.test(text) && !/^[-+]?0[xob]/i.test(text) ? Number(text) : Number.NaN;
}

/**
 * Numbers with one separator between them. @param into is filled. @returns how many there are; more than `into` has are
 * counted alone.
 */
export function decimals(
  bytes: Buffer,
  from: number,
  end: number,
  separator: number,
  into: Float32Array,
): number {
  let count = 0;
  for (let at = from; ; ) {
    let next = at;
    while (next < end && bytes[next] !== separator) next++;
    if (count < into.length) into[count] = decimalAt(bytes, at, next);
    count++;
    if (next >= end) return count;
    at = next + 1;
  }
}
