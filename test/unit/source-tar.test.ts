import { execFile } from 'node:child_process';
import {
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { dataOf } from '../../worker/data/given.ts';
import { loadImageFolder } from '../../worker/data/pictures/images.ts';
import { PositionedFile } from '../../worker/data/positioned-file.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import { ReadProgress } from '../../worker/data/sources/read-progress.ts';
import { type TarSourceOptions, tarSource } from '../../worker/data/sources/tar.ts';
import { collect } from '../../worker/data/stored.ts';
import { indexShard } from '../../worker/data/tar/tar-index.ts';
import { npy } from '../array-files.ts';
import { jpg } from '../support/pictures.ts';
import { failureOf as failure, readFrom as read } from '../support/source-reading.ts';

const run = promisify(execFile);
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-tar-'));
  vi.stubEnv('XDG_CACHE_HOME', join(folder, 'cache'));
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true, force: true });
});
let made = 0;
afterEach(() => {
  vi.restoreAllMocks();
});

type Members = Readonly<Record<string, string | Uint8Array>>;

/** A shard that `tar` wrote. @param options of tar, before the names */
async function shard(name: string, members: Members, options: readonly string[] = []) {
  const from = join(folder, `members-${made++}`);
  for (const [path, content] of Object.entries(members)) {
    await mkdir(dirname(join(from, path)), { recursive: true });
    await writeFile(join(from, path), content);
  }
  const path = join(folder, name);
  await run('tar', ['-cf', path, ...options, '-C', from, '--', ...Object.keys(members)]);
  return path;
}

const picture = (i: number, width = 8, height = 6) =>
  jpg(width, height, (x, y) => [(x * 31 + i * 7) % 256, (y * 17) % 256, i]);

const numbers = (i: number): Members => ({
  [`${i}.json`]: JSON.stringify({
    label: i % 3,
    name: ['cat', 'dog', 'owl'][i % 3],
    box: [i, 0.5],
  }),
  [`${i}.cls`]: `${i % 3}\n`,
  [`${i}.txt`]: ['cat', 'dog', 'owl'][i % 3]!,
});
const many = (indices: readonly number[], of: (i: number) => Members): Members =>
  Object.assign({}, ...indices.map(of));
const CLASSES = ['cat', 'dog', 'owl'];
const BOX: TarSourceOptions = {
  fields: { inputs: { member: 'json', key: 'box' }, targets: { member: 'cls', classes: CLASSES } },
};
const problem = async (shards: string, options: TarSourceOptions = BOX) => {
  const error = await failure(tarSource(shards, options));
  return [errorCode(error), errorText(error)] as const;
};

describe('tar shards', () => {
  it('give pictures as a folder of them does, with numbers, texts and JSON beside', async () => {
    const members = many([0, 1, 2, 3, 4], (i) => ({ [`${i}.jpg`]: picture(i), ...numbers(i) }));
    const path = await shard('pictures.tar', members);
    for (const i of [0, 1, 2, 3, 4]) {
      const file = join(folder, 'photos', CLASSES[i % 3]!, `${i}.jpg`);
      await mkdir(dirname(file), { recursive: true });
      await writeFile(file, picture(i));
    }
    const size = [5, 7] as const;
    const { train } = await tarSource(path, {
      fields: {
        inputs: { member: ['jpg', 'png'], size, fit: 'pad' },
        targets: { member: 'txt', classes: CLASSES },
        box: { member: 'json', key: 'box', role: 'input' },
        first: { member: '.JSON', key: 'box.0', role: 'input' },
        label: { member: 'cls', role: 'target', classCount: 3 },
      },
    });
    const eager = await loadImageFolder(join(folder, 'photos'), { size, fit: 'pad' });
    const order = [4, 0, 3, 1, 2, 0];
    const rows = await read(train, order);
    // The folder has them by class: 0, 3, 1, 4, 2.
    const sorted = [0, 3, 1, 4, 2];
    const pixels = order.flatMap((i) => {
      const at = sorted.indexOf(i) * 105;
      return [...eager.train.inputs.values.subarray(at, at + 105)];
    });
    expect(rows.inputs).toEqual(Uint8Array.from(pixels));
    expect(rows.targets).toEqual(Int32Array.from(order, (i) => i % 3));
    expect(rows.label).toEqual(rows.targets);
    expect(rows.box).toEqual(Float64Array.from(order.flatMap((i) => [i, 0.5])));
    expect(rows.first).toEqual(Float64Array.from(order));
    expect(train.fields.inputs).toEqual({
      ...{ shape: [5, 7, 3], type: 'uint8' },
      reading: eager.train.inputs.reading,
    });
  });

  it('are read whatever wrote them: pax, GNU, version 7, long names, members apart', async () => {
    const long = `${'deep/'.repeat(40)}${'n'.repeat(120)}`;
    const members = {
      './0.jpg': picture(0),
      [`${long}.jpg`]: picture(1),
      'x/ü.jpg': picture(2),
      // Behind all pictures.
      [`${long}.cls`]: '1',
      'x/ü.cls': '2',
      './0.cls': '0',
      __notes__: 'of no example',
    };
    const fields = { inputs: 'jpg', targets: { member: 'cls', classes: CLASSES } };
    for (const format of ['pax', 'gnu', 'posix']) {
      const path = await shard(`${format}.tar`, members, [`--format=${format}`]);
      const { train } = await tarSource(path, { fields });
      expect([...(await read(train, [0, 1, 2])).targets!]).toEqual([0, 1, 2]);
    }
    const old = { 'a.jpg': picture(0), 'a.cls': '2' };
    const { train } = await tarSource(await shard('v7.tar', old, ['--format=v7']), { fields });
    expect([...(await read(train, [0])).targets!]).toEqual([2]);
  });

  it('are taken together by lists, folders, patterns and ranges, and by part', async () => {
    const place = join(folder, 'several');
    await mkdir(place);
    for (const k of [0, 1, 2]) {
      await shard(`several/s-0${k}.tar`, many([3 * k, 3 * k + 1, 3 * k + 2], numbers));
    }
    const all = Array.from({ length: 9 }, (_, i) => i);
    const order = [8, 0, 4, 4, 1];
    for (const path of [
      place,
      join(place, 's-*.tar'),
      join(place, 's-{00..02}.tar'),
      all.slice(0, 3).map((k) => join(place, `s-0${k}.tar`)),
    ]) {
      const { train } = await tarSource(path, BOX);
      expect(train.count).toBe(9);
      const { inputs } = await read(train, order);
      expect([...inputs!]).toEqual(order.flatMap((i) => [i, 0.5]));
    }
    const parts = { train: join(place, 's-{00..01}.tar'), test: join(place, 's-02.tar') };
    const { test } = await tarSource(parts, BOX);
    expect([...(await read(test!, [2])).inputs!]).toEqual([8, 0.5]);
    const held = await tarSource(place, { ...BOX, testFraction: 0.3 });
    expect([held.train.count, held.test?.count]).toEqual([6, 3]);
    expect(errorText(await failure(tarSource(parts, { ...BOX, testFraction: 0.3 })))).toMatch(
      /testFraction.* is 0.3, but there are shards of the test part/,
    );
    expect((await problem(join(place, 's-{0..3}.tar')))[0]).toBe('DP_DATA_MISSING');
    expect((await problem(join(place, 's-{0..10000}.tar')))[1]).toMatch(
      /10001 shards; allowed: 1 to 10000/,
    );
  });

  it('train as arrays do, with arrays of numpy and single numbers', async () => {
    const count = 40;
    const members = many([...Array(count).keys()], (i) => ({
      [`${i}.x.npy`]: npy('<f4', [3], [i, -i, i / 2]),
      [`${i}.y.npy`]: npy('<i8', [], [i % 2]),
    }));
    const path = await shard('arrays.tar', members);
    const fields = { inputs: 'x.npy', targets: { member: 'y.npy', classCount: 2 } };
    const options = {
      ...({ seed: 1, validationFraction: 0.2, standardise: 'feature' } as const),
      loss: 'softmaxCrossEntropy',
    } as const;
    const log = () => {};
    const fromTar = await prepareAny(dataOf(await tarSource(path, { fields })), options, { log });
    const inputs = Float32Array.from({ length: 3 * count }, (_, i) => {
      const row = Math.floor(i / 3);
      return [row, -row, row / 2][i % 3]!;
    });
    const given = {
      inputs: { values: inputs, shape: [count, 3] },
      targets: { values: Int32Array.from({ length: count }, (_, i) => i % 2), shape: [count] },
    };
    const fromArrays = await prepareAny(dataOf({ train: given, classCount: 2 }), options, { log });
    const some = [0, 5, 31];
    expect(await collect(fromTar, 'train', some)).toEqual(await collect(fromArrays, 'train', some));
  });

  it('keep what the pass over them found, until a shard changes', async () => {
    const path = await shard('kept.tar', many([0, 1, 2], numbers));
    await tarSource(path, BOX);
    const reads = vi.spyOn(PositionedFile.prototype, 'read');
    const { train } = await tarSource(path, BOX);
    // The first example alone is looked at, and the names of its two members for messages.
    expect(reads.mock.calls.length).toBeLessThanOrEqual(4);
    expect([...(await read(train, [2])).inputs!]).toEqual([2, 0.5]);
    await shard('kept.tar', many([5, 6], numbers));
    await utimes(path, 1, 1);
    expect(errorText(await failure(read(train, [0])))).toMatch(/kept\.tar: it has changed/);
    expect((await tarSource(path, BOX)).train.count).toBe(2);
    expect((await readdir(join(folder, 'cache', 'downpour', 'sources'))).length).toBeGreaterThan(1);
  });

  it('refuse members that are missing, twice, links or too large, with their names', async () => {
    const lacking = await shard('lacking.tar', { ...numbers(0), '1.json': '{}', ...numbers(2) });
    expect(await problem(lacking)).toEqual([
      'DP_DATA_CORRUPT',
      `${lacking}: example '1' has no member '1.cls' for 'targets'; it has json. Add it, or set missing: 'drop' to leave such examples out`,
    ]);
    const lines: string[] = [];
    const dropped = await tarSource(lacking, {
      ...BOX,
      missing: 'drop',
      log: (line) => lines.push(line),
    });
    expect([dropped.train.count, lines]).toEqual([
      2,
      ['tarSource: left out 1 examples that lack a member'],
    ]);
    expect([...(await read(dropped.train, [1])).inputs!]).toEqual([2, 0.5]);

    const twice = await shard('twice.tar', numbers(0));
    await run('tar', ['-rf', twice, '-C', join(folder, `members-${made - 1}`), '0.cls']);
    expect((await problem(twice))[1]).toMatch(/twice\.tar: member '0\.cls' occurs twice/);
    const both = await shard('both.tar', { ...numbers(0), '0.class': '1' });
    expect(
      (await problem(both, { fields: { ...BOX.fields, targets: ['cls', 'class'] } }))[1],
    ).toMatch(/example '0' has two members for 'targets': cls and class/);

    const from = join(folder, 'links');
    await mkdir(from);
    await writeFile(join(from, 'a.json'), '{"box":[1,2]}');
    await symlink('a.json', join(from, 'b.json'));
    const links = join(folder, 'links.tar');
    await run('tar', ['-cf', links, '-C', from, 'a.json', 'b.json']);
    expect((await problem(links))[1]).toMatch(/member 'b\.json' is a link to another file/);
    const bytes = LIMITS.tarMemberBytesMax;
    for (const [size, message] of [
      [bytes, /\.json': it is not JSON/],
      [bytes + 1, new RegExp(`member '0\\.json' has ${bytes + 1} bytes; allowed: ${bytes}`)],
    ] as const) {
      const large = await shard('large.tar', { '0.cls': '0', '0.json': new Uint8Array(size) });
      expect((await problem(large))[1]).toMatch(message);
    }
    const three = await PositionedFile.open(await shard('three.tar', many([0, 1, 2], numbers)));
    const indexing = { endings: [['cls']], names: ['targets'], drops: false };
    const progress = new ReadProgress(undefined, '', 'bytes', 1);
    const index = indexShard(three, { ...indexing, examplesMax: 3 }, progress);
    expect((await index).count).toBe(3);
    const over = indexShard(three, { ...indexing, examplesMax: 2 }, progress);
    expect(errorText(await failure(over))).toMatch(/more than 2 examples; allowed: 2 in one shard/);
  });

  it('refuse shards that are truncated, damaged, compressed, joined or none', async () => {
    const good = await readFile(await shard('good.tar', many([0, 1], numbers)));
    const at = good.indexOf('1.json');
    const bad = join(folder, 'bad.tar');
    const cases: readonly (readonly [Uint8Array, RegExp])[] = [
      [new Uint8Array(0), /it is empty: it has 0 bytes/],
      [good.subarray(0, 512 * 6), /ends at byte 3072, behind member '0\.txt'.*truncated/],
      [good.subarray(0, at + 530), /member '1\.json' is at bytes .* but the file has .*truncated/],
      [good.subarray(0, 300), /ends at byte 0, without the empty blocks/],
      [Buffer.from(good).fill(65, at, at + 3), /byte 3072, behind member '0\.txt' is no header/],
      [Buffer.from(good).fill(65, 0, 512), /it is not a tar archive/],
      [Buffer.concat([good, good]), /something follows the end of the archive, at byte 10240/],
      [Buffer.from('a,b\n1,2\n'.repeat(200)), /it is not a tar archive/],
    ];
    for (const [content, message] of cases) {
      await writeFile(bad, content);
      const [code, text] = await problem(bad);
      expect(text).toMatch(message);
      expect([code, text.startsWith(bad)]).toEqual(['DP_DATA_CORRUPT', true]);
    }
    await run('tar', ['-czf', bad, '-C', folder, 'good.tar']);
    expect((await problem(bad))[1]).toMatch(/compressed by gzip.*gunzip/);
    const none = await shard('none.tar', { README: 'nothing' });
    expect((await problem(none))[1]).toMatch(/it has no examples/);
  });

  it('refuse damaged bytes with a code, or give examples of the right kind', async () => {
    const good = await readFile(await shard('fuzzed.tar', many([0, 1], numbers)));
    const bad = join(folder, 'fuzz.tar');
    const position = fc.integer({ min: 0, max: good.length - 1 });
    const changes = fc.array(fc.tuple(position, fc.integer({ min: 0, max: 255 })), {
      ...{ minLength: 1, maxLength: 4 },
    });
    await fc.assert(
      fc.asyncProperty(changes, position, async (bytes, end) => {
        const content = Buffer.from(good);
        for (const [at, byte] of bytes) content[at] = byte;
        await writeFile(bad, end % 3 === 0 ? content.subarray(0, end) : content);
        const error = await failure(
          tarSource(bad, BOX).then(({ train }) => read(train, [...Array(train.count).keys()])),
        );
        if (error !== null) expect(errorCode(error)).toMatch(/^DP_DATA_/);
      }),
      { numRuns: 60 },
    );
  });

  it('refuse members whose content is not what their ending says', async () => {
    const of = async (members: Members, targets: TarSourceOptions['fields'][string]) => {
      const path = await shard('content.tar', { ...numbers(0), ...members });
      const opened = await failure(
        tarSource(path, { fields: { inputs: { member: 'json', key: 'box' }, targets } }).then(
          ({ train }) => read(train, [...Array(train.count).keys()]),
        ),
      );
      return [errorCode(opened), errorText(opened).replace(`${path}: `, '')];
    };
    const json = { '1.json': '{"box":[1,2]}' };
    expect(await of({ ...json, '1.cls': 'dog' }, 'cls')).toEqual([
      'DP_DATA_CORRUPT',
      expect.stringMatching(/^member '1\.cls': it is the text 'dog'; allowed: a whole number/),
    ]);
    expect((await of({ ...json, '1.cls': '3000000000' }, 'cls'))[1]).toMatch(/type: 'float64'/);
    expect(
      await of({ ...json, '1.cls': '3000000000' }, { member: 'cls', type: 'float64' }),
    ).toEqual(['DP_INTERNAL', 'null']);
    expect(await of({ ...json, '1.txt': 'dgo' }, { member: 'txt', classes: CLASSES })).toEqual([
      'DP_DATA_LABEL',
      "member '1.txt': 'dgo' is not in `classes`; did you mean 'dog'? It has cat, dog, owl",
    ]);
    expect((await of({ ...json, '1.txt': new Uint8Array([255, 254]) }, 'txt'))[1]).toMatch(
      /member '1\.txt'|member '0\.txt'/,
    );
    const key = (value: string) => of({ '1.json': value, '1.cls': '1' }, 'cls');
    expect((await key('{"bxo":[1,2]}'))[1]).toBe(
      "member '1.json': it has no 'box'; did you mean 'bxo'?",
    );
    expect((await key('{"box":[1,2,3]}'))[1]).toMatch(
      /member '1\.json': it has the shape \[3\].* the first example has \[2\]/,
    );
    expect((await key('{"box":[1,"a"]}'))[1]).toMatch(/member '1\.json': 'box'.* is not a number/);
    expect((await key('{"box":'))[1]).toMatch(/member '1\.json': it is not JSON/);

    const pictures = await shard('pictures-bad.tar', {
      ...{ 'a.jpg': picture(0), 'b.jpg': picture(1).subarray(0, 200), 'c.jpg': picture(2, 4, 4) },
    });
    const { train } = await tarSource(pictures, { fields: { inputs: 'jpg' } });
    expect(errorText(await failure(read(train, [0, 1])))).toMatch(
      /pictures-bad\.tar: member 'b\.jpg': the picture cannot be decoded/,
    );
    expect(errorText(await failure(read(train, [2])))).toMatch(
      /member 'c\.jpg': the picture is 4×4, but .*member 'a\.jpg' is 8×6/,
    );
    expect((await read(train, [0])).inputs).toHaveLength(144);
  });

  it('refuse wrong options with what is allowed', async () => {
    const path = await shard('options.tar', numbers(0));
    const of = async (fields: unknown, more: object = {}) => {
      const [code, text] = await problem(path, { fields, ...more } as TarSourceOptions);
      expect(code).toBe('DP_EXPERIMENT_INVALID');
      return text;
    };
    expect(await of({})).toMatch(/fields is .*allowed: 1 to 64 fields/);
    expect(await of({ inputs: 'jsn1' })).toMatch(
      /end in '\.jsn1' are not read; did you mean 'jsn'\?/,
    );
    expect(await of({ inputs: 'json' })).toMatch(/key is missing; .*key: 'label'/);
    expect(await of({ inputs: { member: 'cls', size: 3 } })).toMatch(
      /'size' is an option of pictures/,
    );
    expect(await of({ inputs: { member: 'cls', key: 'a' } })).toMatch(/'key' is an option of JSON/);
    expect(await of({ inputs: ['jpg', 'cls'] })).toMatch(/of different kinds \(picture, whole\)/);
    expect(await of({ inputs: { membr: 'cls' } })).toMatch(/membr/);
    expect(await of({ inputs: 'cls' }, { keptBytes: -1 })).toMatch(/keptBytes/);
    expect(await of({ inputs: 'cls' }, { missing: 'skip' })).toMatch(/missing.*'drop'/);
    const wide = (count: number) =>
      Object.fromEntries(Array.from({ length: count }, (_, i) => [`f${i}`, 'cls']));
    expect((await tarSource(path, { fields: wide(64) })).train.count).toBe(1);
    expect(await of(wide(65))).toMatch(/allowed: 1 to 64/);
  });
});
