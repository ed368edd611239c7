import Type, { type Static } from 'typebox';
import { DownpourError } from './errors.ts';
import { LIMITS } from './limits.ts';

/** What users say of a run: a name for people, tags, a note, and whether it is archived. Training does not depend on it. */

const closed = { additionalProperties: false } as const;
/** No control characters, and no comma, which separates tags. */
export const TAG_PATTERN = '^[^\\s,\\u0000-\\u001f\\u007f]+$';

export const Tag = Type.String({ pattern: TAG_PATTERN, maxLength: LIMITS.labelTagLengthMax });
export const Tags = Type.Array(Tag, { maxItems: LIMITS.labelTagCountMax });

const textOrNull = (maxLength: number) => Type.Union([Type.String({ maxLength }), Type.Null()]);
/** In one line. */
export const ShownName = textOrNull(LIMITS.labelNameLengthMax);
export const Note = textOrNull(LIMITS.labelNoteLengthMax);

export const LabelsSchema = Type.Object(
  {
    name: ShownName,
    tags: Tags,
    note: Note,
    archived: Type.Boolean(),
    /** Number of changes so far: of two versions, the one with more is newer. */
    edits: Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
  },
  closed,
);
export type Labels = Readonly<Static<typeof LabelsSchema>>;

/** What a run has that nobody has labelled. */
export const NO_LABELS: Labels = { name: null, tags: [], note: null, archived: false, edits: 0 };

/** What is to be changed; absent fields stay as they are. */
export interface LabelsEdit {
  readonly name?: string | null;
  /** All tags. */
  readonly tags?: readonly string[];
  readonly addTags?: readonly string[];
  readonly removeTags?: readonly string[];
  readonly note?: string | null;
  readonly archived?: boolean;
}

/**
 * The labels after an edit; the same object where it changes nothing.
 * @throws DownpourError DP_BODY_INVALID: a name of several lines, or too many tags.
 */
export function edited(before: Labels, edit: LabelsEdit): Labels {
  const name = edit.name === undefined ? before.name : (edit.name?.trim() ?? '') || null;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what a name must not have
  if (name !== null && /[\u0000-\u001f\u007f]/.test(name)) {
    throw new DownpourError(
      'DP_BODY_INVALID',
      'the name of a run is one line without control characters; longer text belongs into its note',
    );
  }
  const note = edit.note === undefined ? before.note : (edit.note?.trim() ?? '') || null;
  const removed = edit.removeTags ?? [];
  const kept = (edit.tags ?? before.tags).filter((tag) => !removed.includes(tag));
  const tags = [...new Set([...kept, ...(edit.addTags ?? [])])];
  if (tags.length > LIMITS.labelTagCountMax) {
    throw new DownpourError(
      'DP_BODY_INVALID',
      `a run would have ${tags.length} tags; at most ${LIMITS.labelTagCountMax}: remove some first`,
    );
  }
  const archived = edit.archived ?? before.archived;
  const after = { name, tags, note, archived, edits: before.edits };
  if (JSON.stringify(after) === JSON.stringify(inOrder(before))) return before;
  return { ...after, edits: before.edits + 1 };
}

const inOrder = ({ name, tags, note, archived, edits }: Labels) => ({
  ...{ name, tags, note, archived, edits },
});

/** The newer of two versions; the first, where both are of one age. */
export function newerLabels(a: Labels, b: Labels): Labels {
  return b.edits > a.edits ? b : a;
}
