import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { VERSION } from '../shared/version.ts';

/** What STYLE.md says of the shape of the code, as far as a test can see it. */

const ROOT = resolve(import.meta.dirname, '..');
const LAYERS = [
  ...['shared', 'wire', 'files', 'server', 'worker', 'study', 'cli', 'library', 'web'],
] as const;

/** For each layer, the layers that it may import besides itself. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  shared: [],
  wire: ['shared'],
  files: ['shared'],
  server: ['shared', 'wire', 'files'],
  worker: ['shared', 'wire', 'bin'],
  study: ['shared', 'files'],
  web: ['shared'],
  cli: ['shared', 'wire', 'files', 'server', 'worker', 'study', 'bin'],
  library: ['shared', 'wire', 'files', 'server', 'worker', 'study', 'cli'],
};

/** The only files that may import a library: one door each, so that it can be changed in one place. */
const DOORS: Record<string, RegExp> = {
  ioredis: /^server\/store\/redis-connection\.ts$/,
  msgpackr: /^shared\/codec\.ts$/,
  ws: /^wire\/(connection|handshake)\.ts$/,
  fastify:
    /^(server\/http\/(app|describe-error|door|listen|mount|pages|upgrade|request-cost|[a-z-]*routes)|library\/plugin|cli\/trained\/serve-model)\.ts$/,
  '@fastify/swagger': /^(server\/http\/app|cli\/trained\/serve-model)\.ts$/,
  esbuild: /^(server\/http\/dashboard|cli\/bundles\/bundler)\.ts$/,
  uplot: /^web\/chart\.ts$/,
  commander: /^cli\//,
  aws4fetch: /^server\/checkpoints\/elsewhere\/s3\.ts$/,
  pino: /^cli\/output\/log\.ts$/,
  '@tensorflow/': /^(worker|cli|library)\//,
  sharp: /^worker\/data\/pictures\/sharp\.ts$/,
  hyparquet: /^worker\/data\/sources\/parquet-(file|pages)\.ts$/,
  'hyparquet/': /^worker\/data\/sources\/parquet-pages\.ts$/,
  'hyparquet-compressors': /^worker\/data\/sources\/parquet-pages\.ts$/,
  'tar-stream/': /^worker\/data\/tar\/members\.ts$/,
  'jpeg-js': /^worker\/data\/pictures\/jpeg\.ts$/,
};

/** Circles of imports that are still there, each to be opened: the files, sorted. */
const KNOWN_CIRCLES: readonly string[] = [];

/** Compiled by another compiler, or in the place of a module whose names it therefore has. */
const OTHER_NAMES = /\/(kernels\/assembly|browser)\//;

/** Exports that nothing takes yet. */
const KNOWN_LONELY: readonly string[] = [
  'cli/simulate/virtual-cluster.ts: exponentialMs',
  'server/standby/replication.ts: STANDBY_TIMEOUT_MS',
  // Taken by a file that `trainOn` writes.
  'worker/fitted.ts: fittedExperiment',
];

const SERVER_LINES_MAX = 700;
/** Made by `npm run kernels`. */
const GENERATED: readonly string[] = ['server/kernels/binary.ts'];

const FUNCTION_LINES_MAX = 120;

interface Import {
  readonly file: string;
  readonly target: string;
}

const IMPORT = /(?:from|import\()\s*'([^']+)'/g;
const DECLARATION =
  /^(?:(?:export )?(?:declare |abstract )*(?:interface|type|class|enum)|export (?:async )?function\*?) (\w+)/gm;
const EXPORT = /^export (?:async )?(?:function\*?|const|let|class) (\w+)/gm;

const files = LAYERS.flatMap((layer) => sources(join(ROOT, layer)));
const imports: Import[] = files.flatMap((path) =>
  [...readFileSync(path, 'utf8').matchAll(IMPORT)].map(([, target]) => ({
    file: relative(ROOT, path),
    target: target!,
  })),
);

function sources(folder: string, ending = /\.ts$/): string[] {
  let entries: ReturnType<typeof readdirSync>;
  try {
    entries = readdirSync(folder, { withFileTypes: true, recursive: true }) as never;
  } catch {
    return [];
  }
  return (entries as unknown as { name: string; parentPath: string; isFile(): boolean }[])
    .filter((entry) => entry.isFile() && ending.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));
}

describe('layers', () => {
  test('imports go down only', () => {
    const wrong = imports.filter(({ file, target }) => {
      if (!target.startsWith('.')) return false;
      const from = file.split('/')[0]!;
      const to = relative(ROOT, resolve(ROOT, dirname(file), target)).split('/')[0]!;
      return from !== to && !MAY_IMPORT[from]!.includes(to);
    });
    expect(wrong).toEqual([]);
  });

  test('a circle of imports is found, a diamond is none', () => {
    const graph = {
      a: ['b', 'c'],
      b: ['d'],
      c: ['d'],
      d: ['e'],
      e: ['f'],
      f: ['d', 'f'],
      g: ['g'],
    };
    expect(circlesOf(new Map(Object.entries(graph)))).toEqual([['d', 'e', 'f'], ['g']]);
  });

  test('no file imports itself by way of others, not even for its types', () => {
    const circles = circlesOf(filesImported()).map((circle) => circle.toSorted().join(' '));
    expect(circles.filter((circle) => !KNOWN_CIRCLES.includes(circle))).toEqual([]);
    expect(KNOWN_CIRCLES.filter((circle) => !circles.includes(circle))).toEqual([]);
  });

  test('the core does no I/O and shared runs in a browser', () => {
    const wrong = imports.filter(
      ({ file, target }) =>
        (file.startsWith('shared/') || file.startsWith('server/core/')) &&
        (target.startsWith('node:') || target.startsWith('@tensorflow/')),
    );
    expect(wrong).toEqual([]);
  });

  test('what stands in for other modules in a page needs nothing of Node', () => {
    const standIns = imports.filter(({ file }) => /^(worker|wire)\/browser\//.test(file));
    expect(standIns.length).toBeGreaterThan(0);
    expect(standIns.filter(({ target }) => target.startsWith('node:'))).toEqual([]);
  });

  test('the core never waits and reads no clock', () => {
    const forbidden =
      /\bawait\b|\basync\b|Date\.now|new Date|performance\.now|setTimeout|Math\.random/;
    const wrong = sources(join(ROOT, 'server/core'))
      .filter((path) => forbidden.test(withoutComments(readFileSync(path, 'utf8'))))
      .map((path) => relative(ROOT, path));
    expect(wrong).toEqual([]);
  });

  test('nothing decides by the clock on the wall, which may be set', () => {
    // A time to be shown, and four places where being wrong costs nothing; see there. How old a login is,
    // which must count beyond a restart, is no better known than by this clock; certificates are valid by it.
    const shown = /new Date\(\)(?:\.toISOString\(\)|,$)|startedAt: new Date\(\)|new Date\(0\)/;
    const allowed = new Set([
      ...['server/http/door.ts', 'server/fleet/coordinator.ts', 'server/store/file-store.ts'],
      ...['server/access/tls.ts', 'wire/tls.ts', 'shared/history.ts'],
      // Times that stand in a file, as text.
      'worker/data/sources/parquet-pages.ts',
    ]);
    const wrong: string[] = [];
    for (const folder of ['files', 'server', 'worker', 'wire', 'shared', 'study', 'cli']) {
      for (const path of sources(join(ROOT, folder))) {
        const file = relative(ROOT, path);
        const lines = withoutComments(readFileSync(path, 'utf8')).split('\n');
        for (const line of lines) {
          if (/new Date\b|\bDate\./.test(line) && !shown.test(line.trim()) && !allowed.has(file)) {
            wrong.push(`${file}: ${line.trim()}`);
          }
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  test('each library has one door', () => {
    const wrong = imports.filter(({ file, target }) => {
      const door = Object.keys(DOORS).find(
        (name) => target === name || (name.endsWith('/') && target.startsWith(name)),
      );
      return door !== undefined && !DOORS[door]!.test(file);
    });
    expect(wrong).toEqual([]);
  });

  test('the listing of the commands is a table of contents', () => {
    const entries = readdirSync(join(ROOT, 'cli'));
    expect(entries).toContain('main.ts');
    expect(entries.length).toBeLessThanOrEqual(20);
  });

  test('the listing of the server is a table of contents', () => {
    const entries = readdirSync(join(ROOT, 'server'));
    expect(entries).toContain('main.ts');
    expect(entries.length).toBeLessThanOrEqual(12);
  });

  test('no file of the server has more lines than one reads in one go', () => {
    const long = sources(join(ROOT, 'server'))
      .map((path) => ({
        file: relative(ROOT, path),
        // The last line ends too.
        lines: readFileSync(path, 'utf8').split('\n').length - 1,
      }))
      .filter(({ file, lines }) => lines > SERVER_LINES_MAX && !GENERATED.includes(file));
    expect(long).toEqual([]);
  });

  test('no function is longer than one can hold in mind', () => {
    const long = files
      .filter((path) => !/\/kernels\/assembly\//.test(path))
      .flatMap((path) => functionsOf(readFileSync(path, 'utf8'), relative(ROOT, path)))
      .filter(({ lines }) => lines > FUNCTION_LINES_MAX);
    expect(long).toEqual([]);
  });

  test('functions are found with their lines, whatever their form', () => {
    const text = [
      ...['export async function one(', '  a: number,', '): Promise<void> {', '  await a;', '}'],
      ...['class A {', '  two(): void {', '    if (x) {', '    }', '  }', '}'],
      ...['const three = (a: number) => {', '  return { a };', '};'],
    ].join('\n');
    expect(functionsOf(text, 'f.ts')).toEqual([
      { name: 'f.ts: one', lines: 5 },
      { name: 'f.ts: two', lines: 4 },
      { name: 'f.ts: three', lines: 3 },
    ]);
  });

  test('relative imports spell the ending', () => {
    const wrong = imports.filter(
      // AssemblyScript wants names without their ending.
      ({ file, target }) =>
        !file.includes('/kernels/assembly/') &&
        target.startsWith('.') &&
        !/\.(ts|js|json)$/.test(target),
    );
    expect(wrong).toEqual([]);
  });
});

describe('comments', () => {
  test('are sentences, or name their subject: none only ends one with "of …"', () => {
    const wrong = [...LAYERS, 'bench', 'examples', 'scripts', 'test']
      .flatMap((folder) => sources(join(ROOT, folder)))
      .flatMap((path) => {
        const found = readFileSync(path, 'utf8').match(
          /(?:\/\*\*|\/\/|^ *\/\*\*\n *\*) Of [\w`'].*/gm,
        );
        return (found ?? []).map((comment) => `${relative(ROOT, path)}: ${comment}`);
      });
    expect(wrong).toEqual([]);
  });
});

describe('names', () => {
  test('of types, exported or not, and of exported functions are declared once: one word, one idea', () => {
    const own = files.filter((path) => !OTHER_NAMES.test(path));
    const twice = declaredTwice(
      new Map(own.map((path) => [relative(ROOT, path), readFileSync(path, 'utf8')])),
    );
    expect(twice).toEqual({});
  });

  test('that two files declare are found; those of methods, comments and own functions are not', () => {
    const texts = new Map([
      [
        'a.ts',
        'export interface Held {\n}\n// type Session\ntype Way = string;\nexport function judge() {}\nfunction own() {}',
      ],
      [
        'b.ts',
        'class Held {\n  Way = 1;\n}\nexport abstract class Session {}\nexport async function judge() {}\nfunction own() {}',
      ],
    ]);
    expect(declaredTwice(texts)).toEqual({ Held: ['a.ts', 'b.ts'], judge: ['a.ts', 'b.ts'] });
  });
});

describe('exports', () => {
  test('are values that another file takes, and schemas beside their types', () => {
    const all = [...LAYERS, 'bench', 'examples', 'scripts', 'test'].flatMap((folder) =>
      sources(join(ROOT, folder), /\.[tj]s$/),
    );
    const texts = new Map(all.map((path) => [path, readFileSync(path, 'utf8')]));
    const takers = new Map<string, string[]>();
    for (const [path, text] of texts) {
      for (const [, target] of text.matchAll(IMPORT)) {
        const taken = resolve(dirname(path), target!);
        takers.set(taken, [...(takers.get(taken) ?? []), text]);
      }
    }
    const lonely = files.flatMap((path) => {
      if (OTHER_NAMES.test(path)) return [];
      // For programs.
      if (/\/library\/(index|server)\.ts$/.test(path)) return [];
      return [...texts.get(path)!.matchAll(EXPORT)].flatMap(([, name]) => {
        const says = new RegExp(`\\b${name}\\b`);
        const isTaken = takers.get(path)?.some((text) => says.test(text));
        return isTaken || name!.endsWith('Schema') ? [] : [`${relative(ROOT, path)}: ${name}`];
      });
    });
    expect(lonely.filter((each) => !KNOWN_LONELY.includes(each))).toEqual([]);
  });
});

describe('facts that stand twice', () => {
  test('the release is the same in package.json and in the code', () => {
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
    expect(VERSION).toBe(version);
  });
});

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/\/\/.*$/gm, '');
}

const BEGINS =
  /\bfunction\b.*\{$|=> \{$|^ *(?:(?:static|async|get|set) )*[\w#*]+(?:<.*>)?\(.*\{$|^ *\)(?:: .*)? (?:=> )?\{$/;
const STATEMENT =
  /^ *(?:if|for|while|switch|catch|return|do|try|await|\} else|\} catch)\b(?!.*=> \{$)/;

/** Functions of more than one line, as Biome writes them: the end has the indentation of the beginning. */
function functionsOf(text: string, file: string): { name: string; lines: number }[] {
  const lines = text.split('\n');
  return lines.flatMap((line, i) => {
    if (!BEGINS.test(line) || STATEMENT.test(line)) return [];
    const indent = /^ */.exec(line)![0];
    const end = lines.findIndex((other, k) => k > i && other.startsWith(`${indent}}`));
    let start = i;
    // Parameters on lines of their own.
    if (/^ *\)/.test(line)) {
      const isOuter = (k: number) => new RegExp(`^${indent}[^ )\\]}]`).test(lines[k]!);
      do start--;
      while (start > 0 && !isOuter(start));
    }
    const head = lines[start]!.trim();
    const name =
      /^(?:(?:export|default|static|async|get|set|const|let|function\*?) )*([\w#]+)/.exec(
        head,
      )?.[1];
    return [{ name: `${file}: ${name ?? head}`, lines: end - start + 1 }];
  });
}

/** Names that several files declare, each with its files, sorted. */
function declaredTwice(texts: ReadonlyMap<string, string>): Record<string, string[]> {
  const declared = new Map<string, string[]>();
  for (const [file, text] of texts) {
    for (const name of new Set([...text.matchAll(DECLARATION)].map(([, name]) => name!))) {
      declared.set(name, [...(declared.get(name) ?? []), file]);
    }
  }
  const twice = [...declared].filter(([, files]) => files.length > 1);
  return Object.fromEntries(twice.map(([name, files]) => [name, files.toSorted()]));
}

/** For each file, the files that it imports. */
function filesImported(): Map<string, string[]> {
  const all = new Map<string, string[]>(files.map((path) => [relative(ROOT, path), []]));
  for (const { file, target } of imports) {
    const to = relative(ROOT, resolve(ROOT, dirname(file), target));
    if (target.startsWith('.') && all.has(to)) all.get(file)!.push(to);
  }
  return all;
}

/** Strongly connected parts of more than one file, and files that import themselves (Tarjan 1972). */
function circlesOf(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const order = new Map<string, number>();
  const open: string[] = [];
  const circles: string[][] = [];
  /** The earliest open file that can be reached from this one. */
  const visit = (file: string): number => {
    const own = order.size;
    order.set(file, own);
    open.push(file);
    let first = own;
    for (const next of graph.get(file)!) {
      if (!order.has(next)) first = Math.min(first, visit(next));
      else if (open.includes(next)) first = Math.min(first, order.get(next)!);
    }
    if (first === own) {
      const circle = open.splice(open.indexOf(file));
      if (circle.length > 1 || graph.get(file)!.includes(file)) circles.push(circle);
    }
    return first;
  };
  for (const file of graph.keys()) if (!order.has(file)) visit(file);
  return circles;
}
