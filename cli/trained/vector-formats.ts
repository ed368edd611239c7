/** Formats of `export` that have the rows of tables. The help needs them without what writes them. */

/** `projector`: what TensorBoard's projector reads, the numbers and the words in files of their own. */
export const VECTOR_FORMATS = ['word2vec', 'glove', 'projector'] as const;
export type VectorFormat = (typeof VECTOR_FORMATS)[number];

export const isVectorFormat = (format: string): format is VectorFormat =>
  (VECTOR_FORMATS as readonly string[]).includes(format);
