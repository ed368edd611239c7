import { type MessagePort, Worker } from 'node:worker_threads';
import { type CheckpointInput, pruneCheckpoints, writeCheckpoint } from '../../files/checkpoint.ts';
import type { CheckpointManifest } from '../../files/manifest.ts';
import type { CheckpointTensor, StreamedTensor } from '../../files/tensor-file.ts';
import { DownpourError, type ErrorCode, errorCode, errorText } from '../../shared/errors.ts';
import { ownEntry } from '../../shared/own-files.ts';

/**
 * Checkpoints are hashed, written and pruned by a thread of their own, so that no push waits for it: a gigabyte
 * takes a core half a second to hash. Tensors in shared memory are read where they are, others are copied to
 * the thread; what is streamed passes on piece by piece, the next one when the last is on disk.
 */

const THREAD = ownEntry('checkpoint-thread', new URL('thread.js', import.meta.url));

type Pruned = Parameters<typeof pruneCheckpoints>[1];

/** What `writeCheckpoint` and `pruneCheckpoints` do, wherever. They throw what those throw. */
export interface CheckpointWriter {
  write(folder: string, input: CheckpointInput): Promise<CheckpointManifest>;
  prune(folder: string, options: Pick<Pruned, 'keepLast'>): Promise<readonly string[]>;
  close(): Promise<void>;
}

/** Writes in this thread. */
export const directWriter: CheckpointWriter = {
  write: writeCheckpoint,
  prune: pruneCheckpoints,
  close: async () => {},
};

/** A tensor as it travels: with its values, or to be asked for. */
type SentTensor = CheckpointTensor | Omit<StreamedTensor, 'pieces'>;
type WriterRequest =
  | { readonly id: number; readonly folder: string; readonly write: SentInput }
  | { readonly id: number; readonly folder: string; readonly prune: Pick<Pruned, 'keepLast'> }
  /** The next piece of a streamed tensor; null: there is none. */
  | { readonly id: number; readonly piece: Uint8Array | null }
  /** It cannot be had: the write fails. */
  | { readonly id: number; readonly failed: true };
type SentInput = Omit<CheckpointInput, 'tensors'> & { readonly tensors: readonly SentTensor[] };
type WriterReply =
  | { readonly id: number; readonly done: unknown }
  | { readonly id: number; readonly error: { readonly code: ErrorCode; readonly message: string } }
  /** Wants the next piece of a streamed tensor. */
  | { readonly id: number; readonly next: number };

interface PendingWrite {
  readonly tensors: readonly (CheckpointTensor | StreamedTensor)[];
  readonly reading: Map<number, AsyncIterator<Uint8Array>>;
  /** Why a piece could not be had. */
  failure: unknown;
  resolve(done: never): void;
  reject(error: unknown): void;
}

/** Writes in a thread, which begins with the first checkpoint, and anew when it has died. */
export class ThreadedWriter implements CheckpointWriter {
  #thread: Worker | null = null;
  readonly #pending = new Map<number, PendingWrite>();
  #asked = 0;

  write(folder: string, { tensors, ...input }: CheckpointInput): Promise<CheckpointManifest> {
    const sent = tensors.map((tensor): SentTensor => {
      if ('values' in tensor) return tensor;
      const { name, shape } = tensor;
      return { name, shape };
    });
    return this.#ask((id) => ({ id, folder, write: { ...input, tensors: sent } }), tensors);
  }

  prune(folder: string, { keepLast }: Pick<Pruned, 'keepLast'>): Promise<readonly string[]> {
    return this.#ask((id) => ({ id, folder, prune: { keepLast } }), []);
  }

  /** What is under way fails. */
  async close(): Promise<void> {
    await this.#thread?.terminate();
  }

  #ask<A>(
    question: (id: number) => WriterRequest,
    tensors: readonly (CheckpointTensor | StreamedTensor)[],
  ): Promise<A> {
    const id = ++this.#asked;
    return new Promise<A>((resolve, reject) => {
      this.#pending.set(id, { tensors, reading: new Map(), failure: null, resolve, reject });
      const thread = this.#running();
      // Nothing keeps the process but what is being written.
      thread.ref();
      thread.postMessage(question(id));
    });
  }

  #running(): Worker {
    if (this.#thread) return this.#thread;
    const thread = new Worker(THREAD);
    this.#thread = thread;
    let reason = '';
    thread.on('message', (answer: WriterReply) => this.#answered(thread, answer));
    thread.on('error', (error) => {
      reason = `: ${errorText(error)}`;
    });
    thread.on('exit', () => {
      this.#thread = null;
      const lost = new DownpourError(
        'DP_DISK',
        `the thread that writes checkpoints ended${reason}`,
      );
      for (const { reject } of this.#pending.values()) reject(lost);
      this.#pending.clear();
    });
    return thread;
  }

  #answered(thread: Worker, answer: WriterReply): void {
    const pending = this.#pending.get(answer.id);
    if (!pending) return;
    if ('next' in answer) {
      this.#sendPiece(thread, answer.id, answer.next, pending);
      return;
    }
    this.#pending.delete(answer.id);
    if (this.#pending.size === 0) thread.unref();
    if ('done' in answer) pending.resolve(answer.done as never);
    else {
      const { code, message } = answer.error;
      pending.reject(pending.failure ?? new DownpourError(code, message));
    }
  }

  async #sendPiece(
    thread: Worker,
    id: number,
    index: number,
    pending: PendingWrite,
  ): Promise<void> {
    try {
      const tensor = pending.tensors[index] as StreamedTensor;
      const known = pending.reading.get(index) ?? tensor.pieces()[Symbol.asyncIterator]();
      pending.reading.set(index, known);
      const { done, value } = await known.next();
      thread.postMessage({ id, piece: done ? null : value } satisfies WriterRequest);
    } catch (error) {
      pending.failure = error;
      thread.postMessage({ id, failed: true } satisfies WriterRequest);
    }
  }
}

/** Inside the thread. */
export function writeWhenAsked(port: MessagePort): void {
  /** Whoever waits for a piece, by the write that it belongs to. */
  const waiting = new Map<
    number,
    { resolve(p: Uint8Array | null): void; reject(e: Error): void }
  >();

  async function* pieces(id: number, index: number): AsyncGenerator<Uint8Array> {
    for (;;) {
      const piece = await new Promise<Uint8Array | null>((resolve, reject) => {
        waiting.set(id, { resolve, reject });
        port.postMessage({ id, next: index } satisfies WriterReply);
      });
      if (!piece) return;
      yield piece;
    }
  }

  async function answer(question: Exclude<WriterRequest, { piece: unknown } | { failed: true }>) {
    const { id, folder } = question;
    try {
      const done =
        'write' in question
          ? await directWriter.write(folder, {
              ...question.write,
              tensors: question.write.tensors.map((tensor, index) =>
                'values' in tensor ? tensor : { ...tensor, pieces: () => pieces(id, index) },
              ),
            })
          : await directWriter.prune(folder, question.prune);
      port.postMessage({ id, done } satisfies WriterReply);
    } catch (error) {
      const told = { code: errorCode(error), message: errorText(error) };
      port.postMessage({ id, error: told } satisfies WriterReply);
    }
  }

  port.on('message', (question: WriterRequest) => {
    if ('folder' in question) answer(question);
    else if ('piece' in question) waiting.get(question.id)?.resolve(question.piece);
    else waiting.get(question.id)?.reject(new Error('a piece of the checkpoint cannot be had'));
  });
}
