// Update kernels, compiled by `npm run kernels`. The reference twins are in shared/optimizer.ts and
// server/core/averaging.ts; symbols are theirs. Arrays begin at multiples of 16 bytes; lengths are free.
export * from './averages';
export * from './norms';
export * from './rows';
export * from './updates';
