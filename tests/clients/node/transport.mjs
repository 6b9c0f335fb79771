// How the server is reached, with the transports of either SDK, and one over a unix socket, which neither has.

import { connect } from 'node:net';

export function transport(spec, { StdioClientTransport, StreamableHTTPClientTransport, ReadBuffer, serializeMessage }) {
  switch (spec.transport) {
    case 'http': {
      const requestInit = { headers: { Authorization: `Bearer ${spec.token}` } };
      return new StreamableHTTPClientTransport(new URL(spec.url), { requestInit });
    }
    case 'unix':
      return new UnixTransport(spec.socket, new ReadBuffer(), serializeMessage);
    default: {
      const [command, ...args] = spec.command;
      return new StdioClientTransport({ command, args, env: process.env });
    }
  }
}

class UnixTransport {
  constructor(path, buffer, serialize) {
    Object.assign(this, { path, buffer, serialize });
  }

  async start() {
    this.socket = connect(this.path);
    this.socket.on('data', (chunk) => this.read(chunk));
    this.socket.on('close', () => this.onclose?.());
    await new Promise((resolve, reject) => this.socket.once('connect', resolve).once('error', reject));
    this.socket.on('error', (error) => this.onerror?.(error));
  }

  read(chunk) {
    this.buffer.append(chunk);
    for (let message = this.buffer.readMessage(); message !== null; message = this.buffer.readMessage()) {
      this.onmessage?.(message);
    }
  }

  async send(message) {
    await new Promise((resolve, reject) => {
      this.socket.write(this.serialize(message), (error) => (error ? reject(error) : resolve()));
    });
  }

  async close() {
    await new Promise((resolve) => this.socket.end(resolve));
  }
}
