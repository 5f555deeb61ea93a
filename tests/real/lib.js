// What the tests with real counterparts share: packages are installed once, in
// ${STRAPI_QSTASH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/strapi-qstash-tests}; Strapi is laid out in
// a temporary folder, started, and driven through its admin API. Everything listens on 127.0.0.1.
// Needs node 20 or later with npm, flock, and a C++ compiler for the first run.
'use strict';
const assert = require('node:assert');
const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '../..');
const CACHE = process.env.STRAPI_QSTASH_CACHE || path.join(process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache'), 'strapi-qstash-tests');
const PACKAGES = {
  name: 'strapi-under-test',
  private: true,
  version: '0.0.0',
  dependencies: {
    '@strapi/strapi': '5.54.0',
    'better-sqlite3': '12.8.0',
    react: '^18.0.0',
    'react-dom': '^18.0.0',
    'react-router-dom': '^6.0.0',
    'styled-components': '^6.0.0',
  },
};
const LONG = 60_000;

const started = Date.now();
const say = (text) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${text}`);
const running = new Set();
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'strapi-qstash-test-'));

// Runs a test to its end, and says last what it returns; its processes end with it, and its logs
// stay only when it failed.
function runTest(main) {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.on(signal, () => end(1));
  }
  main().then(
    (last = 'all green') => end(0, last),
    (error) => {
      console.error(error);
      console.error(`FAILED. The logs are in ${folder}`);
      end(1);
    },
  );
}

// Packages of npm, by name and version, in the cache; the folder that they are in.
function installNpm(name, dependencies) {
  const wanted = JSON.stringify({ name, private: true, version: '0.0.0', dependencies });
  const install = 'printf %s "$2" > package.json; npm install --no-audit --no-fund --loglevel=error';
  return path.join(installOnce(name, wanted, install), 'node_modules');
}

// Packages of PyPI, by name and version; the Python that has them, with their programs beside it.
function installPip(name, ...requirements) {
  const install = 'python3 -m venv . && printf %s "$2" > requirements.txt && bin/pip install --quiet --disable-pip-version-check -r requirements.txt';
  return path.join(installOnce(name, requirements.join('\n'), install), 'bin/python');
}

// Runs a script in a folder of the cache, unless it was done for the same `wanted`.
function installOnce(name, wanted, install) {
  const at = path.join(CACHE, name);
  fs.mkdirSync(at, { recursive: true });
  const script = `
    cd "$1"
    [ "$(cat installed 2> /dev/null)" = "$2" ] && exit
    ${install}
    printf %s "$2" > installed`;
  execFileSync('flock', [`${at}.lock`, 'bash', '-ec', script, 'install', at, wanted], { stdio: 'inherit' });
  return at;
}

// The binary, built if none is given.
function build() {
  if (process.env.STRAPI_QSTASH_BIN) {
    return path.resolve(process.env.STRAPI_QSTASH_BIN);
  }
  execFileSync('cargo', ['build', '--quiet'], { cwd: ROOT, stdio: 'inherit' });
  return path.resolve(ROOT, process.env.CARGO_TARGET_DIR || 'target', 'debug/strapi-qstash');
}

// One test installs at a time; the other waits and finds it done.
function install() {
  const at = path.join(CACHE, 'strapi-5');
  fs.mkdirSync(at, { recursive: true });
  // better-sqlite3 is compiled where no binary can be downloaded, against the headers beside node.
  const prefix = path.dirname(path.dirname(process.execPath));
  const headers = [prefix, '/usr'].find((one) => fs.existsSync(path.join(one, 'include/node/node.h')));
  const script = `
    cd "$1"
    [ -f node_modules/.package-lock.json ] && [ -f node_modules/better-sqlite3/build/Release/better_sqlite3.node ] && exit
    printf '%s' "$2" > package.json
    npm install --legacy-peer-deps --no-audit --no-fund --loglevel=error`;
  execFileSync('flock', [`${at}.lock`, 'bash', '-ec', script, 'install', at, JSON.stringify(PACKAGES, null, 2)], {
    stdio: 'inherit',
    env: { ...process.env, NODE_ENV: '', ...(headers ? { npm_config_nodedir: headers } : {}) },
  });
  say('Strapi is installed');
  return path.join(at, 'node_modules');
}

// A Strapi project with one content type, with or without the admin panel.
function layOut(modules, { panel = false } = {}) {
  const at = path.join(folder, 'app');
  const write = (file, text) => {
    fs.mkdirSync(path.dirname(path.join(at, file)), { recursive: true });
    fs.writeFileSync(path.join(at, file), text);
  };
  const settings = (file, value) => write(`config/${file}.js`, `module.exports = ${JSON.stringify(value)};`);
  const database = path.join(at, 'data.db');
  write('package.json', JSON.stringify(PACKAGES));
  write('public/uploads/.gitkeep', '');
  fs.symlinkSync(modules, path.join(at, 'node_modules'));
  write('config/server.js', `module.exports = { host: '127.0.0.1', port: Number(process.env.PORT), app: { keys: ['not-secret'] } };`);
  settings('database', { connection: { client: 'sqlite', connection: { filename: database }, useNullAsDefault: true } });
  settings('admin', {
    auth: { secret: 'not-secret', cookie: { secure: false } },
    apiToken: { salt: 'not-secret' },
    transfer: { token: { salt: 'not-secret' } },
    secrets: { encryptionKey: '0123456789abcdef0123456789abcdef' },
    serveAdminPanel: panel,
  });
  const middlewares = ['errors', 'security', 'cors', 'query', 'body', 'session', 'favicon', 'public'];
  const limits = { jsonLimit: '16mb' }; // an entry may be larger than Strapi takes by itself
  settings('middlewares', middlewares.map((name) => ({ name: `strapi::${name}`, config: name === 'body' ? limits : {} })));
  write('src/api/article/content-types/article/schema.json', JSON.stringify({
    kind: 'collectionType',
    collectionName: 'articles',
    info: { singularName: 'article', pluralName: 'articles', displayName: 'Article' },
    options: { draftAndPublish: true },
    attributes: { title: { type: 'string' }, body: { type: 'text' } },
  }));
  return {
    write,
    buildPanel: (port) => execFileSync(process.execPath, ['node_modules/@strapi/strapi/bin/strapi.js', 'build'], {
      cwd: at,
      env: { ...withoutSettings(), PORT: String(port), STRAPI_TELEMETRY_DISABLED: 'true' },
      stdio: 'inherit',
    }),
    use: (file, as = 'index.js') => fs.copyFileSync(file, path.join(at, 'src', as)),
    start: (settings, port) => startStrapi(at, settings, port),
    sql(text) {
      const db = new (require(path.join(modules, 'better-sqlite3')))(database);
      db.exec(text);
      db.close();
    },
  };
}

async function startStrapi(at, settings, port) {
  const env = { ...withoutSettings(), ...settings, PORT: String(port), STRAPI_TELEMETRY_DISABLED: 'true' };
  const child = run(process.execPath, ['node_modules/@strapi/strapi/bin/strapi.js', 'start'], { cwd: at, env }, `strapi-${port}`);
  const base = `http://127.0.0.1:${port}`;
  await until('Strapi to answer', async () => {
    assert.strictEqual(child.exitCode, null, 'Strapi ended');
    return fetch(`${base}/_health`).then((answer) => answer.ok, () => false);
  });
  let token;
  const call = async (method, url, body) => {
    const headers = { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(base + url, { method, headers, body: body && JSON.stringify(body) });
    return { status: answer.status, body: await answer.json().catch(() => null) };
  };
  const ok = async (...request) => {
    const { status, body } = await call(...request);
    assert(status < 300, `${request[0]} ${request[1]}: ${status} ${JSON.stringify(body)}`);
    return body.data;
  };
  const account = { email: 'admin@example.com', password: 'Passw0rd!x' };
  const { hasAdmin } = await ok('GET', '/admin/init');
  const session = hasAdmin
    ? await ok('POST', '/admin/login', account)
    : await ok('POST', '/admin/register-admin', { ...account, firstname: 'Ada', lastname: 'Admin' });
  token = session.accessToken || session.token;
  const articles = '/content-manager/collection-types/api::article.article';
  return {
    call,
    ok,
    kill: () => child.kill('SIGKILL'),
    webhooks: () => ok('GET', '/admin/webhooks'),
    article: () => ok('POST', `${articles}/actions/publish`, { title: 'News' }),
    user: async () => {
      const [role] = await ok('GET', '/admin/roles');
      await ok('POST', '/admin/users', { firstname: 'Grace', email: `grace-${Date.now()}@example.com`, roles: [role.id] });
    },
    trigger: async () => {
      const [webhook] = await ok('GET', '/admin/webhooks');
      assert.strictEqual((await ok('POST', `/admin/webhooks/${webhook.id}/trigger`, {})).statusCode, 200);
    },
    stop: () => stop(child),
  };
}

// The environment without what would reach the sidecar or the printed file by accident.
function withoutSettings() {
  const entries = Object.entries(process.env).filter(([name]) => !/^(STRAPI_QSTASH_|QSTASH_|NODE_ENV$)/.test(name));
  return Object.fromEntries(entries);
}

// A process whose log is in the folder.
function run(program, args, options, name) {
  const log = fs.openSync(path.join(folder, `${name}.log`), 'a');
  const { stdin = 'ignore', stdout = log, ...others } = options;
  const child = spawn(program, args, { ...others, stdio: [stdin, stdout, log] });
  fs.closeSync(log);
  running.add(child);
  child.on('exit', () => running.delete(child));
  return child;
}

async function stop(child) {
  child.kill('SIGTERM');
  await until('a process to end', () => child.exitCode !== null || child.signalCode !== null);
}

async function until(what, condition, progress = () => '') {
  const deadline = Date.now() + LONG;
  while (!(await condition())) {
    assert(Date.now() < deadline, `waited too long for ${what} ${progress()}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

function freePort() {
  return new Promise((done, failed) => {
    const server = net.createServer().on('error', failed);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

function end(code, last) {
  for (const child of running) {
    child.kill('SIGKILL');
  }
  if (code === 0) {
    fs.rmSync(folder, { recursive: true });
    console.log(last);
  }
  process.exit(code);
}

module.exports = { ROOT, build, folder, freePort, install, installNpm, installPip, layOut, run, runTest, say, stop, until, withoutSettings };
