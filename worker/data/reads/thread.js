// A thread that reads ranges of files, so that neither a slow disk nor many small reads hold up the thread that trains.
// Plain JavaScript without imports of ours: it starts in some milliseconds, with sources and with the built package alike.
import { closeSync, fstatSync, openSync, read, readSync } from 'node:fs';
import { promisify } from 'node:util';
import { parentPort } from 'node:worker_threads';

/** What lies in the memory of the system comes in microseconds. After a read that takes longer, reads go out together. */
const SLOW_MS = 0.5;
const TOGETHER = 8;
/** One read of Node's gives at most 2 GiB. */
const READ_BYTES_MAX = 2 ** 30;

const readSoon = promisify(read);
const versionOf = ({ size, mtimeMs }) => `${size} bytes, ${mtimeMs} ms`;

/** The end of a file is before that of a range. */
class Ended extends Error {
  constructor(at) {
    super();
    this.at = at;
  }
}

/**
 * @param spans the byte of the file at which each range begins, and its length, one after the other
 * @returns the bytes of all ranges, one after the other; or why there are none, in the words of `ReadAnswer`
 */
async function readSpans({ path, version, spans }) {
  let descriptor;
  try {
    descriptor = openSync(path, 'r');
    const changed = changeOf(descriptor, version);
    if (changed) return changed;
    let length = 0;
    for (let i = 1; i < spans.length; i += 2) length += spans[i];
    const bytes = Buffer.allocUnsafeSlow(length);
    await fill(descriptor, spans, bytes);
    return changeOf(descriptor, version) ?? { bytes: bytes.buffer };
  } catch (error) {
    if (error instanceof Ended) return { ended: error.at };
    return { failed: { message: error.message, code: error.code, errno: error.errno } };
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

function changeOf(descriptor, version) {
  const now = versionOf(fstatSync(descriptor));
  return now === version ? undefined : { changed: now };
}

async function fill(descriptor, spans, bytes) {
  let at = 0;
  let isSlow = false;
  let reads = [];
  for (let i = 0; i < spans.length; i += 2) {
    const [start, length] = [spans[i], spans[i + 1]];
    if (isSlow) {
      reads.push(fillSoon(descriptor, bytes, at, start, length));
      if (reads.length === TOGETHER) {
        await allOf(reads);
        reads = [];
      }
    } else {
      const begun = performance.now();
      for (let done = 0; done < length; ) {
        const most = Math.min(length - done, READ_BYTES_MAX);
        const count = readSync(descriptor, bytes, at + done, most, start + done);
        if (count === 0) throw new Ended(start + done);
        done += count;
      }
      isSlow = performance.now() - begun > SLOW_MS;
    }
    at += length;
  }
  await allOf(reads);
}

/** Waits for all, also if one fails: the file must not be closed under the others. */
async function allOf(reads) {
  for (const { status, reason } of await Promise.allSettled(reads)) {
    if (status === 'rejected') throw reason;
  }
}

async function fillSoon(descriptor, bytes, at, start, length) {
  for (let done = 0; done < length; ) {
    const most = Math.min(length - done, READ_BYTES_MAX);
    const { bytesRead } = await readSoon(descriptor, bytes, at + done, most, start + done);
    if (bytesRead === 0) throw new Ended(start + done);
    done += bytesRead;
  }
}

parentPort.on('message', async ({ id, ...task }) => {
  const result = await readSpans(task);
  parentPort.postMessage({ id, result }, result.bytes ? [result.bytes] : []);
});
