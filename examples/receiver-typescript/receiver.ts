// A receiving API with Upstash's own SDK: takes QStash's deliveries, checks that they are QStash's,
// and says which event came.
//
//   npm install && npm run build
//   QSTASH_CURRENT_SIGNING_KEY=sig_… QSTASH_NEXT_SIGNING_KEY=sig_… npm start
//
// Without the variables it takes the keys of the development server (`strapi-qstash dev`).
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Receiver } from '@upstash/qstash';

const receiver = new Receiver({
  currentSigningKey: process.env.QSTASH_CURRENT_SIGNING_KEY ?? 'sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r',
  nextSigningKey: process.env.QSTASH_NEXT_SIGNING_KEY ?? 'sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs',
});

// No message of QStash's largest plan is larger.
const LARGEST_BODY = 50 * 1024 * 1024;

class TooLarge extends Error {}

async function read(request: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of request as AsyncIterable<Buffer>) {
    size += piece.length;
    if (size > LARGEST_BODY) {
      throw new TooLarge();
    }
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString('utf8');
}

// A 2xx tells QStash that the event is dealt with. Anything else, and it tries again.
async function answer(request: IncomingMessage): Promise<number> {
  const header = (name: string) => String(request.headers[name] ?? '');
  try {
    // The signature is over the bytes: check it before anything reads them as JSON, and never over
    // what JSON.stringify makes of them.
    const body = await read(request);
    await receiver.verify({ signature: header('upstash-signature'), body, clockTolerance: 5 });
    // The id is the same for all deliveries of an event: remember it to drop repeats.
    console.log(`${header('x-strapi-event')} ${header('webhook-id')}: ${Buffer.byteLength(body)} bytes, signature verified`);
    return 200;
  } catch (error) {
    console.log(`refused: ${error instanceof Error ? error.message : String(error)}`);
    return error instanceof TooLarge ? 413 : 401;
  }
}

const server = createServer((request, response) => {
  void answer(request).then((status) => response.writeHead(status).end());
});
const [host, port] = (process.env.LISTEN ?? '127.0.0.1:3000').split(':');
server.listen(Number(port), host, () => {
  console.log(`Receiving at http://${host}:${(server.address() as AddressInfo).port}`);
});
