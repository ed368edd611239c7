/** In the place of `../kept.ts` in a page, which has no disk and reads no source. */

export const recallResult: typeof import('../kept.ts').recallResult = () => null;

export const keepResult: typeof import('../kept.ts').keepResult = () => {};
