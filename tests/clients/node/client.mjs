// The TypeScript SDK of the line 2, `@modelcontextprotocol/client`, which asks the server what it speaks.

import { Client, ReadBuffer, StreamableHTTPClientTransport, serializeMessage } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';

import { transport } from './transport.mjs';

export async function connect(spec, updated) {
  const client = new Client({ name: 'tests', version: '1' }, { versionNegotiation: { mode: spec.era } });
  client.setNotificationHandler('notifications/resources/updated', ({ params }) => updated(params.uri));
  const wire = transport(spec, { StdioClientTransport, StreamableHTTPClientTransport, ReadBuffer, serializeMessage });
  await client.connect(wire);
  return {
    client,
    version: client.getNegotiatedProtocolVersion(),
    callTool: (params, options) => client.callTool(params, options),
    close: () => client.close(),
  };
}
