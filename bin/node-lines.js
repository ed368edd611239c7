// Plain JavaScript: an old Node must be able to read this file and say that it is too old.

/** Lines of Node.js that are supported: those with long-term support, on each of which CI runs the package. */
const LINES = [20, 22, 24];

/** `20, 22 and 24` */
export const NODE_LINES_TEXT = `${LINES.slice(0, -1).join(', ')} and ${LINES[LINES.length - 1]}`;

/** @returns what to say when this Node cannot run Downpour, else null. The code needs `import.meta.dirname`, new in 20.11. */
export function nodeProblem(version = process.versions.node) {
  const [major, minor] = version.split('.').map(Number);
  if (major > 20 || (major === 20 && minor >= 11)) return null;
  return `Downpour needs Node.js 20.11 or newer; this is ${version}. Supported are the lines ${NODE_LINES_TEXT}. Get one of them, then try again.`;
}

/** @returns what somebody should know who installs a native engine, which is compiled against one line of Node.js. */
export function engineNote(version = process.versions.node) {
  const line = Number(version.split('.')[0]);
  const own = `the engine is for Node.js ${line}; each other line needs an install of its own`;
  if (LINES.includes(line)) return own;
  return `${own}. Node.js ${line} is not tested: if this fails, use one of the lines ${NODE_LINES_TEXT}`;
}
