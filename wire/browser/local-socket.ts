/** In the place of `../local-socket.ts` in a page, which has no unix sockets. */

export const localSocketWanted: typeof import('../local-socket.ts').localSocketWanted = () => false;

export const findLocalSocket: typeof import('../local-socket.ts').findLocalSocket = async () =>
  null;
