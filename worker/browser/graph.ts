/** In the place of `../graph.ts` in a page: only TensorFlow's library records steps. */

export const canRecord: typeof import('../graph.ts').canRecord = () => false;

/** Never made where nothing can be recorded. */
export class Graphs {
  constructor() {
    throw new Error('a page records no steps');
  }
}
