/** In the place of `../machine.ts` in a page, which knows nothing of its machine. */
export function reportMachine(): void {}
