import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import { PassThrough, pipeline, type Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';

/** What workers in pages are made of; the server only hands it out and looks at none of it. */
export interface JoinPageFiles {
  /** Each of them lies in it as `<name>.gz`. */
  readonly folder: string;
  /** By name, as pages ask for it. */
  readonly files: ReadonlyMap<string, JoinPageFile>;
}

export interface JoinPageFile {
  readonly type: string;
  /** As an HTTP entity tag. */
  readonly tag: string;
}

/** Scripts of this server alone, which may compile WebAssembly; and no other host is asked for anything. */
export const JOIN_POLICY =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; frame-ancestors 'none'";

/** @param name one of `files`. @param gzipped as it lies there; else decompressed on its way. */
export function readJoinFile({ folder }: JoinPageFiles, name: string, gzipped: boolean): Readable {
  const stored = createReadStream(join(folder, `${name}.gz`));
  if (gzipped) return stored;
  // An error of either ends the answer too early, which whoever asked will notice.
  return pipeline(stored, createGunzip(), new PassThrough(), () => {});
}
