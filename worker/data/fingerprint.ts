import { type Digest, digest } from '../../shared/digest.ts';
import { type Column, kindOf } from './columns.ts';
import type { Examples } from './examples.ts';
import type { InputTransform } from './transform.ts';

/** What tells data sets apart: workers must train on the same. */

/** Sampled rows are enough to tell data sets apart; these bound what is read of large ones. */
const FINGERPRINT_ROWS = 1000;
const FINGERPRINT_INPUT_BYTES = 4 * 2 ** 20;
const FINGERPRINT_TARGET_BYTES = 16 * 2 ** 20;

/** 16 hex digits that differ where data, split or transform differ. */
export function fingerprint(
  parts: Record<'train' | 'validation' | 'test', Examples | null>,
  transform: InputTransform | null,
): string {
  const sum = digest();
  const text = (value: unknown) => sum.update(new TextEncoder().encode(JSON.stringify(value)));
  text(transform && [transform.kind, transform.scale]);
  for (const part of [parts.train, parts.validation, parts.test]) {
    if (part === null) {
      text(null);
      continue;
    }
    for (const column of [part.inputs, part.targets]) {
      text([kindOf(column.values), ...column.shape]);
    }
    sampleRows(sum, part.inputs, FINGERPRINT_ROWS, FINGERPRINT_INPUT_BYTES);
    sampleRows(sum, part.targets, Number.POSITIVE_INFINITY, FINGERPRINT_TARGET_BYTES);
  }
  return sum.hex();
}

/** Takes in evenly spaced rows, the first and the last among them. */
function sampleRows(sum: Digest, { values, shape }: Column, rowsMax: number, bytesMax: number) {
  const count = shape[0]!;
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const rowBytes = count === 0 ? 0 : bytes.length / count;
  const rows = Math.min(count, rowsMax, Math.max(16, Math.floor(bytesMax / rowBytes)));
  for (let i = 0; i < rows; i++) {
    const row = rows === 1 ? 0 : Math.floor((i * (count - 1)) / (rows - 1));
    sum.update(bytes.subarray(row * rowBytes, (row + 1) * rowBytes));
  }
}
