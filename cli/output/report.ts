import { relative } from 'node:path';
import type { Report } from '../../study/report.ts';
import { print, printJson } from '../options.ts';
import { table } from './progress.ts';

/** Prints what a study or a look ends in. @param paths of the files that were written. */
export function showReport(report: Report, paths: readonly string[], json = false): void {
  const { title, headings, rows, more = [], advice, facts } = report;
  if (json) {
    printJson({ title, advice, ...facts, files: paths });
    return;
  }
  print(title);
  for (const line of table(headings, rows)) print(line);
  for (const own of more) {
    print();
    print(own.title);
    for (const line of table(own.headings, own.rows)) print(line);
  }
  print();
  print(advice);
  print();
  print(`written: ${paths.map((path) => relative(process.cwd(), path)).join(', ')}`);
}
