import { LIMITS } from '../../../shared/limits.ts';
import { corrupt } from '../files.ts';
import type { PositionedFile } from '../positioned-file.ts';
import type { ReadProgress } from '../sources/read-progress.ts';
import { TAR_BLOCK_BYTES, type TarMember, tarMembers } from './members.ts';

/**
 * Where the examples of a shard are, as WebDataset groups them: members whose names are the same up to the first dot of their
 * last part are one example, and what follows this dot says which part of it they are.
 */

/** One field of all examples of a shard: 8 bytes for each. */
export interface IndexedField {
  /** In blocks of 512 bytes from the beginning of the archive. */
  readonly blocks: Uint32Array;
  /** In bytes. */
  readonly sizes: Uint32Array;
  /** Which of the endings of the field it has. */
  readonly endings: Uint8Array;
}

export interface ShardIndex {
  readonly count: number;
  /** By the order of the fields. */
  readonly fields: readonly IndexedField[];
  /** Examples that were left out, since they lack a member. */
  readonly dropped: number;
}

export interface TarIndexing {
  /** For each field the endings that it may have, in lower case: `['jpg', 'jpeg']`. */
  readonly endings: readonly (readonly string[])[];
  /** The name of each field, for messages. */
  readonly names: readonly string[];
  /** Leaves out examples that lack a member, instead of an error. */
  readonly drops: boolean;
  /** Default: `LIMITS.tarShardExamplesMax`. */
  readonly examplesMax?: number;
}

interface FoundExample {
  readonly key: string;
  /** By field: its member and the place of the ending; undefined: none yet. */
  readonly members: ({ readonly member: TarMember; readonly ending: number } | undefined)[];
  /** Endings of all its members, for messages. */
  readonly seen: string[];
}

/** The key of an example and the ending of a member; null: it belongs to no example. */
function keyOfMember(name: string): { key: string; ending: string } | null {
  const found = /^((?:.*\/)?[^./][^./]*)\.([^/]*)$/s.exec(name.replace(/^(\.\/)+/, ''));
  return found && { key: found[1]!, ending: found[2]!.toLowerCase() };
}

/** @throws DownpourError DP_DATA_CORRUPT as `tarMembers`; a member occurs twice, is missing, too large, or no regular file. */
export async function indexShard(
  file: PositionedFile,
  { endings, names, drops, examplesMax = LIMITS.tarShardExamplesMax }: TarIndexing,
  progress: ReadProgress,
): Promise<ShardIndex> {
  const { path } = file;
  const examples = new Map<string, FoundExample>();
  for await (const member of tarMembers(file)) {
    progress.tell(member.start);
    const own = member.type === 'directory' ? null : keyOfMember(member.name);
    if (own === null) continue;
    const { key, ending } = own;
    let example = examples.get(key);
    if (!example) {
      example = { key, members: endings.map(() => undefined), seen: [] };
      examples.set(key, example);
      if (examples.size > examplesMax) {
        throw corrupt(
          path,
          `it has more than ${examplesMax} examples; allowed: ${examplesMax} in one shard. Write several shards`,
        );
      }
    }
    if (example.seen.includes(ending)) {
      throw corrupt(
        path,
        `member '${member.name}' occurs twice; each example has one of each kind: write the shard anew`,
      );
    }
    example.seen.push(ending);
    endings.forEach((some, field) => {
      const at = some.indexOf(ending);
      if (at < 0) return;
      mustBeReadable(path, member);
      const before = example.members[field];
      if (before) {
        throw corrupt(
          path,
          `example '${key}' has two members for '${names[field]}': ${endings[field]![before.ending]} and ${ending}; name the one that is meant in \`member\``,
        );
      }
      example.members[field] = { member, ending: at };
    });
  }
  if (examples.size === 0) {
    throw corrupt(
      path,
      "it has no examples: no member has a name such as '0001.jpg', a key and an ending",
    );
  }
  return packed(path, [...examples.values()], { endings, names, drops });
}

function mustBeReadable(path: string, { name, size, type }: TarMember): void {
  if (type === 'link' || type === 'symlink') {
    throw corrupt(
      path,
      `member '${name}' is a link to another file; write the shard with tar --dereference --hard-dereference`,
    );
  }
  if (type !== 'file' && type !== 'contiguous-file') {
    throw corrupt(
      path,
      `member '${name}' is ${type === null ? 'a sparse file or of a kind that is not read' : `a ${type}`}; allowed: regular files, written without --sparse`,
    );
  }
  if (size > LIMITS.tarMemberBytesMax) {
    throw corrupt(path, `member '${name}' has ${size} bytes; allowed: ${LIMITS.tarMemberBytesMax}`);
  }
}

function packed(
  path: string,
  examples: readonly FoundExample[],
  { endings, names, drops }: TarIndexing,
): ShardIndex {
  const whole: FoundExample[] = [];
  for (const example of examples) {
    const lacking = example.members.indexOf(undefined);
    if (lacking < 0) whole.push(example);
    else if (!drops) {
      throw corrupt(
        path,
        `example '${example.key}' has no member '${example.key}.${endings[lacking]!.join("' or '.")}' for '${names[lacking]}'; it has ${example.seen.join(', ')}. Add it, or set missing: 'drop' to leave such examples out`,
      );
    }
  }
  const fields = endings.map((_, field): IndexedField => {
    const own = whole.map(({ members }) => members[field]!);
    return {
      blocks: Uint32Array.from(own, ({ member }) => member.start / TAR_BLOCK_BYTES),
      sizes: Uint32Array.from(own, ({ member }) => member.size),
      endings: Uint8Array.from(own, ({ ending }) => ending),
    };
  });
  return { count: whole.length, fields, dropped: examples.length - whole.length };
}

/** The name of the member that begins at a byte: names are not kept, since only messages need them. */
export async function memberNameAt(file: PositionedFile, start: number): Promise<string> {
  for await (const member of tarMembers(file)) if (member.start === start) return member.name;
  return `at byte ${start}`;
}

/** An index as JSON, to be kept. */
export const indexToJson = ({ count, fields, dropped }: ShardIndex): unknown => ({
  ...{ count, dropped },
  fields: fields.map(({ blocks, sizes, endings }) =>
    [blocks, sizes, endings].map(({ buffer, byteOffset, byteLength }) =>
      Buffer.from(buffer, byteOffset, byteLength).toString('base64'),
    ),
  ),
});

/** @returns null: it is none. */
export function indexFromJson(json: unknown): ShardIndex | null {
  const { count, dropped, fields } = json as { count: number; dropped: number; fields: string[][] };
  if (!Number.isInteger(count) || !Array.isArray(fields)) return null;
  const read = fields.map((texts): IndexedField => {
    const [blocks, sizes, endings] = texts.map((text) =>
      Uint8Array.from(Buffer.from(text, 'base64')),
    );
    return {
      blocks: new Uint32Array(blocks!.buffer),
      sizes: new Uint32Array(sizes!.buffer),
      endings: endings!,
    };
  });
  const isWhole = read.every(({ blocks, sizes, endings }) =>
    [blocks, sizes, endings].every(({ length }) => length === count),
  );
  return isWhole ? { count, dropped, fields: read } : null;
}
