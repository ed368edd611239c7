/**
 * Looks for keys among others; both rise strictly.
 * @param found is given the place of each key, and its place among the others. @returns false: one is missing.
 */
export function findKeys(
  keys: Uint32Array,
  others: Uint32Array,
  found?: (i: number, at: number) => void,
): boolean {
  let at = 0;
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i]!;
    while (at < others.length && others[at]! < key) at++;
    if (at === others.length || others[at] !== key) return false;
    found?.(i, at);
  }
  return true;
}
