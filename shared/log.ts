import type { ErrorCode } from './errors.ts';

/** What stands beside a line of the log as fields, where logs are structured; the line says it in words. */
export interface LogFacts {
  /** Default: info. */
  readonly level?: 'info' | 'warn' | 'error';
  readonly run?: string;
  readonly worker?: string;
  readonly code?: ErrorCode | string;
  readonly step?: number;
}

export type Log = (line: string, facts?: LogFacts) => void;
