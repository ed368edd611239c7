/** In the place of `../name.ts` in a page, which knows neither its host nor its process. */
export function defaultName(): string {
  const drawn = crypto.getRandomValues(new Uint32Array(1))[0]!;
  return `browser-${drawn.toString(16).padStart(8, '0')}`;
}
