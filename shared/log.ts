import type { ErrorCode } from './errors.ts';

/** What stands beside a line of the log as fields, where logs are structured; the line says it in words. */
export interface LogFacts {
  /** Default: info. */
  readonly level?: 'info' | 'warn' | 'error';
  readonly run?: string;
  readonly worker?: string;
  readonly code?: ErrorCode | string;
  readonly step?: number;
  /**
   * The kind of lines that somebody else can cause: those of one kind are counted together when they come too often. Default: the
   * line without its numbers. Not written.
   */
  readonly kind?: string;
  /** So many lines like this one came after it or before it and are not written. */
  readonly repeated?: number;
}

export type Log = (line: string, facts?: LogFacts) => void;

/** Where it was thrown: what it says may be somebody else's words. */
export function kindOfDefect(error: unknown): string {
  const place = error instanceof Error ? /^\s+at .*$/m.exec(error.stack ?? '')?.[0] : undefined;
  return `defect ${place ?? ''}`;
}
