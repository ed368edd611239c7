import {
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Access, mayDo, parseTokens, Rate, ROLES } from '../../server/access/access.ts';
import { LIMITS } from '../../shared/limits.ts';
import { isLoopback } from '../../wire/local-socket.ts';

let folder: string;
const opened: Access[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-'));
});
afterEach(() => {
  for (const access of opened.splice(0)) access.close();
  rmSync(folder, { recursive: true });
});

function open(...options: ConstructorParameters<typeof Access>): Access {
  const access = new Access(...options);
  opened.push(access);
  return access;
}
const bearer = (token: string) => `Bearer ${token}`;

describe('tokens', () => {
  test('without any everybody is an operator', () => {
    const access = open();
    expect(access.open).toBe(true);
    expect(access.grant(undefined)).toMatchObject({ role: 'operator' });
    expect(access.own).toBeNull();
  });

  test('have roles, and nothing else is let in', () => {
    const access = open({ token: 'o', workerToken: 'w', observerToken: 'r' });
    expect(access.grant(bearer('o'))).toMatchObject({ role: 'operator' });
    expect(access.grant(bearer('w'))).toMatchObject({ role: 'worker' });
    expect(access.grant(bearer('r'))).toMatchObject({ role: 'observer' });
    for (const given of [
      undefined,
      '',
      'o',
      'Bearer',
      'Bearer ',
      'Basic o',
      'bearer o',
      'Bearer o ',
    ]) {
      expect(access.grant(given), String(given)).toBeNull();
    }
    expect(access.own).toBe('o');
  });

  test('a login stands for its token until its time is over, also after a restart', () => {
    const sources = { token: 'o', observerToken: 'reader-token' };
    const now = 1.7e12;
    const login = open(sources).login('reader-token', now);
    const access = open(sources);
    expect(access.loggedIn(login, now + 1000)).toMatchObject({ role: 'observer' });
    expect(access.loggedIn(login, now + LIMITS.loginSeconds * 1000 - 1)).not.toBeNull();
    expect(access.loggedIn(login, now + LIMITS.loginSeconds * 1000 + 1000)).toBeNull();
    // A clock that was set back by more than a minute: nothing can be said of its age.
    expect(access.loggedIn(login, now - 120_000)).toBeNull();
    expect(open({ token: 'o', observerToken: 'another' }).loggedIn(login, now)).toBeNull();
    expect(login).not.toContain('reader-token');
    expect(open(sources).login('reader-token', now)).not.toBe(login);
  });

  test('a login that was changed anywhere is none', () => {
    const access = open({ token: 'o' });
    const now = 1.7e12;
    const login = access.login('o', now);
    for (let i = 0; i < login.length; i++) {
      const other = login[i] === 'A' ? 'B' : 'A';
      const changed = login.slice(0, i) + other + login.slice(i + 1);
      // The last character of base64 has bits that mean nothing.
      if (i < login.length - 1) expect(access.loggedIn(changed, now), changed).toBeNull();
    }
    for (const text of ['', '.', '..', '...', `${login}.`, 'NaN.a.b', `${login}${login}`]) {
      expect(access.loggedIn(text, now), text).toBeNull();
    }
  });

  test('an operator may do everything, others only what their role says', () => {
    const table = ROLES.map((role) => ROLES.map((needed) => mayDo({ role, holder: 'x' }, needed)));
    expect(ROLES).toEqual(['observer', 'worker', 'operator']);
    expect(table).toEqual([
      [true, false, false],
      [false, true, false],
      [true, true, true],
    ]);
  });

  test('a file is read again: new tokens come, old ones go, several of a role are valid at once', () => {
    const file = join(folder, 'tokens');
    writeFileSync(file, '# of the lab\nworker first\nobserver look dashboard\n');
    const lines: string[] = [];
    const access = open({ tokensFile: file }, (line) => lines.push(line));
    let changes = 0;
    access.changed = () => changes++;
    expect(access.grant(bearer('look'))).toEqual(expect.objectContaining({ holder: 'dashboard' }));
    access.reload();
    expect(changes).toBe(0);
    writeFileSync(file, 'worker first\nworker second\n');
    access.reload();
    expect(access.grant(bearer('first'))?.role).toBe('worker');
    expect(access.grant(bearer('second'))?.role).toBe('worker');
    expect(access.grant(bearer('look'))).toBeNull();
    writeFileSync(file, 'observer second\n');
    access.reload();
    expect(access.grant(bearer('first'))).toBeNull();
    expect(access.grant(bearer('second'))?.role).toBe('observer');
    expect(changes).toBe(2);
    expect(lines.join()).not.toMatch(/first|second/);
  });

  test('a folder has a file for each role, and is read again as mounted secrets change', () => {
    const mount = (version: string, files: Record<string, string>) => {
      mkdirSync(join(folder, version));
      for (const [name, text] of Object.entries(files)) {
        writeFileSync(join(folder, version, name), text);
      }
      // As Kubernetes does: all files change at once, by one link.
      symlinkSync(version, join(folder, 'next'));
      renameSync(join(folder, 'next'), join(folder, 'secret'));
    };
    mount('v1', { operator: 'o1\n', worker: '\nw1\nw2', 'redis-password': 'p' });
    const access = open({ tokensFile: join(folder, 'secret') });
    const roles = (...tokens: string[]) => tokens.map((each) => access.grant(bearer(each))?.role);
    expect(roles('o1', 'w1', 'w2', 'p', '')).toEqual([
      ...['operator', 'worker', 'worker'],
      ...[undefined, undefined],
    ]);
    mount('v2', { operator: 'o1\n', worker: 'w2', observer: 'r' });
    access.reload();
    expect(roles('o1', 'w1', 'w2', 'r')).toEqual(['operator', undefined, 'worker', 'observer']);
    mount('v3', { operator: 'two words of a token' });
    access.reload();
    expect(roles('o1', 'w2', 'r')).toEqual(['operator', 'worker', 'observer']);
    expect(() => open({ tokensFile: join(folder, 'secret') })).toThrow(
      /line 1 of .*operator must be/,
    );
    mount('v4', { token: 'o' });
    expect(() => open({ tokensFile: join(folder, 'secret') })).toThrow(
      /secret has none of the files observer, worker, operator: each holds/,
    );
  });

  test('a file that is damaged or gone changes nothing, one that stays empty lets nobody in', () => {
    const file = join(folder, 'tokens');
    writeFileSync(file, 'worker first\n');
    const lines: string[] = [];
    const access = open({ tokensFile: file }, (line) => lines.push(line));
    writeFileSync(file, 'wroker first\n');
    access.reload();
    unlinkSync(file);
    access.reload();
    expect(access.grant(bearer('first'))?.role).toBe('worker');
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain('line 1');
    writeFileSync(file, '');
    access.reload();
    // Somebody may be writing it.
    expect(access.grant(bearer('first'))?.role).toBe('worker');
    writeFileSync(file, 'worker first\nworker second\n');
    access.reload();
    expect(access.grant(bearer('second'))?.role).toBe('worker');
    writeFileSync(file, '');
    access.reload();
    access.reload();
    expect(access.open).toBe(false);
    expect(access.grant(bearer('first'))).toBeNull();
    expect(access.grant(undefined)).toBeNull();
  });

  test('an operator’s token file is read again too', () => {
    const file = join(folder, 'token');
    writeFileSync(file, 'old\n');
    const access = open({ tokenFile: file });
    writeFileSync(file, 'new\n');
    access.reload();
    expect(access.own).toBe('new');
    expect(access.grant(bearer('old'))).toBeNull();
    expect(access.grant(bearer('new'))?.role).toBe('operator');
  });

  test('a wrong line is named, and no token is shown', () => {
    for (const text of ['admin s3cret', 'worker', 'worker s3cret name more']) {
      expect(() => parseTokens(`\n${text}\n`, 'f'), text).toThrow(/line 2 of f/);
      expect(() => parseTokens(`\n${text}\n`, 'f'), text).not.toThrow(/s3cret/);
    }
    const lines = (count: number) => 'worker t\n'.repeat(count);
    expect(parseTokens(lines(LIMITS.tokenCountMax), 'f')).toHaveLength(LIMITS.tokenCountMax);
    expect(() => parseTokens(lines(LIMITS.tokenCountMax + 1), 'f')).toThrow('at most');
    expect(() => open({ tokensFile: join(folder, 'none') })).toThrow('cannot be read');
  });
});

test('only addresses of this machine are loopback, no names that begin like one', () => {
  for (const host of ['127.0.0.1', '127.9.9.9', 'localhost', '::1', '[::1]', '::ffff:127.0.0.1']) {
    expect(isLoopback(host), host).toBe(true);
  }
  for (const host of ['0.0.0.0', '::', '127.evil.example', '10.0.0.1', '', '127.0.0.1.nip.io']) {
    expect(isLoopback(host), host).toBe(false);
  }
});

describe('a rate', () => {
  test('lets so many through a second, for each holder', () => {
    const rate = new Rate(3);
    const taken = (holder: string, now: number) => [1, 2, 3, 4].map(() => rate.take(holder, now));
    expect(taken('a', 0)).toEqual([true, true, true, false]);
    expect(taken('b', 0)).toEqual([true, true, true, false]);
    expect(taken('a', 334)).toEqual([true, false, false, false]);
    expect(taken('a', 9e6)).toEqual([true, true, true, false]);
  });

  test('lets more through at once than in a second', () => {
    const rate = new Rate(2, 5);
    const taken = (now: number) => [1, 2, 3, 4, 5, 6].filter(() => rate.take('a', now)).length;
    expect(rate.waitSeconds('a', 0)).toBe(0);
    expect(taken(0)).toBe(5);
    expect(rate.waitSeconds('a', 0)).toBe(0.5);
    expect(taken(499)).toBe(0);
    expect(taken(1000)).toBe(2);
    expect(taken(9e6)).toBe(5);
  });

  test('may run into a debt, which ten seconds pay off', () => {
    const rate = new Rate(2, 5);
    rate.charge('a', 5, 0);
    expect(rate.take('a', 0)).toBe(false);
    rate.charge('a', 1e9, 0);
    expect(rate.waitSeconds('a', 0)).toBe(10.5);
    expect(rate.take('b', 0)).toBe(true);
    expect(rate.take('a', 10_499)).toBe(false);
    expect(rate.take('a', 10_501)).toBe(true);
  });

  test('remembers a bounded number of holders', () => {
    const rate = new Rate(1);
    for (let i = 0; i < LIMITS.holderCountMax; i++) expect(rate.take(`a${i}`, 0)).toBe(true);
    expect(rate.take('a1', 0)).toBe(false);
    expect(rate.take('one more', 0)).toBe(true);
    // The one that had asked least recently.
    expect(rate.take('a1', 0)).toBe(false);
    expect(rate.take('a0', 0)).toBe(true);
  });
});
