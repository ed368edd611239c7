import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { build, stop } from 'esbuild';
import { JOIN_PATHS } from '../../shared/join.ts';

/** A file of the dashboard as browsers get it. */
export interface Asset {
  readonly type: string;
  readonly bytes: Buffer;
  readonly gzipped: Buffer;
  /** As an HTTP entity tag. */
  readonly tag: string;
}

const WEB = join(import.meta.dirname, '..', '..', 'web');
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

/**
 * The page asks this server alone, runs what this server sends alone, and is never framed. `data:` is for the
 * icons of the style sheet, `blob:` for pictures that are saved.
 */
export const PAGE_POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; " +
  "base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

let built: Promise<ReadonlyMap<DashboardPath, Asset>> | null = null;

/**
 * The dashboard, bundled from `web/` when it is first asked for, in about 0.1 s beside the training: the bundler is
 * here in any case, since it is what reads the server's own TypeScript. So no bundle is kept that could
 * be another than its sources.
 */
export function dashboard(): Promise<ReadonlyMap<DashboardPath, Asset>> {
  built ??= bundle().catch((error: unknown) => {
    built = null;
    throw error;
  });
  return built;
}

async function bundle(): Promise<ReadonlyMap<DashboardPath, Asset>> {
  const { outputFiles } = await build({
    entryPoints: { dashboard: join(WEB, 'main.ts'), join: join(WEB, 'join.ts') },
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    outdir: '/',
    logLevel: 'silent',
  }).finally(() => stop());
  const files = new Map<DashboardPath, Asset>([
    ['/', asset(TYPES.html, await readFile(join(WEB, 'index.html')))],
    ['/icon.svg', asset(TYPES.svg, await readFile(join(WEB, 'icon.svg')))],
    [JOIN_PATHS.page, asset(TYPES.html, await readFile(join(WEB, 'join.html')))],
  ]);
  for (const { path, contents } of outputFiles) {
    const type = path.endsWith('.css') ? TYPES.css : TYPES.js;
    files.set(`/${basename(path)}` as DashboardPath, asset(type, Buffer.from(contents)));
  }
  return files;
}

function asset(type: string, bytes: Buffer): Asset {
  const tag = `"${createHash('sha256').update(bytes).digest('base64url').slice(0, 22)}"`;
  return { type, bytes, gzipped: gzipSync(bytes, { level: 9 }), tag };
}
