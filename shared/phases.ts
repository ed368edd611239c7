/** Nothing happens any more in a run of this phase, unless somebody resumes it. @param phase `Phase`, or a record's. */
export const isOver = (phase: string): boolean => phase === 'stopped' || isFinal(phase);

/** Nobody can resume a run of this phase. */
export const isFinal = (phase: string): boolean => phase === 'finished' || phase === 'failed';
