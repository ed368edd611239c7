import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { DownpourError, errorText } from '../../../shared/errors.ts';
import type { TokensReading } from '../../../shared/reading.ts';
import { describe } from '../described.ts';
import { corrupt, readDataFile } from '../files.ts';
import { checkPath } from '../reader-options.ts';
import type { Tokenizer } from './vocabulary.ts';

/** The door to @huggingface/tokenizers, an optional package that reads any `tokenizer.json`. */

/** A variable, so that a compiler does not need the package. */
const PACKAGE: string = '@huggingface/tokenizers';

/** What is used of the package. */
interface FileTokenizer {
  encode(
    text: string,
    options: { readonly add_special_tokens: boolean },
  ): {
    readonly ids: (number | undefined)[];
  };
  decode(ids: number[], options: { readonly skip_special_tokens: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(withAdded: boolean): Map<string, number>;
}
type Constructor = new (tokenizer: object, config: object) => FileTokenizer;

let loading: Promise<Constructor> | undefined;

/** @throws DownpourError DP_DATA_MISSING: the package is not installed. */
async function tokenizerPackage(path: string): Promise<Constructor> {
  try {
    loading ??= import(PACKAGE).then(({ Tokenizer }) => Tokenizer as Constructor);
    return await loading;
  } catch (error) {
    loading = undefined;
    throw new DownpourError(
      'DP_DATA_MISSING',
      `${path} is the file of a tokenizer, which the package ${PACKAGE} reads. It is not installed here (${errorText(error).split('\n')[0]}). Run npm install ${PACKAGE} in Downpour's folder, or use a vocabulary: tokens: 'words'`,
      { cause: error },
    );
  }
}

const JSON_BYTES_MAX = 2 ** 28;
/** Beside the tokenizer, if there is one. */
const CONFIG = 'tokenizer_config.json';
/** Names of a token for padding. */
const PADDINGS = /^(?:\[PAD\]|<pad>|<\|pad\|>|<blank>)$/i;

/**
 * A tokenizer from its `tokenizer.json`, and the `tokenizer_config.json` beside it if there is one. No special tokens are
 * added to a text. If token 0 is not for padding, all tokens are one higher than in the file, so that 0 can fill up texts.
 *
 *     textWindows({ file: 'book.txt', tokens: await tokenizerFile('gpt2/tokenizer.json'), window: 64 })
 *
 * @throws DownpourError DP_DATA_MISSING: no such file, or the package is not installed; DP_DATA_CORRUPT: it is something else.
 */
export async function tokenizerFile(path: string): Promise<Required<Tokenizer>> {
  checkPath('tokenizerFile', path);
  const Tokenizer = await tokenizerPackage(path);
  const hash = createHash('sha256');
  const given = await readJson(path, hash);
  const beside = join(dirname(path), CONFIG);
  const config = existsSync(beside) ? await readJson(beside, hash) : {};
  let tokenizer: FileTokenizer;
  try {
    tokenizer = new Tokenizer(given, config);
  } catch (cause) {
    throw corrupt(path, `it is no tokenizer that can be read: ${errorText(cause)}`, cause);
  }
  const count = [...tokenizer.get_vocab(true).values()].reduce(
    (most, id) => Math.max(most, id),
    -1,
  );
  if (count < 0) throw corrupt(path, 'its vocabulary is empty');
  const shift = PADDINGS.test(tokenizer.id_to_token(0) ?? '') ? 0 : 1;
  // The package gives no number for a word that a model of whole words does not have.
  const { unk_token: name } = (given as { model?: { unk_token?: unknown } }).model ?? {};
  const unknown = typeof name === 'string' ? tokenizer.token_to_id(name) : undefined;
  const kept: TokensReading = {
    tokens: 'tokenizer',
    size: count + 1 + shift,
    tokenizer: { file: resolve(path), sha256: hash.digest('hex') },
  };
  return {
    ...{ kept, size: kept.size },
    encode: (text) => {
      const { ids } = tokenizer.encode(text, { add_special_tokens: false });
      return Int32Array.from(ids, (id) => {
        const known = id ?? unknown;
        if (known !== undefined) return known + shift;
        throw corrupt(
          path,
          `it has no token for a part of ${describe(text)}, and no unk_token: use the tokenizer that fits the text`,
        );
      });
    },
    decode: (tokens) => {
      const ids = Array.from(tokens, (token) => token - shift).filter((id) => id >= 0);
      return tokenizer.decode(ids, { skip_special_tokens: true });
    },
  };
}

/**
 * The tokenizer that a run was trained with.
 * @param path where its file is now; default: where it was @throws DownpourError DP_DATA_MISMATCH: it is another one.
 */
export async function tokenizerLike(
  { tokenizer }: TokensReading,
  path = tokenizer!.file,
): Promise<Required<Tokenizer>> {
  const { sha256 } = tokenizer!;
  const own = await tokenizerFile(path);
  const seen = own.kept.tokenizer!.sha256;
  if (seen === sha256) return own;
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `${path} has the SHA-256 ${seen}, but the run was trained with the tokenizer ${sha256}: restore the file (and the ${CONFIG} beside it), or name it by --tokenizer`,
  );
}

async function readJson(path: string, hash: { update(bytes: Buffer): unknown }): Promise<object> {
  const bytes = await readDataFile(path, { bytesMax: JSON_BYTES_MAX });
  hash.update(bytes);
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'));
    if (typeof value === 'object' && value !== null) return value;
  } catch {
    // Said below.
  }
  throw corrupt(path, 'it is no JSON object, as the file of a tokenizer is');
}
