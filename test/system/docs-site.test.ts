import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, posix } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { launch } from '../support/dashboard.ts';

// What `npm run docs:site` builds: every page is there, every link leads somewhere, and a browser that reaches no other
// host can read and search it.

const ROOT = join(import.meta.dirname, '../..');
const folder = mkdtempSync(join(tmpdir(), 'downpour-site-'));
const site = join(folder, 'site');

/** As `npm run docs:site` builds, without the variables of a test, which make it a site for development. */
async function build(docs: string, ...args: string[]): Promise<void> {
  const { NODE_ENV, VITEST, ...env } = process.env;
  const program = join(ROOT, 'node_modules/vitepress/bin/vitepress.js');
  await promisify(execFile)(process.execPath, [program, 'build', docs, ...args], { env });
}

beforeAll(() => build(join(ROOT, 'docs'), '--outDir', site), 300_000);
afterAll(() => rmSync(folder, { recursive: true }));

async function pages(): Promise<string[]> {
  return (await readdir(site, { recursive: true })).filter((name) => name.endsWith('.html'));
}

/** Addresses that a page of the site links or loads, as in its HTML. */
const addressesOf = (html: string) =>
  [...html.matchAll(/<(\w+)[^>]*? (?:href|src)="([^"]*)"/g)].map(([, tag, address]) => ({
    tag: tag!,
    address: address!,
  }));

test('has every page, and names it in the sidebar', async () => {
  const sources = await readdir(join(ROOT, 'docs'), { recursive: true });
  const expected = sources
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name.replace(/\.md$/, '.html')}`);
  const first = await readFile(join(site, 'index.html'), 'utf8');
  for (const page of ['SECURITY.html', 'STYLE.html', 'CHANGELOG.html', ...expected]) {
    expect(existsSync(join(site, page)), page).toBe(true);
    expect(first, page).toContain(`href="/${page}"`);
  }
});

test('has no dead link, also to a heading or a source file, and loads nothing from elsewhere', async () => {
  const ids = new Map<string, Set<string>>();
  for (const page of await pages()) {
    const html = await readFile(join(site, page), 'utf8');
    ids.set(page, new Set([...html.matchAll(/ id="([^"]*)"/g)].map(([, id]) => id!)));
  }
  const wrong: string[] = [];
  let checked = 0;
  for (const page of ids.keys()) {
    for (const { tag, address } of addressesOf(readFileSync(join(site, page), 'utf8'))) {
      if (/^(https?:)?\/\//.test(address)) {
        if (tag !== 'a') wrong.push(`${page} loads ${address}`);
        continue;
      }
      if (/^(data|mailto):/.test(address)) continue;
      checked++;
      const [path = '', anchor = ''] = address.split('#');
      const target = posix.join('/', path.startsWith('/') ? '' : posix.dirname(page), path);
      const file = path === '' ? page : target.replace(/\/$/, '/index.html').slice(1);
      const heading = decodeURIComponent(anchor);
      if (!existsSync(join(site, file))) wrong.push(`${page} links ${address}`);
      else if (heading !== '' && ids.get(file)?.has(heading) === false) {
        wrong.push(`${page} links ${address}, and ${file} has no such heading`);
      }
    }
  }
  expect(wrong).toEqual([]);
  expect(checked).toBeGreaterThan(2_000);
});

test('a browser without a network beyond the site finds a word by the search', async () => {
  const browser = await launch();
  try {
    const page = await browser.newPage();
    const elsewhere: string[] = [];
    const faults: string[] = [];
    page.on('pageerror', (error) => faults.push(error.message));
    await page.route('**/*', async (route) => {
      const { host, pathname } = new URL(route.request().url());
      if (host !== 'site.test') {
        elsewhere.push(host);
        return route.abort();
      }
      const file = join(site, pathname.replace(/\/$/, '/index.html'));
      return existsSync(file) ? route.fulfill({ path: file }) : route.fulfill({ status: 404 });
    });
    await page.goto('http://site.test/');
    // The page listens to keys once its program runs.
    const box = page.getByRole('searchbox');
    await vi.waitFor(
      async () => {
        await page.keyboard.press('Control+k');
        await box.waitFor({ timeout: 1000 });
      },
      { timeout: 60_000 },
    );
    await box.fill('staleness');
    await page.locator('.VPLocalSearchBox .result[href*="concepts"]').first().click();
    // The address changes before the page does.
    await page.getByRole('heading', { level: 1, name: 'Concepts' }).waitFor({ timeout: 60_000 });
    expect(new URL(page.url()).pathname).toMatch(/^\/docs\/concepts(\.html)?$/);
    expect({ elsewhere, faults }).toEqual({ elsewhere: [], faults: [] });
  } finally {
    await browser.close();
  }
});

test('a link to a page that does not exist fails the build', async () => {
  const other = join(folder, 'other');
  await mkdir(join(other, 'docs/.vitepress'), { recursive: true });
  const config = join(ROOT, 'docs/.vitepress/config.ts');
  await writeFile(
    join(other, 'docs/.vitepress/config.ts'),
    `export { default } from ${JSON.stringify(config)};\n`,
  );
  await writeFile(join(other, 'package.json'), '{ "type": "module" }\n');
  await writeFile(join(other, 'README.md'), '# A page\n\n[another](docs/missing.md)\n');
  await expect(build(join(other, 'docs'))).rejects.toThrow(/dead link/);
});
