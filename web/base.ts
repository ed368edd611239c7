/** Where the server's paths begin, without a slash at the end: it may be part of an app that has others. */
export const BASE = new URL('.', location.href).href.replace(/\/$/, '');
