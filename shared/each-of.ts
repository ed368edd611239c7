const AT_ONCE = 16;

/** Does something with each, a few at a time, so that neither descriptors nor memory run out. */
export async function eachOf<T>(
  all: Iterable<T>,
  action: (one: T) => Promise<unknown>,
): Promise<void> {
  const rest = all[Symbol.iterator]();
  const one = async () => {
    for (let next = rest.next(); !next.done; next = rest.next()) await action(next.value);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, one));
}
