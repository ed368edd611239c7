import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  givenNames,
  lookalikes,
  nameList,
  nameOf,
  numberReader,
  sortNames,
} from '../../worker/data/tables/cells.ts';

describe('names of classes and categories', () => {
  const names = (...texts: string[]) => nameList(texts).names;

  it('are one for a number, however it is written, and sort by number', () => {
    expect(names('10', '1.0', '+1', '1e0', '9', '2', '2.00', '-0', '0.0')).toEqual([
      '0',
      '1',
      '2',
      '9',
      '10',
    ]);
    expect(names('0.10', '.1', '1e-1', '-.5')).toEqual(['-0.5', '0.1']);
    expect(names('1.0', 'unknown', '1')).toEqual(['1', 'unknown']);
  });

  it('are texts where numbers begin with a needless zero, and two that mean one number conflict', () => {
    expect(names('01', '10', '02')).toEqual(['01', '02', '10']);
    expect(nameList(['00501', '10001']).conflict).toBeNull();
    expect(nameList(['007', '7']).conflict).toEqual(['007', '7']);
    expect(nameList(['007', '1', '1.0']).conflict).toEqual(['1', '1.0']);
    expect(nameList(['1', '1,0']).conflict).toEqual(['1', '1,0']);
    expect(nameList(['1,5', 'a, b', '1.50']).conflict).toEqual(['1,5', '1.5']);
    expect(names('0', '0.5')).toEqual(['0', '0.5']);
  });

  it('keep digits that a number would lose', () => {
    const ids = ['9007199254740993', '9007199254740992', '9007199254740994'];
    expect(new Set(names(...ids)).size).toBe(3);
    expect(nameList(ids).conflict).toBeNull();
  });

  it('take no notice of the case of true and false where there is nothing else', () => {
    expect(names('True', 'FALSE', 'true', 'False')).toEqual(['false', 'true']);
    expect(names('True', 'Maybe', 'TRUE')).toEqual(['Maybe', 'TRUE', 'True']);
  });

  it('are in the composed form, with plain spaces, none around them', () => {
    expect(nameOf(' cafe\u0301\t')).toBe('café');
    expect(nameOf('New\u00a0York\u00a0')).toBe('New York');
    expect(lookalikes(['Setosa', 'virginica', 'setosa'])).toEqual(['Setosa', 'setosa']);
    expect(lookalikes(['a b', 'a  b'])).toEqual(['a b', 'a  b']);
    expect(lookalikes(['a\u200bb', 'ab'])).toEqual(['a\u200bb', 'ab']);
    expect(lookalikes(['a', 'b', 'ab'])).toBeNull();
  });

  it('given beforehand keep their order, and are met however they are written', () => {
    const list = givenNames(['3', '1', '2']);
    expect(list.names).toEqual(['3', '1', '2']);
    expect(['1.0', '+2', '3e0', '01', '4', ''].map((text) => list.indexOf(text))).toEqual([
      1, 2, 0, -1, -1, -1,
    ]);
    const yes = givenNames(['True', 'False']);
    expect([yes.names, yes.indexOf('TRUE'), yes.indexOf('false')]).toEqual([
      ['True', 'False'],
      0,
      1,
    ]);
    const codes = givenNames(['01', '02']);
    expect([codes.indexOf('01'), codes.indexOf('1')]).toEqual([0, -1]);
  });

  it('are the same whatever order and whatever parts of their texts come first', () => {
    const text = fc.oneof(
      fc.constantFrom('1', '1.0', '01', '2', '10', 'True', 'FALSE', 'a', 'A', '-0', '1e3', '1000'),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.uniqueArray(text.map(nameOf)), fc.integer(), (texts, seed) => {
        const list = nameList(texts);
        const other = [...texts].sort((a, b) => (a + seed < b + seed !== seed % 2 > 0 ? -1 : 1));
        expect(nameList(other).names).toEqual(list.names);
        // Each text has a name, each name a text; given back as a list they mean the same.
        const numbers = texts.map((each) => list.indexOf(each));
        expect(new Set(numbers).size).toBe(list.names.length);
        expect(Math.min(0, ...numbers)).toBe(0);
        const again = givenNames(list.names);
        expect(list.names.map((name) => again.indexOf(name))).toEqual(list.names.map((_, i) => i));
      }),
    );
  });
});

describe('numbers in cells', () => {
  it('are what JavaScript writes, in every form', () => {
    const number = fc.double({ noNaN: true, noDefaultInfinity: true });
    fc.assert(
      fc.property(number, (value) => {
        expect(numberReader()(String(value))).toBe(value + 0);
        expect(numberReader({ decimal: ',' })(String(value).replace('.', ','))).toBe(value + 0);
      }),
    );
    const german = new Intl.NumberFormat('de', { maximumFractionDigits: 3 });
    const form = numberReader({ decimal: ',', thousands: '.' });
    fc.assert(
      fc.property(fc.integer(), fc.integer({ min: 0, max: 999 }), (whole, thousandths) => {
        const value = (whole < 0 ? -1 : 1) * (Math.abs(whole) + thousandths / 1000);
        expect(form(german.format(value))).toBeCloseTo(value, 3);
      }),
    );
  });

  it('sort as numbers where all are some', () => {
    expect(sortNames(['10', '9', '-1', '1e1'])).toEqual(['-1', '9', '10', '1e1']);
    expect(sortNames(['10', '9', 'a'])).toEqual(['10', '9', 'a']);
  });
});
