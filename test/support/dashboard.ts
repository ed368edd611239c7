import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import axe from 'axe-core';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';
import { findBrowser } from './browser.ts';

/** The dashboard in a real browser. */

export const OUTPUT = join(import.meta.dirname, '..', 'output');

/** @param gpu arguments for another than none. */
export async function launch(gpu: readonly string[] = ['--disable-gpu']): Promise<Browser> {
  const program = findBrowser();
  if (!program) throw new Error('no chromium is installed');
  return chromium.launch({
    executablePath: `/usr/bin/${program}`,
    args: ['--no-sandbox', ...gpu, '--disable-dev-shm-usage', '--disable-background-networking'],
  });
}

/** The three looks that each view is shown in. */
const LOOKS = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: 'light' },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: 'dark' },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: 'light' },
} as const;
export type Look = keyof typeof LOOKS;

/**
 * Writes pictures of the page as it is into test/output, one of each look, and lets axe look at each.
 * @throws Error that lists what somebody could not read, reach or hear.
 */
export async function picture(page: Page, name: string): Promise<void> {
  mkdirSync(OUTPUT, { recursive: true });
  const barriers: string[] = [];
  for (const [look, { viewport, colorScheme }] of Object.entries(LOOKS)) {
    await page.setViewportSize(viewport);
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await page.evaluate(
      () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))),
    );
    await page.screenshot({ path: join(OUTPUT, `${name}-${look}.png`), fullPage: true });
    // What can be reached and heard is the same in each; colours are the theme's, and narrow is wide with less room.
    const rules = { light: null, dark: ['color-contrast'], phone: ['scrollable-region-focusable'] };
    for (const barrier of await barriersOf(page, rules[look as Look])) {
      barriers.push(`${name}, ${look}: ${barrier}`);
    }
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (over > 0) barriers.push(`${name}, ${look}: the page is ${over} pixels too wide`);
  }
  await page.setViewportSize(LOOKS.light.viewport);
  await page.emulateMedia({ colorScheme: 'light' });
  if (barriers.length > 0) throw new Error(barriers.join('\n'));
}

/** What axe calls serious or critical, with where it is. @param rules null: all of them. */
async function barriersOf(page: Page, rules: string[] | null): Promise<string[]> {
  const isThere = await page.evaluate(() => 'axe' in globalThis);
  if (!isThere) await page.evaluate(axe.source);
  const { violations } = await page.evaluate(
    (only) =>
      (globalThis as unknown as { axe: typeof axe }).axe.run(document, {
        resultTypes: ['violations'],
        preload: false,
        ...(only ? { runOnly: only } : {}),
      }),
    rules,
  );
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(
      ({ id, help, nodes }) =>
        `${id}: ${help} (${nodes
          .slice(0, 3)
          .map(({ target, failureSummary }) => `${target.join(' ')}: ${failureSummary}`)
          .join('; ')})`,
    );
}

/** What went wrong in the page: errors of scripts, and what its policy forbade. */
export function problemsOf(page: Page): string[] {
  const problems: string[] = [];
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('console', (message) => {
    // A server that is away is part of the test.
    if (message.type() === 'error' && !/Failed to load resource/.test(message.text())) {
      problems.push(message.text());
    }
  });
  return problems;
}

export type { Browser, BrowserContext, Page };

/** Serious findings of axe-core about the page as it is, by rule and place. */
export async function accessibilityProblems(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(
    () =>
      (
        globalThis as unknown as { axe: { run(): Promise<AxeResults> } }
      ).axe.run() as Promise<AxeResults>,
  );
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .flatMap(({ id, nodes }) => nodes.map(({ target }) => `${id}: ${target.join(' ')}`));
}

interface AxeResults {
  readonly violations: readonly {
    readonly id: string;
    readonly impact: string;
    readonly nodes: readonly { readonly target: readonly string[] }[];
  }[];
}
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
