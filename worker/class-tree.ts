import { DownpourError } from '../shared/errors.ts';

/**
 * A binary tree whose leaves are classes, for the hierarchical softmax (*Deep Learning* §12.4.3.2; Morin and Bengio 2005). Huffman's
 * tree has the fewest decisions on average; with equal counts it is balanced.
 */
export interface ClassTree {
  /** Most decisions on the way to a class. */
  readonly depth: number;
  /** Inner nodes: one fewer than classes. */
  readonly nodeCount: number;
  /** Shape [classes, depth]: inner nodes from the root to the class; −1 behind the last one. */
  readonly nodes: Int32Array;
  /** Shape [classes, depth]: 1 and −1 for the two ways on; 0 behind the last one. */
  readonly signs: Float32Array;
  /** Decisions of a class on average, weighed by the counts. */
  readonly meanDepth: number;
}

interface TreePart {
  readonly weight: number;
  /** A class, or −1 − an inner node. */
  readonly id: number;
}

/**
 * @param counts how often each class appears; at least two classes.
 * @throws DownpourError DP_EXPERIMENT_INVALID: too few classes, or counts that are not finite or below 0.
 */
export function classTree(counts: ArrayLike<number>): ClassTree {
  const classes = counts.length;
  mustBeCounts(counts, 'classTree');
  if (classes < 2) {
    throw invalid(`classTree was given ${classes} classes; allowed: 2 and more`);
  }
  // Two queues, both rising: leaves by their counts, and inner nodes as they are made (van Leeuwen 1976).
  const leaves: TreePart[] = Array.from({ length: classes }, (_, id) => ({
    weight: counts[id]!,
    id,
  }));
  leaves.sort((a, b) => a.weight - b.weight || b.id - a.id);
  const inner: TreePart[] = [];
  const children: (readonly [number, number])[] = [];
  let [leaf, made] = [0, 0];
  const lightest = (): TreePart => {
    const useLeaf =
      leaf < leaves.length && (made >= inner.length || leaves[leaf]!.weight <= inner[made]!.weight);
    return useLeaf ? leaves[leaf++]! : inner[made++]!;
  };
  for (let node = 0; node < classes - 1; node++) {
    const [a, b] = [lightest(), lightest()];
    children.push([a.id, b.id]);
    inner.push({ weight: a.weight + b.weight, id: -1 - node });
  }
  return placed(children, counts);
}

/** Walks from the root, which is node 0, down. */
function placed(
  children: readonly (readonly [number, number])[],
  counts: ArrayLike<number>,
): ClassTree {
  const nodeCount = children.length;
  const paths: { nodes: number[]; signs: number[] }[] = new Array(counts.length);
  // The node that was made last is the root.
  const waiting = [{ id: -nodeCount, nodes: [] as number[], signs: [] as number[] }];
  for (let part = waiting.pop(); part; part = waiting.pop()) {
    if (part.id >= 0) {
      paths[part.id] = part;
      continue;
    }
    const node = -1 - part.id;
    const nodes = [...part.nodes, nodeCount - 1 - node];
    for (const [i, id] of children[node]!.entries()) {
      waiting.push({ id, nodes, signs: [...part.signs, i === 0 ? 1 : -1] });
    }
  }
  const depth = Math.max(...paths.map(({ nodes }) => nodes.length));
  const nodes = new Int32Array(counts.length * depth).fill(-1);
  const signs = new Float32Array(counts.length * depth);
  let [decisions, total] = [0, 0];
  for (const [id, path] of paths.entries()) {
    nodes.set(path.nodes, id * depth);
    signs.set(path.signs, id * depth);
    decisions += counts[id]! * path.nodes.length;
    total += counts[id]!;
  }
  return { depth, nodeCount, nodes, signs, meanDepth: total > 0 ? decisions / total : depth };
}

/** @throws DownpourError DP_EXPERIMENT_INVALID */
export function mustBeCounts(counts: ArrayLike<number>, what: string): void {
  for (let i = 0; i < counts.length; i++) {
    if (Number.isFinite(counts[i]!) && counts[i]! >= 0) continue;
    throw invalid(`${what}: count ${i} is ${counts[i]}; allowed: finite numbers from 0`);
  }
}

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
