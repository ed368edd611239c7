import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { JOIN_PATHS } from '../../shared/join.ts';
import { IS_BUILT, ROOT } from '../../shared/own-files.ts';

/** A file of the dashboard as browsers get it. */
export interface Asset {
  readonly type: string;
  readonly bytes: Buffer;
  readonly gzipped: Buffer;
  /** As an HTTP entity tag. */
  readonly tag: string;
}

const TYPES = {
  html: 'text/html; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  css: 'text/css; charset=utf-8',
  svg: 'image/svg+xml',
} as const;

/** Where the files lie on the server. */
export const DASHBOARD_PATHS = [
  '/',
  '/dashboard.js',
  '/dashboard.css',
  '/icon.svg',
  JOIN_PATHS.page,
  JOIN_PATHS.script,
] as const;
export type DashboardPath = (typeof DASHBOARD_PATHS)[number];
/** What is at each of these paths. */
export const FILES: readonly string[] = [
  ...['index.html', 'dashboard.js', 'dashboard.css', 'icon.svg'],
  ...['join.html', 'join.js'],
];

/**
 * The page asks this server alone, runs what this server sends alone, and is never framed. `data:` is for the
 * icons of the style sheet, `blob:` for pictures that are saved.
 */
export const PAGE_POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; " +
  "base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

let made: Promise<ReadonlyMap<DashboardPath, Asset>> | null = null;

/**
 * The dashboard. In a checkout it is bundled from `web/` when it is first asked for, in about 0.1 s beside the training, so
 * that no bundle is kept that could be another than its sources; the built package has it in `dist/web/`.
 */
export function dashboard(): Promise<ReadonlyMap<DashboardPath, Asset>> {
  made ??= assets().catch((error: unknown) => {
    made = null;
    throw error;
  });
  return made;
}

async function assets(): Promise<ReadonlyMap<DashboardPath, Asset>> {
  const contents = IS_BUILT
    ? await Promise.all(FILES.map((name) => readFile(new URL(`dist/web/${name}`, ROOT))))
    : await bundleDashboard();
  return new Map(
    DASHBOARD_PATHS.map((path, i) => {
      const ending = FILES[i]!.split('.').at(-1) as keyof typeof TYPES;
      return [path, asset(TYPES[ending], contents[i]!)];
    }),
  );
}

/** From `web/`. @returns the contents of `FILES`, in order. */
export async function bundleDashboard(): Promise<Buffer[]> {
  const { build, stop } = await import('esbuild');
  const { outputFiles } = await build({
    entryPoints: { dashboard: own('main.ts'), join: own('join.ts') },
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    outdir: '/',
    logLevel: 'silent',
  }).finally(() => stop());
  const bundles = new Map(outputFiles.map((file) => [basename(file.path), file.contents]));
  return Promise.all(
    FILES.map(async (name) => Buffer.from(bundles.get(name) ?? (await readFile(own(name))))),
  );
}

const own = (name: string) => fileURLToPath(new URL(`web/${name}`, ROOT));

function asset(type: string, bytes: Buffer): Asset {
  const tag = `"${createHash('sha256').update(bytes).digest('base64url').slice(0, 22)}"`;
  return { type, bytes, gzipped: gzipSync(bytes, { level: 9 }), tag };
}
