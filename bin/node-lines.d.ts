export const NODE_LINES_TEXT: string;
export function nodeProblem(version?: string): string | null;
export function engineNote(version?: string): string;
