import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { readRunReport, runReportHtml } from '../../shared/report/run-report.ts';
import { print, printJson, type RunCommandOptions } from '../options.ts';
import { openUsedServer } from '../used-server.ts';

export interface ReportOptions extends RunCommandOptions {
  readonly html?: string;
}

/** `downpour report <run> --html FILE` */
export async function reportCommand(run: string, options: ReportOptions): Promise<void> {
  const usedServer = await openUsedServer({ ...options, run });
  const path = resolve(options.html ?? `${run}.html`);
  try {
    const facts = await readRunReport(usedServer.client, run);
    const html = runReportHtml(facts, new Date().toISOString());
    try {
      await writeFile(path, html);
    } catch (cause) {
      throw new DownpourError('DP_DISK', `cannot write ${path}: ${errorText(cause)}`, { cause });
    }
    const bytes = Buffer.byteLength(html);
    if (options.json) printJson({ run, file: path, bytes });
    else print(`${path}: run ${run} up to step ${facts.run.step}, ${Math.ceil(bytes / 1000)} KB`);
  } finally {
    await usedServer.close();
  }
}
