import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { nameOf } from '../../worker/data/tables/cells.ts';
import { parseRows, readRows, type TableOptions } from '../../worker/data/tables/table-rows.ts';
import { Tokens } from '../../worker/data/tables/tokens.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-rows-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function rowsOf(bytes: Uint8Array, options: TableOptions = {}): string[][] {
  const rows: string[][] = [];
  const { header } = parseRows(bytes, 'x.csv', options, (cells) => rows.push([...cells]));
  return [[...header], ...rows];
}

const failure = (bytes: Uint8Array, options: TableOptions = {}) => {
  try {
    return rowsOf(bytes, options);
  } catch (error) {
    const { code, message } = error as Error & { code: string };
    return `${code} ${message}`;
  }
};

/** Text in an encoding, as its writers make it. */
function encoded(text: string, encoding: string): Buffer {
  switch (encoding) {
    case 'utf-8 with a mark':
      return Buffer.from(`\ufeff${text}`);
    case 'utf-16le':
      return Buffer.from(text, 'utf16le');
    case 'utf-16le with a mark':
      return Buffer.from(`\ufeff${text}`, 'utf16le');
    case 'utf-16be with a mark':
      return Buffer.from(`\ufeff${text}`, 'utf16le').swap16();
    case 'windows-1252':
      return Buffer.from(text, 'latin1');
    default:
      return Buffer.from(text);
  }
}

describe('rows of a table', () => {
  it('are what was written, by any delimiter, quoting, line ends and encoding', () => {
    const cell = fc.oneof(
      fc.string({ unit: 'grapheme', maxLength: 6 }),
      fc.string({
        unit: fc.constantFrom('"', ',', ';', '\t', '|', '\n', '\r', ' ', 'a', 'é', '日', '😀'),
        maxLength: 5,
      }),
    );
    const table = fc.integer({ min: 2, max: 5 }).chain((width) =>
      fc.record({
        header: fc.uniqueArray(fc.string({ unit: 'grapheme', minLength: 1 }), {
          ...{ minLength: width, maxLength: width, selector: nameOf },
        }),
        rows: fc.array(fc.array(cell, { minLength: width, maxLength: width }), {
          minLength: 1,
          maxLength: 6,
        }),
        delimiter: fc.constantFrom(',', ';', '\t', '|', '::', ' '),
        end: fc.constantFrom('\n', '\r\n', '\r'),
        last: fc.boolean(),
        quoteAll: fc.boolean(),
        encoding: fc.constantFrom(
          'utf-8',
          'utf-8 with a mark',
          'utf-16le',
          'utf-16le with a mark',
          'utf-16be with a mark',
        ),
      }),
    );
    fc.assert(
      fc.property(table, ({ header, rows, delimiter, end, last, quoteAll, encoding }) => {
        fc.pre(header.every((name) => nameOf(name) !== '' && !name.includes('\0')));
        fc.pre(rows.flat().every((text) => !text.includes('\0')));
        fc.pre(rows.every((row) => row.some((text) => text.trim() !== '')));
        const written = (text: string) => {
          const needed =
            /["\r\n]|^\s|\s$/.test(text) ||
            text.includes(delimiter) ||
            text.includes(delimiter[0]!);
          return quoteAll || needed ? `"${text.replaceAll('"', '""')}"` : text;
        };
        const lines = [header, ...rows].map((row) => row.map(written).join(delimiter));
        const bytes = encoded(lines.join(end) + (last ? end : ''), encoding);
        const given = encoding === 'utf-16le' ? { delimiter, encoding } : { delimiter };
        fc.pre(!/^\s*(<|\{|\[)/.test(lines[0]!) && !/^[A-Z@%v]/.test(lines[0]!));
        expect(rowsOf(bytes, given)).toEqual([header.map(nameOf), ...rows]);
      }),
      { numRuns: 300 },
    );
  });

  it('are the same whatever the pieces are in which the text comes', () => {
    const text = fc.string({
      unit: fc.constantFrom('"', '""', '"a"', ',', '\n', '\r\n', '\r', ' ', 'b', '#'),
      maxLength: 40,
    });
    const all = (pieces: readonly string[], final: boolean) => {
      const tokens = new Tokens('x', { delimiter: ',', quote: '"', comment: '#' });
      const seen: unknown[] = [];
      try {
        pieces.forEach((piece, i) => {
          tokens.push(piece, final && i === pieces.length - 1);
          for (let cells = tokens.next(); cells; cells = tokens.next())
            seen.push([tokens.line, cells]);
        });
      } catch (error) {
        seen.push((error as Error).message);
      }
      return { seen, lineEnds: tokens.lineEnds() };
    };
    fc.assert(
      fc.property(text, fc.array(fc.nat(40)), (whole, cuts) => {
        const at = [...new Set([0, ...cuts, whole.length])]
          .sort((a, b) => a - b)
          .filter((cut) => cut <= whole.length);
        const pieces = at.slice(1).map((cut, i) => whole.slice(at[i]!, cut));
        const together = all([whole], true);
        const apart = all([...pieces, ''], true);
        expect(apart.seen).toEqual(together.seen);
      }),
      { numRuns: 500 },
    );
  });

  it('of a file that is read in pieces, packed or not, in several members, are those of its bytes', async () => {
    const text = 'é'.repeat(600);
    const lines = Array.from({ length: 8000 }, (_, i) => `${i},"${text}${i % 7}\n",${i / 8}`);
    const bytes = Buffer.from(`a,b,c\n${lines.join('\n')}\n`);
    // Members that end within a line and within a character.
    const cut = bytes.indexOf('é', 5_000_000) + 1;
    const members = [bytes.subarray(0, 10), bytes.subarray(10, cut), bytes.subarray(cut)];
    const files = {
      'plain.csv': bytes,
      'packed.csv.gz': gzipSync(bytes, { level: 1 }),
      'members.gz': Buffer.concat(members.map((part) => gzipSync(part, { level: 1 }))),
    };
    for (const [name, content] of Object.entries(files)) {
      const path = join(folder, name);
      await writeFile(path, content);
      let sum = 0;
      let last = 0;
      const { count } = await readRows(path, {}, (cells, line) => {
        sum += Number(cells[0]);
        last = line;
      });
      expect([name, count, sum, last]).toEqual([name, 8000, (7999 * 8000) / 2, 16_000]);
    }
    const packed = files['packed.csv.gz'];
    const path = join(folder, 'cut.gz');
    await writeFile(path, packed.subarray(0, packed.length - 100));
    await expect(readRows(path, {}, () => {})).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringContaining('cut.gz: the gzip data end too early'),
    });
    await expect(
      readRows(join(folder, 'plain.csv'), { bytesMax: 5_000_000 }, () => {}),
    ).rejects.toMatchObject({
      message: expect.stringContaining('more than the 5000000 bytes allowed'),
    });
    await expect(readRows(folder, {}, () => {})).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
      message: expect.stringContaining('is a folder'),
    });
  });
});

describe('text of a table', () => {
  const long = Array.from({ length: 2000 }, (_, i) => `${i},x`).join('\n');

  it('is refused by the line and byte of what is no UTF-8', () => {
    const bytes = Buffer.concat([
      Buffer.from(`n,c\r\n${long}\r\né,y\r\n`),
      Buffer.from('caf\xe9,y\r\n', 'latin1'),
    ]);
    expect(failure(bytes)).toMatch(
      new RegExp(
        `^DP_DATA_CORRUPT x\\.csv: line 2003 is not utf-8: byte ${bytes.length - 5} of the file is 0xe9\\. .*'windows-1252'`,
      ),
    );
    const read = failure(bytes, { encoding: 'windows-1252' });
    expect(read.at(-1)).toEqual(['café', 'y']);
    for (const bad of [
      '\xc3(',
      '\xff',
      '\xc0\x80',
      '\xed\xa0\x80',
      '\xf4\x90\x80\x80',
      '\xe2\x82',
    ]) {
      const broken = Buffer.concat([Buffer.from('n,c\né,'), Buffer.from(bad, 'latin1')]);
      expect(failure(broken)).toContain('line 2 is not utf-8: byte 7 of the file');
    }
  });

  it('is what Windows means by the bytes 80 to 9f', () => {
    const bytes = Buffer.from('p,q\n\x80\x93\x94,\x9f\n', 'latin1');
    expect(rowsOf(bytes, { encoding: 'latin1' })).toEqual([
      ['p', 'q'],
      ['€“”', 'Ÿ'],
    ]);
    expect(failure(Buffer.from('p,q\n1,\x81\n', 'latin1'), { encoding: 'latin1' })).toContain(
      'line 2 is not windows-1252: byte 6',
    );
  });

  it('is read in the encoding that is given, or that the mark says; not against it', () => {
    const text = 'n,c\n日本,ß\n';
    const shift = Buffer.concat([
      Buffer.from('n,c\n'),
      Buffer.from([0x93, 0xfa, 0x96, 0x7b]),
      Buffer.from(',1\n'),
    ]);
    expect(rowsOf(shift, { encoding: 'shift_jis' })[1]).toEqual(['日本', '1']);
    for (const kind of ['utf-16le with a mark', 'utf-16be with a mark']) {
      expect(rowsOf(encoded(text, kind))[1]).toEqual(['日本', 'ß']);
      expect(rowsOf(encoded(text, kind), { encoding: 'utf-16' })[1]).toEqual(['日本', 'ß']);
      expect(failure(encoded(text, kind), { encoding: 'utf-8' })).toContain(
        'byte order mark of utf-16',
      );
    }
    expect(rowsOf(encoded(text, 'utf-8 with a mark'))[0]).toEqual(['n', 'c']);
    expect(failure(encoded('n,c\na,b\n', 'utf-16le'))).toContain(
      "it is utf-16le without a byte order mark; set `encoding: 'utf-16le'`",
    );
    expect(failure(encoded('n,c\na,b\n', 'utf-16le').swap16())).toContain("`encoding: 'utf-16be'`");
    expect(failure(Buffer.from('fffe0000', 'hex'))).toContain('it is UTF-32');
    const odd = encoded(`n,c\n${long}\n`, 'utf-16le with a mark');
    expect(failure(odd.subarray(0, odd.length - 1))).toContain('line 2001 is not utf-16le');
  });

  it('has no zero bytes', () => {
    expect(failure(Buffer.from('n,c\n1,2\n3,\0\n'))).toContain('line 3: a zero byte');
  });

  it('that is empty, or nothing but line ends and a mark, has no header', () => {
    for (const text of ['', '\n', '\ufeff', '\r\n \r\n']) {
      expect(failure(Buffer.from(text))).toContain(
        'it is empty; the first line must be a header with the names of the columns',
      );
    }
  });

  it('has lines of any length up to a limit, and quotes that close', () => {
    const wide = Array.from({ length: 200_000 }, (_, i) => `column-${i}`);
    const bytes = Buffer.from(`${wide.join()}\n${wide.map((_, i) => i).join()}`);
    expect(rowsOf(bytes)[1]!.length).toBe(200_000);
    const open = `a,b\n1,"2\n${'3,4\n'.repeat(100_000)}`;
    expect(failure(Buffer.from(open))).toContain(
      'line 2: the quote that begins cell 2 is never closed',
    );
    const endless = `a,b\n1,"2\n${'3,4\n'.repeat(1_500_000)}`;
    expect(failure(Buffer.from(endless))).toContain('is not closed within 1048576 characters');
  });
});
