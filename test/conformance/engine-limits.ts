/** What no engine of tfjs 4.22 can differentiate. */
export interface EngineLimit {
  /** tfjs's name of the operation's kernel, as in `tf.profile` and in a graph. */
  readonly kernel: string;
  /** What of it can't be differentiated. */
  readonly when: string;
  /** Throws when training starts, or gives a wrong gradient without a word. */
  readonly outcome: 'throws' | 'wrong';
  /** What does the same and can be. */
  readonly instead: string;
}

/** A limit that tfjs lifts fails in the test beside this. */
export const ENGINE_LIMITS: readonly EngineLimit[] = [
  {
    kernel: 'Conv2D',
    when: 'dilation above 1',
    outcome: 'throws',
    instead: 'dilation 1 with a larger filter, or pooling before the convolution',
  },
  {
    kernel: 'DepthwiseConv2dNative',
    when: 'dilation above 1',
    outcome: 'throws',
    instead: 'dilation 1 with a larger filter',
  },
  {
    kernel: 'Conv3DBackpropInputV2',
    when: 'always (conv3dTranspose)',
    outcome: 'throws',
    instead: 'repeat the values along each axis (tile, reshape), then conv3d',
  },
  {
    kernel: 'GatherNd',
    when: 'always',
    outcome: 'throws',
    instead: 'reshape to rows, then gather',
  },
  { kernel: 'StridedSlice', when: 'always', outcome: 'throws', instead: 'slice, or gather' },
  {
    kernel: 'Einsum',
    when: 'always',
    outcome: 'throws',
    instead: 'transpose, reshape and matMul',
  },
  {
    kernel: 'DepthToSpace',
    when: 'always',
    outcome: 'throws',
    instead: 'reshape, transpose, reshape',
  },
  {
    kernel: 'TopK',
    when: 'always',
    outcome: 'throws',
    instead: 'max for the largest, or gather by the indices of topk',
  },
  {
    kernel: 'MirrorPad',
    when: 'always (the border gives nothing back)',
    outcome: 'wrong',
    instead: 'concat of slices reversed, or pad with zeros',
  },
];
