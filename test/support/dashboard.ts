import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
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
export const LOOKS = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: 'light' },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: 'dark' },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: 'light' },
} as const;
export type Look = keyof typeof LOOKS;

/** Writes pictures of the page as it is into test/output, one of each look. */
export async function picture(page: Page, name: string): Promise<void> {
  mkdirSync(OUTPUT, { recursive: true });
  for (const [look, { viewport, colorScheme }] of Object.entries(LOOKS)) {
    await page.setViewportSize(viewport);
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await page.evaluate(
      () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))),
    );
    await page.screenshot({ path: join(OUTPUT, `${name}-${look}.png`), fullPage: true });
  }
  await page.setViewportSize(LOOKS.light.viewport);
  await page.emulateMedia({ colorScheme: 'light' });
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
