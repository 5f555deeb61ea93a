// What a sidecar in an empty root needs around it, on this machine: a QStash behind TLS with a chain
// of its own (root, intermediate, server), and a name server that knows it. Needs openssl, and root
// for port 53.
'use strict';
const { execFileSync } = require('node:child_process');
const dgram = require('node:dgram');
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const path = require('node:path');

const NAME = 'qstash.test';
const NAME_SERVER = '127.53.0.1';

// Makes the chain; what the server presents does not hold the root, as it is with public ones.
function makeChain(at) {
  fs.mkdirSync(at, { recursive: true });
  const openssl = (...args) => execFileSync('openssl', args, { cwd: at, stdio: ['ignore', 'ignore', 'pipe'] });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const authority = 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n';
  fs.writeFileSync(path.join(at, 'authority.ext'), authority);
  fs.writeFileSync(path.join(at, 'server.ext'), `basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:${NAME}\n`);
  const sign = (name, subject, by, extensions) => {
    openssl('req', ...key, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', `/CN=${subject}`);
    const signer = by ? ['-CA', `${by}.pem`, '-CAkey', `${by}.key`, '-CAcreateserial'] : ['-signkey', `${name}.key`];
    openssl('x509', '-req', '-in', `${name}.csr`, ...signer, '-days', '2', '-extfile', extensions, '-out', `${name}.pem`);
  };
  sign('root', 'Root of the test', null, 'authority.ext');
  sign('intermediate', 'Intermediate of the test', 'root', 'authority.ext');
  sign('server', NAME, 'intermediate', 'server.ext');
  const read = (file) => fs.readFileSync(path.join(at, file), 'utf8');
  return { root: read('root.pem'), key: read('server.key'), cert: read('server.pem') + read('intermediate.pem') };
}

// Takes every publish; `published` has what came, in order.
async function startQstash(chain) {
  const published = [];
  const server = https.createServer({ key: chain.key, cert: chain.cert }, (request, answer) => {
    const pieces = [];
    request.on('data', (piece) => pieces.push(piece));
    request.on('end', () => {
      published.push({ url: request.url, headers: request.headers, body: Buffer.concat(pieces) });
      answer.setHeader('content-type', 'application/json');
      answer.end(JSON.stringify([{ messageId: `msg_${published.length}` }]));
    });
  });
  await new Promise((done, failed) => server.on('error', failed).listen(0, '127.0.0.1', done));
  return {
    published,
    url: `https://${NAME}:${server.address().port}`,
    stop: () => new Promise((done) => { server.close(done); server.closeAllConnections(); }),
  };
}

// Knows one name; `asked` has the names that came.
async function startNameServer() {
  const asked = [];
  const socket = dgram.createSocket('udp4');
  socket.on('message', (query, from) => {
    const labels = [];
    let at = 12;
    while (query[at]) {
      labels.push(query.toString('ascii', at + 1, at + 1 + query[at]));
      at += query[at] + 1;
    }
    const question = query.subarray(12, at + 5);
    const isAddress = query.readUInt16BE(at + 1) === 1; // an A record
    const name = labels.join('.').toLowerCase();
    asked.push(name);
    const known = name === NAME;
    const head = Buffer.from(query.subarray(0, 12));
    head.writeUInt16BE(known ? 0x8580 : 0x8583, 2); // an answer with authority; or no such name
    const records = known && isAddress ? [Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1])] : [];
    for (const [offset, count] of [[4, 1], [6, records.length], [8, 0], [10, 0]]) {
      head.writeUInt16BE(count, offset);
    }
    socket.send(Buffer.concat([head, question, ...records]), from.port, from.address);
  });
  await new Promise((done, failed) => socket.on('error', failed).bind(53, NAME_SERVER, done));
  return { asked, stop: () => socket.close() };
}

// A webhook as Strapi sent it.
function captured() {
  const bytes = fs.readFileSync(path.join(__dirname, '../fixtures/strapi/entry.publish.http'));
  const end = bytes.indexOf('\r\n\r\n');
  const lines = bytes.subarray(0, end).toString('latin1').split('\r\n').slice(1);
  const head = Object.fromEntries(lines.map((line) => line.split(/: ?(.*)/s)).filter(([name]) => !/^(host|connection|content-length|authorization)$/i.test(name)));
  return { head, body: bytes.subarray(end + 4) };
}

function post(port, headers, body) {
  return new Promise((done, failed) => {
    const request = http.request({ port, host: '127.0.0.1', method: 'POST', path: '/webhook', headers, agent: false }, (answer) => {
      answer.resume().on('end', () => done(answer.statusCode));
    });
    request.on('error', failed).end(body);
  });
}

// Flags that let `dev` listen on free ports, but for the flags that are given.
function onFreePorts(binary, ...given) {
  const help = execFileSync(binary, ['dev', '--help'], { encoding: 'utf8' });
  const flags = new Set([...help.matchAll(/--(?:[a-z]+-)?listen\b/g)].map(([flag]) => flag));
  return [...flags].filter((flag) => !given.includes(flag)).flatMap((flag) => [flag, '127.0.0.1:0']).concat(given);
}

module.exports = { NAME, NAME_SERVER, captured, makeChain, onFreePorts, post, startNameServer, startQstash };
