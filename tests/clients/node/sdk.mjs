// The TypeScript SDK of the line 1, `@modelcontextprotocol/sdk`, which begins with `initialize`.

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { ReadBuffer, serializeMessage } from '@modelcontextprotocol/sdk/shared/stdio.js';
import { ResourceUpdatedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';

import { transport } from './transport.mjs';

export async function connect(spec, updated) {
  const client = new Client({ name: 'tests', version: '1' });
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => updated(params.uri));
  const wire = transport(spec, { StdioClientTransport, StreamableHTTPClientTransport, ReadBuffer, serializeMessage });
  let version;
  const tell = wire.setProtocolVersion?.bind(wire);
  wire.setProtocolVersion = (negotiated) => {
    version = negotiated;
    tell?.(negotiated);
  };
  await client.connect(wire);
  return {
    client,
    version,
    callTool: (params, options) => client.callTool(params, undefined, options),
    close: async () => {
      await wire.terminateSession?.();
      await client.close();
    },
  };
}
