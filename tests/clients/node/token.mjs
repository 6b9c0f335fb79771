// Sends the token in MCPTRACE_TOKEN with every request that has none: for programs that have no option for it. `node --import ./token.mjs`.

import http from 'node:http';
import { syncBuiltinESMExports } from 'node:module';

import { getGlobalDispatcher, setGlobalDispatcher } from 'undici';

const token = ['authorization', `Bearer ${process.env.MCPTRACE_TOKEN}`];

function withToken(headers) {
  if (Array.isArray(headers)) return [...headers, ...token];
  return { ...(headers?.[Symbol.iterator] ? Object.fromEntries(headers) : headers), [token[0]]: token[1] };
}

const send = (dispatch) => (options, handler) => dispatch({ ...options, headers: withToken(options.headers) }, handler);
setGlobalDispatcher(getGlobalDispatcher().compose(send));

const request = http.request;
http.request = (...words) => {
  const asked = request(...words);
  if (!asked.hasHeader(token[0])) asked.setHeader(...token);
  return asked;
};
syncBuiltinESMExports();
