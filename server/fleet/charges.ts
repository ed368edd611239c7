import type { Connection, FrameHeader } from '../../wire/connection.ts';
import { type Budget, Meter } from '../access/budget.ts';

/**
 * Bytes that nobody asked for cost as much as to read so many of them: to copy them out of the kernel and into memory
 * that grows is not seen by who measures what is done with them.
 */
const UNASKED_BYTES_PER_MS = 2 ** 19;
/** Each of what a worker says when it comes may take so long, ms, at nobody's charge. */
const ENTRY_MS = 1;
/** Close codes of a connection whose messages are none, or not what the protocol has there. */
const FAULTS: ReadonlySet<number> = new Set([1002, 1007, 1009]);

/** What the token of one worker is charged for: messages that nobody asked for, and bytes that are read past. */
export class Charges {
  readonly #meter: Meter;
  readonly #connection: Pick<Connection, 'bytes'>;
  readonly #entered = new Set<string>();
  /** The worker was told to go, and may still send. */
  #isClosing = false;
  /** All that had come when it was last read past. */
  #receivedBytes = 0;
  #isAtFault = false;

  /** @param options as of `Meter`. */
  constructor(options: {
    readonly budget: Budget;
    readonly connection: Pick<Connection, 'bytes'>;
    readonly brakes: Pick<Connection, 'halt' | 'goOn'>;
    readonly now: () => number;
    readonly halted: () => void;
  }) {
    const { brakes, ...others } = options;
    this.#meter = new Meter({ ...others, connection: brakes });
    this.#connection = options.connection;
  }

  /** The connection is not read for a while, since its messages have taken more time than its token may. */
  get stands(): boolean {
    return this.#meter.stands;
  }

  /** The connection ends, or has ended, for what it has sent. */
  get isAtFault(): boolean {
    return this.#isAtFault;
  }

  /** Bytes are looked at from now on. */
  begin(): void {
    this.#meter.begin();
  }

  /** They have been. @param begun they began a message that is not whole yet. */
  read(begun: boolean): void {
    if (begun) this.#meter.begun();
    else if (this.#isClosing) this.#readPast();
    else this.#meter.forgive();
  }

  /** What still comes to a connection that is being closed is for nothing. */
  #readPast(): void {
    const { received } = this.#connection.bytes;
    this.#meter.owe((received - this.#receivedBytes) / UNASKED_BYTES_PER_MS);
    this.#receivedBytes = received;
    this.#meter.charge();
  }

  /** A message was work that the server asked for. */
  forgive(): void {
    this.#meter.forgive();
  }

  /** It was not. */
  message(header: FrameHeader): void {
    this.#meter.charge(this.#isEntering(header) ? ENTRY_MS : 0);
  }

  /** What came was no message of the protocol. */
  other(): void {
    this.#meter.charge();
  }

  /** Facts are about to be read: few of them are of use. */
  facts(bytes: number): void {
    this.#meter.owe(bytes / UNASKED_BYTES_PER_MS);
  }

  /** Its first `hello` and `join`: how often those come is limited by handshakes, and a whole cluster sends them at once. */
  #isEntering({ type }: FrameHeader): boolean {
    if (type !== 'hello' && type !== 'join') return false;
    if (this.#entered.has(type)) return false;
    this.#entered.add(type);
    return true;
  }

  /** The connection ends for what it has sent. */
  broken(): void {
    this.#isAtFault = true;
    this.closing();
  }

  /** The worker is told to go. @param code of the close; what it has sent may be why. */
  closing(code: number | null = null): void {
    if (code !== null) this.#isAtFault ||= FAULTS.has(code);
    if (this.#isClosing) return;
    this.#isClosing = true;
    this.#receivedBytes = this.#connection.bytes.received;
  }

  /** The connection is gone. */
  end(): void {
    this.#meter.end();
  }

  /** Nobody waits for its turn any more. */
  leave(): void {
    this.#meter.leave();
  }
}
